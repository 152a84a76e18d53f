"""What a request is to expect: queue, start, prefill, decode."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from goblin.gateway.policy import latency
from goblin.gateway.policy.latency import LatencyEstimate, LatencyPrior
from goblin.gateway.policy.prediction import ASLEEP_TOLD, ASLEEP_UNHEARD, chance_asleep, predict
from goblin.gateway.policy.route import Demand, LatencyForecast

PRIOR = LatencyPrior(first_token_ms=300, prefill_ms=1, decode_ms=10, cold_start_ms=20_000)


def known(answers: int = 20) -> LatencyEstimate:
    estimate = LatencyEstimate(prior=PRIOR)
    for _ in range(answers):
        estimate = latency.observe_first_token(estimate, 300, prompt_tokens=0, expected_ms=300, weight=1, now_s=0)
    return estimate


def forecast(
    estimate: LatencyEstimate | None = None, *, prompt: int = 0, output: float = 50, **more: Any
) -> LatencyForecast:
    facts = {"in_flight": 0, "parallel": 4, "now_s": 0.0, **more}
    demand = Demand(model="m", prompt_tokens=prompt, output_tokens_expected=output)
    return predict(estimate or known(), demand, **facts)


def test_awake_and_alone_it_is_prefill_and_decode() -> None:
    found = forecast(prompt=200)
    assert found.first_token_ms == found.awake_ms == pytest.approx(500)
    assert found.total_ms == pytest.approx(1000)
    assert (found.queue_ms, found.asleep) == (0, 0)


def test_those_beyond_its_width_wait_their_turn() -> None:
    assert forecast(in_flight=3).queue_ms == 0
    assert forecast(in_flight=4).queue_ms == pytest.approx(200)  # One place of four comes free.
    assert forecast(in_flight=11).queue_ms == pytest.approx(1600)


def test_a_newcomer_is_trusted_with_one_request_until_it_has_answered() -> None:
    new = LatencyEstimate(prior=PRIOR)
    assert forecast(new, in_flight=1, parallel=64).queue_ms > 0
    assert forecast(known(1), in_flight=2, parallel=64).queue_ms == 0
    assert forecast(known(1), in_flight=3, parallel=64).queue_ms > 0


def test_a_start_is_waited_for_with_its_chance_and_what_is_left_of_it() -> None:
    assert forecast(asleep=0.5).first_token_ms == pytest.approx(300 + 10_000)
    waking = forecast(asleep=0.95, waking_for_ms=15_000)
    assert waking.waking
    assert waking.first_token_ms == pytest.approx(300 + 5_000)
    assert forecast(waking_for_ms=90_000).first_token_ms == pytest.approx(300 + 2_000)


def test_a_burst_does_not_all_go_to_the_newcomer() -> None:
    """Even one that is expected to be the quicker, and to be awake."""
    new = LatencyEstimate(prior=LatencyPrior(first_token_ms=100, prefill_ms=1, decode_ms=10))
    flights = {"known": 0, "newcomer": 0}
    for _ in range(40):
        expected = {
            "known": forecast(in_flight=flights["known"], parallel=64).first_token_ms,
            "newcomer": forecast(new, in_flight=flights["newcomer"], parallel=64).first_token_ms,
        }
        flights[min(expected, key=lambda name: expected[name])] += 1
    assert flights["newcomer"] <= 2


def test_silence_that_lasts_longer_than_believed_is_the_new_belief() -> None:
    assert forecast(silent_ms=4000, silence_expected_ms=300).first_token_ms == 4000
    assert forecast(silent_ms=4000, silence_expected_ms=3000).first_token_ms == pytest.approx(300)
    assert forecast(silent_ms=4000, silence_expected_ms=300, waking_for_ms=19_000).first_token_ms < 3000


def test_the_round_trip_is_a_floor() -> None:
    assert forecast(network_ms=800).first_token_ms == 800


@pytest.mark.parametrize(
    ("sleeps_after_s", "heard_ago_s", "told_asleep", "chance"),
    [
        (None, None, None, 0),
        (None, 1e6, None, 0),
        (None, None, True, ASLEEP_TOLD),
        (300, None, None, ASLEEP_UNHEARD),
        (300, 10, None, 0),
        (300, 269, None, 0),
        (300, 315, None, ASLEEP_TOLD / 2),
        (300, 360, None, ASLEEP_TOLD),
        (300, 10, True, ASLEEP_TOLD),
    ],
)
def test_the_chance_that_it_sleeps(
    sleeps_after_s: int | None, heard_ago_s: float | None, told_asleep: bool | None, chance: float
) -> None:
    found = chance_asleep(sleeps_after_s=sleeps_after_s, heard_ago_s=heard_ago_s, told_asleep=told_asleep)
    assert found == pytest.approx(chance)


@given(st.integers(0, 200), st.integers(1, 64), st.floats(0, 1), st.none() | st.floats(0, 1e6), st.floats(0, 1e6))
def test_every_part_makes_it_longer_and_nothing_makes_it_zero(
    in_flight: int, parallel: int, asleep: float, waking_for_ms: float | None, silent_ms: float
) -> None:
    found = forecast(
        in_flight=in_flight, parallel=parallel, asleep=asleep, waking_for_ms=waking_for_ms, silent_ms=silent_ms
    )
    assert 0 < found.awake_ms <= found.first_token_ms <= found.total_ms
    assert found.late_ms > found.first_token_ms
    more = forecast(in_flight=in_flight + 1, parallel=parallel, asleep=asleep, waking_for_ms=waking_for_ms)
    assert (
        more.first_token_ms
        >= forecast(in_flight=in_flight, parallel=parallel, asleep=asleep, waking_for_ms=waking_for_ms).first_token_ms
    )
