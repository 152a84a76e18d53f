# Spot training on Vast.ai and RunPod, and a llama.cpp server on Cloud Run.
# Replace the names of people. Images are not named here: the build writes
# them into image.auto.tfvars.json, which this file would override.
secrets = ["OPENAI_API_KEY", "VASTAI_API_KEY", "RUNPOD_API_KEY", "VASTAI_WEBHOOK_SECRET"]
settings = {
  GOBLIN_MONTHLY_BUDGET    = "200"
  VASTAI_MONTHLY_BUDGET    = "100"
  RUNPOD_MONTHLY_BUDGET    = "50"
  VASTAI_MAX_COST_PER_HOUR = "0.80"
  OPENAI_BASE_URL          = "https://api.openai.com/v1"
}
gpu             = { model = "org/model" }
alert_emails    = ["ops@example.com"]
console_members = ["group:ops@example.com"]
