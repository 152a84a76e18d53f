"""Machines that let us down are left alone for a while, the longer the oftener."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta

PAUSE_FIRST = timedelta(days=1)
PAUSE_MAX = timedelta(days=30)
FORGET = timedelta(days=90)
"""After so long without a failure a machine starts anew."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Reputation:
    """One machine's failures: it never booted, was far slower than offered, or lost bits in memory."""

    failures: int
    last_at: datetime
    last_kind: str
    """For a person: `boot`, `speed`, `ecc`."""


def note_failure(known: Reputation | None, *, kind: str, now: datetime) -> Reputation:
    """The machine's reputation after a failure."""
    before = known.failures if known is not None and now - known.last_at < FORGET else 0
    return Reputation(failures=before + 1, last_at=now, last_kind=kind)


def blocked_until(known: Reputation | None) -> datetime | None:
    """Until when the machine is not rented; None: it never failed."""
    if known is None:
        return None
    pause = PAUSE_FIRST * (1 << min(known.failures - 1, 10))
    return known.last_at + min(pause, PAUSE_MAX)
