"""Which endpoints are tried, in which order, and why."""

from __future__ import annotations

from collections import Counter
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from goblin.core.endpoints import Capability, Endpoint
from goblin.gateway.domain.catalog import Strategy
from goblin.gateway.domain.endpoint_health import Status
from goblin.gateway.policy.route import Demand, EndpointFacts, LatencyForecast, NoRoute, Obstacle, Route
from goblin.gateway.policy.routing import choose_route

NOW = datetime(2026, 11, 23, 12, tzinfo=UTC)
DEMAND = Demand(model="m", needs=frozenset({Capability.CHAT}), prompt_tokens=1000)


def endpoint(name: str, **more: Any) -> Endpoint:
    return Endpoint(name=name, provider="openai", url="http://x", **more)


def fact(
    name: str, *, serves: bool | None = True, ms: float = 100, cost: int | None = None, **more: Any
) -> EndpointFacts:
    """A healthy endpoint; only what matters to the test is said."""
    known = {"status", "status_reason", "open_until", "open_reason", "frozen", "cost_usd_micros_max"}
    said = {key: more.pop(key) for key in known & more.keys()}
    expected = {key: more.pop(key) for key in set(LatencyForecast.__struct_fields__) & more.keys()}
    forecast = LatencyForecast(**{"first_token_ms": ms, "total_ms": ms, "awake_ms": ms, "late_ms": 3 * ms, **expected})
    facts = {"status": Status.HEALTHY, "cost_usd_micros": cost, "cost_usd_micros_max": cost, **said}
    return EndpointFacts(endpoint=endpoint(name, **more), serves=serves, forecast=forecast, **facts)


def route(facts: list[EndpointFacts], strategy: Strategy = Strategy.FAILOVER, **more: Any) -> Route:
    found = choose_route(more.pop("demand", DEMAND), facts, strategy=strategy, **more)
    assert isinstance(found, Route)
    return found


def names(found: Route) -> list[str]:
    return [choice.endpoint.name for choice in found.candidates]


def reasons(choices: Any) -> dict[str, str]:
    return {choice.endpoint.name: choice.reason for choice in choices}


def test_failover_keeps_the_order_of_the_file() -> None:
    assert names(route([fact("c"), fact("a"), fact("b")])) == ["c", "a", "b"]


def test_lowest_latency_asks_the_quickest_first() -> None:
    found = route([fact("slow", ms=900), fact("quick", ms=40), fact("b", ms=40)], Strategy.LOWEST_LATENCY)
    assert names(found) == ["b", "quick", "slow"]
    assert reasons(found.candidates)["slow"] == "first token in about 900 ms"


def test_the_waiting_that_counts_is_the_callers() -> None:
    """For the first token of a stream, for the whole of another answer."""
    facts = [fact("starts_soon", ms=10, total_ms=900), fact("ends_soon", ms=90, total_ms=300)]
    assert names(route(facts, Strategy.LOWEST_LATENCY))[0] == "starts_soon"
    whole = route(facts, Strategy.LOWEST_LATENCY, demand=replace(DEMAND, stream=False))
    assert names(whole)[0] == "ends_soon"
    assert reasons(whole.candidates)["ends_soon"] == "answer in about 300 ms"


def test_who_fails_often_is_as_slow_as_starting_over() -> None:
    found = route([fact("shaky", ms=100, failed_share=0.2), fact("sound", ms=250)], Strategy.LOWEST_LATENCY)
    assert names(found) == ["sound", "shaky"]


def test_among_those_as_quick_the_cheapest_then_the_least_busy() -> None:
    facts = [
        fact("quickest", ms=100, cost=90),
        fact("unknown", ms=100),
        fact("busy", ms=105, cost=3, busy=0.9),
        fact("idle", ms=109, cost=3, busy=0.1),
        fact("slow", ms=120, cost=0),
    ]
    assert names(route(facts, Strategy.LOWEST_LATENCY)) == ["idle", "busy", "quickest", "unknown", "slow"]


def test_what_was_little_seen_gets_the_benefit_of_the_doubt() -> None:
    facts = [fact("known", ms=100, busy=0.5), fact("glimpsed", ms=130, doubt=0.2)]
    assert names(route(facts, Strategy.LOWEST_LATENCY))[0] == "glimpsed"


def test_equals_share_by_dice_and_not_by_name() -> None:
    facts = [fact(name) for name in "abcd"]
    firsts = Counter(names(route(facts, Strategy.LOWEST_LATENCY, rng=i / 1000))[0] for i in range(1000))
    assert firsts == dict.fromkeys("abcd", 250)


def test_lowest_cost_asks_the_cheapest_first_and_the_quicker_of_two() -> None:
    facts = [fact("dear", cost=2100), fact("cheap_slow", cost=9, ms=900), fact("cheap", cost=9, ms=50)]
    found = route(facts, Strategy.LOWEST_COST)
    assert names(found) == ["cheap", "cheap_slow", "dear"]
    assert reasons(found.candidates)["dear"] == "about 2100 micro-dollars"


