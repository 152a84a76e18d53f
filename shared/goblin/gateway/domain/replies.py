"""What is sent back over HTTP, before it is HTTP: either all at once, or parts as they come."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True, kw_only=True, slots=True)
class Answer:
    """What to send."""

    status: int = 200
    media_type: str = "application/json"
    headers: Mapping[str, str] = field(default_factory=dict)
    content: bytes | AsyncGenerator[bytes, None] = b""
