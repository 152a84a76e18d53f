locals {
  bucket = coalesce(var.bucket.name, "${var.project_id}-${var.prefix}")

  unindexed = toset(local.cloud.unindexed)
  ttl       = { for it in local.cloud.ttl : it.collection => it.field }
}

resource "google_firestore_database" "default" {
  name                              = "(default)"
  location_id                       = var.region
  type                              = "FIRESTORE_NATIVE"
  point_in_time_recovery_enablement = "POINT_IN_TIME_RECOVERY_ENABLED"
  delete_protection_state           = "DELETE_PROTECTION_ENABLED"
  deletion_policy                   = "ABANDON"
  depends_on                        = [google_project_service.api]
}

resource "google_firestore_index" "query" {
  for_each = {
    for it in local.cloud.indexes :
    join("/", concat([it.collection], [for field in it.fields : field.path])) => it
  }

  database   = google_firestore_database.default.name
  collection = each.value.collection

  dynamic "fields" {
    for_each = each.value.fields
    content {
      field_path = fields.value.path
      order      = fields.value.order
    }
  }
}

# TTL, without an index: no query asks for it, and a growing instant in an index
# limits how fast documents can be written.
resource "google_firestore_field" "ttl" {
  for_each = local.ttl

  database   = google_firestore_database.default.name
  collection = each.key
  field      = each.value

  ttl_config {}
  index_config {}
}

# Read by id only: an index entry for each field would double what a write costs.
resource "google_firestore_field" "unindexed" {
  for_each = local.unindexed

  database   = google_firestore_database.default.name
  collection = each.value
  field      = "*"

  index_config {}
}

resource "google_storage_bucket" "goblin" {
  # checkov:skip=CKV_GCP_62: Access logs would cost more than the bucket; Cloud Audit Logs record administration.
  # checkov:skip=CKV_GCP_78: Paths are never overwritten, and writes carry preconditions on generations.
  name                        = local.bucket
  location                    = var.region
  uniform_bucket_level_access = true
  public_access_prevention    = "enforced"

  # A dropped checkpoint would be billed for seven more days.
  soft_delete_policy {
    retention_duration_seconds = 0
  }

  lifecycle_rule {
    condition {
      age = 1
    }
    action {
      type = "AbortIncompleteMultipartUpload"
    }
  }

  dynamic "cors" {
    for_each = length(var.bucket.cors_origins) > 0 ? [var.bucket.cors_origins] : []
    content {
      origin          = cors.value
      method          = ["GET", "PUT", "POST"]
      response_header = ["content-type", "x-goog-resumable", "x-goog-hash", "etag"]
      max_age_seconds = 3600
    }
  }

  dynamic "encryption" {
    for_each = var.kms_key != null ? [var.kms_key] : []
    content {
      default_kms_key_name = encryption.value
    }
  }

  # Cloud Storage deletes no bucket that holds anything, unless it is forced.
  force_destroy = false

  depends_on = [google_project_service.api, google_kms_crypto_key_iam_member.agent]
}

data "google_storage_project_service_account" "agent" {
  count = var.kms_key != null ? 1 : 0
}

resource "google_kms_crypto_key_iam_member" "agent" {
  for_each = var.kms_key == null ? {} : {
    pubsub   = local.agents.pubsub
    registry = local.agents.registry
    storage  = "serviceAccount:${data.google_storage_project_service_account.agent[0].email_address}"
  }

  crypto_key_id = var.kms_key
  role          = "roles/cloudkms.cryptoKeyEncrypterDecrypter"
  member        = each.value
  depends_on    = [google_project_service_identity.agent]
}
