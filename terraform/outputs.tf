output "bucket" {
  description = "Where models, datasets, outputs and checkpoints lie."
  value       = google_storage_bucket.goblin.name
}

output "env" {
  description = "What the `goblin` command evaluates: eval \"$(terraform output -raw env)\"."
  value = join("\n", [
    for name, value in {
      GCS_PROJECT_ID       = var.project_id
      GOOGLE_CLOUD_PROJECT = var.project_id
      GCS_REGION           = var.region
      GOBLIN_BUCKET        = google_storage_bucket.goblin.name
      GOBLIN_URL           = local.functions["gateway"].url
      GOBLIN_JOBS_URL      = local.functions["jobs"].url
      GOBLIN_PUSH_URL      = local.functions["job_requested"].url
      GOBLIN_INVOKER_EMAIL = google_service_account.invoker.email
    } : "export ${name}='${value}'"
  ])
}

output "images" {
  description = "Where Cloud Build pushes images."
  value       = "${var.region}-docker.pkg.dev/${var.project_id}/${google_artifact_registry_repository.images.repository_id}"
}

output "images_in_use" {
  description = "What image.auto.tfvars.json holds. An apply without it would remove the functions."
  value = {
    for name, image in {
      agent_image    = var.agent_image
      image          = var.image
      llamacpp_image = var.llamacpp_image
    } : name => image if image != null
  }
}

output "secrets" {
  description = "The secrets that need a version, by the environment variable they stand for."
  value       = { for name in var.secrets : name => local.secret_ids[name] }
}

output "urls" {
  description = "Where each function is reached."
  value       = { for name, it in local.functions : name => it.url }
}

output "workload_identity" {
  description = "What the GitHub workflow authenticates with; null without `github`."
  value = var.github == null ? null : {
    provider        = google_iam_workload_identity_pool_provider.github[0].name
    service_account = google_service_account.submit[0].email
  }
}
