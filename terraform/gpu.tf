# llama.cpp on Cloud Run with an L4, which bills from its start until ten
# minutes after the last request. Only functions with `models` may call it.

locals {
  # Any of both may be null, which `coalesce` refuses.
  gpu_image   = try(coalesce(try(var.gpu.image, null), var.llamacpp_image), null)
  has_gpu     = var.gpu != null && local.gpu_image != null
  gpu_service = "${var.prefix}-llamacpp"
  gpu_url     = !local.has_gpu ? null : "https://${local.gpu_service}-${local.project_number}.${var.gpu.region}.run.app"

  gpu_env = !local.has_gpu ? {} : {
    CLOUDRUN_LLAMACPP_URL     = local.gpu_url
    CLOUDRUN_LLAMACPP_MODEL   = var.gpu.model
    CLOUDRUN_LLAMACPP_SERVICE = "projects/${var.project_id}/locations/${var.gpu.region}/services/${local.gpu_service}"
  }

  calls_models  = { for name, it in local.functions : name => it if it.models && local.has_gpu }
  scales_models = { for name, it in local.functions : name => it if it.scales && local.has_gpu }
}

resource "google_service_account" "llamacpp" {
  count = local.has_gpu ? 1 : 0

  account_id   = local.gpu_service
  display_name = "Goblin: llama.cpp, which reads models"
  depends_on   = [google_project_service.api]
}

resource "google_cloud_run_v2_service" "llamacpp" {
  count = local.has_gpu ? 1 : 0

  name                = local.gpu_service
  location            = var.gpu.region
  deletion_protection = false
  # Calls between services count as internal through a VPC only; IAM decides.
  ingress = "INGRESS_TRAFFIC_ALL"

  scaling {
    min_instance_count = 0
  }

  template {
    service_account                  = google_service_account.llamacpp[0].email
    timeout                          = "600s"
    max_instance_request_concurrency = 16
    gpu_zonal_redundancy_disabled    = true

    scaling {
      min_instance_count = 0
      max_instance_count = var.gpu.instances_max
    }

    node_selector {
      accelerator = "nvidia-l4"
    }

    containers {
      image = local.gpu_image

      dynamic "env" {
        for_each = {
          for name, value in {
            GOBLIN_LLAMACPP_ALIAS  = var.gpu.model
            GOBLIN_LLAMACPP_MODEL  = var.gpu.uri
            GOBLIN_LLAMACPP_SHA256 = var.gpu.sha256
          } : name => value if value != null
        }
        content {
          name  = env.key
          value = env.value
        }
      }

      ports {
        container_port = 8080
      }

      resources {
        cpu_idle          = false
        startup_cpu_boost = true
        limits = {
          cpu              = tostring(var.gpu.cpu)
          memory           = "${var.gpu.memory_gib}Gi"
          "nvidia.com/gpu" = "1"
        }
      }

      startup_probe {
        initial_delay_seconds = 5
        period_seconds        = 5
        failure_threshold     = 60
        http_get {
          path = "/health"
        }
      }
    }
  }

  lifecycle {
    # A freeze turns the service off and notes on it what it had; an apply must
    # not turn it on again.
    ignore_changes = [client, client_version, scaling, annotations]
  }

  depends_on = [
    google_service_account_iam_member.build_acts_as,
    google_storage_bucket_iam_member.llamacpp,
  ]
}

resource "google_storage_bucket_iam_member" "llamacpp" {
  count = local.has_gpu && try(var.gpu.uri, null) != null ? 1 : 0

  bucket = google_storage_bucket.goblin.name
  role   = "roles/storage.objectViewer"
  member = google_service_account.llamacpp[0].member
}

# To read whether an update of the service is done.
resource "google_project_iam_member" "scales_models" {
  for_each = local.scales_models

  project = var.project_id
  role    = "roles/run.viewer"
  member  = google_service_account.function[each.key].member
}

resource "google_cloud_run_v2_service_iam_member" "calls_models" {
  for_each = local.calls_models

  name     = google_cloud_run_v2_service.llamacpp[0].name
  location = var.gpu.region
  role     = "roles/run.invoker"
  member   = google_service_account.function[each.key].member
}

resource "google_cloud_run_v2_service_iam_member" "scales_models" {
  for_each = local.scales_models

  name     = google_cloud_run_v2_service.llamacpp[0].name
  location = var.gpu.region
  role     = "roles/run.developer"
  member   = google_service_account.function[each.key].member
}

resource "google_service_account_iam_member" "scales_models" {
  for_each = local.scales_models

  service_account_id = google_service_account.llamacpp[0].name
  role               = "roles/iam.serviceAccountUser"
  member             = google_service_account.function[each.key].member
}
