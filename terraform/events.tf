locals {
  pushed = { for topic, it in local.cloud.topics : topic => it.function if can(it.function) }
}

resource "google_pubsub_topic" "event" {
  for_each = local.cloud.topics

  name         = each.key
  kms_key_name = var.kms_key
  depends_on   = [google_project_service.api, google_kms_crypto_key_iam_member.agent]
}

resource "google_pubsub_topic" "dead" {
  for_each = local.pushed

  name         = "${each.key}-dead"
  kms_key_name = var.kms_key
  depends_on   = [google_project_service.api, google_kms_crypto_key_iam_member.agent]
}

# A dead topic without a subscription would lose what it is given.
resource "google_pubsub_subscription" "dead" {
  for_each = local.pushed

  name                       = "${each.key}-dead"
  topic                      = google_pubsub_topic.dead[each.key].id
  message_retention_duration = "2678400s"
  retain_acked_messages      = false

  expiration_policy {
    ttl = ""
  }
}

resource "google_pubsub_subscription" "push" {
  for_each = { for topic, function in local.pushed : topic => function if var.image != null }

  name                 = "${each.key}-push"
  topic                = google_pubsub_topic.event[each.key].id
  ack_deadline_seconds = local.cloud.push.ack_deadline_s

  push_config {
    push_endpoint = local.functions[each.value].url

    oidc_token {
      service_account_email = google_service_account.invoker.email
      audience              = local.functions[each.value].url
    }
  }

  retry_policy {
    minimum_backoff = "${local.cloud.push.backoff_s_min}s"
    maximum_backoff = "${local.cloud.push.backoff_s_max}s"
  }

  dead_letter_policy {
    dead_letter_topic     = google_pubsub_topic.dead[each.key].id
    max_delivery_attempts = local.cloud.push.delivery_attempts_max
  }

  # Without this a subscription that is idle for 31 days is deleted.
  expiration_policy {
    ttl = ""
  }

  depends_on = [
    google_cloud_run_v2_service_iam_member.invoker,
    google_pubsub_topic_iam_member.dead,
  ]
}

# Dead-lettering does nothing, silently, without both of these.
resource "google_pubsub_topic_iam_member" "dead" {
  for_each = local.pushed

  topic      = google_pubsub_topic.dead[each.key].name
  role       = "roles/pubsub.publisher"
  member     = local.agents.pubsub
  depends_on = [google_project_service_identity.agent]
}

# A function buries what it would refuse at each delivery, with the reason.
resource "google_pubsub_topic_iam_member" "buries" {
  for_each = local.pushed

  topic  = google_pubsub_topic.dead[each.key].name
  role   = "roles/pubsub.publisher"
  member = google_service_account.function[each.value].member
}

resource "google_pubsub_subscription_iam_member" "dead" {
  for_each = google_pubsub_subscription.push

  subscription = each.value.name
  role         = "roles/pubsub.subscriber"
  member       = local.agents.pubsub
  depends_on   = [google_project_service_identity.agent]
}

# For operators, over HTTP: to list, replay and drop.
resource "google_pubsub_subscription_iam_member" "dead_letters" {
  for_each = merge([
    for name, it in local.functions : {
      for topic in keys(local.pushed) : "${name}/${topic}" => { function = name, topic = topic }
    } if it.dead_letters
  ]...)

  subscription = google_pubsub_subscription.dead[each.value.topic].name
  role         = "roles/pubsub.subscriber"
  member       = google_service_account.function[each.value.function].member
}

resource "google_cloud_scheduler_job" "tick" {
  for_each = { for name, it in local.cloud.schedules : name => it if var.image != null }

  name             = "${var.prefix}-${each.key}"
  region           = var.region
  schedule         = each.value.schedule
  time_zone        = "Etc/UTC"
  attempt_deadline = "${each.value.attempt_deadline_s}s"
  paused           = var.paused

  http_target {
    http_method = "POST"
    uri         = local.functions[each.value.function].url

    oidc_token {
      service_account_email = google_service_account.invoker.email
      audience              = local.functions[each.value.function].url
    }
  }

  # The next tick comes soon enough.
  retry_config {
    retry_count = 0
  }

  depends_on = [google_cloud_run_v2_service_iam_member.invoker]
}
