# Who can reach what.

variables {
  project_id      = "my-project"
  image           = "us-east1-docker.pkg.dev/my-project/goblin/functions@sha256:aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa"
  console_members = ["user:ann@example.com"]
  secrets         = ["OPENAI_API_KEY", "VASTAI_API_KEY", "VASTAI_WEBHOOK_SECRET", "OPENAI_ADMIN_KEY"]
}

override_data {
  target = data.google_project.this
  values = { number = "123456789012" }
}

run "two_functions_are_public" {
  command = plan

  assert {
    condition     = toset([for name, it in google_cloud_run_v2_service.function : name if it.invoker_iam_disabled]) == toset(["gateway", "jobs"])
    error_message = "Only gateway and jobs are reached without Google's invoker check; their own keys decide."
  }
  assert {
    condition     = toset([for name, it in google_cloud_run_v2_service.function : name if it.iap_enabled]) == toset(["console"])
    error_message = "The console is behind IAP, and nothing else is."
  }
  assert {
    condition     = alltrue([for name, it in google_cloud_run_v2_service.function : it.ingress == "INGRESS_TRAFFIC_INTERNAL_ONLY" if !contains(["gateway", "jobs", "console"], name)])
    error_message = "Functions for events and schedules take traffic from inside only."
  }
}

run "a_stripped_signature_is_believed_only_behind_the_invoker_check" {
  command = plan

  assert {
    condition     = alltrue([for name, env in local.env_of : env.GOBLIN_VERIFY_CALLER == "on" if try(google_cloud_run_v2_service.function[name].invoker_iam_disabled, true) || try(google_cloud_run_v2_service.function[name].iap_enabled, false)])
    error_message = "GOBLIN_VERIFY_CALLER=iam on a function that Google lets anybody call."
  }
  assert {
    condition     = alltrue([for name, env in local.env_of : env.GOBLIN_VERIFY_CALLER == "iam" if contains(keys(google_cloud_run_v2_service_iam_member.invoker), name)])
    error_message = "Behind the invoker check the signature is gone, so it cannot be checked again."
  }
}

run "one_account_may_call_the_private_functions" {
  command = plan

  assert {
    condition     = toset(keys(google_cloud_run_v2_service_iam_member.invoker)) == toset([for name, it in google_cloud_run_v2_service.function : name if !it.invoker_iam_disabled && !it.iap_enabled])
    error_message = "Each private function has the invoker, and the others have none."
  }
  assert {
    condition     = alltrue([for it in google_cloud_run_v2_service_iam_member.invoker : it.role == "roles/run.invoker"])
    error_message = "The invoker may call and no more."
  }
  assert {
    condition     = alltrue([for topic, function in local.pushed : google_pubsub_subscription.push[topic].push_config[0].oidc_token[0].audience == local.functions[function].url])
    error_message = "A push's audience is its function's own URL."
  }
  assert {
    condition     = alltrue([for it in google_cloud_scheduler_job.tick : it.http_target[0].oidc_token[0].audience == it.http_target[0].uri])
    error_message = "A tick's audience is its function's own URL."
  }
}

run "nobody_has_more_than_its_row_says" {
  command = plan

  assert {
    condition     = alltrue([for name, it in google_project_iam_member.firestore : contains(["roles/datastore.user", "roles/datastore.viewer"], it.role)])
    error_message = "In the project a function has a role for Firestore and no other."
  }
  assert {
    condition     = toset(keys(google_service_account_iam_member.signs)) == toset(["jobs", "model_promoted", "serve_promoted"])
    error_message = "Only functions that make signed URLs may sign."
  }
  assert {
    condition     = toset(keys(google_secret_manager_secret_iam_member.function)) == toset(["gateway/OPENAI_API_KEY", "gateway/VASTAI_API_KEY", "check_health/OPENAI_API_KEY", "check_health/VASTAI_API_KEY", "model_promoted/OPENAI_API_KEY", "model_promoted/VASTAI_API_KEY", "serve_promoted/OPENAI_API_KEY", "serve_promoted/VASTAI_API_KEY", "jobs/VASTAI_API_KEY", "jobs/VASTAI_WEBHOOK_SECRET", "job_requested/VASTAI_API_KEY", "checkpoint_saved/VASTAI_API_KEY", "reconcile/VASTAI_API_KEY", "settle_spend/OPENAI_ADMIN_KEY", "settle_spend/VASTAI_API_KEY"])
    error_message = "A function reads the secrets of its groups, as far as they exist."
  }
  assert {
    condition     = alltrue(flatten([for env in values(local.env_of) : [for name in local.secret_names : startswith(lookup(env, name, "secret:"), "secret:")]]))
    error_message = "A service's configuration names secrets and holds none."
  }
}
