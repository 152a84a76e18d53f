locals {
  # One declaration, which `goblin up` reads too.
  cloud       = jsondecode(file("${path.module}/../shared/goblin/cloud.json"))
  roles       = yamldecode(file("${path.module}/roles.yaml"))
  environment = yamldecode(file("${path.module}/environment.yaml"))

  secret_names  = sort(distinct(flatten(values(local.environment.secrets))))
  setting_names = local.environment.settings

  project_number = data.google_project.this.number

  # What calls each function, from the declaration.
  for_topics    = toset([for it in values(local.cloud.topics) : it.function if can(it.function)])
  for_schedules = toset([for it in values(local.cloud.schedules) : it.function])
  http          = local.cloud.http

  functions = {
    for name, role in local.roles : name => merge({
      always_cpu    = false
      bucket        = null
      concurrency   = 8
      firestore     = null
      health        = null
      instances_max = 3
      dead_letters  = false
      models        = false
      publishes     = []
      scales        = false
      secrets       = []
      signs         = false
      timeout_s     = local.cloud.push.ack_deadline_s
      }, role, {
      service = "${var.prefix}-${replace(name, "_", "-")}"
      target  = contains(local.for_topics, name) ? "on_${name}" : name
      # Its own URL is known before it exists, so that a token's audience can name it without a cycle.
      url    = "https://${var.prefix}-${replace(name, "_", "-")}-${local.project_number}.${var.region}.run.app"
      access = try(local.http[name].access, "invoker")
    }) if name != "console" || length(var.console_members) > 0
  }

  public  = { for name, it in local.functions : name => it if it.access == "keys" }
  private = { for name, it in local.functions : name => it if it.access == "invoker" }

  # Services are made once there is an image.
  deployed = { for name, it in local.functions : name => it if var.image != null }

  apis = toset(concat([
    "artifactregistry", "cloudbuild", "cloudscheduler", "firestore", "iam",
    "iamcredentials", "logging", "monitoring", "pubsub", "run",
    "secretmanager", "storage",
    ],
    var.budget != null ? ["billingbudgets"] : [],
    var.kms_key != null ? ["cloudkms"] : [],
    var.ollama != null ? ["compute"] : [],
    length(var.console_members) > 0 ? ["iap"] : [],
    var.github != null ? ["sts"] : [],
  ))

  agents = {
    pubsub   = "serviceAccount:service-${local.project_number}@gcp-sa-pubsub.iam.gserviceaccount.com"
    registry = "serviceAccount:service-${local.project_number}@gcp-sa-artifactregistry.iam.gserviceaccount.com"
    iap      = "serviceAccount:service-${local.project_number}@gcp-sa-iap.iam.gserviceaccount.com"
    compute  = "serviceAccount:service-${local.project_number}@compute-system.iam.gserviceaccount.com"
    billing  = "serviceAccount:billing-budget-alert@system.gserviceaccount.com"
  }
}

data "google_project" "this" {
  project_id = var.project_id
}

resource "google_project_service" "api" {
  for_each = local.apis

  service            = "${each.value}.googleapis.com"
  disable_on_destroy = false
}

# Google makes these accounts at their first use, which is too late for what is
# granted to them.
resource "google_project_service_identity" "agent" {
  for_each = toset(concat(
    ["pubsub"],
    var.kms_key != null ? ["artifactregistry"] : [],
    length(var.console_members) > 0 ? ["iap"] : [],
  ))

  provider   = google-beta
  project    = var.project_id
  service    = "${each.value}.googleapis.com"
  depends_on = [google_project_service.api]
}

check "every_trigger_has_a_role" {
  assert {
    condition = length(setsubtract(
      setunion(local.for_topics, local.for_schedules, keys(local.http)), keys(local.roles)
    )) == 0
    error_message = "A function in cloud.json has no row in roles.yaml."
  }
}

check "publishes_declared_topics" {
  assert {
    condition = length(setsubtract(
      flatten([for it in local.functions : it.publishes]), keys(local.cloud.topics)
    )) == 0
    error_message = "roles.yaml lets a function publish to a topic that cloud.json does not declare."
  }
}
