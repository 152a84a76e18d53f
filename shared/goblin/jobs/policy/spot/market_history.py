"""History of spot pools and machines, updated at each look at the market."""

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
"""Both limits keep the history within one document; entries not updated for longest are dropped."""
GAP = timedelta(minutes=10)
"""After this long without a look, what happened in between is unknown."""


@dataclass(frozen=True, kw_only=True, slots=True)
class PoolHistory:
    """A pool of spot instances as last seen."""

    provider: str
    gpu: str
    gpu_count: int
    seen_at: datetime
    available_at: datetime | None = None
    """When it was last available."""
    rates: PreemptionRates = field(default_factory=PreemptionRates)


@dataclass(frozen=True, kw_only=True, slots=True)
class MarketHistory:
    """The whole history, stored as one document."""

    pools: Mapping[str, PoolHistory] = field(default_factory=dict)
    machines: Mapping[str, Reputation] = field(default_factory=dict)

    @property
    def rates(self) -> dict[str, PreemptionRates]:
        """Preemption rates by pool."""
        return {name: pool.rates for name, pool in self.pools.items()}


def look(
    history: MarketHistory, wanted: InstanceRequirements, listings: Mapping[str, Listing], *, now: datetime
) -> MarketHistory:
    """Record one look at the market; `listings` has only the providers that answered.

    A pool that matches `wanted` and is missing in its provider's listing is not available now.
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
    """Record that an instance of ours was taken away: at our price the pool is not available."""
    known = history.pools.get(pool)
    if known is None or known.rates.age_s <= 0:
        return history
    rates = observe(known.rates, available=False, elapsed_s=max(0.0, (now - known.seen_at).total_seconds()))
    return replace(history, pools={**history.pools, pool: replace(known, seen_at=now, rates=rates)})


def blame(history: MarketHistory, machine: str, *, kind: str, now: datetime) -> MarketHistory:
    """Record a failure of a machine.

    Args:
        history: The history so far.
        machine: Name of the machine, from `Offer.machine`.
        kind: Kind of failure: `boot`, `speed`, `ecc`, `lie` or `died`.
        now: Aware UTC.
    """
    machines = {**history.machines, machine: note_failure(history.machines.get(machine), kind=kind, now=now)}
    kept = sorted(machines, key=lambda name: (machines[name].last_at, name))[-MACHINES_MAX:]
    return replace(history, machines={name: machines[name] for name in kept})


def may_come(
    history: MarketHistory, wanted: InstanceRequirements, *, now: datetime, within: timedelta = timedelta(days=1)
) -> bool:
    """Check whether matching spot was available lately, so that waiting for it makes sense."""
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
            raise ValueError("The pool was never seen and has no offer.")
        rates = observe(PreemptionRates(), available=True, elapsed_s=0.0)
        return PoolHistory(
            provider=offer.provider, gpu=offer.gpu, gpu_count=offer.gpu_count, seen_at=now, available_at=now,
            rates=rates,
        )  # fmt: skip
    there = offer is not None
    elapsed = now - pool.seen_at
    # Two reconciles within one minute are one look; a process whose clock is behind adds nothing new.
    if elapsed <= timedelta() and there == (pool.rates.age_s > 0):
        return pool
    if elapsed > GAP:
        rates = observe(replace(pool.rates, age_s=0.0), available=there, elapsed_s=0.0)
    else:
        rates = observe(pool.rates, available=there, elapsed_s=max(0.0, elapsed.total_seconds()))
    return replace(pool, seen_at=max(now, pool.seen_at), rates=rates, available_at=now if there else pool.available_at)
