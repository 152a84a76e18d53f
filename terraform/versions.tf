terraform {
  required_version = ">= 1.11"

  required_providers {
    google = {
      source  = "hashicorp/google"
      version = ">= 7.45, < 9.0"
    }
    # For Google's own service accounts only.
    google-beta = {
      source  = "hashicorp/google-beta"
      version = ">= 7.45, < 9.0"
    }
  }

  # `terraform init -backend-config=bucket=NAME` says which bucket.
  backend "gcs" {
    prefix = "goblin"
  }
}

provider "google" {
  project = var.project_id
  region  = var.region

  # A person's own credentials have no project for quotas; Cloud Billing's
  # budgets and some others refuse them without.
  user_project_override = true
  billing_project       = var.project_id

  default_labels = { app = var.prefix }
}

provider "google-beta" {
  project = var.project_id
  region  = var.region

  user_project_override = true
  billing_project       = var.project_id

  default_labels = { app = var.prefix }
}
