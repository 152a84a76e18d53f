"""Token estimates without a tokenizer: good enough to compare prices, and to bill if a provider reports no usage."""

from __future__ import annotations

BYTES_PER_TOKEN = 4
BYTES_PER_TOKEN_MAX = 8
"""No tokenizer in use packs ordinary text into fewer tokens, so this never overcounts by much."""

COUNTED_MAX = 50_000_000
"""More tokens than any request has, in any of the models' contexts: a count beyond it is no count."""


def is_believable(prompt_tokens: int, completion_tokens: int) -> bool:
    """Tell whether a provider's count can be one. Money is computed from it, and a host may send any number."""
    return 0 <= prompt_tokens <= COUNTED_MAX and 0 <= completion_tokens <= COUNTED_MAX


def estimate_tokens(text_bytes: int) -> int:
    """Estimate the tokens of a text by its UTF-8 bytes; at least one token if there is any text."""
    return -(-text_bytes // BYTES_PER_TOKEN)


def fewest_tokens(text_bytes: int) -> int:
    """Bound the tokens of a text from below: a prompt is refused for its length only when it is certainly too long."""
    return text_bytes // BYTES_PER_TOKEN_MAX
