"""Admission control: limits on requests in flight, so that callers starve neither each other nor the process.

Limits are per process: with several instances of the function, each one admits as much.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

KEY_RETRY_S = 1.0
"""`Retry-After` of a key with too many requests in flight."""
QUEUE_RETRY_S = 2.0
"""`Retry-After` of a process with too many requests."""


@dataclass(frozen=True, kw_only=True, slots=True)
class AdmissionLimits:
    """Limits of one process."""

    running_max: int = 512
    """Requests that are being served."""
    waiting_max: int = 256
    """Requests that wait for a running one to end."""
    wait_s_max: float = 10.0
    per_key_max: int = 256
    """Requests of one key, running or waiting, unless the key has a limit of its own."""
    messages_max: int = 2048


class AdmissionCounts(Enum):
    """Whether an admitted request runs at once or waits."""

    RUN = "run"
    WAIT = "wait"


@dataclass(frozen=True, kw_only=True, slots=True)
class AdmissionRefusal:
    """A request that is refused for now, and why."""

    reason: str
    retry_after_s: float


def admit(
    *, running: int, waiting: int, of_key: int, key_max: int | None, limits: AdmissionLimits
) -> AdmissionCounts | AdmissionRefusal:
    """Decide whether a request runs, waits or is refused.

    Args:
        running: Requests that are being served.
        waiting: Earlier requests that still wait.
        of_key: Requests of the same key among both.
        key_max: The key's own limit, if it has one.
        limits: The limits of the process.
    """
    most = limits.per_key_max if key_max is None else key_max
    if of_key >= most:
        return AdmissionRefusal(
            reason=f"This key has reached its limit of {most} requests in flight.", retry_after_s=KEY_RETRY_S
        )
    if running < limits.running_max and not waiting:
        return AdmissionCounts.RUN
    if waiting < limits.waiting_max:
        return AdmissionCounts.WAIT
    return AdmissionRefusal(reason="Too many requests are waiting. Try again later.", retry_after_s=QUEUE_RETRY_S)


@dataclass(frozen=True, kw_only=True, slots=True)
class TokenBucket:
    """How many requests a key may still send now; refills up to a minute's worth."""

    tokens: float
    at_s: float
    """Monotonic seconds."""


def take(bucket: TokenBucket | None, *, per_minute: int, now_s: float) -> tuple[TokenBucket, float]:
    """Take a token for one request.

    Returns:
        The refilled bucket less one token, and 0; or the refilled bucket, and how many seconds to wait.
    """
    if bucket is None:
        bucket = TokenBucket(tokens=float(per_minute), at_s=now_s)
    filled = min(bucket.tokens + (now_s - bucket.at_s) * per_minute / 60.0, float(per_minute))
    if filled < 1.0:
        return TokenBucket(tokens=filled, at_s=now_s), (1.0 - filled) * 60.0 / per_minute
    return TokenBucket(tokens=filled - 1.0, at_s=now_s), 0.0
