"""Groq: OpenAI's wire format with a few additions."""
