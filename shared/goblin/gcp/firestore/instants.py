"""Firestore's instants: its client gives a kind of datetime of its own, and msgspec takes only the plain kind."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


def plain_instants(value: Any) -> Any:
    """The same fields with every instant a plain, aware datetime, to the microsecond."""
    if isinstance(value, datetime):
        return EPOCH + (value - EPOCH)
    if isinstance(value, Mapping):
        return {key: plain_instants(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [plain_instants(inner) for inner in value]
    return value
