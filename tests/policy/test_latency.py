"""Predictions of the time to the first token."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from goblin.policy import latency
from goblin.policy.latency import Estimate

NOW = datetime(2026, 11, 23, 12, tzinfo=UTC)


def predict(estimate: Estimate, *, in_flight: int = 0, parallel: int = 1, after_s: float = 0) -> float:
    now = NOW + timedelta(seconds=after_s)
    return latency.predict_ms(estimate, prior_ms=1000, in_flight=in_flight, parallel=parallel, now=now)


def observed(*samples: float) -> Estimate:
    estimate = Estimate()
    for sample in samples:
        estimate = latency.observe(estimate, sample, now=NOW)
    return estimate


def test_the_unseen_is_expected_as_the_prior_says() -> None:
    assert predict(Estimate()) == 1000


def test_observations_outweigh_the_prior() -> None:
    assert predict(observed(*[100.0] * 9)) == pytest.approx(190)


def test_old_news_fades_back_to_the_prior() -> None:
    estimate = observed(*[100.0] * 9)
    assert predict(estimate, after_s=latency.HALF_LIFE_S) == pytest.approx((1000 + 450) / 5.5)
    assert predict(estimate, after_s=86400) == pytest.approx(1000)


def test_requests_under_way_are_waited_for() -> None:
    assert predict(Estimate(), in_flight=3) == 4000
    assert predict(Estimate(), in_flight=3, parallel=3) == 2000


def test_a_burst_does_not_all_go_to_the_newcomer() -> None:
    """The known one serves in 100 ms; the newcomer's prior is 1000 ms and it is asked only when queues say so."""
    known, flights = observed(*[100.0] * 50), {"known": 0, "newcomer": 0}
    for _ in range(40):
        expected = {
            "known": predict(known, in_flight=flights["known"], parallel=4),
            "newcomer": predict(Estimate(), in_flight=flights["newcomer"], parallel=4),
        }
        flights[min(expected, key=lambda name: expected[name])] += 1
    assert flights["newcomer"] <= 4


@given(st.lists(st.floats(0, 1e6), max_size=20), st.integers(0, 100), st.floats(0, 1e6))
def test_a_prediction_is_never_zero(samples: list[float], in_flight: int, after_s: float) -> None:
    assert predict(observed(*samples), in_flight=in_flight, after_s=after_s) > 0
