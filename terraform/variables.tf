variable "agent_image" {
  description = "The image of rented hosts by digest, which they pull without a credential. Null: GOBLIN_AGENT_IMAGE in `settings`, or none."
  type        = string
  default     = null

  validation {
    condition     = var.agent_image == null || can(regex("@sha256:[0-9a-f]{64}$", var.agent_image))
    error_message = "agent_image is named by its digest: REGISTRY/NAME@sha256:…"
  }
}

variable "alert_emails" {
  description = "Who gets alerts by e-mail. Empty: nobody, and no alert policy is made."
  type        = set(string)
  default     = []
  nullable    = false

  validation {
    condition     = alltrue([for email in var.alert_emails : can(regex("^[^@\\s]+@[^@\\s]+$", email))])
    error_message = "Write each of alert_emails as an address, for example ops@example.com."
  }
}

variable "bucket" {
  description = "The bucket of models, datasets, outputs and checkpoints. CORS origins are the sites whose browsers upload."
  type = object({
    name         = optional(string)
    cors_origins = optional(list(string), [])
  })
  default  = {}
  nullable = false
}

variable "budget" {
  description = "A budget of Cloud Billing that freezes spending when it is used up. Null: none."
  type = object({
    billing_account  = string
    currency         = optional(string, "USD")
    amount_per_month = number
  })
  default = null

  validation {
    condition     = var.budget == null || can(regex("^[0-9A-F]{6}-[0-9A-F]{6}-[0-9A-F]{6}$", var.budget.billing_account))
    error_message = "budget.billing_account looks like 0123AB-4567CD-89EF01; `gcloud billing accounts list` shows yours."
  }

  validation {
    condition     = var.budget == null || try(var.budget.amount_per_month >= 1 && floor(var.budget.amount_per_month) == var.budget.amount_per_month, false)
    error_message = "budget.amount_per_month is a whole number of at least 1, in the currency of the billing account."
  }
}

variable "callback_topics" {
  description = "Topics of this project that jobs may name as their `callback_topic`: full names, projects/P/topics/T."
  type        = set(string)
  default     = []
  nullable    = false

  validation {
    condition     = alltrue([for topic in var.callback_topics : can(regex("^projects/[^/]+/topics/[^/]+$", topic))])
    error_message = "callback_topics are full names: projects/P/topics/T."
  }
}

variable "console_members" {
  description = "Who may open the console behind IAP, for example user:ann@example.com. Empty: no console is made."
  type        = set(string)
  default     = []
  nullable    = false

  validation {
    condition     = alltrue([for member in var.console_members : can(regex("^(user|group|serviceAccount|domain):.+$", member))])
    error_message = "Write each of console_members with its kind, for example user:ann@example.com or group:ops@example.com."
  }
}

variable "github" {
  description = "The GitHub repository whose workflows may submit builds. The id is a number: `gh api repos/OWNER/NAME --jq .id`. With `connected`, its name in Cloud Build, each push to the branch also waits there for an approval. Null: none."
  type = object({
    repository_id = string
    ref           = optional(string, "refs/heads/main")
    connected     = optional(string)
    var_file      = optional(string, "")
  })
  default = null

  validation {
    condition     = var.github == null || can(regex("^[0-9]+$", var.github.repository_id))
    error_message = "github.repository_id is the number of the repository, not its name: `gh api repos/OWNER/NAME --jq .id`."
  }

  validation {
    condition     = try(var.github.connected, null) == null || can(regex("^projects/[^/]+/locations/[^/]+/connections/[^/]+/repositories/[^/]+$", var.github.connected))
    error_message = "github.connected is projects/P/locations/R/connections/C/repositories/N; `gcloud builds repositories list --connection=C --region=R` shows it."
  }

  validation {
    condition     = var.github == null || can(regex("^refs/heads/[^*]+$", var.github.ref))
    error_message = "github.ref is one branch, for example refs/heads/main."
  }
}

variable "gpu" {
  description = "A llama.cpp server on Cloud Run with an L4, which serves the GGUF file `uri` (gs:// in the bucket; `sha256` is checked) under the name `model`. Without a file it serves goblin-tiny under that name, to try the way there. Its image is `llamacpp_image`, unless named here; without one it waits for the first build. Null: none."
  type = object({
    image         = optional(string)
    model         = string
    uri           = optional(string)
    sha256        = optional(string)
    region        = optional(string, "us-east4")
    cpu           = optional(number, 8)
    memory_gib    = optional(number, 32)
    instances_max = optional(number, 1)
  })
  default = null

  validation {
    condition     = try(var.gpu.uri, null) == null || (can(regex("^gs://[^/]+/.+[.]gguf$", var.gpu.uri)) && can(regex("^[0-9a-f]{64}$", var.gpu.sha256)))
    error_message = "gpu.uri is gs://BUCKET/….gguf, and gpu.sha256 its digest: `goblin models register` prints both."
  }

  validation {
    condition     = try(var.gpu.image, null) == null || can(regex("@sha256:[0-9a-f]{64}$", var.gpu.image))
    error_message = "gpu.image is named by its digest: REGISTRY/NAME@sha256:…"
  }

  validation {
    condition     = var.gpu == null || try(contains(["us-east4", "europe-west1", "europe-west4", "asia-southeast1"], var.gpu.region), false)
    error_message = "Cloud Run has L4 GPUs in us-east4, europe-west1, europe-west4 and asia-southeast1 (read 2026-12-01); us-east1 has none."
  }

  validation {
    condition     = var.gpu == null || try(var.gpu.cpu >= 4 && var.gpu.memory_gib >= 16, false)
    error_message = "An L4 needs at least 4 CPUs and 16 GiB."
  }
}

