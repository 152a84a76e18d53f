"""Which endpoints are tried, in which order, and why."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from goblin.domain.health import Status
from goblin.domain.models import Capability, Endpoint, Price, Strategy
from goblin.policy.routing import Demand, EndpointFacts, NoRoute, Obstacle, Route, choose_route

NOW = datetime(2026, 11, 23, 12, tzinfo=UTC)
DEMAND = Demand(model="m", needs=frozenset({Capability.CHAT}), prompt_tokens=1000, output_tokens=500)


def endpoint(name: str, **more: Any) -> Endpoint:
    return Endpoint(name=name, provider="openai", url="http://x", **more)


def fact(name: str, *, serves: bool | None = True, ms: float = 100, **more: Any) -> EndpointFacts:
    """A healthy endpoint; only what matters to the test is said."""
    known = {"status", "status_reason", "open_until", "open_reason", "frozen"}
    said = {key: more.pop(key) for key in known & more.keys()}
    return EndpointFacts(
        endpoint=endpoint(name, **more), serves=serves, first_token_ms=ms, **{"status": Status.HEALTHY, **said}
    )


def price(inward: int, outward: int) -> Price:
    return Price(input_usd_micros_per_mtok=inward, output_usd_micros_per_mtok=outward)


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


def test_lowest_cost_counts_prompt_and_answer() -> None:
    facts = [
        fact("dear_answers", price=price(100_000, 9_000_000)),
        fact("dear_prompts", price=price(2_000_000, 200_000)),
        fact("free", price=price(0, 0)),
    ]
    found = route(facts, Strategy.LOWEST_COST)
    assert names(found) == ["free", "dear_prompts", "dear_answers"]
    assert reasons(found.candidates)["dear_prompts"] == "about 2100 millionths of a dollar"


def test_an_unknown_price_is_never_taken_for_zero() -> None:
    found = route([fact("unknown"), fact("dear", price=price(10**9, 10**9))], Strategy.LOWEST_COST)
    assert names(found) == ["dear", "unknown"]
    assert reasons(found.candidates)["unknown"] == "its price is unknown"


def test_a_cost_is_rounded_up() -> None:
    assert price(1, 0).cost_usd_micros(input_tokens=1, output_tokens=0) == 1
    assert price(1_000_000, 0).cost_usd_micros(input_tokens=3, output_tokens=0) == 3


@given(st.integers(0, 10**9), st.integers(1, 6))
def test_round_robin_gives_everybody_a_turn(turn: int, count: int) -> None:
    facts = [fact(f"e{i}") for i in range(count)]
    firsts = [names(route(facts, Strategy.ROUND_ROBIN, turn=turn + i))[0] for i in range(count)]
    assert sorted(firsts) == sorted(f.endpoint.name for f in facts)


@given(st.lists(st.integers(0, 20), min_size=1, max_size=6), st.floats(0, 1, exclude_max=True))
def test_a_weighted_draw_names_each_endpoint_once_and_never_the_weightless_first(
    weights: list[int], dice: float
) -> None:
    facts = [fact(f"e{i}", weight=weight) for i, weight in enumerate(weights)]
    found = names(route(facts, Strategy.WEIGHTED_RANDOM, dice=dice))
    assert sorted(found) == sorted(f.endpoint.name for f in facts)
    if any(weights):
        assert weights[int(found[0][1:])] > 0


def test_a_weighted_draw_follows_the_weights() -> None:
    facts = [fact("one", weight=1), fact("three", weight=3)]
    throws = 1000
    firsts = Counter(names(route(facts, Strategy.WEIGHTED_RANDOM, dice=i / throws))[0] for i in range(throws))
    assert firsts == {"one": 250, "three": 750}


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
            "context: the prompt has at least 101 tokens, it takes 100",
        ),
        (fact("x", status=Status.UNHEALTHY, status_reason="no answer"), DEMAND, "unhealthy: no answer"),
        (fact("x", open_until=NOW, open_reason="it answered 500"), DEMAND, "breaker open: it answered 500"),
    ],
)
def test_who_is_left_out_and_why(lame: EndpointFacts, demand: Demand, reason: str) -> None:
    found = route([lame, fact("well")], demand=demand)
    assert names(found) == ["well"]
    assert reasons(found.rejected) == {"x": reason}


def test_a_pin_may_name_the_provider() -> None:
    mine = EndpointFacts(endpoint=Endpoint(name="mine", provider="ollama", url="http://x"), serves=True)
    assert names(route([fact("a"), mine], demand=replace(DEMAND, provider="ollama"))) == ["mine"]


@pytest.mark.parametrize("strategy", list(Strategy))
def test_the_degraded_come_after_the_others(strategy: Strategy) -> None:
    bad = fact("a", ms=1, price=price(0, 0), weight=100, status=Status.DEGRADED, status_reason="slow")
    found = route([bad, fact("b", price=price(9, 9))], strategy)
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
    assert choose_route(DEMAND, [], strategy=Strategy.FAILOVER) == replace(found, rejected=())


def test_a_model_that_a_silent_endpoint_may_have_is_not_unknown() -> None:
    silent = fact("a", serves=None, status=Status.UNHEALTHY, status_reason="loading")
    found = choose_route(DEMAND, [silent, fact("b", serves=False)], strategy=Strategy.FAILOVER)
    assert isinstance(found, NoRoute)
    assert found.obstacle is Obstacle.SILENT
    assert found.reason == "Nobody can tell yet who serves `m`. a: has not said what it serves: loading."
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


FACTS = st.builds(
    lambda serves, ms, status, opened, weight, known: {
        "serves": serves,
        "ms": ms,
        "status": status,
        "open_until": NOW + timedelta(seconds=opened) if opened else None,
        "weight": weight,
        "price": price(known, known) if known is not None else None,
    },
    st.booleans(),
    st.floats(1, 10_000),
    st.sampled_from(Status),
    st.integers(0, 5),
    st.integers(0, 9),
    st.none() | st.integers(0, 10**6),
)


@given(st.lists(FACTS, max_size=6), st.sampled_from(Strategy), st.integers(0, 99), st.floats(0, 1, exclude_max=True))
def test_every_endpoint_is_a_candidate_or_rejected_and_somebody_able_is_always_tried(
    rows: list[dict[str, Any]], strategy: Strategy, turn: int, dice: float
) -> None:
    facts = [fact(f"e{i}", **row) for i, row in enumerate(rows)]
    found = choose_route(DEMAND, facts, strategy=strategy, turn=turn, dice=dice)
    again = choose_route(DEMAND, facts, strategy=strategy, turn=turn, dice=dice)
    assert found == again
    if isinstance(found, NoRoute):
        assert not any(row["serves"] for row in rows)
        return
    seen = [c.endpoint.name for c in found.candidates + found.rejected]
    assert sorted(seen) == sorted(f.endpoint.name for f in facts)
    assert found.candidates
    assert all(choice.reason for choice in found.candidates + found.rejected)
    well = {f.endpoint.name for f in facts if f.serves and f.open_until is None and f.status is not Status.UNHEALTHY}
    assert set(names(found)) == (well or {f.endpoint.name for f in facts if f.serves})
