"""Anthropic: the Messages API as chat; its bill."""
