"""How long an endpoint takes to its first token: a decayed mean that starts from a prior, never from zero."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime

HALF_LIFE_S = 120.0
PRIOR_WEIGHT = 1.0
"""The prior counts as one observation that never ages, so old news fades back to it."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Estimate:
    """Weighted observations; the weight halves every `HALF_LIFE_S`."""

    total_ms: float = 0.0
    weight: float = 0.0
    at: datetime | None = None


def observe(estimate: Estimate, sample_ms: float, *, now: datetime) -> Estimate:
    """Add one observation."""
    keep = _decay(estimate, now)
    return Estimate(total_ms=estimate.total_ms * keep + sample_ms, weight=estimate.weight * keep + 1.0, at=now)


def predict_ms(estimate: Estimate, *, prior_ms: float, in_flight: int, parallel: int, now: datetime) -> float:
    """Expected time to the first token of the next request.

    Args:
        estimate: What was observed; may be empty.
        prior_ms: What we believe without observations; positive.
        in_flight: Requests sent there that have not ended.
        parallel: How many it serves at once; the ones beyond wait their turn.
        now: Aware UTC.
    """
    keep = _decay(estimate, now)
    mean = (prior_ms * PRIOR_WEIGHT + estimate.total_ms * keep) / (PRIOR_WEIGHT + estimate.weight * keep)
    return mean * (1.0 + in_flight / parallel)


def _decay(estimate: Estimate, now: datetime) -> float:
    if estimate.at is None:
        return 1.0
    age_s = max((now - estimate.at).total_seconds(), 0.0)
    return float(0.5 ** (age_s / HALF_LIFE_S))
