# A gateway over OpenAI, with a budget; nothing else is on.
secrets = ["OPENAI_API_KEY"]
settings = {
  OPENAI_BASE_URL       = "https://api.openai.com/v1"
  GOBLIN_MONTHLY_BUDGET = "50"
}
