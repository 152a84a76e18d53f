# What a person is told, and what they look at. Built-in metrics and the JSON
# logs of the functions: nothing runs for it.

locals {
  alerts = length(var.alert_emails) == 0 ? {} : {
    dead-letters = {
      title     = "A message is in a dead letter topic"
      filter    = "resource.type = \"pubsub_subscription\" AND metric.type = \"pubsub.googleapis.com/subscription/num_undelivered_messages\" AND resource.labels.subscription_id = monitoring.regex.full_match(\".*-dead\")"
      aligner   = "ALIGN_MAX"
      threshold = 0
      duration  = "0s"
      what      = "Read it with `goblin dead-letters list`, mend the cause, then `goblin dead-letters replay`."
    }
    backlog = {
      title     = "Events wait longer than 15 minutes"
      filter    = "resource.type = \"pubsub_subscription\" AND metric.type = \"pubsub.googleapis.com/subscription/oldest_unacked_message_age\" AND resource.labels.subscription_id = monitoring.regex.full_match(\".*-push\")"
      aligner   = "ALIGN_MAX"
      threshold = 900
      duration  = "300s"
      what      = "A function answers with errors: look at its logs."
    }
    ticks = {
      title     = "Scheduled functions fail"
      filter    = "resource.type = \"cloud_scheduler_job\" AND metric.type = \"logging.googleapis.com/log_entry_count\" AND metric.labels.severity = \"ERROR\""
      aligner   = "ALIGN_DELTA"
      threshold = 3
      duration  = "300s"
      what      = "Look at the logs of the function that the schedule calls."
    }
    errors = {
      title     = "The gateway answers with 5xx"
      filter    = "resource.type = \"cloud_run_revision\" AND metric.type = \"run.googleapis.com/request_count\" AND resource.labels.service_name = \"${var.prefix}-gateway\" AND metric.labels.response_code_class = \"5xx\""
      aligner   = "ALIGN_DELTA"
      threshold = 10
      duration  = "300s"
      what      = "`goblin costs` and `/providers` say which endpoints fail, and which budgets are used up."
    }
    logs = {
      title     = "A function logs errors"
      filter    = "resource.type = \"cloud_run_revision\" AND metric.type = \"logging.googleapis.com/user/${var.prefix}-errors\""
      aligner   = "ALIGN_DELTA"
      threshold = 5
      duration  = "300s"
      what      = "Error Reporting groups them."
    }
  }
}

resource "google_monitoring_notification_channel" "email" {
  for_each = var.alert_emails

  display_name = each.value
  type         = "email"
  labels       = { email_address = each.value }
  depends_on   = [google_project_service.api]
}

resource "google_monitoring_alert_policy" "alert" {
  for_each = local.alerts

  display_name          = "Goblin: ${each.value.title}"
  combiner              = "OR"
  notification_channels = [for channel in google_monitoring_notification_channel.email : channel.id]

  documentation {
    content   = each.value.what
    mime_type = "text/markdown"
  }

  conditions {
    display_name = each.value.title
    condition_threshold {
      filter          = each.value.filter
      comparison      = "COMPARISON_GT"
      threshold_value = each.value.threshold
      duration        = each.value.duration
      aggregations {
        alignment_period   = "300s"
        per_series_aligner = each.value.aligner
      }
    }
  }

  depends_on = [google_logging_metric.count]
}

resource "google_logging_metric" "count" {
  for_each = {
    errors      = "resource.type=\"cloud_run_revision\" AND resource.labels.service_name=~\"^${var.prefix}-\" AND severity>=ERROR"
    preemptions = "resource.type=\"cloud_run_revision\" AND resource.labels.service_name=~\"^${var.prefix}-\" AND jsonPayload.message=~\"preempted\""
  }

  name   = "${var.prefix}-${each.key}"
  filter = each.value

  metric_descriptor {
    metric_kind = "DELTA"
    value_type  = "INT64"
  }

  depends_on = [google_project_service.api]
}

# Request logs of ticks that went well: 130,000 lines a month that nobody reads.
resource "google_logging_project_exclusion" "ticks" {
  name   = "${var.prefix}-ticks"
  filter = "resource.type=\"cloud_run_revision\" AND logName:\"run.googleapis.com%2Frequests\" AND httpRequest.status<300 AND httpRequest.userAgent=\"Google-Cloud-Scheduler\""

  depends_on = [google_project_service.api]
}

resource "google_monitoring_custom_service" "gateway" {
  service_id   = "${var.prefix}-gateway"
  display_name = "Goblin gateway"
  depends_on   = [google_project_service.api]
}

resource "google_monitoring_slo" "available" {
  service             = google_monitoring_custom_service.gateway.service_id
  slo_id              = "available"
  display_name        = "99.5 % of requests are answered without a 5xx"
  goal                = 0.995
  rolling_period_days = 28

  request_based_sli {
    good_total_ratio {
      total_service_filter = "resource.type=\"cloud_run_revision\" AND metric.type=\"run.googleapis.com/request_count\" AND resource.labels.service_name=\"${var.prefix}-gateway\""
      bad_service_filter   = "resource.type=\"cloud_run_revision\" AND metric.type=\"run.googleapis.com/request_count\" AND resource.labels.service_name=\"${var.prefix}-gateway\" AND metric.labels.response_code_class=\"5xx\""
    }
  }
}

resource "google_monitoring_slo" "quick" {
  service             = google_monitoring_custom_service.gateway.service_id
  slo_id              = "quick"
  display_name        = "95 % of requests end within a minute"
  goal                = 0.95
  rolling_period_days = 28

  request_based_sli {
    distribution_cut {
      distribution_filter = "resource.type=\"cloud_run_revision\" AND metric.type=\"run.googleapis.com/request_latencies\" AND resource.labels.service_name=\"${var.prefix}-gateway\""
      range {
        min = 0
        max = 60000
      }
    }
  }
}

resource "google_monitoring_dashboard" "goblin" {
  dashboard_json = templatefile("${path.module}/dashboards/goblin.json", { prefix = var.prefix })
  depends_on     = [google_project_service.api, google_logging_metric.count]
}

# Cloud Billing's own budget publishes into the topic that freezes spending.
resource "google_pubsub_topic_iam_member" "billing" {
  count = var.budget != null ? 1 : 0

  topic  = google_pubsub_topic.event["budget-exceeded"].name
  role   = "roles/pubsub.publisher"
  member = local.agents.billing
}

resource "google_billing_budget" "month" {
  count = var.budget != null ? 1 : 0

  billing_account = var.budget.billing_account
  display_name    = "Goblin in ${var.project_id}"

  budget_filter {
    projects = ["projects/${local.project_number}"]
  }

  amount {
    specified_amount {
      currency_code = var.budget.currency
      units         = tostring(var.budget.amount_per_month)
    }
  }

  dynamic "threshold_rules" {
    for_each = [0.5, 0.8, 0.95, 1.0]
    content {
      threshold_percent = threshold_rules.value
    }
  }

  all_updates_rule {
    pubsub_topic   = google_pubsub_topic.event["budget-exceeded"].id
    schema_version = "1.0"
  }

  depends_on = [google_pubsub_topic_iam_member.billing]
}
