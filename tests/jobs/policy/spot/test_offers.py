"""Which offer, at which bid, saved how often; what is learned of pools and machines."""

from __future__ import annotations

import math
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from goblin.jobs.domain.market import MarketPrices, NoPlacement, Offer, Placement
from goblin.jobs.policy.spot.bidding import BiddingPlace, RemainingWork, choose_bid, evictions
from goblin.jobs.policy.spot.checkpoint_interval import choose_interval, run_s
from goblin.jobs.policy.spot.offers import Needs, choose_offer
from goblin.jobs.policy.spot.pools import Pool, choose_pool
from goblin.jobs.policy.spot.preemption_rates import (
    HOUR_S,
    PreemptionRates,
    loss_rate_per_hour,
    observe,
    remaining_life_s,
)
from goblin.jobs.policy.spot.reputation import blocked_until, note_failure

NOW = datetime(2026, 11, 23, 12, tzinfo=UTC)
MARKET = MarketPrices(percentiles=((0.1, 100_000), (0.25, 150_000), (0.5, 200_000), (0.75, 300_000), (0.9, 400_000)))
NEEDS = Needs(work_s=8 * HOUR_S, disk_gib=50, download_gib=10, checkpoint_gib=2)


def offer(offer_id: str = "a", **facts: object) -> Offer:
    plain = Offer(
        offer_id=offer_id,
        provider="vastai",
        pool="vastai/RTX_4090",
        gpu="RTX_4090",
        spot=False,
        price_usd_micros_per_hour=400_000,
        gpu_memory_mib=24_000,
    )
    return replace(plain, **facts)


def spot(offer_id: str = "s", **facts: object) -> Offer:
    plain = {"spot": True, "price_usd_micros_per_hour": 120_000, "on_demand_usd_micros_per_hour": 400_000}
    return offer(offer_id, **(plain | facts))


def choose(
    *offers: Offer, needs: Needs = NEEDS, rates: PreemptionRates | None = None, **facts: object
) -> Placement | NoPlacement:
    given = {"reputations": {}, "markets": {"RTX_4090": MARKET}, "now": NOW}
    given["rates"] = {"vastai/RTX_4090": rates or PreemptionRates()}
    return choose_offer(needs, offers, **(given | facts))


def placed(answer: Placement | NoPlacement) -> Placement:
    assert isinstance(answer, Placement), answer
    return answer


def test_what_is_offered_on_a_bid_and_on_demand_under_one_id_is_told_apart() -> None:
    for offers in ((offer("x"), spot("x")), (spot("x"), offer("x"))):
        found = choose(*offers)
        assert isinstance(found, Placement)
        assert found.offer.spot == (found.bid_usd_micros_per_hour is not None)
        assert found.candidates[0].spot == found.offer.spot


def test_the_cheapest_to_finish_wins_over_the_cheapest_sticker() -> None:
    free_traffic = offer("free", price_usd_micros_per_hour=420_000)
    dear_traffic = offer("dear", download_usd_micros_per_gib=50_000, upload_usd_micros_per_gib=50_000)
    answer = placed(choose(dear_traffic, free_traffic))
    assert answer.offer.offer_id == "free"
    assert answer.candidates[1].rejected.startswith("about $")
    assert answer.candidates[1].all_in_usd_micros_per_hour > 400_000
    assert "420" not in answer.reason
    assert "$0.42 an hour" in answer.reason


def test_a_pool_that_keeps_losing_instances_makes_on_demand_cheaper() -> None:
    calm = placed(choose(offer(), spot()))
    assert calm.offer.spot
    assert calm.bid_usd_micros_per_hour is not None
    stormy = PreemptionRates(losses=400, losses_expected=5)
    assert placed(choose(offer(), spot(), rates=stormy)).offer.spot is False


def test_slow_boots_and_downloads_cost_as_well() -> None:
    assert placed(choose(spot("slow", boot_s=1800, download_mib_per_s=2), spot("swift"))).offer.offer_id == "swift"


@pytest.mark.parametrize(
    ("bad", "why"),
    [
        (offer(gpu_memory_mib=8_000), "8000 MiB of GPU memory, but 16000 are needed"),
        (offer(reliability=0.3), "its reliability of 0.30 is too low"),
        (offer(ends_in_s=1800), "its contract ends in 30 min"),
        (offer(price_usd_micros_per_hour=900_000), "$0.90 an hour is above the cap of $0.80"),
        (spot(price_usd_micros_per_hour=500_000), "its lowest bid is above the on-demand price"),
    ],
)
def test_says_why_an_offer_is_out(bad: Offer, why: str) -> None:
    needs = replace(NEEDS, gpu_memory_mib_min=16_000, price_usd_micros_per_hour_max=800_000)
    answer = choose(bad, needs=needs)
    assert isinstance(answer, NoPlacement)
    assert why in answer.reason
    assert answer.candidates[0].rejected == why


