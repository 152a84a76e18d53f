"""A breaker per endpoint and model: real requests open it, time half-opens it, one trial closes it.

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
"""A trial that says nothing for so long is taken for lost, and another one may go."""

# Faults that one request is proof enough of, and how long to keep away when the provider does not say.
_AT_ONCE_S = {
    Fault.RATE: 2.0,
    Fault.CAPACITY: 1.0,
    Fault.LOADING: 2.0,
    Fault.MISSING: 60.0,
    Fault.AUTH: 300.0,
    Fault.MONEY: 900.0,
}


class Gate(StrEnum):
    """What the breaker says to the next request."""

    CLOSED = "closed"
    OPEN = "open"
    HALF_OPEN = "half_open"


@dataclass(frozen=True, kw_only=True, slots=True)
class Breaker:
    """What passed between us and one model of one endpoint."""

    failures: int = 0
    """In a row."""
    openings: int = 0
    """In a row; each doubles the pause."""
    open_until: datetime | None = None
    trial_until: datetime | None = None
    reason: str = ""


def gate(breaker: Breaker, *, now: datetime) -> Gate:
    """Whether the next request may pass."""
    if breaker.open_until is None:
        return Gate.CLOSED
    if now < breaker.open_until or (breaker.trial_until is not None and now < breaker.trial_until):
        return Gate.OPEN
    return Gate.HALF_OPEN


def start(breaker: Breaker, *, now: datetime) -> Breaker:
    """A request is sent. When half open it is the trial, and until it ends no other may pass."""
    if gate(breaker, now=now) is Gate.HALF_OPEN:
        return replace(breaker, trial_until=now + timedelta(seconds=TRIAL_S))
    return breaker


def succeed(breaker: Breaker) -> Breaker:
    """It answered: all is forgotten."""
    return Breaker()


def abandon(breaker: Breaker) -> Breaker:
    """The request ended without saying anything about the endpoint: the trial is free again."""
    return replace(breaker, trial_until=None)


def fail(breaker: Breaker, fault: Fault, *, reason: str, retry_after_s: float | None, now: datetime) -> Breaker:
    """It did not serve the request. `UNSUPPORTED` says nothing about its health."""
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
    # Answers arrive in any order: a late one never shortens a pause.
    if breaker.open_until is not None and breaker.open_until > until:
        until = breaker.open_until
    # Requests that were already under way when it opened fail too; only a new pause counts as a new opening.
    reopened = breaker.open_until is None or now >= breaker.open_until
    return Breaker(
        failures=failures,
        openings=min(breaker.openings + int(reopened), 16),
        open_until=until,
        reason=reason,
    )