def test_an_unknown_price_is_never_taken_for_zero() -> None:
    found = route([fact("unknown"), fact("dear", cost=10**9)], Strategy.LOWEST_COST)
    assert names(found) == ["dear", "unknown"]
    assert reasons(found.candidates)["unknown"] == "its price is unknown"


@given(st.integers(0, 10**9), st.integers(1, 6))
def test_round_robin_gives_everybody_a_turn(turn: int, count: int) -> None:
    facts = [fact(f"e{i}") for i in range(count)]
    firsts = [names(route(facts, Strategy.ROUND_ROBIN, turn=turn + i))[0] for i in range(count)]
    assert sorted(firsts) == sorted(f.endpoint.name for f in facts)


@given(st.lists(st.integers(0, 20), min_size=1, max_size=6), st.floats(0, 1, exclude_max=True))
def test_a_weighted_draw_names_each_endpoint_once_and_never_the_weightless_first(
    weights: list[int], rng: float
) -> None:
    facts = [fact(f"e{i}", weight=weight) for i, weight in enumerate(weights)]
    found = names(route(facts, Strategy.WEIGHTED_RANDOM, rng=rng))
    assert sorted(found) == sorted(f.endpoint.name for f in facts)
    if any(weights):
        assert weights[int(found[0][1:])] > 0


def test_a_weighted_draw_follows_the_weights() -> None:
    facts = [fact("one", weight=1), fact("three", weight=3)]
    throws = 1000
    firsts = Counter(names(route(facts, Strategy.WEIGHTED_RANDOM, rng=i / throws))[0] for i in range(throws))
    assert firsts == {"one": 250, "three": 750}


EXTERNAL = "external: the caller keeps the request on our own machines"


@pytest.mark.parametrize(
    ("lame", "demand", "reason"),
    [
        (fact("x", serves=False), DEMAND, "does not serve m"),
        (fact("x", capabilities=frozenset()), DEMAND, "chat: not among its capabilities"),
        (fact("x", lacks={Capability.CHAT: "it only embeds"}), DEMAND, "chat: it only embeds"),
        (fact("x"), replace(DEMAND, provider="well"), "the caller asked for well"),
        (
            fact("x", context_tokens=100),
            replace(DEMAND, prompt_tokens_min=101),
            "context: at least 101 prompt tokens, the limit is 100",
        ),
        (fact("x", external=True), replace(DEMAND, allow_external=False), EXTERNAL),
        (
            fact("x", cost_usd_micros_max=11),
            replace(DEMAND, max_cost_usd_micros=10),
            "cost: up to 11 micro-dollars, the caller allows 10",
        ),
        (fact("x"), replace(DEMAND, max_cost_usd_micros=10), "cost: the price is unknown, and the caller set a limit"),
        (fact("x", frozen="spent"), DEMAND, "frozen: spent"),
        (fact("x", status=Status.UNHEALTHY, status_reason="no answer"), DEMAND, "unhealthy: no answer"),
        (fact("x", open_until=NOW, open_reason="it answered 500"), DEMAND, "breaker open: it answered 500"),
    ],
)
def test_who_is_left_out_and_why(lame: EndpointFacts, demand: Demand, reason: str) -> None:
    found = route([lame, fact("well", cost=10)], demand=demand)
    assert names(found) == ["well"]
    assert reasons(found.rejected) == {"x": reason}


def test_a_pin_may_name_the_provider() -> None:
    mine = EndpointFacts(endpoint=Endpoint(name="mine", provider="ollama", url="http://x"), serves=True)
    assert names(route([fact("a"), mine], demand=replace(DEMAND, provider="ollama"))) == ["mine"]


@pytest.mark.parametrize("strategy", list(Strategy))
def test_the_degraded_come_after_the_others(strategy: Strategy) -> None:
    bad = fact("a", ms=1, cost=0, weight=100, status=Status.DEGRADED, status_reason="slow")
    found = route([bad, fact("b", cost=9)], strategy)
    assert names(found) == ["b", "a"]
    assert reasons(found.candidates)["a"].endswith("after the others, degraded: slow")


@pytest.mark.parametrize("status", [Status.UNKNOWN, Status.HEALTHY])
def test_not_knowing_is_no_reason_to_avoid(status: Status) -> None:
    assert names(route([fact("a", status=status), fact("b")])) == ["a", "b"]


def test_when_nobody_is_well_all_are_tried_soonest_back_first() -> None:
    facts = [
        fact("late", open_until=NOW + timedelta(seconds=60), open_reason="x"),
        fact("soon", open_until=NOW + timedelta(seconds=5), open_reason="x"),
        fact("sick", status=Status.UNHEALTHY, status_reason="y"),
    ]
    found = route(facts)
    assert names(found) == ["sick", "soon", "late"]
    assert found.last_resort
    assert reasons(found.candidates)["soon"] == "last resort, breaker open: x"


