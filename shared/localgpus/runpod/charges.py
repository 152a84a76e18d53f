"""From seconds to money: what ran when, at which price, and its cost in any period."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from datetime import UTC, datetime, timedelta
from enum import StrEnum
from fractions import Fraction

import msgspec

MONTH_HOURS = 720
"""Hours of a month. Disks are priced by the month of thirty days."""
MONTH_S = MONTH_HOURS * 3600
DISK_USD_MICROS = 100_000
"""Micro-dollars per GB and month of a container's disk, and of a volume while its pod is up."""
IDLE_VOLUME_USD_MICROS = 200_000
"""The same for a volume whose pod is stopped. Source of all three: docs.runpod.io/pods/pricing, read 2026-11-25."""


class What(StrEnum):
    GPU = "gpu"
    DISK = "disk"
    VOLUME = "volume"


class Span(msgspec.Struct, kw_only=True):
    """A period in which one part of a pod cost the same each second."""

    pod_id: str
    what: What
    usd_micros_per_month: int
    since: int
    """Seconds since 1970. Billing counts whole seconds."""
    until: int | None = None
    """The end; None: still open."""

    def seconds(self, start: int, end: int) -> int:
        """Return the span's length between two instants."""
        last = end if self.until is None else min(self.until, end)
        return max(0, last - max(self.since, start))


def cost(spans: Iterable[Span], start: int, end: int) -> Fraction:
    """Return the spans' exact cost between two instants, in micro-dollars."""
    return Fraction(sum(span.usd_micros_per_month * span.seconds(start, end) for span in spans), MONTH_S)


def total(spans: Iterable[Span], until: int) -> Fraction:
    """Return the spans' exact cost from their beginning, in micro-dollars."""
    return cost(spans, 0, until)


def burn_per_s(spans: Iterable[Span]) -> Fraction:
    """Return the cost of the open spans, in micro-dollars per second."""
    return Fraction(sum(span.usd_micros_per_month for span in spans if span.until is None), MONTH_S)


def start_of_bucket(at: datetime, size: str) -> datetime:
    """Return the last bucket boundary at or before an instant, in UTC. Weeks begin on Monday."""
    at = at.astimezone(UTC)
    if size == "hour":
        return at.replace(minute=0, second=0, microsecond=0)
    day = at.replace(hour=0, minute=0, second=0, microsecond=0)
    match size:
        case "week":
            return day - timedelta(days=day.weekday())
        case "month":
            return day.replace(day=1)
        case "year":
            return day.replace(month=1, day=1)
    return day


def next_bucket(start: datetime, size: str) -> datetime:
    """Return the boundary after one."""
    days = {"hour": 0, "day": 1, "week": 7, "month": 32, "year": 367}[size]
    later = start + timedelta(days=days, hours=1 if size == "hour" else 0)
    return start_of_bucket(later, size)


def last_bucket(start: datetime, size: str) -> datetime:
    """Return the boundary before one."""
    return start_of_bucket(start - timedelta(seconds=1), size)


def buckets(start: datetime, end: datetime, size: str) -> Iterator[tuple[datetime, datetime]]:
    """Yield the whole buckets that cover a period, in order."""
    at = start_of_bucket(start, size)
    while at < end:
        after = next_bucket(at, size)
        yield at, after
        at = after


def usd(micros: Fraction) -> float:
    """Convert micro-dollars to dollars, as on the wire."""
    return float(micros / 1_000_000)
