"""Spot, on demand or wait: never late where it can be helped, whatever spot does."""

from __future__ import annotations

import math
import random
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from goblin.jobs.policy.spot.deadline import (
    Feasible,
    Infeasible,
    Mode,
    Situation,
    Terms,
    age_to_leave_s,
    check_deadline,
    choose_mode,
    mask,
)
from goblin.jobs.policy.spot.preemption_rates import PreemptionRates, observe
from tests.bench._spot_ours import ours, terms_of
from tests.bench._spot_simulator import Hazards, View, simulate

HOUR = 3600.0
TERMS = Terms(spot_usd_micros_per_hour=1_000_000, on_demand_usd_micros_per_hour=3_000_000, changeover_s=720)


def situation(**facts: object) -> Situation:
    plain = Situation(
        work_left_s=10 * HOUR, time_left_s=20 * HOUR, running=Mode.WAIT, spot_available=False, step_s=60.0
    )
    return replace(plain, **facts)


def seen(age_s: float, **facts: float) -> PreemptionRates:
    return PreemptionRates(age_s=age_s, **facts)


def test_takes_spot_that_is_there_and_waits_for_it_while_there_is_time() -> None:
    assert choose_mode(situation(spot_available=True), TERMS, seen(60)).mode is Mode.SPOT
    assert choose_mode(situation(), TERMS, PreemptionRates()).mode is Mode.WAIT


def test_buys_on_demand_once_slack_is_a_tenth_of_the_work() -> None:
    reserve = TERMS.reserve_s + 2 * 60
    assert choose_mode(situation(time_left_s=11 * HOUR + reserve + 1), TERMS, PreemptionRates()).mode is Mode.WAIT
    assert choose_mode(situation(time_left_s=11 * HOUR + reserve), TERMS, PreemptionRates()).mode is Mode.ON_DEMAND


def test_leaves_on_demand_only_for_spot_that_has_stayed() -> None:
    on_demand = situation(running=Mode.ON_DEMAND, spot_available=True)
    enough = age_to_leave_s(work_left_s=10 * HOUR, slack_s=10 * HOUR - 720, terms=TERMS, rates=PreemptionRates())
    assert enough == pytest.approx(720 * 1.5 * (1 + 0.1 * 10 / 9.8))
    young = choose_mode(on_demand, TERMS, seen(enough - 1))
    assert young.mode is Mode.ON_DEMAND
    assert "a move pays after" in young.reason
    assert choose_mode(on_demand, TERMS, seen(enough)).mode is Mode.SPOT


def test_stays_on_demand_for_a_little_work() -> None:
    nearly = situation(work_left_s=600, running=Mode.ON_DEMAND, spot_available=True)
    decision = choose_mode(nearly, TERMS, seen(9 * HOUR))
    assert (decision.mode, decision.reason) == (
        Mode.ON_DEMAND,
        "spot has been available for 9.0 h; the work left is not worth a move",
    )


def test_never_waits_from_on_demand() -> None:
    assert (
        choose_mode(situation(running=Mode.ON_DEMAND, time_left_s=900 * HOUR), TERMS, PreemptionRates()).mode
        is Mode.ON_DEMAND
    )


def test_spot_that_is_not_cheaper_is_no_spot() -> None:
    dear = replace(TERMS, spot_usd_micros_per_hour=3_000_000)
    assert choose_mode(situation(spot_available=True, time_left_s=11 * HOUR), dear, seen(HOUR)).mode is Mode.ON_DEMAND
    assert choose_mode(situation(spot_available=True, time_left_s=None), dear, seen(HOUR)).mode is Mode.ON_DEMAND


def test_without_a_deadline_only_spot_within_the_money() -> None:
    anytime = situation(time_left_s=None)
    assert choose_mode(anytime, TERMS, PreemptionRates()).mode is Mode.WAIT
    there = replace(anytime, spot_available=True, money_left_usd_micros=20_000)
    assert choose_mode(there, TERMS, seen(60)).mode is Mode.SPOT
    broke = choose_mode(replace(there, money_left_usd_micros=100), TERMS, seen(60))
    assert (broke.mode, broke.guaranteed) == (Mode.WAIT, False)


def test_a_lost_deadline_is_still_run_as_fast_as_possible_and_says_so() -> None:
    late = choose_mode(situation(time_left_s=10 * HOUR), TERMS, PreemptionRates())
    assert (late.mode, late.guaranteed) == (Mode.ON_DEMAND, False)
    working = situation(time_left_s=10 * HOUR, running=Mode.SPOT, spot_available=True)
    assert choose_mode(working, TERMS, seen(HOUR)).mode is Mode.SPOT


def test_without_on_demand_nothing_is_promised() -> None:
    none = mask(TERMS, price_usd_micros_per_hour_max=2_000_000)
    assert none.on_demand_usd_micros_per_hour is None
    decision = choose_mode(situation(spot_available=True), none, seen(60))
    assert (decision.mode, decision.guaranteed) == (Mode.SPOT, False)