variable "image" {
  description = "The functions' image by digest, as Cloud Build pushed it. Null: everything but the functions is made."
  type        = string
  default     = null

  validation {
    condition     = var.image == null || can(regex("@sha256:[0-9a-f]{64}$", var.image))
    error_message = "image is named by its digest: REGION-docker.pkg.dev/PROJECT/goblin/functions@sha256:…"
  }
}

variable "kms_key" {
  description = "A Cloud KMS key that encrypts bucket, topics and images: projects/P/locations/L/keyRings/R/cryptoKeys/K. Null: Google's own keys."
  type        = string
  default     = null

  validation {
    condition     = var.kms_key == null || can(regex("^projects/[^/]+/locations/[^/]+/keyRings/[^/]+/cryptoKeys/[^/]+$", var.kms_key))
    error_message = "kms_key is a full name: projects/P/locations/L/keyRings/R/cryptoKeys/K."
  }
}

variable "llamacpp_image" {
  description = "The llama.cpp server's image by digest, as Cloud Build pushed it, for `gpu`."
  type        = string
  default     = null

  validation {
    condition     = var.llamacpp_image == null || can(regex("@sha256:[0-9a-f]{64}$", var.llamacpp_image))
    error_message = "llamacpp_image is named by its digest: REGION-docker.pkg.dev/PROJECT/goblin/llamacpp@sha256:…"
  }
}

variable "ollama" {
  description = "A VM with an L4 that runs Ollama and powers itself off when idle. Stopped it pays for its disk. Null: none."
  type = object({
    zone         = string
    image        = string
    machine_type = optional(string, "g2-standard-4")
    disk_gib     = optional(number, 50)
    idle_min     = optional(number, 20)
    stop_at      = optional(string, "0 3 * * *")
  })
  default = null

  validation {
    condition     = var.ollama == null || try(var.ollama.idle_min >= 6 && floor(var.ollama.idle_min) == var.ollama.idle_min, false)
    error_message = "ollama.idle_min is a whole number of minutes from 6: Ollama itself keeps a model for 5."
  }

  validation {
    condition     = var.ollama == null || try(startswith(var.ollama.zone, "${var.region}-"), false)
    error_message = "ollama.zone is a zone of var.region: functions reach the VM over a subnetwork there."
  }
}

variable "paused" {
  description = "Whether schedules are paused, for a staging project."
  type        = bool
  default     = false
  nullable    = false
}

variable "prefix" {
  description = "The beginning of the names of services, accounts and secrets."
  type        = string
  default     = "goblin"
  nullable    = false

  validation {
    condition     = can(regex("^[a-z][a-z0-9]{1,8}$", var.prefix))
    error_message = "prefix has 2 to 9 small letters and digits and begins with a letter: account names are short."
  }
}

variable "project_id" {
  description = "The project, which exists and has billing."
  type        = string
  nullable    = false

  validation {
    condition     = can(regex("^[a-z][a-z0-9-]{4,28}[a-z0-9]$", var.project_id))
    error_message = "project_id is the id, not the name or the number: `gcloud projects list` shows it."
  }
}

variable "region" {
  description = "Where everything but GPUs lives. Firestore's location can never be changed."
  type        = string
  default     = "us-east1"
  nullable    = false

  validation {
    condition     = can(regex("^[a-z]+-[a-z]+[0-9]+$", var.region))
    error_message = "region is one region, for example us-east1."
  }
}

variable "secrets" {
  description = "Which environment variables are secrets that exist: each is read from Secret Manager by its own name."
  type        = set(string)
  default     = []
  nullable    = false

  validation {
    condition     = length(setsubtract(var.secrets, local.secret_names)) == 0
    error_message = "secrets are among ${join(", ", local.secret_names)}."
  }
}

variable "settings" {
  description = "Environment variables of the functions that are no secrets, for example VASTAI_MONTHLY_BUDGET."
  type        = map(string)
  default     = {}
  nullable    = false

  validation {
    condition     = length(setsubtract(keys(var.settings), local.setting_names)) == 0
    error_message = "settings are among ${join(", ", local.setting_names)}. Secrets go into `secrets`; the rest is set by this configuration."
  }
}
