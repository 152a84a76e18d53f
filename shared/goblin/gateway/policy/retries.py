"""Whether a failed attempt is worth another one at the same endpoint, when, and how many of those there may be."""

from __future__ import annotations

from dataclasses import dataclass

from goblin.core.errors import Fault

BACKOFF_S = 0.1
"""Before the first retry of what may have been an accident; doubles with each."""
WAIT_S_MAX = 2.0
"""Who asks us to wait longer is believed: the caller is told, and waits without holding a connection."""

# Faults that time mends, and how long it takes when the endpoint does not say.
_BUSY_S = {Fault.RATE: 1.0, Fault.CAPACITY: 0.5, Fault.LOADING: 1.0}


def wait_before_retry(
    fault: Fault, *, silent: bool, retry_after_s: float | None, retries: int, rng: float
) -> float | None:
    """Seconds to wait before asking the same endpoint again, or None if that is of no use.

    Args:
        fault: What went wrong. Keys, money, missing models and missing abilities do not mend by themselves.
        silent: It did not fail, it said nothing for as long as we were ready to wait.
        retry_after_s: The endpoint's own word.
        retries: How often it was asked again already.
        dice: From 0 up to 1; spreads those who failed together.
    """
    if silent:
        return None
    if fault is Fault.TRANSIENT:
        wait_s = BACKOFF_S * 2.0**retries * (0.5 + rng) if retry_after_s is None else retry_after_s
    elif fault in _BUSY_S:
        wait_s = _BUSY_S[fault] * 2.0**retries * (0.5 + rng) if retry_after_s is None else retry_after_s
    else:
        return None
    return wait_s if wait_s <= WAIT_S_MAX else None


@dataclass(frozen=True, kw_only=True, slots=True)
class RetryAllowance:
    """Extra requests are paid for by ordinary ones: when everything fails, retries must not multiply the load."""

    share: float
    """What each ordinary request adds."""
    most: float = 10.0
    """What can be saved up."""
    saved: float = 10.0


def earn(allowance: RetryAllowance) -> RetryAllowance:
    """An ordinary request has come."""
    saved = min(allowance.saved + allowance.share, allowance.most)
    return RetryAllowance(share=allowance.share, most=allowance.most, saved=saved)


def spend(allowance: RetryAllowance) -> RetryAllowance | None:
    """Pay for one extra request; None when there is not enough."""
    if allowance.saved < 1.0:
        return None
    return RetryAllowance(share=allowance.share, most=allowance.most, saved=allowance.saved - 1.0)