def test_names_the_price_under_which_something_could_be_had() -> None:
    needs = replace(NEEDS, price_usd_micros_per_hour_max=100_000)
    answer = choose(offer(price_usd_micros_per_hour=300_000), spot(), needs=needs)
    assert isinstance(answer, NoPlacement)
    assert answer.price_usd_micros_per_hour_min == 120_000


def test_an_empty_market_and_a_small_budget_are_refused() -> None:
    assert choose() == NoPlacement(reason="there are no offers", candidates=())
    answer = choose(offer(), needs=replace(NEEDS, budget_usd_micros=1_000_000))
    assert isinstance(answer, NoPlacement)
    assert "more than the $1.00 left" in answer.reason


def test_on_demand_that_would_be_late_is_out() -> None:
    answer = choose(offer(), needs=replace(NEEDS, time_left_s=8 * HOUR_S))
    assert isinstance(answer, NoPlacement)
    assert "the deadline is in 8.0 h" in answer.reason


def test_a_machine_that_failed_us_is_left_alone_for_longer_each_time() -> None:
    once = note_failure(None, kind="boot", now=NOW)
    twice = note_failure(once, kind="ecc", now=NOW + timedelta(days=2))
    assert blocked_until(None) is None
    assert blocked_until(once) == NOW + timedelta(days=1)
    assert blocked_until(twice) == NOW + timedelta(days=4)
    assert blocked_until(replace(twice, failures=50)) == twice.last_at + timedelta(days=30)
    assert note_failure(twice, kind="boot", now=NOW + timedelta(days=200)).failures == 1
    machine = offer(machine_id="m1")
    assert isinstance(choose(machine, reputations={"vastai/m1": once}), NoPlacement)
    assert isinstance(choose(machine, reputations={"vastai/m1": once}, now=NOW + timedelta(days=1)), Placement)


def test_the_order_of_offers_does_not_matter() -> None:
    same = [offer("b"), offer("a"), offer("c")]
    assert placed(choose(*same)).offer.offer_id == placed(choose(*reversed(same))).offer.offer_id == "a"


@settings(max_examples=200, deadline=None)
@given(
    st.integers(1, 10**6),
    st.integers(1, 10**6),
    st.one_of(st.none(), st.integers(1, 10**6)),
    st.lists(st.integers(1, 10**6), min_size=0, max_size=5),
    st.floats(0, 500),
    st.floats(600, 400_000),
)
def test_never_bids_above_on_demand_or_the_cap_nor_below_the_floor(
    floor: int, on_demand: int, cap: int | None, prices: list[int], losses: float, work_s: float
) -> None:
    market = MarketPrices(percentiles=tuple(zip((0.1, 0.25, 0.5, 0.75, 0.9), sorted(prices), strict=False)))
    needs = replace(NEEDS, work_s=work_s, price_usd_micros_per_hour_max=cap)
    one = spot(price_usd_micros_per_hour=floor, on_demand_usd_micros_per_hour=on_demand)
    answer = choose(one, needs=needs, rates=PreemptionRates(losses=losses), markets={"RTX_4090": market})
    assert answer.reason
    if isinstance(answer, Placement):
        bid = answer.bid_usd_micros_per_hour
        assert bid is not None
        assert floor <= bid <= min(on_demand, cap or on_demand)
    else:
        assert all(candidate.rejected for candidate in answer.candidates)


@given(st.integers(0, 600_000), st.integers(0, 600_000))
def test_a_higher_bid_is_evicted_no_more_often(one: int, other: int) -> None:
    low, high = sorted((one, other))
    assert evictions(MARKET, high) <= evictions(MARKET, low)


def test_the_bid_rises_with_what_an_eviction_costs() -> None:
    work = RemainingWork(work_s=20 * HOUR_S, save_s=20, interval_s_max=900)

    def bid(restart_s: float) -> int:
        place = BiddingPlace(
            life_s=HOUR_S,
            restart_s=restart_s,
            standing_usd_micros_per_hour=0,
            start_usd_micros=0,
            save_usd_micros=0,
        )
        run = choose_bid(
            work, place, market=MARKET, floor_usd_micros_per_hour=100_000, limit_usd_micros_per_hour=500_000
        )
        assert run is not None
        return run.price_usd_micros_per_hour

    assert bid(30) <= bid(900) <= bid(3600)
    assert bid(30) < bid(3600)


