"""How much is served at once, and to whom: so that one caller cannot starve the others, or all of them the process.

Counted per process: with several instances of the function a key gets as much from each.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum


@dataclass(frozen=True, kw_only=True, slots=True)
class AdmissionLimits:
    """Bounds of one process."""

    running_max: int = 512
    """Requests being served."""
    waiting_max: int = 256
    """Requests that wait for one of those to end."""
    wait_s_max: float = 10.0
    per_key_max: int = 256
    """Requests of one key, served or waiting, unless the key says otherwise."""
    messages_max: int = 2048


class AdmissionCounts(Enum):
    """What becomes of a request now."""

    RUN = "run"
    WAIT = "wait"


@dataclass(frozen=True, kw_only=True, slots=True)
class AdmissionRefusal:
    """Not now."""

    reason: str
    retry_after_s: float


def admit(
    *, running: int, waiting: int, of_key: int, key_max: int | None, limits: AdmissionLimits
) -> AdmissionCounts | AdmissionRefusal:
    """Whether a request may begin.

    Args:
        running: Requests being served.
        waiting: Requests that came before and still wait.
        of_key: Those of the same key among both.
        key_max: What the key is allowed, if it says so.
        limits: What everybody is.
    """
    most = limits.per_key_max if key_max is None else key_max
    if of_key >= most:
        return AdmissionRefusal(
            reason=f"This key has {most} requests under way, which is all it may have.", retry_after_s=1.0
        )
    if running < limits.running_max and not waiting:
        return AdmissionCounts.RUN
    if waiting < limits.waiting_max:
        return AdmissionCounts.WAIT
    return AdmissionRefusal(reason="Too many requests are waiting already.", retry_after_s=2.0)


@dataclass(frozen=True, kw_only=True, slots=True)
class TokenBucket:
    """What a key may still send now; fills up to a minute's worth."""

    tokens: float
    at_s: float
    """Monotonic seconds."""


def take(bucket: TokenBucket | None, *, per_minute: int, now_s: float) -> tuple[TokenBucket, float]:
    """Count one request.

    Returns:
        The bucket after it, and 0; or the bucket as it was, and how many seconds to wait.
    """
    if bucket is None:
        bucket = TokenBucket(tokens=float(per_minute), at_s=now_s)
    filled = min(bucket.tokens + (now_s - bucket.at_s) * per_minute / 60.0, float(per_minute))
    if filled < 1.0:
        return TokenBucket(tokens=filled, at_s=now_s), (1.0 - filled) * 60.0 / per_minute
    return TokenBucket(tokens=filled - 1.0, at_s=now_s), 0.0