def test_money_that_cannot_carry_on_demand_to_the_end_is_kept_for_spot() -> None:
    poor = situation(spot_available=True, money_left_usd_micros=5_000_000)
    decision = choose_mode(poor, TERMS, seen(60))
    assert (decision.mode, decision.guaranteed) == (Mode.SPOT, False)
    assert "$5.00" in decision.reason


def test_spot_is_left_when_another_changeover_would_cost_too_much() -> None:
    # 10 h of work and 12 min of changeover on demand are $30.60; the first step of spot does no work yet.
    just = situation(spot_available=True, money_left_usd_micros=30_600_000)
    decision = choose_mode(just, TERMS, seen(60))
    assert (decision.mode, decision.reason) == (Mode.ON_DEMAND, "too little budget to run on spot")


def test_on_demand_that_is_sold_out_has_a_fallback() -> None:
    tight = situation(time_left_s=10.2 * HOUR + 30, spot_available=True)
    decision = choose_mode(tight, TERMS, seen(60))
    assert (decision.mode, decision.fallback) == (Mode.ON_DEMAND, Mode.SPOT)


def test_a_deadline_too_near_is_refused_with_the_nearest_one() -> None:
    answer = check_deadline(work_s=10 * HOUR, time_s=9 * HOUR, step_s=60, terms=TERMS)
    assert isinstance(answer, Infeasible)
    assert answer.time_s_min == 10 * HOUR + 720
    assert answer.reason == "it needs 10.2 h even if on demand runs from now on, and has 9.0 h"
    again = check_deadline(work_s=10 * HOUR, time_s=answer.time_s_min, step_s=60, terms=TERMS)
    assert isinstance(again, Feasible)


def test_a_cap_and_a_budget_too_low_are_refused_with_the_nearest_ones() -> None:
    answer = check_deadline(
        work_s=10 * HOUR,
        time_s=20 * HOUR,
        step_s=60,
        terms=TERMS,
        price_usd_micros_per_hour_max=2_000_000,
        budget_usd_micros=20_000_000,
    )
    assert isinstance(answer, Infeasible)
    assert (answer.price_usd_micros_per_hour_min, answer.budget_usd_micros_min) == (3_000_000, 30_600_000)
    assert answer.reason == (
        "on demand costs $3.00 an hour, above the cap of $2.00; without spot it costs $30.60, more than the $20.00 left"
    )
    again = check_deadline(
        work_s=10 * HOUR,
        time_s=20 * HOUR,
        step_s=60,
        terms=TERMS,
        price_usd_micros_per_hour_max=answer.price_usd_micros_per_hour_min,
        budget_usd_micros=answer.budget_usd_micros_min,
    )
    assert isinstance(again, Feasible)


def test_without_a_deadline_money_alone_decides() -> None:
    facts = {"work_s": 10 * HOUR, "time_s": None, "step_s": 60.0, "terms": TERMS}
    assert isinstance(check_deadline(**facts, budget_usd_micros=10_200_204), Feasible)
    short = check_deadline(**facts, budget_usd_micros=10_200_203)
    assert isinstance(short, Infeasible)
    assert short.budget_usd_micros_min == 10_200_204  # 612 minutes, each rounded up.
    capped = check_deadline(**facts, price_usd_micros_per_hour_max=1)
    assert isinstance(capped, Infeasible)
    assert capped.price_usd_micros_per_hour_min == 1_000_000


class Tormentor:
    """Spot that goes when it hurts: while a changeover runs, or just after it."""

    def __init__(self, seed: int) -> None:
        self.rng = random.Random(seed)

    def there(self, view: View) -> bool:
        changing = view.running == 1 and view.pending_s <= view.gap_s
        return self.rng.random() < (0.3 if changing else 0.8)


