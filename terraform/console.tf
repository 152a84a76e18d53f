# The page is behind Identity-Aware Proxy, which needs no load balancer on
# Cloud Run.

resource "google_cloud_run_v2_service_iam_member" "iap" {
  count = contains(keys(local.deployed), "console") ? 1 : 0

  name     = google_cloud_run_v2_service.function["console"].name
  location = var.region
  role     = "roles/run.invoker"
  member   = local.agents.iap

  depends_on = [google_project_service_identity.agent]
}

resource "google_iap_web_cloud_run_service_iam_member" "console" {
  for_each = contains(keys(local.deployed), "console") ? var.console_members : toset([])

  location               = var.region
  cloud_run_service_name = google_cloud_run_v2_service.function["console"].name
  role                   = "roles/iap.httpsResourceAccessor"
  member                 = each.value
}
