# With no traffic and no jobs nothing runs that bills.

variables {
  project_id = "my-project"
  image      = "us-east1-docker.pkg.dev/my-project/goblin/functions@sha256:aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa"
}

override_data {
  target = data.google_project.this
  values = { number = "123456789012" }
}

run "no_instance_is_kept" {
  command = plan

  assert {
    condition     = alltrue([for it in google_cloud_run_v2_service.function : it.scaling[0].min_instance_count == 0 && it.template[0].scaling[0].min_instance_count == 0])
    error_message = "No function keeps an instance."
  }
  assert {
    condition     = toset([for name, it in google_cloud_run_v2_service.function : name if !it.template[0].containers[0].resources[0].cpu_idle]) == toset(["gateway"])
    error_message = "Only the gateway has CPU after its response: what is called each minute would never sleep with it."
  }
  assert {
    condition     = alltrue([for it in google_cloud_scheduler_job.tick : it.http_target[0].uri != local.functions["gateway"].url])
    error_message = "No schedule calls the gateway."
  }
  assert {
    condition     = alltrue([for it in google_cloud_scheduler_job.tick : it.retry_config[0].retry_count == 0])
    error_message = "A failed tick is not repeated: the next minute comes."
  }
}

run "what_costs_while_it_is_off_is_off_by_default" {
  command = plan

  assert {
    condition     = length(google_cloud_run_v2_service.llamacpp) + length(google_compute_instance.ollama) + length(google_billing_budget.month) + length(google_monitoring_alert_policy.alert) == 0
    error_message = "GPU, VM, billing budget and alerts are made when asked for."
  }
}
