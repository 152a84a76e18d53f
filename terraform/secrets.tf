# Secrets by name only: their versions are added by hand and are never in the
# state: `printf %s KEY | gcloud secrets versions add NAME --data-file=-`.

locals {
  secret_ids = { for name in local.secret_names : name => "${var.prefix}-${lower(replace(name, "_", "-"))}" }
}

resource "google_secret_manager_secret" "key" {
  for_each = var.secrets

  secret_id = local.secret_ids[each.value]

  replication {
    user_managed {
      replicas {
        location = var.region
      }
    }
  }

  depends_on = [google_project_service.api]
}

resource "google_secret_manager_secret_iam_member" "function" {
  for_each = merge([
    for name, secrets in local.secrets_of : {
      for secret in secrets : "${name}/${secret}" => { function = name, secret = secret }
    }
  ]...)

  secret_id = google_secret_manager_secret.key[each.value.secret].id
  role      = "roles/secretmanager.secretAccessor"
  member    = google_service_account.function[each.value.function].member
}
