# One image serves every function: FUNCTION_TARGET chooses. Its builder is the one of Cloud Run functions.

locals {
  # Secrets that exist and that the function may read.
  secrets_of = {
    for name, it in local.functions : name => setintersection(
      toset(flatten([for group in it.secrets : local.environment.secrets[group]])), var.secrets
    )
  }

  common_env = merge({
    GCS_PROJECT_ID       = var.project_id
    GCS_REGION           = var.region
    GOBLIN_BUCKET        = local.bucket
    GOBLIN_URL           = local.functions["gateway"].url
    GOBLIN_JOBS_URL      = local.functions["jobs"].url
    GOBLIN_INVOKER_EMAIL = google_service_account.invoker.email
  }, var.settings, local.agent_env, local.gpu_env, local.ollama_env)

  agent_env = var.agent_image == null ? {} : { GOBLIN_AGENT_IMAGE = var.agent_image }

  env_of = {
    for name, it in local.functions : name => merge(local.common_env, {
      FUNCTION_TARGET      = it.target
      FUNCTION_SOURCE      = "${name}.py"
      GOBLIN_PUSH_AUDIENCE = it.url
      # Cloud Run has checked the signature and taken it off, but only where its
      # invoker check is on; elsewhere anybody could send such a token.
      GOBLIN_VERIFY_CALLER = it.access == "invoker" ? "iam" : "on"
    }, { for secret in local.secrets_of[name] : secret => "secret:${local.secret_ids[secret]}" })
  }
}

resource "google_service_account" "function" {
  for_each = local.functions

  account_id   = each.value.service
  display_name = "Goblin function ${each.key}"
  depends_on   = [google_project_service.api]
}

resource "google_cloud_run_v2_service" "function" {
  for_each = local.deployed

  name                 = each.value.service
  location             = var.region
  deletion_protection  = false
  ingress              = each.value.access == "invoker" ? "INGRESS_TRAFFIC_INTERNAL_ONLY" : "INGRESS_TRAFFIC_ALL"
  invoker_iam_disabled = each.value.access == "keys"
  iap_enabled          = each.value.access == "iap"

  scaling {
    min_instance_count = 0
  }

  template {
    service_account                  = google_service_account.function[each.key].email
    timeout                          = "${each.value.timeout_s}s"
    max_instance_request_concurrency = each.value.concurrency

    scaling {
      min_instance_count = 0
      max_instance_count = each.value.instances_max
    }

    containers {
      image = var.image

      resources {
        cpu_idle          = !each.value.always_cpu
        startup_cpu_boost = true
        limits            = { cpu = "1", memory = "512Mi" }
      }

      dynamic "env" {
        for_each = local.env_of[each.key]
        content {
          name  = env.key
          value = env.value
        }
      }

      dynamic "startup_probe" {
        for_each = each.value.health != null ? [each.value.health] : []
        content {
          period_seconds    = 1
          failure_threshold = 30
          http_get {
            path = startup_probe.value
          }
        }
      }
    }

    dynamic "vpc_access" {
      for_each = local.reaches_ollama[each.key] ? [1] : []
      content {
        egress = "PRIVATE_RANGES_ONLY"
        network_interfaces {
          network    = google_compute_network.ollama[0].id
          subnetwork = google_compute_subnetwork.ollama[0].id
        }
      }
    }
  }

  lifecycle {
    ignore_changes = [client, client_version]
  }

  depends_on = [
    google_project_iam_member.firestore,
    google_secret_manager_secret_iam_member.function,
    google_service_account_iam_member.build_acts_as,
    google_storage_bucket_iam_member.function,
  ]
}

# Pub/Sub's pushes and the scheduler's ticks come as this account, and only it
# may call the private functions.
resource "google_service_account" "invoker" {
  account_id   = "${var.prefix}-invoker"
  display_name = "Goblin: calls the private functions"
  depends_on   = [google_project_service.api]
}

resource "google_cloud_run_v2_service_iam_member" "invoker" {
  for_each = { for name, it in local.deployed : name => it if it.access == "invoker" }

  name     = google_cloud_run_v2_service.function[each.key].name
  location = var.region
  role     = "roles/run.invoker"
  member   = google_service_account.invoker.member
}

resource "google_project_iam_member" "firestore" {
  for_each = { for name, it in local.functions : name => it if it.firestore != null }

  project = var.project_id
  role    = "roles/datastore.${each.value.firestore}"
  member  = google_service_account.function[each.key].member
}

resource "google_storage_bucket_iam_member" "function" {
  for_each = { for name, it in local.functions : name => it if it.bucket != null }

  bucket = google_storage_bucket.goblin.name
  role   = "roles/storage.object${each.value.bucket}"
  member = google_service_account.function[each.key].member
}

# A signed URL is signed by the account itself, through the IAM credentials API.
resource "google_service_account_iam_member" "signs" {
  for_each = { for name, it in local.functions : name => it if it.signs }

  service_account_id = google_service_account.function[each.key].name
  role               = "roles/iam.serviceAccountTokenCreator"
  member             = google_service_account.function[each.key].member
}

# Where a job names a topic of the app's own for its changes of state.
resource "google_pubsub_topic_iam_member" "callback" {
  for_each = merge([
    for name, it in local.functions : {
      for topic in var.callback_topics : "${name}/${topic}" => { function = name, topic = topic }
    } if contains(it.publishes, "job-status-changed")
  ]...)

  topic  = each.value.topic
  role   = "roles/pubsub.publisher"
  member = google_service_account.function[each.value.function].member
}

resource "google_pubsub_topic_iam_member" "publisher" {
  for_each = merge([
    for name, it in local.functions : {
      for topic in it.publishes : "${name}/${topic}" => { function = name, topic = topic }
    }
  ]...)

  topic  = google_pubsub_topic.event[each.value.topic].name
  role   = "roles/pubsub.publisher"
  member = google_service_account.function[each.value.function].member
}
