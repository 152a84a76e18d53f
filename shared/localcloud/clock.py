"""What time it is, as an argument."""

from collections.abc import Callable
from datetime import UTC, datetime
from typing import TypeAlias

Clock: TypeAlias = Callable[[], datetime]
"""Answers an aware UTC instant."""


def utc_now() -> datetime:
    """The time of day, aware UTC."""
    return datetime.now(UTC)
