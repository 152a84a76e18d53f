"""Whom to wake beside a request, and when to stop waiting for the first answer."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from goblin.core.endpoints import Endpoint
from goblin.gateway.domain.catalog import Strategy
from goblin.gateway.policy.ordering import choice
from goblin.gateway.policy.route import Demand, EndpointFacts, LatencyForecast
from goblin.gateway.policy.traffic import Traffic, arrivals_per_s, expect_output, observe_answer, observe_arrival
from goblin.gateway.policy.warm_up import choose_warm_ups, hedge_after_ms

BUSY = Demand(model="m", arrivals_per_s=0.1)


def fact(name: str, *, ms: float = 2000, cost: int | None = None, **more: Any) -> EndpointFacts:
    endpoint = Endpoint(name=name, provider="x", url="http://x", sleeps_after_s=60)
    forecast = LatencyForecast(**{"first_token_ms": ms, "total_ms": ms, "awake_ms": ms, "late_ms": ms * 3, **more})
    return EndpointFacts(endpoint=endpoint, serves=True, forecast=forecast, cost_usd_micros=cost)


def asleep(name: str, *, awake_ms: float = 200, **more: Any) -> EndpointFacts:
    return fact(name, ms=20_000 + awake_ms, awake_ms=awake_ms, **{"asleep": 0.95, "service_ms": 1000.0, **more})


SLOW, QUICK = fact("slow"), asleep("quick")


def woken(
    demand: Demand, *facts: EndpointFacts, first: EndpointFacts = SLOW, strategy: Strategy = Strategy.LOWEST_LATENCY
) -> list[str]:
    found = choose_warm_ups(demand, [first, *facts], choice(first, "why"), strategy=strategy)
    return [waking.endpoint.name for waking in found]


def test_the_quickest_sleeper_is_woken_when_enough_come_to_use_it() -> None:
    assert woken(BUSY, asleep("quicker", awake_ms=150), QUICK) == ["quicker"]
    assert woken(replace(BUSY, arrivals_per_s=0.04), QUICK) == []


@pytest.mark.parametrize("strategy", [s for s in Strategy if s is not Strategy.LOWEST_LATENCY])
def test_only_the_strategy_that_wants_speed_pays_for_it(strategy: Strategy) -> None:
    assert woken(BUSY, QUICK, strategy=strategy) == []


@pytest.mark.parametrize("strategy", list(Strategy))
def test_a_deadline_that_breaks_wakes_who_would_keep_it(strategy: Strategy) -> None:
    rare = Demand(model="m", deadline_ms=1500)
    assert woken(rare, QUICK, strategy=strategy) == ["quick"]
    assert woken(replace(rare, deadline_ms=100), QUICK, strategy=strategy) == []
    assert woken(replace(rare, deadline_ms=2500), QUICK, strategy=strategy) == []


@pytest.mark.parametrize(
    ("facts", "first"),
    [
        ([asleep("a", awake_ms=1500)], SLOW),  # Not so much quicker.
        ([QUICK, fact("b", waking=True)], SLOW),  # One at a time.
        ([asleep("other")], QUICK),  # The request itself wakes it.
        ([fact("awake", ms=3000)], SLOW),
    ],
)
def test_nobody_is_woken_without_need(facts: list[EndpointFacts], first: EndpointFacts) -> None:
    assert woken(BUSY, *facts, first=first) == []


def hedged(*facts: EndpointFacts, demand: Demand = BUSY) -> int | None:
    return hedge_after_ms(demand, [choice(fact, "why") for fact in facts])


def test_a_hedge_waits_until_the_first_is_late() -> None:
    assert hedged(fact("a", ms=100), fact("b", ms=150)) == 300
    assert hedged(fact("a", ms=1), fact("b", ms=10)) == 20


@pytest.mark.parametrize("second", [QUICK, fact("b", waking=True), fact("b", ms=400)])
def test_a_second_that_would_not_help_is_not_asked(second: EndpointFacts) -> None:
    assert hedged(fact("a", ms=100), second) is None


def test_nobody_to_hedge_with() -> None:
    assert hedged(fact("a")) is None


@pytest.mark.parametrize(("costs", "hedges"), [((4, 6), True), ((4, 7), False), ((4, None), False), ((None, 1), False)])
def test_both_attempts_are_within_what_the_caller_pays(costs: tuple[int | None, int | None], hedges: bool) -> None:
    limit = replace(BUSY, max_cost_usd_micros=10)
    found = hedged(fact("a", ms=100, cost=costs[0]), fact("b", ms=100, cost=costs[1]), demand=limit)
    assert (found is not None) is hedges


def test_traffic_is_counted_and_forgotten() -> None:
    traffic = Traffic()
    for i in range(600):
        traffic = observe_arrival(traffic, now_s=i * 0.5)
    assert arrivals_per_s(traffic, now_s=300) == pytest.approx(2, rel=0.05)
    assert arrivals_per_s(traffic, now_s=900) < 0.01


def test_answers_are_as_long_as_of_late_and_within_the_limit() -> None:
    traffic = Traffic()
    assert expect_output(traffic, output_tokens_max=None) == 256
    for _ in range(50):
        traffic = observe_answer(traffic, output_tokens=40)
    assert expect_output(traffic, output_tokens_max=None) == pytest.approx(40, rel=0.4)
    assert expect_output(traffic, output_tokens_max=10) == 10


@given(st.lists(st.floats(0, 100), max_size=50), st.floats(0, 1e6))
def test_a_rate_is_a_rate(waits: list[float], later: float) -> None:
    traffic, now = Traffic(), 0.0
    for wait in waits:
        now += wait
        traffic = observe_arrival(traffic, now_s=now)
    assert 0 <= arrivals_per_s(traffic, now_s=now + later) <= len(waits)
