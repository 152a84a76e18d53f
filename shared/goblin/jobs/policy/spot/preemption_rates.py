"""Measured rates of a spot pool: how long instances last, and how often it is available.

Lives of spot instances are heavy-tailed: the longer one is up, the longer it will stay. The prior hazard at age a is
`LOSSES_PRIOR / (a + AGE_PRIOR_S)`, with times in hours; it fits no pool exactly and none badly. Each pool scales it by
its observed losses. Old evidence fades, so that a change in a pool is noticed.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

HOUR_S = 3600.0
LOSSES_PRIOR = 0.9
"""Shape of the prior distribution of lives, a Lomax distribution: its hazard falls with age."""
AGE_PRIOR_S = 0.3 * HOUR_S
"""Scale of the prior distribution; keeps the hazard of a new instance finite."""
PSEUDO_LOSSES = 3.0
"""Losses that the prior counts for: a pool's luck on its first day changes little."""
HALF_LIFE_S = 14 * 24 * HOUR_S
"""Age at which evidence counts half."""


@dataclass(frozen=True, kw_only=True, slots=True)
class PreemptionRates:
    """Observations of one pool (provider, location and GPU model); the default is a pool never seen."""

    losses: float = 0.0
    """Changes from available to not available, faded by age."""
    losses_expected: float = 0.0
    """Losses that the prior expects for the same lives, faded the same way."""
    available_s: float = 0.0
    watched_s: float = 0.0
    age_s: float = 0.0
    """Time that it has been available without a break, counted from the first look; 0: not available now."""

    @property
    def volatility(self) -> float:
        """Observed losses relative to the prior's, close to 1 while little is known."""
        return (self.losses + PSEUDO_LOSSES) / (self.losses_expected + PSEUDO_LOSSES)

    @property
    def availability(self) -> float:
        """Share of time that it was available; starts at one half, which counts as 12 hours of observation."""
        return (self.available_s + 6 * HOUR_S) / (self.watched_s + 12 * HOUR_S)


def observe(rates: PreemptionRates, *, available: bool, elapsed_s: float) -> PreemptionRates:
    """Count one look at the pool.

    An instance that we ended ourselves is not a loss: continue to observe, or start again with an `age_s` of 0.

    Args:
        rates: Rates at the last look.
        available: Whether an instance can be rented, or ours still runs.
        elapsed_s: Time since the last look; the state seen then is assumed to have lasted until now.

    Raises:
        ValueError: `elapsed_s` is negative.
    """
    if elapsed_s < 0:
        raise ValueError(f"Time went back by {-elapsed_s} s.")
    was_there = rates.age_s > 0
    fade = 0.5 ** (elapsed_s / HALF_LIFE_S)
    exposure = _losses_prior(max(0.0, rates.age_s - elapsed_s), elapsed_s) if was_there else 0.0
    age_s = rates.age_s + elapsed_s if was_there else max(elapsed_s, 1.0)
    return PreemptionRates(
        losses=rates.losses * fade + (1.0 if was_there and not available else 0.0),
        losses_expected=rates.losses_expected * fade + exposure,
        available_s=rates.available_s * fade + (elapsed_s if available else 0.0),
        watched_s=rates.watched_s * fade + elapsed_s,
        age_s=age_s if available else 0.0,
    )


def loss_rate_per_hour(rates: PreemptionRates, *, age_s: float) -> float:
    """Compute the losses per hour of instances of this age."""
    return rates.volatility * LOSSES_PRIOR / ((AGE_PRIOR_S + age_s) / HOUR_S)


def remaining_life_s(rates: PreemptionRates, *, age_s: float, horizon_s: float) -> float:
    """Compute the expected time to the next loss, up to `horizon_s`: without a limit the mean may be infinite."""
    shape = rates.volatility * LOSSES_PRIOR
    scale = AGE_PRIOR_S + age_s
    if horizon_s <= 0:
        return 0.0
    grown = math.log1p(horizon_s / scale)
    rest = 1.0 - shape
    if abs(rest * grown) < 1e-9:
        return scale * grown
    return scale * math.expm1(rest * grown) / rest


def _losses_prior(age_s: float, elapsed_s: float) -> float:
    return LOSSES_PRIOR * math.log1p(elapsed_s / (AGE_PRIOR_S + age_s))