def test_the_interval_is_dalys_within_what_the_job_allows() -> None:
    # Reference values: a save of 60 s, and a preemption every two hours and every half hour.
    assert choose_interval(save_s=60, life_s=7200, interval_s_max=1e9).interval_s == pytest.approx(890, abs=5)
    assert choose_interval(save_s=60, life_s=1800, interval_s_max=1e9).interval_s == pytest.approx(425, abs=5)
    capped = choose_interval(save_s=60, life_s=72_000, interval_s_max=900)
    assert capped.interval_s == 900
    assert "the job allows 15" in capped.reason
    assert choose_interval(save_s=0, life_s=7200, interval_s_max=900).interval_s == 30


@given(st.floats(1, 600), st.floats(600, 1e6), st.floats(1.01, 10))
def test_a_longer_life_allows_longer_intervals(save_s: float, life_s: float, times: float) -> None:
    shorter = choose_interval(save_s=save_s, life_s=life_s, interval_s_max=1e9)
    assert choose_interval(save_s=save_s, life_s=life_s * times, interval_s_max=1e9).interval_s >= shorter.interval_s


@given(st.floats(1, 300), st.floats(3000, 1e5), st.floats(0.3, 3))
def test_no_other_interval_finishes_much_sooner(save_s: float, life_s: float, factor: float) -> None:
    best = choose_interval(save_s=save_s, life_s=life_s, interval_s_max=1e9).interval_s

    def lasts(interval_s: float) -> float:
        return run_s(work_s=1e5, interval_s=interval_s, save_s=save_s, restart_s=60, life_s=life_s)

    if best > 30 and best > save_s:
        assert lasts(best) <= lasts(best * factor) * 1.001


def test_a_run_that_never_gets_anywhere_is_infinite() -> None:
    assert math.isinf(run_s(work_s=10, interval_s=600, save_s=60, restart_s=60, life_s=1))


def test_learns_how_often_a_pool_loses_and_how_long_it_has_stayed() -> None:
    calm = stormy = PreemptionRates()
    for look in range(600):
        calm = observe(calm, available=True, elapsed_s=600)
        stormy = observe(stormy, available=look % 2 == 0, elapsed_s=600)
    assert calm.volatility < 0.6 < 1.5 < stormy.volatility
    assert calm.age_s == pytest.approx(100 * HOUR_S)
    assert stormy.age_s == 0
    assert calm.availability > 0.9
    assert stormy.availability == pytest.approx(0.5, abs=0.01)
    with pytest.raises(ValueError):
        observe(calm, available=True, elapsed_s=-1)


def test_old_evidence_fades() -> None:
    stormy = PreemptionRates(losses=100, losses_expected=10, available_s=1e6, watched_s=2e6)
    later = stormy
    for _ in range(100):
        later = observe(later, available=False, elapsed_s=24 * HOUR_S)
    assert later.volatility == pytest.approx(1.0, abs=0.5)
    assert later.availability < 0.02


@given(st.floats(0, 1e6), st.floats(1, 1e6), st.floats(0, 200), st.floats(1.01, 10))
def test_the_older_the_longer_and_the_stormier_the_shorter(
    age_s: float, horizon_s: float, losses: float, times: float
) -> None:
    rates = PreemptionRates(losses=losses, losses_expected=10)
    life = remaining_life_s(rates, age_s=age_s, horizon_s=horizon_s)
    assert 0 < life <= horizon_s * (1 + 1e-9)
    assert remaining_life_s(rates, age_s=age_s * times, horizon_s=horizon_s) >= life * (1 - 1e-9)
    stormier = replace(rates, losses=losses * times)
    assert remaining_life_s(stormier, age_s=age_s, horizon_s=horizon_s) <= life * (1 + 1e-9)
    assert loss_rate_per_hour(rates, age_s=age_s * times) <= loss_rate_per_hour(rates, age_s=age_s)


def test_of_several_pools_the_cheapest_hour_of_work_wins() -> None:
    old = Pool(price_usd_micros_per_hour=1_100_000, available=True, rates=PreemptionRates(age_s=20 * HOUR_S))
    young = Pool(price_usd_micros_per_hour=1_000_000, available=True, rates=PreemptionRates(age_s=300))
    gone = Pool(price_usd_micros_per_hour=1, available=False, rates=PreemptionRates())
    choice = choose_pool({"old": old, "young": young, "gone": gone}, changeover_s=1440, work_left_s=10 * HOUR_S)
    assert choice is not None
    assert choice.pool == "old"
    assert choice.usd_micros_per_hour_of_work > 1_100_000
    assert choose_pool({"gone": gone}, changeover_s=60, work_left_s=HOUR_S) is None
    twins = {"b": young, "a": young}
    assert choose_pool(twins, changeover_s=60, work_left_s=HOUR_S) == choose_pool(
        dict(reversed(twins.items())), changeover_s=60, work_left_s=HOUR_S
    )
