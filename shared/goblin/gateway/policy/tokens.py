"""Counting tokens without a tokenizer: good enough to compare prices and to bill when a provider is silent."""

from __future__ import annotations

BYTES_PER_TOKEN = 4
BYTES_PER_TOKEN_MAX = 8
"""No tokenizer in use packs ordinary text tighter, so this never overcounts by much."""


def estimate_tokens(text_bytes: int) -> int:
    """What a text of so many UTF-8 bytes costs, about; at least one token if there is any text."""
    return -(-text_bytes // BYTES_PER_TOKEN)


def fewest_tokens(text_bytes: int) -> int:
    """What it costs at the least: to refuse a prompt for its length one must be sure."""
    return text_bytes // BYTES_PER_TOKEN_MAX
