"""The clock as an argument."""

from collections.abc import Callable
from datetime import UTC, datetime
from typing import TypeAlias

Clock: TypeAlias = Callable[[], datetime]
"""A function that returns an aware UTC instant."""


def utc_now() -> datetime:
    """Return the present time, aware UTC."""
    return datetime.now(UTC)
