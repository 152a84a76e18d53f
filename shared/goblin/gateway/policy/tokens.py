"""Token estimates without a tokenizer: good enough to compare prices, and to bill if a provider reports no usage."""

from __future__ import annotations

BYTES_PER_TOKEN = 4
BYTES_PER_TOKEN_MAX = 8
"""No tokenizer in use packs ordinary text into fewer tokens, so this never overcounts by much."""


def estimate_tokens(text_bytes: int) -> int:
    """Estimate the tokens of a text by its UTF-8 bytes; at least one token if there is any text."""
    return -(-text_bytes // BYTES_PER_TOKEN)


def fewest_tokens(text_bytes: int) -> int:
    """Bound the tokens of a text from below: a prompt is refused for its length only when it is certainly too long."""
    return text_bytes // BYTES_PER_TOKEN_MAX