@settings(max_examples=150, deadline=None)
@given(
    st.lists(st.integers(0, 40), min_size=1, max_size=40),
    st.floats(0.5, 20),
    st.floats(0, 30),
    st.integers(1, 5400),
    st.sampled_from([60, 195, 600, 1000]),
    st.floats(1.05, 8),
    st.booleans(),
)
def test_is_never_late_whatever_spot_does(
    runs: list[int], work_h: float, slack_h: float, changeover_s: int, gap_s: int, ratio: float, first: bool
) -> None:
    work_s = work_h * HOUR
    terms = Terms(
        spot_usd_micros_per_hour=round(3e6 / ratio), on_demand_usd_micros_per_hour=3_000_000, changeover_s=changeover_s
    )
    least = check_deadline(work_s=work_s, time_s=0.0, step_s=gap_s, terms=terms)
    assert isinstance(least, Infeasible)
    assert least.time_s_min is not None
    deadline_s = least.time_s_min + slack_h * HOUR
    available = [(position % 2 == 0) == first for position, run in enumerate(runs) for _ in range(run)]
    view = View(work_s, deadline_s, gap_s, changeover_s, ratio)
    budget = check_deadline(work_s=work_s, time_s=deadline_s, step_s=gap_s, terms=terms_of(view))
    assert isinstance(budget, Feasible)
    rule, _ = ours(view, budget_usd_micros=budget.cost_usd_micros_max)
    outcome = simulate(rule, available, view)
    assert not outcome.late
    assert round(outcome.cost_h * 3_060_000) <= budget.cost_usd_micros_max


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 10**6), st.floats(0, 6), st.integers(60, 3000))
def test_is_never_late_against_spot_that_goes_when_it_hurts(seed: int, slack_h: float, changeover_s: int) -> None:
    tormentor, gap_s, work_s = Tormentor(seed), 300, 6 * HOUR
    reserve = math.ceil((work_s + changeover_s) / gap_s) * gap_s
    view = View(work_s, reserve + slack_h * HOUR, gap_s, changeover_s, 3.0)

    class Available:
        def __len__(self) -> int:
            return 10_000

        def __getitem__(self, tick: int) -> bool:
            return tormentor.there(view)

    assert not simulate(ours(view)[0], Available(), view).late  # type: ignore[arg-type]


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 10**6), st.floats(0.0, 0.3), st.floats(0.2, 1.2), st.floats(0, 20))
def test_is_not_late_when_on_demand_fails_and_changeovers_drag_on(
    seed: int, fails: float, tail: float, slack_h: float
) -> None:
    rng = random.Random(seed)
    view = View(8 * HOUR, 0.0, 600, 900, 3.0)
    terms = terms_of(view, changeover_s_max=3600.0, on_demand_delay_s_max=2 * HOUR)
    least = check_deadline(work_s=view.work_s, time_s=0.0, step_s=600, terms=terms)
    assert isinstance(least, Infeasible)
    assert least.time_s_min is not None
    view.deadline_s = least.time_s_min + slack_h * HOUR
    available = [rng.random() < 0.6 for _ in range(400)]
    hazards = Bounded(rng, launch_fails=fails, changeover_tail=tail, changeover_s_max=3600.0)
    rule, fallback = ours(view, terms)
    assert not simulate(rule, available, view, hazards, fallback).late


class Bounded(Hazards):
    """On demand that is sold out for at most two hours, as planned for, each time it is wanted."""

    wanted_at_s: float | None = None

    def on_demand_there(self, now_s: float) -> bool:
        if self.wanted_at_s is None or now_s - self.wanted_at_s > 4 * HOUR:
            self.wanted_at_s = now_s
        if now_s - self.wanted_at_s >= 2 * HOUR - 600:
            return True
        return super().on_demand_there(now_s)


@given(st.floats(0, 40), st.floats(0.1, 10), st.floats(0, 30), st.integers(1, 3600), st.floats(0, 50))
def test_leaving_on_demand_asks_more_of_spot_the_more_it_costs(
    slack_h: float, more_h: float, losses: float, changeover_s: int, work_h: float
) -> None:
    def age(slack_h: float = slack_h, losses: float = losses, changeover_s: float = changeover_s) -> float:
        terms = replace(TERMS, changeover_s=changeover_s)
        return age_to_leave_s(
            work_left_s=work_h * HOUR, slack_s=slack_h * HOUR, terms=terms, rates=PreemptionRates(losses=losses)
        )

    assert age(slack_h=slack_h + more_h) <= age()
    assert age(losses=losses + 1) >= age()
    assert age(changeover_s=changeover_s * 1.5) >= age()


@given(
    st.floats(1, 1e6),
    st.one_of(st.none(), st.floats(-1e4, 1e6)),
    st.sampled_from(Mode),
    st.booleans(),
    st.one_of(st.none(), st.integers(0, 10**9)),
    st.one_of(st.none(), st.integers(1, 10**8)),
    st.one_of(st.none(), st.integers(1, 10**8)),
)
def test_every_decision_says_why(
    work_s: float,
    time_s: float | None,
    running: Mode,
    there: bool,
    money: int | None,
    spot: int | None,
    on_demand: int | None,
) -> None:
    terms = replace(TERMS, spot_usd_micros_per_hour=spot, on_demand_usd_micros_per_hour=on_demand)
    now = situation(
        work_left_s=work_s, time_left_s=time_s, running=running, spot_available=there, money_left_usd_micros=money
    )
    decision = choose_mode(now, terms, observe(PreemptionRates(), available=there, elapsed_s=60))
    assert decision.reason
    if decision.mode is Mode.SPOT:
        assert there
        assert spot is not None
    if decision.mode is Mode.ON_DEMAND:
        assert on_demand is not None
    answer = check_deadline(work_s=work_s, time_s=time_s, step_s=60, terms=terms, budget_usd_micros=money)
    assert answer.reason
