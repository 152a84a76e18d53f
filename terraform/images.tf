# Where images lie, and who builds and deploys them.

resource "google_artifact_registry_repository" "images" {
  repository_id          = var.prefix
  location               = var.region
  format                 = "DOCKER"
  kms_key_name           = var.kms_key
  cleanup_policy_dry_run = false

  cleanup_policies {
    id     = "keep-three"
    action = "KEEP"
    most_recent_versions {
      keep_count = 3
    }
  }

  cleanup_policies {
    id     = "delete-older"
    action = "DELETE"
    condition {
      older_than = "604800s"
    }
  }

  depends_on = [google_project_service.api, google_kms_crypto_key_iam_member.agent]
}

locals {
  build_roles = concat([
    "roles/logging.logWriter",
    "roles/artifactregistry.admin",
    # What `terraform apply` in the build changes.
    "roles/run.admin",
    "roles/pubsub.admin",
    "roles/cloudscheduler.admin",
    "roles/datastore.owner",
    "roles/iam.serviceAccountAdmin",
    "roles/monitoring.editor",
    "roles/logging.configWriter",
    "roles/resourcemanager.projectIamAdmin",
    "roles/secretmanager.admin",
    "roles/serviceusage.serviceUsageAdmin",
    "roles/storage.admin",
    ],
    length(var.console_members) > 0 ? ["roles/iap.admin"] : [],
    var.github != null ? ["roles/iam.workloadIdentityPoolAdmin", "roles/cloudbuild.builds.editor"] : [],
    var.ollama != null ? ["roles/compute.admin"] : [],
  )
}

resource "google_service_account" "build" {
  account_id   = "${var.prefix}-build"
  display_name = "Goblin: Cloud Build"
  depends_on   = [google_project_service.api]
}

resource "google_project_iam_member" "build" {
  # checkov:skip=CKV_GCP_49: The build applies this configuration, which makes accounts and gives them roles.
  for_each = toset(local.build_roles)

  project = var.project_id
  role    = each.value
  member  = google_service_account.build.member
}

# What lies outside the project, and which the build reads and changes too.
resource "google_kms_crypto_key_iam_member" "build" {
  count = var.kms_key != null ? 1 : 0

  crypto_key_id = var.kms_key
  role          = "roles/cloudkms.admin"
  member        = google_service_account.build.member
}

resource "google_billing_account_iam_member" "build" {
  count = var.budget != null ? 1 : 0

  billing_account_id = var.budget.billing_account
  role               = "roles/billing.costsManager"
  member             = google_service_account.build.member
}

# A deployment runs services as these accounts, and as no others.
resource "google_service_account_iam_member" "build_acts_as" {
  for_each = merge(
    google_service_account.function,
    { invoker = google_service_account.invoker },
    { for account in google_service_account.llamacpp : "llamacpp" => account },
    { for account in google_service_account.ollama : "ollama" => account },
    try(var.github.connected, null) != null ? { build = google_service_account.build } : {},
  )

  service_account_id = each.value.name
  role               = "roles/iam.serviceAccountUser"
  member             = google_service_account.build.member
}

# A workflow of one GitHub repository and one ref may submit builds, without a key.
resource "google_iam_workload_identity_pool" "github" {
  count = var.github != null ? 1 : 0

  workload_identity_pool_id = "${var.prefix}-github"
  display_name              = "Goblin: GitHub"
  depends_on                = [google_project_service.api]
}

resource "google_iam_workload_identity_pool_provider" "github" {
  # checkov:skip=CKV_GCP_125: The condition names the repository by its id, which a renamed or retaken name cannot fake.
  count = var.github != null ? 1 : 0

  workload_identity_pool_id          = google_iam_workload_identity_pool.github[0].workload_identity_pool_id
  workload_identity_pool_provider_id = "github"
  attribute_condition                = "assertion.repository_id == '${var.github.repository_id}' && assertion.ref == '${var.github.ref}'"

  attribute_mapping = {
    "google.subject"          = "assertion.sub"
    "attribute.repository_id" = "assertion.repository_id"
  }

  oidc {
    issuer_uri = "https://token.actions.githubusercontent.com"
  }
}

resource "google_service_account" "submit" {
  count = var.github != null ? 1 : 0

  account_id   = "${var.prefix}-submit"
  display_name = "Goblin: submits builds from GitHub"
  depends_on   = [google_project_service.api]
}

resource "google_service_account_iam_member" "submit" {
  count = var.github != null ? 1 : 0

  service_account_id = google_service_account.submit[0].name
  role               = "roles/iam.workloadIdentityUser"
  member             = "principalSet://iam.googleapis.com/${google_iam_workload_identity_pool.github[0].name}/attribute.repository_id/${var.github.repository_id}"
}

resource "google_project_iam_member" "submit" {
  for_each = var.github != null ? toset([
    "roles/cloudbuild.builds.editor",
    "roles/serviceusage.serviceUsageConsumer",
    # The source goes into the bucket PROJECT_cloudbuild.
    "roles/storage.bucketViewer",
    "roles/storage.objectAdmin",
  ]) : toset([])

  project = var.project_id
  role    = each.value
  member  = google_service_account.submit[0].member
}

resource "google_service_account_iam_member" "submit_acts_as_build" {
  count = var.github != null ? 1 : 0

  service_account_id = google_service_account.build.name
  role               = "roles/iam.serviceAccountUser"
  member             = google_service_account.submit[0].member
}

# The first door: a push to the branch, and then a person's approval. The
# connection to GitHub is made once by hand, as its owner has to agree.
resource "google_cloudbuild_trigger" "main" {
  count = try(var.github.connected, null) != null ? 1 : 0

  name            = "${var.prefix}-main"
  location        = split("/", var.github.connected)[3]
  filename        = "cloudbuild.yaml"
  service_account = google_service_account.build.id

  repository_event_config {
    repository = var.github.connected
    push {
      branch = "^${trimprefix(var.github.ref, "refs/heads/")}$"
    }
  }

  approval_config {
    approval_required = true
  }

  substitutions = {
    _APPLY    = "true"
    _PREFIX   = var.prefix
    _REGION   = var.region
    _VAR_FILE = var.github.var_file
  }

  depends_on = [google_project_service.api, google_project_iam_member.build]
}
