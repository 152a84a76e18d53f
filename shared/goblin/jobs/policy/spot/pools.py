"""Choice among several pools: where to rent the next spot instance.

Only part of the paid time is work: of an instance's life, the changeover at its start is lost.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from goblin.jobs.policy.spot.preemption_rates import HOUR_S, PreemptionRates, remaining_life_s


@dataclass(frozen=True, kw_only=True, slots=True)
class Pool:
    """State of one pool now."""

    price_usd_micros_per_hour: int
    available: bool
    rates: PreemptionRates
    move_usd_micros: int = 0
    """Cost of the traffic to move the checkpoint there."""


@dataclass(frozen=True, kw_only=True, slots=True)
class PoolChoice:
    """The chosen pool, with the expected cost of an hour of work there."""

    pool: str
    usd_micros_per_hour_of_work: int
    reason: str


def choose_pool(pools: Mapping[str, Pool], *, changeover_s: float, work_left_s: float) -> PoolChoice | None:
    """Choose the pool with the least expected cost of an hour of work; None if no pool is available.

    Ties are decided by name, so that the result is deterministic.
    """
    prices = {
        name: _per_hour_of_work(pool, changeover_s, work_left_s) for name, pool in pools.items() if pool.available
    }
    if not prices:
        return None
    name = min(prices, key=lambda one: (prices[one], one))
    life_s = remaining_life_s(pools[name].rates, age_s=pools[name].rates.age_s, horizon_s=work_left_s + changeover_s)
    least = math.ceil(prices[name]) if math.isfinite(prices[name]) else pools[name].price_usd_micros_per_hour
    return PoolChoice(
        pool=name,
        usd_micros_per_hour_of_work=least,
        reason=f"{name} should stay for {life_s / HOUR_S:.1f} h: least per hour of work of {len(prices)} pools",
    )


def _per_hour_of_work(pool: Pool, changeover_s: float, work_left_s: float) -> float:
    life_s = remaining_life_s(pool.rates, age_s=pool.rates.age_s, horizon_s=work_left_s + changeover_s)
    worked_s = life_s - changeover_s
    if worked_s <= 0:
        # No work is expected. Rank such pools behind all others, by price.
        return math.inf if pool.price_usd_micros_per_hour <= 0 else 1e12 + pool.price_usd_micros_per_hour
    return (pool.price_usd_micros_per_hour * life_s + pool.move_usd_micros * HOUR_S) / worked_s
