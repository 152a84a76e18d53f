"""What is learned of an endpoint's speed, how fast, and how it is forgotten."""

from __future__ import annotations

import itertools
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from goblin.core.endpoints import Endpoint
from goblin.gateway.policy import latency
from goblin.gateway.policy.latency import LatencyEstimate, LatencyPrior

PRIOR = LatencyPrior(first_token_ms=1000, prefill_ms=0.5, decode_ms=30, cold_start_ms=20_000)
NEW = LatencyEstimate(prior=PRIOR)


def seen(
    estimate: LatencyEstimate, ms: float, *, prompt: float = 0, weight: float = 1, at: float = 0
) -> LatencyEstimate:
    expected = latency.first_token_ms(estimate, prompt, at)
    return latency.observe_first_token(
        estimate, ms, prompt_tokens=prompt, expected_ms=expected, weight=weight, now_s=at
    )


def used(*samples: float, at: float = 0) -> LatencyEstimate:
    estimate = NEW
    for sample in samples:
        estimate = seen(estimate, sample, at=at)
    return estimate


def test_the_unseen_is_expected_as_the_file_says() -> None:
    said = Endpoint(name="a", provider="x", url="http://x", first_token_prior_ms=700, prefill_prior_tokens_per_s=500)
    estimate = LatencyEstimate(prior=latency.prior_of(said))
    assert latency.first_token_ms(estimate, 0, 0) == 700
    assert latency.first_token_ms(estimate, 1000, 0) == 2700


def test_the_more_was_seen_the_less_the_prior_is_believed() -> None:
    found = [latency.first_token_ms(used(*[100.0] * n), 0, 0) for n in (1, 3, 10, 50)]
    assert found == sorted(found, reverse=True)
    assert found[1] < 250
    assert found[3] == pytest.approx(100, rel=0.02)


def test_a_long_prompt_takes_longer_as_its_endpoint_has_shown() -> None:
    rng, estimate = random.Random(1), NEW
    for i in range(200):
        prompt = rng.choice([100.0, 500.0, 2000.0, 8000.0])
        estimate = seen(estimate, (200 + 2 * prompt) * rng.uniform(0.9, 1.1), prompt=prompt, at=i)
    for prompt in (0, 1000, 8000):
        assert latency.first_token_ms(estimate, prompt, 200) == pytest.approx(200 + 2 * prompt, rel=0.15, abs=60)


def test_a_change_for_the_worse_is_believed_within_few_answers_and_forgotten_within_minutes() -> None:
    estimate = used(*[200.0] * 50)
    slow = seen(seen(estimate, 2000), 2000)
    assert latency.first_token_ms(slow, 0, 0) > 500
    for _ in range(5):
        slow = seen(slow, 2000)
    assert latency.first_token_ms(slow, 0, 0) > 1000
    assert latency.first_token_ms(slow, 0, 120) < 600


def test_one_outlier_moves_the_long_memory_little() -> None:
    estimate = used(*[200.0] * 50)
    assert seen(estimate, 60_000).base_ms < 220


def test_silence_is_slowness_only_beyond_what_was_expected() -> None:
    estimate = used(*[200.0] * 10)
    same = latency.observe_silence(estimate, 150, prompt_tokens=0, expected_ms=200, now_s=0)
    worse = latency.observe_silence(estimate, 5000, prompt_tokens=0, expected_ms=200, now_s=0)
    assert same == estimate
    assert latency.first_token_ms(worse, 0, 0) > 2 * latency.first_token_ms(estimate, 0, 0)


def test_the_late_mark_settles_where_one_in_twenty_is_above() -> None:
    rng, estimate = random.Random(7), NEW
    above = 0
    for i in range(3000):
        expected = latency.first_token_ms(estimate, 0, i)
        sample = 300 * rng.lognormvariate(0, 0.5)
        above += i >= 1000 and sample > expected * estimate.late
        estimate = latency.observe_first_token(
            estimate, sample, prompt_tokens=0, expected_ms=expected, weight=1, now_s=float(i)
        )
    assert 0.03 < above / 2000 < 0.08


def test_decode_cold_starts_and_failures_start_from_their_priors() -> None:
    assert (latency.decode_ms(NEW), latency.cold_start_ms(NEW)) == (30, 20_000)
    assert latency.failed_share(NEW, 0) == pytest.approx(0.01)
    estimate = NEW
    for _ in range(20):
        estimate = latency.observe_decode(estimate, output_tokens=101, decode_ms=1000)
        estimate = latency.observe_cold_start(estimate, 5000)
    assert latency.decode_ms(estimate) == pytest.approx(10, rel=0.3)
    assert latency.cold_start_ms(estimate) == pytest.approx(8500, rel=0.1)
    assert latency.observe_decode(estimate, output_tokens=1, decode_ms=0) == estimate


def test_failures_are_counted_and_forgotten() -> None:
    estimate = NEW
    for i in range(60):
        estimate = latency.observe_outcome(estimate, failed=i % 5 == 0, now_s=i)
    assert latency.failed_share(estimate, 60) == pytest.approx(0.2, abs=0.05)
    assert latency.failed_share(estimate, 60 + 3600) < 0.02


SAMPLES = st.lists(st.tuples(st.floats(0, 1e6), st.floats(0, 2e5), st.floats(0.01, 1), st.floats(0, 1e5)), max_size=30)


@given(SAMPLES, st.floats(0, 1e6), st.floats(0, 1e7))
def test_a_prediction_is_never_zero_and_always_a_number(
    samples: list[tuple[float, float, float, float]], prompt: float, later: float
) -> None:
    estimate, now = NEW, 0.0
    for ms, tokens, weight, wait in samples:
        now += wait
        estimate = seen(estimate, ms, prompt=tokens, weight=weight, at=now)
        assert 0 < latency.first_token_ms(estimate, prompt, now) < 1e12
    assert latency.FIRST_TOKEN_MS_MIN <= latency.first_token_ms(estimate, prompt, now + later) < 1e12
    assert 0 < latency.failed_share(estimate, now) < 1


@given(st.lists(st.floats(1, 1e5), min_size=1, max_size=20))
def test_whoever_was_slow_is_expected_no_slower_as_time_passes_without_news(samples: list[float]) -> None:
    """No endpoint that recovers is starved by what it once was."""
    estimate = used(*[200.0] * 30)
    for sample in samples:
        estimate = seen(estimate, max(sample, 200))
    found = [latency.first_token_ms(estimate, 0, after) for after in (0, 10, 30, 120, 600)]
    assert all(later <= sooner * 1.0001 for sooner, later in itertools.pairwise(found))
