"""What a provider tells unasked of what it rents out."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True, slots=True)
class Hint:
    """Somebody who knows the shared secret says that something happened; what did, a look has to show."""

    provider: str
    event_id: str
    """The same at every delivery."""
    kind: str
    """The provider's own word, as `outbid`."""
