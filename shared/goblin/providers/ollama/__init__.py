"""Ollama: inference through its own API."""