def test_a_model_nobody_serves_is_unknown() -> None:
    found = choose_route(DEMAND, [fact("a", serves=False)], strategy=Strategy.FAILOVER)
    assert isinstance(found, NoRoute)
    assert found.obstacle is Obstacle.UNKNOWN_MODEL
    nobody = choose_route(DEMAND, [], strategy=Strategy.FAILOVER)
    assert isinstance(nobody, NoRoute)
    assert (nobody.obstacle, nobody.reason, nobody.rejected) == (found.obstacle, found.reason, ())


def test_a_model_that_a_silent_endpoint_may_have_is_not_unknown() -> None:
    silent = fact("a", serves=None, status=Status.UNHEALTHY, status_reason="loading")
    found = choose_route(DEMAND, [silent, fact("b", serves=False)], strategy=Strategy.FAILOVER)
    assert isinstance(found, NoRoute)
    assert found.obstacle is Obstacle.SILENT
    assert found.reason == "It is not known yet whether `m` is served. a: has not listed its models yet: loading."
    assert names(route([silent, fact("c")])) == ["c"]


def test_the_frozen_are_never_tried_not_even_as_a_last_resort() -> None:
    ill = fact("ill", status=Status.UNHEALTHY, status_reason="x")
    found = route([fact("paid", frozen="openai spent its budget"), ill])
    assert names(found) == ["ill"]
    assert reasons(found.rejected) == {"paid": "frozen: openai spent its budget"}
    alone = choose_route(DEMAND, [fact("paid", frozen="spent")], strategy=Strategy.FAILOVER)
    assert isinstance(alone, NoRoute)
    assert alone.obstacle is Obstacle.FROZEN


def test_an_ability_nobody_has_is_said_with_every_reason() -> None:
    wish = replace(DEMAND, needs=frozenset({Capability.VISION}))
    facts = [fact("a", lacks={Capability.VISION: "it is blind"}), fact("b", capabilities=frozenset())]
    found = choose_route(wish, [*facts, fact("c", serves=False)], strategy=Strategy.FAILOVER)
    assert isinstance(found, NoRoute)
    assert found.obstacle is Obstacle.UNABLE
    assert found.reason == (
        "No endpoint of `m` can serve this request. a: vision: it is blind; b: vision: not among its capabilities."
    )


@pytest.mark.parametrize("strategy", list(Strategy))
def test_who_would_miss_the_deadline_comes_after_the_others(strategy: Strategy) -> None:
    facts = [fact("late", ms=3000, cost=0, weight=100), fact("in_time", ms=900, cost=5)]
    found = route(facts, strategy, demand=replace(DEMAND, deadline_ms=1000))
    assert names(found) == ["in_time", "late"]
    assert reasons(found.candidates)["late"].endswith("after the others, late: about 3000 ms, the deadline is 1000 ms")


@pytest.mark.parametrize("strategy", list(Strategy))
def test_when_all_would_miss_the_deadline_the_least_late_is_tried(strategy: Strategy) -> None:
    facts = [fact("later", ms=3000, cost=0), fact("late", ms=2000, cost=5)]
    assert names(route(facts, strategy, demand=replace(DEMAND, deadline_ms=1000)))[0] == "late"


def test_money_is_said_to_be_the_obstacle_only_where_nothing_else_is() -> None:
    both = fact("both", frozen="spent", cost=9)
    found = choose_route(replace(DEMAND, max_cost_usd_micros=5), [both], strategy=Strategy.FAILOVER)
    assert isinstance(found, NoRoute)
    assert found.obstacle is Obstacle.UNABLE
    assert "the caller allows 5" in found.reason


# Exploring.


def test_exploring_asks_the_one_unheard_for_longest_and_says_so() -> None:
    facts = [fact("best", ms=100), fact("old", ms=300, unheard_s=90), fact("older", ms=300, unheard_s=200)]
    found = route(facts, Strategy.LOWEST_LATENCY, turn=50, explore_share=0.02)
    assert names(found) == ["older", "best", "old"]
    assert reasons(found.candidates)["older"].startswith("explored, no answer from it for 200 s")
    assert found.hedge_after_ms == 300  # As late as the best would be, so the caller loses little.


@pytest.mark.parametrize(
    "stranger",
    [
        fact("x", ms=300, unheard_s=10),
        fact("x", ms=300, unheard_s=900, asleep=0.5),
        fact("x", ms=300, unheard_s=900, waking=True),
        fact("x", ms=30_000, unheard_s=1e6),
        fact("x", ms=1000, unheard_s=150),  # Ten times slower: asked ten times less often.
    ],
)
def test_who_is_not_worth_exploring(stranger: EndpointFacts) -> None:
    facts = [fact("best", ms=100), stranger]
    assert names(route(facts, Strategy.LOWEST_LATENCY, turn=0, explore_share=0.02))[0] == "best"


