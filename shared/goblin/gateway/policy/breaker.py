"""Circuit breaker of one target: failed requests open it, time half-opens it, one successful trial closes it.

closed ──failures──▶ open ──time──▶ half open ──trial succeeds──▶ closed
                       ▲                │
                       └──trial fails───┘
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from enum import StrEnum

from goblin.core.errors import Fault

FAILURES_TO_OPEN = 3
PAUSE_MIN_S = 5.0
PAUSE_MAX_S = 120.0
RETRY_AFTER_MAX_S = 600.0
TRIAL_S = 120.0
"""A trial without a result after this time is taken as lost, and another one is let through."""

# Faults that open the breaker at once, and for how long when the provider does not say.
_AT_ONCE_S = {
    Fault.RATE: 2.0,
    Fault.CAPACITY: 1.0,
    Fault.LOADING: 2.0,
    Fault.MISSING: 60.0,
    Fault.AUTH: 300.0,
    Fault.MONEY: 900.0,
}


class Gate(StrEnum):
    """State of a breaker for the next request."""

    CLOSED = "closed"
    OPEN = "open"
    HALF_OPEN = "half_open"


@dataclass(frozen=True, kw_only=True, slots=True)
class Breaker:
    """Recent failures of one target or account, and whether it gets requests."""

    failures: int = 0
    """Failures in a row."""
    openings: int = 0
    """Openings in a row; each doubles the pause."""
    open_until: datetime | None = None
    trial_until: datetime | None = None
    reason: str = ""


def gate(breaker: Breaker, *, now: datetime) -> Gate:
    """Return the state of a breaker for the next request."""
    if breaker.open_until is None:
        return Gate.CLOSED
    if now < breaker.open_until or (breaker.trial_until is not None and now < breaker.trial_until):
        return Gate.OPEN
    return Gate.HALF_OPEN


def start(breaker: Breaker, *, now: datetime) -> Breaker:
    """Record that a request is sent. If half open, it is the trial, and no other request passes until it ends."""
    if gate(breaker, now=now) is Gate.HALF_OPEN:
        return replace(breaker, trial_until=now + timedelta(seconds=TRIAL_S))
    return breaker


def succeed(breaker: Breaker) -> Breaker:
    """Reset the breaker after a success."""
    return Breaker()


def abandon(breaker: Breaker) -> Breaker:
    """End a request that showed nothing about the endpoint: another trial is allowed."""
    return replace(breaker, trial_until=None)


def fail(breaker: Breaker, fault: Fault, *, reason: str, retry_after_s: float | None, now: datetime) -> Breaker:
    """Record a failure. `UNSUPPORTED` says nothing about the endpoint's health."""
    if fault is Fault.UNSUPPORTED:
        return abandon(breaker)
    failures = breaker.failures + 1
    was_open = breaker.open_until is not None
    if fault is Fault.TRANSIENT and retry_after_s is None and failures < FAILURES_TO_OPEN and not was_open:
        return replace(breaker, failures=failures, reason=reason)
    pause_s = min(_AT_ONCE_S.get(fault, PAUSE_MIN_S) * 2.0**breaker.openings, PAUSE_MAX_S)
    pause_s = max(pause_s, _AT_ONCE_S.get(fault, 0.0))
    if retry_after_s is not None:
        pause_s = min(max(retry_after_s, 0.0), RETRY_AFTER_MAX_S)
    until = now + timedelta(seconds=pause_s)
    # Results arrive in any order: a late one never shortens a pause.
    if breaker.open_until is not None and breaker.open_until > until:
        until = breaker.open_until
    # Requests that were in flight when it opened may fail too; only a new pause counts as a new opening.
    reopened = breaker.open_until is None or now >= breaker.open_until
    return Breaker(
        failures=failures,
        openings=min(breaker.openings + int(reopened), 16),
        open_until=until,
        reason=reason,
    )
