"""Anthropic: chat through the Messages API, and its bill."""