@given(st.integers(0, 10**6), st.sampled_from([0.01, 0.02, 0.1, 0.5]), st.sampled_from(list(Strategy)))
def test_exploring_is_bounded_whatever_the_start_of_the_count(turn: int, share: float, strategy: Strategy) -> None:
    facts = [fact("best", ms=100, cost=1), fact("stranger", ms=400, cost=2, unheard_s=1000, weight=0)]
    found = [names(route(facts, strategy, turn=turn + i, explore_share=share))[0] for i in range(200)]
    if strategy in (Strategy.LOWEST_LATENCY, Strategy.LOWEST_COST, Strategy.FAILOVER, Strategy.WEIGHTED_RANDOM):
        bound = round(200 * share) if strategy is Strategy.LOWEST_LATENCY else 0
        assert found.count("stranger") == bound


FACTS = st.builds(
    lambda serves, ms, status, opened, weight, known, asleep, external, frozen: {
        "serves": serves,
        "ms": ms,
        "status": status,
        "open_until": NOW + timedelta(seconds=opened) if opened else None,
        "weight": weight,
        "cost": known,
        "asleep": asleep,
        "external": external,
        "frozen": frozen,
    },
    st.booleans(),
    st.floats(1, 10_000),
    st.sampled_from(Status),
    st.integers(0, 5),
    st.integers(0, 9),
    st.none() | st.integers(0, 100),
    st.sampled_from([0.0, 0.5, 1.0]),
    st.booleans(),
    st.sampled_from(["", "", "", "spent"]),
)
DEMANDS = st.builds(
    lambda cost, deadline, external, stream, rate: Demand(
        model="m",
        max_cost_usd_micros=cost,
        deadline_ms=deadline,
        allow_external=external,
        stream=stream,
        arrivals_per_s=rate,
    ),
    st.none() | st.integers(0, 100),
    st.none() | st.integers(1, 10_000),
    st.booleans(),
    st.booleans(),
    st.floats(0, 10),
)


@given(
    st.lists(FACTS, max_size=6),
    DEMANDS,
    st.sampled_from(Strategy),
    st.integers(0, 99),
    st.floats(0, 1, exclude_max=True),
)
def test_every_endpoint_is_a_candidate_or_rejected_and_somebody_able_is_always_tried(
    rows: list[dict[str, Any]], demand: Demand, strategy: Strategy, turn: int, rng: float
) -> None:
    facts = [fact(f"e{i}", **row) for i, row in enumerate(rows)]
    found = choose_route(demand, facts, strategy=strategy, turn=turn, rng=rng, explore_share=0.5)
    again = choose_route(demand, facts, strategy=strategy, turn=turn, rng=rng, explore_share=0.5)
    assert found == again
    limit = demand.max_cost_usd_micros
    allowed = {
        f.endpoint.name
        for f in facts
        if f.serves
        and not f.frozen
        and (demand.allow_external or not f.endpoint.external)
        and (limit is None or (f.cost_usd_micros_max is not None and f.cost_usd_micros_max <= limit))
    }
    if isinstance(found, NoRoute):
        assert not allowed
        assert len(found.rejected) == len(facts)
        assert all(choice.reason for choice in found.rejected)
        return
    seen = [c.endpoint.name for c in found.candidates + found.rejected]
    assert sorted(seen) == sorted(f.endpoint.name for f in facts)
    assert found.candidates
    assert all(choice.reason for choice in found.candidates + found.rejected + found.wake)
    well = {
        f.endpoint.name
        for f in facts
        if f.endpoint.name in allowed and f.open_until is None and f.status is not Status.UNHEALTHY
    }
    assert set(names(found)) == (well or allowed)
    assert {c.endpoint.name for c in found.wake} <= well - {names(found)[0]}


def test_a_silent_endpoint_is_told_when_nobody_else_can_serve() -> None:
    """It may be the one that can: before the answer is no, it should be asked."""
    able = EndpointFacts(endpoint=Endpoint(name="able", provider="openai", url="http://x"), serves=True)
    silent = EndpointFacts(endpoint=Endpoint(name="silent", provider="ollama", url="http://x"), serves=None)
    demand = Demand(model="m", provider="silent")
    found = choose_route(demand, [able, silent], strategy=Strategy.FAILOVER)
    assert isinstance(found, NoRoute)
    assert (found.obstacle, found.silent) == (Obstacle.UNABLE, True)
    alone = choose_route(demand, [able], strategy=Strategy.FAILOVER)
    assert isinstance(alone, NoRoute)
    assert not alone.silent
