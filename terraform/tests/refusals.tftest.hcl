# A wrong value is refused with what to do, before anything is planned.

variables {
  project_id = "my-project"
}

override_data {
  target = data.google_project.this
  values = { number = "123456789012" }
}

run "an_image_by_tag" {
  command = plan
  variables {
    image = "us-east1-docker.pkg.dev/my-project/goblin/functions:latest"
  }
  expect_failures = [var.image]
}

run "a_project_by_its_number" {
  command = plan
  variables {
    project_id = "123456789012"
  }
  expect_failures = [var.project_id]
}

run "a_gpu_where_there_is_none" {
  command = plan
  variables {
    gpu = { image = "r/p/llamacpp@sha256:aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa", model = "org/model", region = "us-east1" }
  }
  expect_failures = [var.gpu]
}

run "a_secret_that_no_function_reads" {
  command = plan
  variables {
    secrets = ["OPENAI_KEY"]
  }
  expect_failures = [var.secrets]
}

run "a_secret_among_the_settings" {
  command = plan
  variables {
    settings = { OPENAI_API_KEY = "sk-1" }
  }
  expect_failures = [var.settings]
}

run "an_alert_to_nobody" {
  command = plan
  variables {
    alert_emails = ["ops"]
  }
  expect_failures = [var.alert_emails]
}

run "a_billing_account_by_its_name" {
  command = plan
  variables {
    budget = { billing_account = "mine", amount_per_month = 50 }
  }
  expect_failures = [var.budget]
}

run "a_repository_by_its_name" {
  command = plan
  variables {
    github = { repository_id = "me/goblin" }
  }
  expect_failures = [var.github]
}

run "an_open_console" {
  command = plan
  variables {
    console_members = ["allUsers"]
  }
  expect_failures = [var.console_members]
}

run "a_model_without_its_digest" {
  command = plan
  variables {
    gpu = { model = "org/model", uri = "gs://b/m.gguf" }
  }
  expect_failures = [var.gpu]
}

run "a_callback_topic_by_its_short_name" {
  command = plan
  variables {
    callback_topics = ["app-jobs"]
  }
  expect_failures = [var.callback_topics]
}

run "a_vm_in_another_region" {
  command = plan
  variables {
    ollama = { zone = "us-west1-a", image = "projects/p/global/images/ollama" }
  }
  expect_failures = [var.ollama]
}

run "a_vm_that_stops_before_ollama_is_idle" {
  command = plan
  variables {
    ollama = { zone = "us-east1-c", image = "projects/p/global/images/ollama", idle_min = 5 }
  }
  expect_failures = [var.ollama]
}

run "a_key_without_its_ring" {
  command = plan
  variables {
    kms_key = "my-key"
  }
  expect_failures = [var.kms_key]
}

run "a_prefix_that_makes_names_too_long" {
  command = plan
  variables {
    prefix = "our-goblin"
  }
  expect_failures = [var.prefix]
}

run "an_agent_by_tag" {
  command = plan
  variables {
    agent_image = "ghcr.io/my-organization/goblin-agent:1"
  }
  expect_failures = [var.agent_image]
}

run "every_branch_of_a_repository" {
  command = plan
  variables {
    github = { repository_id = "12345", ref = "refs/heads/*" }
  }
  expect_failures = [var.github]
}
