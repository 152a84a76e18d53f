"""Machines billed by the second: what requests are charged adds up to the time that they kept machines awake."""

from __future__ import annotations

from dataclasses import dataclass, replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from goblin.billing.policy.prices import bills_time
from goblin.core.endpoints import Endpoint
from goblin.gateway.policy.uptime import AwakeMachine, EndpointMachines, UptimeSession

TAIL, MOST, ENDING = 600, 300.0, 10.0
GPU = Endpoint(
    name="gpu", provider="llamacpp", url="http://x", price_usd_micros_per_hour=3_600_000, sleeps_after_s=TAIL,
    request_s_max=MOST,
)  # fmt: skip


def begin_session(fleet: EndpointMachines, now_s: float, endpoint: Endpoint = GPU) -> UptimeSession:
    return fleet.begin_session(endpoint, now_s, ending_s=ENDING)


def charged(session: UptimeSession, now_s: float, *, woke: bool = True) -> float:
    session.end(now_s, woke=woke)
    assert session.charged_s is not None
    return session.charged_s


def test_the_first_pays_the_start_and_the_tail_and_the_next_what_it_adds() -> None:
    fleet = EndpointMachines()
    assert charged(begin_session(fleet, 0), 40) == 40 + TAIL
    assert charged(begin_session(fleet, 100), 110) == 70  # The tail begins anew, seventy seconds later.
    assert charged(begin_session(fleet, 5000), 5010) == 10 + TAIL  # It had slept.


def test_requests_beside_each_other_share_a_machine_that_has_room() -> None:
    fleet, roomy = EndpointMachines(), replace(GPU, parallel=2)
    first, second, third = (begin_session(fleet, at, roomy) for at in (0, 5, 6))
    assert first.machine is second.machine is not third.machine
    assert charged(second, 6) == 6 + TAIL  # What came before it was not paid yet.
    assert charged(first, 10) == 4
    assert charged(third, 10) == 4 + TAIL


def test_a_refusal_costs_the_time_until_it_came_and_no_tail() -> None:
    fleet = EndpointMachines()
    assert charged(begin_session(fleet, 0), 3, woke=False) == 3
    busy, refused = begin_session(fleet, 100), begin_session(fleet, 100)
    assert charged(refused, 102, woke=False) == 2
    assert charged(busy, 110) == 10 + TAIL


def test_it_ends_once() -> None:
    fleet = EndpointMachines()
    session = begin_session(fleet, 0)
    session.end(1, woke=True)
    session.end(500, woke=True)
    assert session.charged_s == 1 + TAIL
    assert session.machine == AwakeMachine(paid_until_s=1 + TAIL, in_flight=0)


def test_seconds_are_rounded_up_and_nothing_costs_nothing() -> None:
    dear, cheap = (
        begin_session(EndpointMachines(), 0),
        begin_session(EndpointMachines(), 0, replace(GPU, price_usd_micros_per_hour=1)),
    )
    assert [dear.cost_usd_micros(seconds) for seconds in (0, 0.0004, 0.001, 900.5)] == [0, 0, 1, 900_500]
    assert cheap.cost_usd_micros(0.001) == 1


@pytest.mark.parametrize(("hourly", "sleeps", "yes"), [(1, 5, True), (0, 5, False), (None, 5, False), (1, None, False)])
def test_time_is_billed_where_a_machine_has_a_price_and_sleeps(
    hourly: int | None, sleeps: int | None, yes: bool
) -> None:
    endpoint = Endpoint(name="x", provider="y", url="z", price_usd_micros_per_hour=hourly, sleeps_after_s=sleeps)
    assert bills_time(endpoint) is yes


@dataclass
class Span:
    start: float
    end: float


@given(
    st.lists(st.tuples(st.integers(0, 4000), st.integers(0, int(MOST)), st.booleans()), min_size=1, max_size=30),
    st.integers(1, 4),
)
def test_what_is_charged_is_the_time_awake_and_never_more_than_was_put_aside(
    requests: list[tuple[int, int, bool]], parallel: int
) -> None:
    endpoint = replace(GPU, parallel=parallel)
    fleet = EndpointMachines()
    awake: dict[int, list[tuple[Span, bool]]] = {}
    machines: list[AwakeMachine] = []
    total = 0.0
    events = sorted(
        [(at, 1, n) for n, (at, _, _) in enumerate(requests)]
        + [(at + took, 2 if took == 0 else 0, n) for n, (at, took, _) in enumerate(requests)]
    )
    uptime: dict[int, tuple[UptimeSession, float]] = {}
    for now_s, kind, n in events:
        if kind == 1:
            session = begin_session(fleet, now_s, endpoint)
            assert session.machine.in_flight <= parallel
            machines.append(session.machine)  # Kept, so that no other has its place in memory.
            uptime[n] = session, session.worst_s()
            continue
        session, worst = uptime[n]
        woke = requests[n][2]
        total += charged(session, now_s, woke=woke)
        assert session.charged_s is not None
        assert session.charged_s <= worst
        span = Span(session.began_s, now_s + (TAIL if woke else 0))
        awake.setdefault(id(session.machine), []).append((span, woke))
    # Never less than whatever was taken kept awake; a refusal alone on a machine is paid, too.
    every = sum(_union([span for span, _ in spans]) for spans in awake.values())
    taken = sum(_union([span for span, woke in spans if woke]) for spans in awake.values())
    assert taken - 1e-6 <= total <= every + 1e-6


def _union(spans: list[Span]) -> float:
    covered, until = 0.0, float("-inf")
    for span in sorted(spans, key=lambda one: one.start):
        covered += max(0.0, span.end - max(span.start, until))
        until = max(until, span.end)
    return covered
