"""Reputation of machines: one that failed is not rented for a while, longer after each failure."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta

PAUSE_FIRST = timedelta(days=1)
PAUSE_MAX = timedelta(days=30)
FORGET = timedelta(days=90)
"""Time without a failure after which earlier failures no longer count."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Reputation:
    """Failures of one machine: no start, too slow, memory errors, lost instances, invalid reports."""

    failures: int
    last_at: datetime
    last_kind: str
    """Kind of the last failure, for a person: `boot`, `speed`, `ecc`, `lie` or `died`."""


def note_failure(known: Reputation | None, *, kind: str, now: datetime) -> Reputation:
    """Add a failure to a machine's reputation."""
    before = known.failures if known is not None and now - known.last_at < FORGET else 0
    return Reputation(failures=before + 1, last_at=now, last_kind=kind)


def blocked_until(known: Reputation | None) -> datetime | None:
    """Compute until when the machine is not rented; None: it never failed."""
    if known is None:
        return None
    pause = PAUSE_FIRST * (1 << min(known.failures - 1, 10))
    return known.last_at + min(pause, PAUSE_MAX)
