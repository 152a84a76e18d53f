"""How much to bid: a higher bid is evicted less often, but paid every hour."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

from goblin.jobs.domain.market import ExpectedRun, MarketPrices
from goblin.jobs.policy.spot.checkpoint_interval import choose_interval, run_s
from goblin.jobs.policy.spot.preemption_rates import HOUR_S

FLOOR_RAISE = 1.05
"""Lowest bid considered, as a multiple of the floor: a bid at the floor is evicted by any other."""
EVICTIONS_MIN = 0.1
"""Least rate of evictions, as a share of the measured losses: at any bid hosts fail and on-demand renters go first."""


@dataclass(frozen=True, kw_only=True, slots=True)
class RemainingWork:
    """Work of a run, independent of the offer."""

    work_s: float
    save_s: float
    interval_s_max: float


@dataclass(frozen=True, kw_only=True, slots=True)
class BiddingPlace:
    """Costs and times of a run at one offer, without its price."""

    life_s: float
    """Expected time to a loss, at the median bid."""
    restart_s: float
    """Time from the rental to the first work."""
    standing_usd_micros_per_hour: float
    """Storage, per hour."""
    start_usd_micros: float
    """Traffic of each start: image, dataset, checkpoint."""
    save_usd_micros: float
    """Traffic of each save."""


def expect_run(
    work: RemainingWork, place: BiddingPlace, *, price_usd_micros_per_hour: int, evictions: float = 1.0
) -> ExpectedRun | None:
    """Compute the expected cost and duration of a run at this price; None if it would never end.

    Args:
        work: The work to do.
        place: Costs and times at the offer.
        price_usd_micros_per_hour: The bid, or the on-demand price.
        evictions: Rate of losses relative to `place.life_s`: 2 is twice as often.
    """
    life_s = place.life_s / evictions
    interval = choose_interval(save_s=work.save_s, life_s=life_s, interval_s_max=work.interval_s_max)
    busy_s = run_s(
        work_s=work.work_s,
        interval_s=interval.interval_s,
        save_s=work.save_s,
        restart_s=place.restart_s,
        life_s=life_s,
    )
    if math.isinf(busy_s):
        return None
    duration_s = busy_s + place.restart_s
    losses = busy_s / life_s
    hourly = price_usd_micros_per_hour + place.standing_usd_micros_per_hour
    saves = work.work_s / interval.interval_s
    cost = duration_s / HOUR_S * hourly + (1 + losses) * place.start_usd_micros + saves * place.save_usd_micros
    return ExpectedRun(
        price_usd_micros_per_hour=price_usd_micros_per_hour,
        cost_usd_micros=math.ceil(cost),
        duration_s=duration_s,
        interval_s=interval.interval_s,
        losses=losses,
    )


def choose_bid(
    work: RemainingWork,
    place: BiddingPlace,
    *,
    market: MarketPrices,
    floor_usd_micros_per_hour: int,
    limit_usd_micros_per_hour: int,
) -> ExpectedRun | None:
    """Choose the bid with the least expected cost to finish.

    Args:
        work: The work to do.
        place: Costs and times at the offer.
        market: Prices that others pay for the GPU model.
        floor_usd_micros_per_hour: Lowest bid accepted.
        limit_usd_micros_per_hour: Highest bid allowed: the machine's on-demand price, or the job's cap if lower.

    Returns:
        The run at that bid; None if every allowed bid is below the floor or the run would never end.
    """
    runs = (
        expect_run(work, place, price_usd_micros_per_hour=bid, evictions=evictions(market, bid))
        for bid in _bids(market, floor_usd_micros_per_hour, limit_usd_micros_per_hour)
    )
    ended = [run for run in runs if run is not None]
    return min(ended, key=lambda run: (run.cost_usd_micros, run.price_usd_micros_per_hour), default=None)


def evictions(market: MarketPrices, bid_usd_micros_per_hour: int) -> float:
    """Estimate the rate of evictions at this bid, relative to a median bid; it falls as the bid rises."""
    return max(EVICTIONS_MIN, 2 * (1 - market.share_below(bid_usd_micros_per_hour)))


def _bids(market: MarketPrices, floor: int, limit: int) -> Sequence[int]:
    wanted = {math.ceil(floor * FLOOR_RAISE), limit}
    for (_, low), (_, high) in pairwise(market.percentiles):
        wanted |= {low, (low + high) // 2, high}
    return sorted({min(bid, limit) for bid in wanted if min(bid, limit) >= floor})
