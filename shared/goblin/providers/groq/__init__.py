"""Groq: OpenAI's wire with a few additions."""
