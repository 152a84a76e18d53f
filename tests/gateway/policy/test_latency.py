"""What is learned of an endpoint's speed, how fast, and how it is forgotten."""

from __future__ import annotations

import itertools
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from goblin.core.endpoints import Endpoint
from goblin.gateway.policy import latency as paces
from goblin.gateway.policy.latency import Pace, Prior

PRIOR = Prior(first_token_ms=1000, prefill_ms=0.5, decode_ms=30, cold_start_ms=20_000)
NEW = Pace(prior=PRIOR)


def seen(pace: Pace, ms: float, *, prompt: float = 0, weight: float = 1, at: float = 0) -> Pace:
    expected = paces.first_token_ms(pace, prompt, at)
    return paces.observe_first_token(pace, ms, prompt_tokens=prompt, expected_ms=expected, weight=weight, now_s=at)


def used(*samples: float, at: float = 0) -> Pace:
    pace = NEW
    for sample in samples:
        pace = seen(pace, sample, at=at)
    return pace


def test_the_unseen_is_expected_as_the_file_says() -> None:
    said = Endpoint(name="a", provider="x", url="http://x", first_token_prior_ms=700, prefill_prior_tokens_per_s=500)
    pace = Pace(prior=paces.prior_of(said))
    assert paces.first_token_ms(pace, 0, 0) == 700
    assert paces.first_token_ms(pace, 1000, 0) == 2700


def test_the_more_was_seen_the_less_the_prior_is_believed() -> None:
    found = [paces.first_token_ms(used(*[100.0] * n), 0, 0) for n in (1, 3, 10, 50)]
    assert found == sorted(found, reverse=True)
    assert found[1] < 250
    assert found[3] == pytest.approx(100, rel=0.02)


def test_a_long_prompt_takes_longer_as_its_endpoint_has_shown() -> None:
    dice, pace = random.Random(1), NEW
    for i in range(200):
        prompt = dice.choice([100.0, 500.0, 2000.0, 8000.0])
        pace = seen(pace, (200 + 2 * prompt) * dice.uniform(0.9, 1.1), prompt=prompt, at=i)
    for prompt in (0, 1000, 8000):
        assert paces.first_token_ms(pace, prompt, 200) == pytest.approx(200 + 2 * prompt, rel=0.15, abs=60)


def test_a_change_for_the_worse_is_believed_within_few_answers_and_forgotten_within_minutes() -> None:
    pace = used(*[200.0] * 50)
    slow = seen(seen(pace, 2000), 2000)
    assert paces.first_token_ms(slow, 0, 0) > 500
    for _ in range(5):
        slow = seen(slow, 2000)
    assert paces.first_token_ms(slow, 0, 0) > 1000
    assert paces.first_token_ms(slow, 0, 120) < 600


def test_one_outlier_moves_the_long_memory_little() -> None:
    pace = used(*[200.0] * 50)
    assert seen(pace, 60_000).base_ms < 220


def test_silence_is_slowness_only_beyond_what_was_expected() -> None:
    pace = used(*[200.0] * 10)
    same = paces.observe_silence(pace, 150, prompt_tokens=0, expected_ms=200, now_s=0)
    worse = paces.observe_silence(pace, 5000, prompt_tokens=0, expected_ms=200, now_s=0)
    assert same == pace
    assert paces.first_token_ms(worse, 0, 0) > 2 * paces.first_token_ms(pace, 0, 0)


def test_the_late_mark_settles_where_one_in_twenty_is_above() -> None:
    dice, pace = random.Random(7), NEW
    above = 0
    for i in range(3000):
        expected = paces.first_token_ms(pace, 0, i)
        sample = 300 * dice.lognormvariate(0, 0.5)
        above += i >= 1000 and sample > expected * pace.late
        pace = paces.observe_first_token(pace, sample, prompt_tokens=0, expected_ms=expected, weight=1, now_s=float(i))
    assert 0.03 < above / 2000 < 0.08


def test_decode_cold_starts_and_failures_start_from_their_priors() -> None:
    assert (paces.decode_ms(NEW), paces.cold_start_ms(NEW)) == (30, 20_000)
    assert paces.failed_share(NEW, 0) == pytest.approx(0.01)
    pace = NEW
    for _ in range(20):
        pace = paces.observe_decode(pace, output_tokens=101, decode_ms=1000)
        pace = paces.observe_cold_start(pace, 5000)
    assert paces.decode_ms(pace) == pytest.approx(10, rel=0.3)
    assert paces.cold_start_ms(pace) == pytest.approx(8500, rel=0.1)
    assert paces.observe_decode(pace, output_tokens=1, decode_ms=0) == pace


def test_failures_are_counted_and_forgotten() -> None:
    pace = NEW
    for i in range(60):
        pace = paces.observe_outcome(pace, failed=i % 5 == 0, now_s=i)
    assert paces.failed_share(pace, 60) == pytest.approx(0.2, abs=0.05)
    assert paces.failed_share(pace, 60 + 3600) < 0.02


SAMPLES = st.lists(st.tuples(st.floats(0, 1e6), st.floats(0, 2e5), st.floats(0.01, 1), st.floats(0, 1e5)), max_size=30)


@given(SAMPLES, st.floats(0, 1e6), st.floats(0, 1e7))
def test_a_prediction_is_never_zero_and_always_a_number(
    samples: list[tuple[float, float, float, float]], prompt: float, later: float
) -> None:
    pace, now = NEW, 0.0
    for ms, tokens, weight, wait in samples:
        now += wait
        pace = seen(pace, ms, prompt=tokens, weight=weight, at=now)
        assert 0 < paces.first_token_ms(pace, prompt, now) < 1e12
    assert paces.FIRST_TOKEN_MS_MIN <= paces.first_token_ms(pace, prompt, now + later) < 1e12
    assert 0 < paces.failed_share(pace, now) < 1


@given(st.lists(st.floats(1, 1e5), min_size=1, max_size=20))
def test_whoever_was_slow_is_expected_no_slower_as_time_passes_without_news(samples: list[float]) -> None:
    """No endpoint that recovers is starved by what it once was."""
    pace = used(*[200.0] * 30)
    for sample in samples:
        pace = seen(pace, max(sample, 200))
    found = [paces.first_token_ms(pace, 0, after) for after in (0, 10, 30, 120, 600)]
    assert all(later <= sooner * 1.0001 for sooner, later in itertools.pairwise(found))
