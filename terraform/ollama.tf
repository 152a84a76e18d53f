# A VM that runs Ollama behind a private address. It powers itself off when
# idle, and each night; while it is off its disk is billed.

locals {
  ollama_env     = var.ollama == null ? {} : { OLLAMA_URL = "http://${google_compute_address.ollama[0].address}:11434" }
  reaches_ollama = { for name, it in local.functions : name => var.ollama != null && contains(["gateway", "check_health"], name) }
}

resource "google_compute_network" "ollama" {
  count = var.ollama != null ? 1 : 0

  name                    = "${var.prefix}-ollama"
  auto_create_subnetworks = false
  depends_on              = [google_project_service.api]
}

resource "google_compute_subnetwork" "ollama" {
  # checkov:skip=CKV_GCP_26: Flow logs of two functions and one VM would cost more than they tell.
  # checkov:skip=CKV_GCP_76: The subnetwork has no IPv6.
  count = var.ollama != null ? 1 : 0

  name                     = "${var.prefix}-ollama"
  network                  = google_compute_network.ollama[0].id
  region                   = var.region
  ip_cidr_range            = "10.90.0.0/24"
  private_ip_google_access = true
}

resource "google_compute_address" "ollama" {
  count = var.ollama != null ? 1 : 0

  name         = "${var.prefix}-ollama"
  region       = var.region
  address_type = "INTERNAL"
  subnetwork   = google_compute_subnetwork.ollama[0].id
}

resource "google_compute_firewall" "ollama" {
  count = var.ollama != null ? 1 : 0

  name                    = "${var.prefix}-ollama"
  network                 = google_compute_network.ollama[0].id
  source_ranges           = [google_compute_subnetwork.ollama[0].ip_cidr_range]
  target_service_accounts = [google_service_account.ollama[0].email]

  allow {
    protocol = "tcp"
    ports    = ["11434"]
  }
}

resource "google_service_account" "ollama" {
  count = var.ollama != null ? 1 : 0

  account_id   = "${var.prefix}-ollama"
  display_name = "Goblin: the Ollama VM"
  depends_on   = [google_project_service.api]
}

resource "google_storage_bucket_iam_member" "ollama" {
  count = var.ollama != null ? 1 : 0

  bucket = google_storage_bucket.goblin.name
  role   = "roles/storage.objectViewer"
  member = google_service_account.ollama[0].member
}

resource "google_compute_resource_policy" "ollama_stop" {
  count = var.ollama != null ? 1 : 0

  name   = "${var.prefix}-ollama-stop"
  region = var.region

  instance_schedule_policy {
    time_zone = "Etc/UTC"
    vm_stop_schedule {
      schedule = var.ollama.stop_at
    }
  }

  depends_on = [google_project_iam_member.compute_agent]
}

resource "google_project_iam_member" "compute_agent" {
  # checkov:skip=CKV_GCP_42: Google's own agent starts and stops the VM by its schedule; there is no smaller role for it.
  count = var.ollama != null ? 1 : 0

  project = var.project_id
  role    = "roles/compute.instanceAdmin.v1"
  member  = local.agents.compute
}

resource "google_compute_instance" "ollama" {
  # checkov:skip=CKV_GCP_38: The disk holds public models; `kms_key` encrypts what is ours.
  count = var.ollama != null ? 1 : 0

  name                      = "${var.prefix}-ollama"
  zone                      = var.ollama.zone
  machine_type              = var.ollama.machine_type
  allow_stopping_for_update = true
  resource_policies         = [google_compute_resource_policy.ollama_stop[0].self_link]

  boot_disk {
    initialize_params {
      image = var.ollama.image
      size  = var.ollama.disk_gib
    }
  }

  network_interface {
    subnetwork = google_compute_subnetwork.ollama[0].id
    network_ip = google_compute_address.ollama[0].address
  }

  scheduling {
    on_host_maintenance = "TERMINATE"
    automatic_restart   = false
  }

  service_account {
    email  = google_service_account.ollama[0].email
    scopes = ["cloud-platform"]
  }

  shielded_instance_config {
    enable_secure_boot          = true
    enable_vtpm                 = true
    enable_integrity_monitoring = true
  }

  metadata = {
    block-project-ssh-keys = "true"
    serial-port-enable     = "false"
    startup-script         = templatefile("${path.module}/ollama-idle.sh", { idle_min = var.ollama.idle_min })
  }

  lifecycle {
    ignore_changes = [desired_status]
  }

  depends_on = [google_service_account_iam_member.build_acts_as]
}
