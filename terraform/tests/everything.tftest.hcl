# Everything on at once.

variables {
  project_id      = "my-project"
  image           = "us-east1-docker.pkg.dev/my-project/goblin/functions@sha256:aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa"
  alert_emails    = ["ops@example.com"]
  console_members = ["group:ops@example.com"]
  kms_key         = "projects/my-project/locations/us-east1/keyRings/goblin/cryptoKeys/goblin"
  secrets         = ["OPENAI_API_KEY", "ANTHROPIC_API_KEY", "GROQ_API_KEY", "RUNPOD_API_KEY", "VASTAI_API_KEY", "VASTAI_WEBHOOK_SECRET", "FLY_API_TOKEN", "FLY_CHAT_API_KEY", "LLAMACPP_API_KEY", "VAST_SERVER_KEY", "OPENAI_ADMIN_KEY", "ANTHROPIC_ADMIN_KEY"]
  settings        = { GOBLIN_MONTHLY_BUDGET = "200", VASTAI_MONTHLY_BUDGET = "100" }
  bucket          = { cors_origins = ["https://app.example.com"] }
  budget          = { billing_account = "0123AB-4567CD-89EF01", amount_per_month = 200 }
  github          = { repository_id = "12345", connected = "projects/my-project/locations/us-east1/connections/github/repositories/goblin" }
  agent_image     = "ghcr.io/my-organization/goblin-agent@sha256:cccccccccccccccccccccccccccccccccccccccccccccccccccccccccccccccc"
  llamacpp_image  = "r/p/llamacpp@sha256:bbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbb"
  gpu             = { model = "org/model", uri = "gs://b/models/org/model/1.0.0/m.gguf", sha256 = "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa" }
  callback_topics = ["projects/my-project/topics/app-jobs"]
  ollama          = { zone = "us-east1-c", image = "projects/my-project/global/images/ollama" }
}

override_data {
  target = data.google_project.this
  values = { number = "123456789012" }
}

run "plans" {
  command = plan

  assert {
    condition     = local.env_of["gateway"].CLOUDRUN_LLAMACPP_SERVICE == "projects/my-project/locations/us-east4/services/goblin-llamacpp"
    error_message = "A budget names the GPU service in full: it is not in var.region."
  }
  assert {
    condition     = toset(keys(google_cloud_run_v2_service_iam_member.calls_models)) == toset(["gateway", "model_promoted", "serve_promoted"])
    error_message = "Functions with `models` call the GPU service, and no others."
  }
  assert {
    condition     = toset(keys(google_cloud_run_v2_service_iam_member.scales_models)) == toset(["budget_exceeded", "settle_spend"])
    error_message = "Functions with `scales` turn the GPU service off, and no others."
  }
  assert {
    condition     = google_cloud_run_v2_service.llamacpp[0].template[0].scaling[0].min_instance_count == 0
    error_message = "The GPU service sleeps."
  }
  assert {
    condition     = toset([for name, it in google_cloud_run_v2_service.function : name if length(it.template[0].vpc_access) > 0]) == toset(["gateway", "check_health"])
    error_message = "Only functions that talk to Ollama are in its network."
  }
  assert {
    condition     = { for it in google_cloud_run_v2_service.llamacpp[0].template[0].containers[0].env : it.name => it.value }["GOBLIN_LLAMACPP_ALIAS"] == local.env_of["gateway"]["CLOUDRUN_LLAMACPP_MODEL"]
    error_message = "The server answers to the name that the gateway sends."
  }
  assert {
    condition     = toset(keys(google_pubsub_topic_iam_member.callback)) == toset([for name in ["jobs", "job_requested", "checkpoint_saved", "reconcile"] : "${name}/projects/my-project/topics/app-jobs"])
    error_message = "Functions that move jobs may publish to the app's topic."
  }
  assert {
    condition     = strcontains(google_compute_instance.ollama[0].metadata["startup-script"], "-ge 20 ]; then exec poweroff")
    error_message = "The VM powers itself off when idle."
  }
  assert {
    condition     = local.functions["gateway"].url == "https://goblin-gateway-123456789012.us-east1.run.app"
    error_message = "URLs are known before the services exist."
  }
  assert {
    condition     = google_cloud_run_v2_service.llamacpp[0].template[0].containers[0].image == var.llamacpp_image && local.env_of["jobs"].GOBLIN_AGENT_IMAGE == var.agent_image
    error_message = "The GPU service and rented hosts run what the build pushed."
  }
  assert {
    condition     = google_cloudbuild_trigger.main[0].approval_config[0].approval_required && google_cloudbuild_trigger.main[0].substitutions._APPLY == "true"
    error_message = "The trigger applies, after an approval."
  }
  assert {
    condition     = toset([for name in ["llamacpp", "ollama", "invoker", "gateway", "build"] : name if contains(keys(google_service_account_iam_member.build_acts_as), name)]) == toset(["llamacpp", "ollama", "invoker", "gateway", "build"])
    error_message = "The build may run what it deploys."
  }
  assert {
    condition     = alltrue([for it in google_pubsub_topic.event : it.kms_key_name == var.kms_key]) && google_storage_bucket.goblin.encryption[0].default_kms_key_name == var.kms_key
    error_message = "The key encrypts topics and bucket."
  }
}

run "apply" {
  command = apply

  assert {
    condition     = strcontains(output.env, "export GOBLIN_URL='https://goblin-gateway-123456789012.us-east1.run.app'") && strcontains(output.env, "export GOBLIN_BUCKET='my-project-goblin'")
    error_message = "`output env` can be evaluated by a shell."
  }
}

run "a_second_plan_is_empty" {
  command = plan

  assert {
    condition     = output.urls == run.apply.urls && output.env == run.apply.env
    error_message = "Nothing changes the second time."
  }
}
