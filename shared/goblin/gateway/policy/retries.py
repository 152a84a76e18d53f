"""Retries: whether and when to retry a failed attempt at the same endpoint, and how many retries there may be."""

from __future__ import annotations

from dataclasses import dataclass

from goblin.core.errors import Fault

BACKOFF_S = 0.1
"""Wait before the first retry of a transient fault; doubles with each retry."""
WAIT_S_MAX = 2.0
"""A longer wait is not served here: the caller gets `Retry-After`, and waits without holding a connection."""

RETRIES_SHARE = 0.2
"""Retries that a process may add to its requests."""
HEDGES_SHARE = 0.05
"""Hedges that it may add."""

# Faults that pass by themselves, and how long that takes when the endpoint does not say.
_BUSY_S = {Fault.RATE: 1.0, Fault.CAPACITY: 0.5, Fault.LOADING: 1.0}


def wait_before_retry(
    fault: Fault, *, silent: bool, retry_after_s: float | None, retries: int, rng: float
) -> float | None:
    """Compute the seconds to wait before a retry at the same endpoint; None if a retry is of no use.

    Args:
        fault: What went wrong. Faults of keys, credit, missing models or capabilities do not pass by themselves.
        silent: Whether it timed out without an answer.
        retry_after_s: The wait that the endpoint asked for; None without one.
        retries: How many retries there were already.
        rng: A random number from 0 up to, but not including, 1; spreads the retries of requests that failed together.
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
    """Extra requests, earned by ordinary ones: when everything fails, retries must not multiply the load."""

    share: float
    """How much each ordinary request adds."""
    most: float = 10.0
    """The most that can be saved up."""
    saved: float = 10.0


def earn(allowance: RetryAllowance) -> RetryAllowance:
    """Add the share of one ordinary request."""
    saved = min(allowance.saved + allowance.share, allowance.most)
    return RetryAllowance(share=allowance.share, most=allowance.most, saved=saved)


def spend(allowance: RetryAllowance) -> RetryAllowance | None:
    """Spend one extra request; None when not enough is saved."""
    if allowance.saved < 1.0:
        return None
    return RetryAllowance(share=allowance.share, most=allowance.most, saved=allowance.saved - 1.0)
