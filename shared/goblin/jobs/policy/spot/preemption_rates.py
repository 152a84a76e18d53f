"""What a pool of spot instances has shown so far: how long it stays, how often it is there.

Lives of spot instances are heavy-tailed: the longer one is up, the longer it will stay. Before anything is known the
hazard at age a is `LOSSES_PRIOR / (a + AGE_PRIOR)`, which fits no pool exactly and none badly; each pool then scales it
by what it was seen to do. Old evidence fades, so a pool that changed its ways is found out.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

HOUR_S = 3600.0
LOSSES_PRIOR = 0.9
"""Shape of the prior life, a Lomax law: its hazard falls with age."""
AGE_PRIOR_S = 0.3 * HOUR_S
"""Scale of the prior life; keeps the hazard of a newborn finite."""
PSEUDO_LOSSES = 3.0
"""How many losses the prior counts for: one pool's luck on its first day moves little."""
HALF_LIFE_S = 14 * 24 * HOUR_S
"""Evidence this old counts half."""


@dataclass(frozen=True, kw_only=True, slots=True)
class PreemptionRates:
    """One pool (provider, place and kind of GPU) as watched; the default is a pool never seen."""

    losses: float = 0.0
    """Times it was there and then was not, faded by age."""
    losses_expected: float = 0.0
    """How many the prior would have had over the same lives, faded alike."""
    available_s: float = 0.0
    watched_s: float = 0.0
    age_s: float = 0.0
    """How long it has been there without a break, the time up to the first sight of it included; 0: not there now."""

    @property
    def volatility(self) -> float:
        """Losses against what the prior expects, drawn towards 1 while little is known."""
        return (self.losses + PSEUDO_LOSSES) / (self.losses_expected + PSEUDO_LOSSES)

    @property
    def availability(self) -> float:
        """Share of the time it was there; one half, worth half a day of watching, before that."""
        return (self.available_s + 6 * HOUR_S) / (self.watched_s + 12 * HOUR_S)


def observe(rates: PreemptionRates, *, available: bool, elapsed_s: float) -> PreemptionRates:
    """Count one look at the pool.

    A life that we ended ourselves is not a loss: just go on watching, or begin a new `age_s` of 0.

    Args:
        rates: As they were at the last look.
        available: Whether an instance can be had, or ours still runs.
        elapsed_s: Since the last look; what was seen then is taken to have lasted until now.
    """
    if elapsed_s < 0:
        raise ValueError(f"time went back by {-elapsed_s} s")
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
    """How often instances of this age are lost."""
    return rates.volatility * LOSSES_PRIOR / ((AGE_PRIOR_S + age_s) / HOUR_S)


def remaining_life_s(rates: PreemptionRates, *, age_s: float, horizon_s: float) -> float:
    """Expected time to the next loss, counting at most `horizon_s`: without an end the mean of such a life is none."""
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
