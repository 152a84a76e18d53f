"""What was seen of the pools and the machines so far, kept from look to look."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta

from goblin.jobs.domain.instances import is_gpu
from goblin.jobs.domain.market import InstanceRequirements, Listing, Offer
from goblin.jobs.policy.spot.preemption_rates import PreemptionRates, observe
from goblin.jobs.policy.spot.reputation import Reputation, note_failure

POOLS_MAX = 400
MACHINES_MAX = 400
"""Both are bounded by what one document holds; who was not heard of for longest goes."""
GAP = timedelta(minutes=10)
"""After so long without a look nobody knows what happened meanwhile."""


@dataclass(frozen=True, kw_only=True, slots=True)
class PoolHistory:
    """A pool of spot instances, as last seen."""

    provider: str
    gpu: str
    gpu_count: int
    seen_at: datetime
    available_at: datetime | None = None
    """When it was last there."""
    rates: PreemptionRates = field(default_factory=PreemptionRates)


@dataclass(frozen=True, kw_only=True, slots=True)
class MarketHistory:
    """All of it: one document."""

    pools: Mapping[str, PoolHistory] = field(default_factory=dict)
    machines: Mapping[str, Reputation] = field(default_factory=dict)

    @property
    def rates(self) -> dict[str, PreemptionRates]:
        """By pool."""
        return {name: pool.rates for name, pool in self.pools.items()}


def look(
    history: MarketHistory, wanted: InstanceRequirements, listings: Mapping[str, Listing], *, now: datetime
) -> MarketHistory:
    """Count one look at what was wanted; only providers that answered are in `listings`.

    A pool that the question covers and the answer lacks is not there now.
    """
    seen = {
        offer.pool: offer
        for provider in sorted(listings)
        for offer in listings[provider].offers
        if offer.spot
    }  # fmt: skip
    pools = dict(history.pools)
    for name in sorted({*seen, *(name for name, pool in pools.items() if _covers(wanted, listings, pool))}):
        pools[name] = _seen(pools.get(name), seen.get(name), now)
    kept = sorted(pools, key=lambda name: (pools[name].seen_at, name))[-POOLS_MAX:]
    return replace(history, pools={name: pools[name] for name in kept})


def lost(history: MarketHistory, pool: str, *, now: datetime) -> MarketHistory:
    """An instance of ours in the pool was taken away: whoever has it now, at our price it is not there."""
    known = history.pools.get(pool)
    if known is None or known.rates.age_s <= 0:
        return history
    rates = observe(known.rates, available=False, elapsed_s=max(0.0, (now - known.seen_at).total_seconds()))
    return replace(history, pools={**history.pools, pool: replace(known, seen_at=now, rates=rates)})


def blame(history: MarketHistory, machine: str, *, kind: str, now: datetime) -> MarketHistory:
    """A machine let us down.

    Args:
        machine: As `Offer.machine` names it.
        kind: `boot`, `speed`, `lie`, `died`.
    """
    machines = {**history.machines, machine: note_failure(history.machines.get(machine), kind=kind, now=now)}
    kept = sorted(machines, key=lambda name: (machines[name].last_at, name))[-MACHINES_MAX:]
    return replace(history, machines={name: machines[name] for name in kept})


def may_come(
    history: MarketHistory, wanted: InstanceRequirements, *, now: datetime, within: timedelta = timedelta(days=1)
) -> bool:
    """Whether spot of this kind was there lately, so that waiting for it is no dream."""
    return any(
        pool.available_at is not None and now - pool.available_at <= within and _fits(wanted, pool)
        for pool in history.pools.values()
    )


def _covers(wanted: InstanceRequirements, listings: Collection[str], pool: PoolHistory) -> bool:
    return pool.provider in listings and _fits(wanted, pool)


def _fits(wanted: InstanceRequirements, pool: PoolHistory) -> bool:
    return is_gpu(pool.gpu, wanted.gpus) and pool.gpu_count == max(1, wanted.gpu_count)


def _seen(pool: PoolHistory | None, offer: Offer | None, now: datetime) -> PoolHistory:
    if pool is None:
        if offer is None:
            raise ValueError("a pool that was never seen")
        rates = observe(PreemptionRates(), available=True, elapsed_s=0.0)
        return PoolHistory(
            provider=offer.provider, gpu=offer.gpu, gpu_count=offer.gpu_count, seen_at=now, available_at=now,
            rates=rates,
        )  # fmt: skip
    there = offer is not None
    elapsed = now - pool.seen_at
    # The two reconciles of one minute are one look; a clock that is behind another's sees nothing new.
    if elapsed <= timedelta() and there == (pool.rates.age_s > 0):
        return pool
    if elapsed > GAP:
        rates = observe(replace(pool.rates, age_s=0.0), available=there, elapsed_s=0.0)
    else:
        rates = observe(pool.rates, available=there, elapsed_s=max(0.0, elapsed.total_seconds()))
    return replace(pool, seen_at=max(now, pool.seen_at), rates=rates, available_at=now if there else pool.available_at)
