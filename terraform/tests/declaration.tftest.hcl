# What cloud.json declares is what is planned: no more, no less.

variables {
  project_id = "my-project"
  image      = "us-east1-docker.pkg.dev/my-project/goblin/functions@sha256:aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa"
}

override_data {
  target = data.google_project.this
  values = { number = "123456789012" }
}

run "names" {
  command = plan

  assert {
    condition     = toset(keys(google_pubsub_topic.event)) == toset(keys(local.cloud.topics))
    error_message = "Topics are those of cloud.json."
  }
  assert {
    condition     = toset([for it in google_pubsub_subscription.push : it.name]) == toset([for topic, it in local.cloud.topics : "${topic}-push" if can(it.function)])
    error_message = "Each topic with a function has a push subscription TOPIC-push."
  }
  assert {
    condition     = toset([for it in google_pubsub_topic.dead : it.name]) == toset([for topic, it in local.cloud.topics : "${topic}-dead" if can(it.function)])
    error_message = "Each topic with a function has a dead letter topic TOPIC-dead."
  }
  assert {
    condition     = toset(keys(google_cloud_scheduler_job.tick)) == toset(keys(local.cloud.schedules))
    error_message = "Schedules are those of cloud.json."
  }
  assert {
    condition     = length(google_firestore_index.query) == length(local.cloud.indexes)
    error_message = "Indexes are those of cloud.json."
  }
  assert {
    condition     = toset([for it in google_firestore_field.ttl : "${it.collection}/${it.field}"]) == toset([for it in local.cloud.ttl : "${it.collection}/${it.field}"])
    error_message = "TTL fields are those of cloud.json."
  }
}

run "a_topic_has_what_makes_its_dead_letters_work" {
  command = plan

  assert {
    condition     = toset(keys(google_pubsub_topic_iam_member.dead)) == toset(keys(google_pubsub_topic.dead))
    error_message = "Pub/Sub's agent publishes into each dead topic."
  }
  assert {
    condition     = { for topic, it in google_pubsub_topic_iam_member.buries : it.topic => topic } == { for topic, it in local.cloud.topics : "${topic}-dead" => topic if can(it.function) }
    error_message = "The function of a topic publishes into its dead topic."
  }
  assert {
    condition     = { for topic, it in google_pubsub_subscription_iam_member.dead_letters : topic => it.subscription } == { for topic, it in local.cloud.topics : "jobs/${topic}" => "${topic}-dead" if can(it.function) }
    error_message = "Operators read dead letters through the jobs function, which must subscribe to all of them."
  }

  assert {
    condition     = toset(keys(google_pubsub_subscription_iam_member.dead)) == toset(keys(google_pubsub_subscription.push))
    error_message = "Pub/Sub's agent subscribes to each push subscription."
  }
  assert {
    condition     = alltrue([for it in google_pubsub_subscription.push : it.dead_letter_policy[0].max_delivery_attempts == local.cloud.push.delivery_attempts_max && it.ack_deadline_seconds == local.cloud.push.ack_deadline_s])
    error_message = "Deliveries and deadlines are those of cloud.json."
  }
  assert {
    condition     = alltrue([for it in concat(values(google_pubsub_subscription.push), values(google_pubsub_subscription.dead)) : it.expiration_policy[0].ttl == ""])
    error_message = "No subscription expires."
  }
  assert {
    condition     = toset([for it in google_pubsub_subscription.dead : it.name]) == toset([for it in google_pubsub_topic.dead : it.name])
    error_message = "Each dead topic has a subscription, or it would lose what it is given."
  }
}

run "without_an_image_everything_but_the_functions_is_made" {
  command = plan
  variables {
    image = null
  }

  assert {
    condition     = length(google_cloud_run_v2_service.function) == 0 && length(google_cloud_scheduler_job.tick) == 0 && length(google_pubsub_subscription.push) == 0
    error_message = "No service, schedule or push subscription without an image."
  }
  assert {
    condition     = length(google_pubsub_topic.event) == length(local.cloud.topics) && length(google_service_account.function) > 8
    error_message = "Topics and accounts are made at once."
  }
}

run "a_gpu_waits_for_its_first_image" {
  command = plan
  variables {
    gpu = { model = "org/model" }
  }

  assert {
    condition     = length(google_cloud_run_v2_service.llamacpp) == 0 && !contains(keys(local.env_of["gateway"]), "CLOUDRUN_LLAMACPP_URL")
    error_message = "Without an image there is no GPU service, and no function is sent to it."
  }
}
