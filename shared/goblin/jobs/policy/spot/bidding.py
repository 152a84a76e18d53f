"""How much to bid: a higher bid is evicted less often and paid every hour."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

from goblin.jobs.domain.market import ExpectedRun, MarketPrices
from goblin.jobs.policy.spot.checkpoint_interval import choose_interval, run_s
from goblin.jobs.policy.spot.preemption_rates import HOUR_S

FLOOR_RAISE = 1.05
"""The first bid tried, against the floor: who bids the floor itself is evicted by anybody."""
EVICTIONS_MIN = 0.1
"""However high the bid, hosts still fail and on-demand renters still go first: this share of the measured losses."""


@dataclass(frozen=True, kw_only=True, slots=True)
class RemainingWork:
    """What a run must do, wherever it is."""

    work_s: float
    save_s: float
    interval_s_max: float


@dataclass(frozen=True, kw_only=True, slots=True)
class BiddingPlace:
    """What a run costs at one offer beside its price."""

    life_s: float
    """Expected time to a loss, for one who bids what half the others bid."""
    restart_s: float
    """From launch to work."""
    standing_usd_micros_per_hour: float
    """Storage."""
    start_usd_micros: float
    """Traffic of each start: image, dataset, checkpoint."""
    save_usd_micros: float
    """Traffic of each save."""


def expect_run(
    work: RemainingWork, place: BiddingPlace, *, price_usd_micros_per_hour: int, evictions: float = 1.0
) -> ExpectedRun | None:
    """What a run costs and takes at this price; None when it would never end.

    Args:
        evictions: How often it is lost against `place.life_s`: 2 is twice as often.
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
    """The bid with the least expected cost to finish.

    Args:
        floor_usd_micros_per_hour: The least that is accepted.
        limit_usd_micros_per_hour: Never more: the on-demand price of the same thing, or the job's cap if lower.

    Returns:
        The run at that bid; None when every bid allowed is below the floor or the run would never end.
    """
    runs = (
        expect_run(work, place, price_usd_micros_per_hour=bid, evictions=evictions(market, bid))
        for bid in _bids(market, floor_usd_micros_per_hour, limit_usd_micros_per_hour)
    )
    ended = [run for run in runs if run is not None]
    return min(ended, key=lambda run: (run.cost_usd_micros, run.price_usd_micros_per_hour), default=None)


def evictions(market: MarketPrices, bid_usd_micros_per_hour: int) -> float:
    """How often this bid is evicted, against one at the median: falls as the bid rises."""
    return max(EVICTIONS_MIN, 2 * (1 - market.share_below(bid_usd_micros_per_hour)))


def _bids(market: MarketPrices, floor: int, limit: int) -> Sequence[int]:
    wanted = {math.ceil(floor * FLOOR_RAISE), limit}
    for (_, low), (_, high) in pairwise(market.percentiles):
        wanted |= {low, (low + high) // 2, high}
    return sorted({min(bid, limit) for bid in wanted if min(bid, limit) >= floor})
