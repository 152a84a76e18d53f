"""When a breaker opens, for how long, and how it closes."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from goblin.core.errors import Fault
from goblin.gateway.policy import breaker
from goblin.gateway.policy.breaker import Breaker, Gate

NOW = datetime(2026, 11, 23, 12, tzinfo=UTC)


def after(seconds: float) -> datetime:
    return NOW + timedelta(seconds=seconds)


def fail(state: Breaker, fault: Fault = Fault.TRANSIENT, *, wait_s: float | None = None, at: float = 0) -> Breaker:
    return breaker.fail(state, fault, reason="why", retry_after_s=wait_s, now=after(at))


def opened() -> Breaker:
    return fail(fail(fail(Breaker())))


def test_one_failure_is_chance_three_are_a_pattern() -> None:
    state = Breaker()
    for _ in range(2):
        state = fail(state)
        assert breaker.gate(state, now=NOW) is Gate.CLOSED
    state = fail(state)
    assert breaker.gate(state, now=NOW) is Gate.OPEN
    assert state.reason == "why"
    assert breaker.gate(state, now=after(breaker.PAUSE_MIN_S)) is Gate.HALF_OPEN


def test_a_success_in_between_forgives() -> None:
    state = fail(breaker.succeed(fail(fail(Breaker()))))
    assert breaker.gate(state, now=NOW) is Gate.CLOSED


@pytest.mark.parametrize(
    ("fault", "wait_s", "pause_s"),
    [
        (Fault.RATE, 7.0, 7.0),
        (Fault.RATE, None, 2.0),
        (Fault.RATE, 86400.0, breaker.RETRY_AFTER_MAX_S),
        (Fault.RATE, 0.0, 0.0),
        (Fault.TRANSIENT, 30.0, 30.0),
        (Fault.CAPACITY, None, 1.0),
        (Fault.LOADING, None, 2.0),
        (Fault.MISSING, None, 60.0),
        (Fault.AUTH, None, 300.0),
        (Fault.MONEY, None, 900.0),
    ],
)
def test_some_faults_are_believed_at_once(fault: Fault, wait_s: float | None, pause_s: float) -> None:
    assert fail(Breaker(), fault, wait_s=wait_s).open_until == after(pause_s)


def test_what_it_cannot_do_says_nothing_about_its_health() -> None:
    assert fail(Breaker(), Fault.UNSUPPORTED) == Breaker()


def test_half_open_lets_one_trial_through() -> None:
    later = after(breaker.PAUSE_MIN_S)
    state = breaker.start(opened(), now=later)
    assert breaker.gate(state, now=later) is Gate.OPEN
    assert breaker.gate(breaker.succeed(state), now=later) is Gate.CLOSED


def test_a_failed_trial_doubles_the_pause_up_to_a_limit() -> None:
    state, pauses, at = opened(), [], 0.0
    for _ in range(8):
        assert state.open_until is not None
        pauses.append((state.open_until - after(at)).total_seconds())
        at = (state.open_until - NOW).total_seconds()
        state = fail(breaker.start(state, now=after(at)), at=at)
    assert pauses == [5, 10, 20, 40, 80, 120, 120, 120]


def test_a_trial_that_was_abandoned_or_lost_frees_its_place() -> None:
    later = after(breaker.PAUSE_MIN_S)
    state = breaker.start(opened(), now=later)
    assert breaker.gate(breaker.abandon(state), now=later) is Gate.HALF_OPEN
    assert breaker.gate(state, now=after(breaker.PAUSE_MIN_S + breaker.TRIAL_S)) is Gate.HALF_OPEN


def test_failures_of_requests_already_under_way_do_not_double_the_pause() -> None:
    state = opened()
    assert fail(state, at=1).openings == state.openings


@given(st.sampled_from(Fault), st.none() | st.floats(0, 1e6), st.floats(0, 1000))
def test_a_late_answer_never_shortens_a_pause(fault: Fault, wait_s: float | None, at: float) -> None:
    state = fail(Breaker(), Fault.MONEY)
    assert state.open_until is not None
    later = fail(state, fault, wait_s=wait_s, at=at)
    assert later.open_until is not None
    assert later.open_until >= state.open_until


class Breakers(RuleBasedStateMachine):
    """Whatever happens, in whatever order: at most one trial, and no breaker stays open for ever."""

    def __init__(self) -> None:
        super().__init__()
        self.state = Breaker()
        self.now = NOW
        self.trials = 0

    @rule(seconds=st.floats(0, 200))
    def time_passes(self, seconds: float) -> None:
        self.now += timedelta(seconds=seconds)

    @rule()
    def a_request_starts(self) -> None:
        before = breaker.gate(self.state, now=self.now)
        self.state = breaker.start(self.state, now=self.now)
        if before is Gate.HALF_OPEN:
            assert breaker.gate(self.state, now=self.now) is Gate.OPEN

    @rule()
    def a_request_succeeds(self) -> None:
        self.state = breaker.succeed(self.state)
        assert breaker.gate(self.state, now=self.now) is Gate.CLOSED

    @rule(fault=st.sampled_from(Fault), wait_s=st.none() | st.floats(0, 1e9))
    def a_request_fails(self, fault: Fault, wait_s: float | None) -> None:
        self.state = breaker.fail(self.state, fault, reason="r", retry_after_s=wait_s, now=self.now)

    @rule()
    def a_caller_leaves(self) -> None:
        self.state = breaker.abandon(self.state)

    @invariant()
    def it_opens_again_in_the_end(self) -> None:
        assert breaker.gate(self.state, now=self.now + timedelta(seconds=1000)) is not Gate.OPEN


TestBreakers = Breakers.TestCase
