"""Which offer to rent: the one with the least expected cost to finish, not the lowest price.

A machine with a low price that boots for twenty minutes, charges for traffic or is lost every hour is not cheap.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime

from goblin.jobs.domain.market import Candidate, ExpectedRun, MarketPrices, NoPlacement, Offer, Placement
from goblin.jobs.policy.spot.bidding import BiddingPlace, RemainingWork, choose_bid, expect_run
from goblin.jobs.policy.spot.preemption_rates import HOUR_S, PreemptionRates, remaining_life_s
from goblin.jobs.policy.spot.reputation import Reputation, blocked_until

MONTH_H = 720.0
RELIABILITY_MIN = 0.5
LIFE_S_MAX = 90 * 24 * HOUR_S
LIFETIMES = 4.0
"""Longest life that counts, as a multiple of the work: a longer one is worth no more."""
ENDS_S_MIN = HOUR_S
"""Shortest contract that is worth a start."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Needs:
    """What a job needs of an offer."""

    work_s: float
    gpu_memory_mib_min: int = 0
    disk_gib: float = 0.0
    download_gib: float = 0.0
    """Downloaded at each start: image and dataset, without the checkpoint."""
    checkpoint_gib: float = 0.0
    save_s: float = 10.0
    interval_s_max: float = 15 * 60.0
    price_usd_micros_per_hour_max: int | None = None
    budget_usd_micros: int | None = None
    time_left_s: float | None = None


def choose_offer(
    needs: Needs,
    offers: Sequence[Offer],
    *,
    rates: Mapping[str, PreemptionRates],
    reputations: Mapping[str, Reputation],
    markets: Mapping[str, MarketPrices],
    now: datetime,
) -> Placement | NoPlacement:
    """Choose the offer with the least expected cost to finish, and its bid.

    Args:
        needs: What the job needs.
        offers: Offers of any provider in any order, of one mode or of both; may be empty.
        rates: Preemption rates by pool; a missing pool was never observed.
        reputations: Failures of machines, by `Offer.machine`.
        markets: Prices that others pay, by GPU model; a missing model is unknown.
        now: Aware UTC.
    """
    judged = sorted(
        (
            _judge(
                needs,
                offer,
                rates.get(offer.pool, PreemptionRates()),
                reputations,
                markets.get(offer.gpu, MarketPrices()),
                now,
            )
            for offer in sorted(offers, key=lambda offer: (offer.provider, offer.offer_id, offer.spot))
        ),
        key=lambda candidate: (
            bool(candidate.rejected),
            candidate.run.cost_usd_micros if candidate.run else 0,
            candidate.provider,
            candidate.offer_id,
        ),
    )
    if not judged or judged[0].rejected or judged[0].run is None:
        return _none(needs, offers, judged)
    best, run = judged[0], judged[0].run
    # A provider may offer the same machine on spot and on demand.
    wanted = (best.provider, best.offer_id, best.spot)
    offer = next(one for one in offers if (one.provider, one.offer_id, one.spot) == wanted)
    rest = tuple(
        candidate if candidate.rejected else _beaten(candidate, run.cost_usd_micros) for candidate in judged[1:]
    )
    kind = "spot" if offer.spot else "on demand"
    return Placement(
        offer=offer,
        bid_usd_micros_per_hour=run.price_usd_micros_per_hour if offer.spot else None,
        run=run,
        reason=f"{kind} at {_usd(run.price_usd_micros_per_hour)} an hour: about {_usd(run.cost_usd_micros)} to finish "
        f"in {run.duration_s / HOUR_S:.1f} h with {run.losses:.1f} losses, the least of {len(judged)} offers",
        candidates=(best, *rest),
    )


def _judge(
    needs: Needs,
    offer: Offer,
    rates: PreemptionRates,
    reputations: Mapping[str, Reputation],
    market: MarketPrices,
    now: datetime,
) -> Candidate:
    candidate = Candidate(offer_id=offer.offer_id, provider=offer.provider, spot=offer.spot)
    unfit = _unfit(needs, offer, reputations, now)
    if unfit:
        return _with(candidate, rejected=unfit)
    work = RemainingWork(work_s=needs.work_s, save_s=needs.save_s, interval_s_max=needs.interval_s_max)
    place = _place(needs, offer, rates)
    if offer.spot:
        run = choose_bid(
            work,
            place,
            market=market,
            floor_usd_micros_per_hour=offer.price_usd_micros_per_hour,
            limit_usd_micros_per_hour=_limit(needs, offer, market),
        )
    else:
        run = expect_run(work, place, price_usd_micros_per_hour=offer.price_usd_micros_per_hour)
    if run is None:
        return _with(candidate, rejected="it would be lost before it makes progress")
    saves_per_hour = HOUR_S / (run.interval_s + needs.save_s)
    hourly = run.price_usd_micros_per_hour + place.standing_usd_micros_per_hour + saves_per_hour * place.save_usd_micros
    return _with(
        candidate, run=run, all_in_usd_micros_per_hour=math.ceil(hourly), rejected=_unaffordable(needs, offer, run)
    )


def _unfit(needs: Needs, offer: Offer, reputations: Mapping[str, Reputation], now: datetime) -> str:
    """Explain why the offer is unsuitable whatever the cost to finish; empty: it is suitable."""
    cap = needs.price_usd_micros_per_hour_max
    until = blocked_until(reputations.get(offer.machine)) if offer.machine is not None else None
    if offer.gpu_memory_mib < needs.gpu_memory_mib_min:
        return f"{offer.gpu_memory_mib} MiB of GPU memory, but {needs.gpu_memory_mib_min} are needed"
    if until is not None and until > now:
        return f"the machine failed before; it is not rented until {until:%Y-%m-%d %H:%M}"
    if offer.reliability is not None and offer.reliability < RELIABILITY_MIN:
        return f"its reliability of {offer.reliability:.2f} is too low"
    if offer.ends_in_s is not None and offer.ends_in_s < min(ENDS_S_MIN, needs.work_s) + _restart_s(needs, offer):
        return f"its contract ends in {offer.ends_in_s / 60:.0f} min"
    if cap is not None and offer.price_usd_micros_per_hour > cap:
        return f"{_usd(offer.price_usd_micros_per_hour)} an hour is above the cap of {_usd(cap)}"
    on_demand = offer.on_demand_usd_micros_per_hour
    if offer.spot and on_demand is not None and offer.price_usd_micros_per_hour > on_demand:
        return "its lowest bid is above the on-demand price"
    return ""


def _unaffordable(needs: Needs, offer: Offer, run: ExpectedRun) -> str:
    if needs.budget_usd_micros is not None and run.cost_usd_micros > needs.budget_usd_micros:
        return f"about {_usd(run.cost_usd_micros)} to finish, more than the {_usd(needs.budget_usd_micros)} left"
    if not offer.spot and needs.time_left_s is not None and run.duration_s > needs.time_left_s:
        needed_h, left_h = run.duration_s / HOUR_S, needs.time_left_s / HOUR_S
        return f"about {needed_h:.1f} h to finish, but the deadline is in {left_h:.1f} h"
    return ""


def _place(needs: Needs, offer: Offer, rates: PreemptionRates) -> BiddingPlace:
    started_gib = needs.download_gib + needs.checkpoint_gib
    host_life_s = _host_life_s(offer)
    life_s = host_life_s
    if offer.spot:
        pool_life_s = remaining_life_s(rates, age_s=rates.age_s, horizon_s=LIFETIMES * needs.work_s)
        life_s = 1 / (1 / max(pool_life_s, 1.0) + 1 / host_life_s)
    if offer.ends_in_s is not None:
        life_s = min(life_s, offer.ends_in_s)
    return BiddingPlace(
        life_s=life_s,
        restart_s=_restart_s(needs, offer),
        standing_usd_micros_per_hour=needs.disk_gib * offer.storage_usd_micros_per_gib_month / MONTH_H,
        start_usd_micros=started_gib * offer.download_usd_micros_per_gib,
        save_usd_micros=needs.checkpoint_gib * offer.upload_usd_micros_per_gib,
    )


def _host_life_s(offer: Offer) -> float:
    through_a_day = 0.95 if offer.reliability is None else offer.reliability
    return min(LIFE_S_MAX, 24 * HOUR_S / max(-math.log(min(max(through_a_day, 0.01), 1.0)), 1e-9))


def _restart_s(needs: Needs, offer: Offer) -> float:
    gib = needs.download_gib + needs.checkpoint_gib
    return offer.boot_s + gib * 1024 / max(offer.download_mib_per_s, 0.1)


def _limit(needs: Needs, offer: Offer, market: MarketPrices) -> int:
    """Compute the highest bid allowed."""
    limits = [offer.on_demand_usd_micros_per_hour, needs.price_usd_micros_per_hour_max]
    known = [limit for limit in limits if limit is not None]
    if known:
        return min(known)
    # The on-demand price is unknown: do not bid more than the highest price that others pay.
    return max(offer.price_usd_micros_per_hour, max((price for _, price in market.percentiles), default=0))


def _none(needs: Needs, offers: Sequence[Offer], judged: list[Candidate]) -> NoPlacement:
    if not judged:
        return NoPlacement(reason="there are no offers", candidates=())
    cap = needs.price_usd_micros_per_hour_max
    dear = [offer.price_usd_micros_per_hour for offer in offers if cap is not None]
    above = min((price for price in dear if cap is not None and price > cap), default=None)
    reasons = sorted({candidate.rejected for candidate in judged})
    shown = "; ".join(reasons[:3]) + ("; …" if len(reasons) > 3 else "")
    return NoPlacement(
        reason=f"none of {len(judged)} offers is suitable: {shown}",
        candidates=tuple(judged),
        price_usd_micros_per_hour_min=above,
    )


def _beaten(candidate: Candidate, least: int) -> Candidate:
    cost = candidate.run.cost_usd_micros if candidate.run else least
    return _with(candidate, rejected=f"about {_usd(cost - least)} more to finish")


def _with(
    candidate: Candidate,
    *,
    run: ExpectedRun | None = None,
    all_in_usd_micros_per_hour: int | None = None,
    rejected: str,
) -> Candidate:
    return Candidate(
        offer_id=candidate.offer_id,
        provider=candidate.provider,
        spot=candidate.spot,
        all_in_usd_micros_per_hour=all_in_usd_micros_per_hour or candidate.all_in_usd_micros_per_hour,
        run=run or candidate.run,
        rejected=rejected,
    )


def _usd(micros: int) -> str:
    return f"${micros / 1e6:.2f}"
