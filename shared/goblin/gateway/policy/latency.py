"""Latency estimates of one model at one endpoint: they start from a prior, learn from each request and fade in time.

Two memories are combined. The long one fits a line, base + prompt tokens * prefill, and remembers for an hour; while
few answers were seen it is drawn towards the file's prior, so that a new endpoint never starts at zero. The short one
scales that line by how the last answers compared with it, and fades within half a minute, so that an endpoint that
was slow is tried again.
"""

from __future__ import annotations

import math

from msgspec import Struct
from msgspec.structs import replace

from goblin.core.endpoints import Endpoint

LONG_HALF_LIFE_S = 1800.0
LONG_KEEP = 0.98
"""Share of the old sums that each new observation keeps: about the last fifty count."""
SHORT_HALF_LIFE_S = 10.0
SHORT_KEEP = 0.8
"""The same for the short memory: about the last five count."""
SHORT_INERTIA = 3.0
"""How many observations in the short memory it takes to outweigh the long one."""
CLIP = 4.0
"""An outlier counts in the long memory as at most this many times the expected time; in the short one, in full."""
RELIEF_MAX = 3.0
TYPICAL_PROMPT_TOKENS = 500.0
LEVEL_INERTIA = 0.5
"""The weight of the prior against observations of the level; the more observations, the less it counts."""
SLOPE_INERTIA = 1e6
"""The same for the slope, against the spread of the prompts, in tokens squared."""
FIRST_TOKEN_MS_MIN = 1.0

FAILED_SHARE_PRIOR = 0.01
FAILED_WEIGHT_PRIOR = 4.0
FAILED_HALF_LIFE_S = 300.0
FAILED_KEEP = 0.98

LATE_SHARE = 0.05
LATE_PRIOR = 3.0
"""The initial ratio of the slowest twentieth of answers to the forecast, before any was seen."""
LATE_STEP = 0.12
LATE_MIN, LATE_MAX = 1.2, 20.0


class LatencyPrior(Struct, frozen=True, kw_only=True, gc=False):
    """The file's priors, in the units of the forecast; every number is positive."""

    first_token_ms: float = 1000.0
    """Time to first token of a short prompt on a warm, idle endpoint, network included."""
    prefill_ms: float = 0.5
    """Per prompt token."""
    decode_ms: float = 33.0
    """Per output token."""
    cold_start_ms: float = 30_000.0


class LatencyEstimate(Struct, frozen=True, kw_only=True, gc=False):
    """Observations of one target. Sums are weighted, and the weights decay from `at_s` on."""

    prior: LatencyPrior = LatencyPrior()
    answers: int = 0
    """Number of first tokens ever seen."""
    at_s: float = 0.0
    """Time of the last observation, on the caller's monotonic clock."""
    base_ms: float = 0.0
    """The base of the fitted line; meaningless while `answers` is 0."""
    prefill_ms: float = 0.0
    # The long memory: Σw, Σw·p, Σw·p², Σw·y, Σw·p·y with p prompt tokens and y milliseconds.
    n: float = 0.0
    p: float = 0.0
    pp: float = 0.0
    y: float = 0.0
    py: float = 0.0
    # The short memory: Σv, Σv·p, Σv·y.
    short_n: float = 0.0
    short_p: float = 0.0
    short_y: float = 0.0
    late: float = LATE_PRIOR
    """The ratio of actual to forecast time that all but `LATE_SHARE` of the answers stay below."""
    decode_n: float = 0.0
    decode_ms: float = 0.0
    cold_n: float = 0.0
    cold_ms: float = 0.0
    outcomes: float = 0.0
    failures: float = 0.0
    outcome_at_s: float = 0.0


def prior_of(endpoint: Endpoint) -> LatencyPrior:
    """Build the prior of an endpoint from what the file declares."""
    return LatencyPrior(
        first_token_ms=float(endpoint.first_token_prior_ms),
        prefill_ms=1000.0 / endpoint.prefill_prior_tokens_per_s,
        decode_ms=1000.0 / endpoint.decode_prior_tokens_per_s,
        cold_start_ms=float(endpoint.cold_start_prior_ms),
    )


def first_token_ms(estimate: LatencyEstimate, prompt_tokens: float, now_s: float) -> float:
    """Estimate the time to first token on a warm, idle endpoint. Always positive."""
    if not estimate.answers:
        return estimate.prior.first_token_ms + prompt_tokens * estimate.prior.prefill_ms
    keep = _keep(now_s - estimate.at_s, SHORT_HALF_LIFE_S)
    line = estimate.base_ms * estimate.short_n + estimate.prefill_ms * estimate.short_p
    # Pseudo-observations that the line is right, which never decay: they damp noise, and old observations fade to them.
    still = SHORT_INERTIA * estimate.base_ms
    scale = (estimate.short_y * keep + still) / (line * keep + still)
    found = (estimate.base_ms + prompt_tokens * estimate.prefill_ms) * scale
    return max(FIRST_TOKEN_MS_MIN, found)


def decode_ms(estimate: LatencyEstimate) -> float:
    """Estimate the time per output token."""
    return (estimate.prior.decode_ms + estimate.decode_ms) / (1.0 + estimate.decode_n)


def cold_start_ms(estimate: LatencyEstimate) -> float:
    """Estimate the duration of a cold start."""
    return (estimate.prior.cold_start_ms + estimate.cold_ms) / (1.0 + estimate.cold_n)


def failed_share(estimate: LatencyEstimate, now_s: float) -> float:
    """Estimate the share of requests that fail."""
    keep = _keep(now_s - estimate.outcome_at_s, FAILED_HALF_LIFE_S) if estimate.outcomes else 1.0
    return (FAILED_SHARE_PRIOR * FAILED_WEIGHT_PRIOR + estimate.failures * keep) / (
        FAILED_WEIGHT_PRIOR + estimate.outcomes * keep
    )


def observe_first_token(
    estimate: LatencyEstimate,
    sample_ms: float,
    *,
    prompt_tokens: float,
    expected_ms: float,
    weight: float,
    now_s: float,
) -> LatencyEstimate:
    """Add the arrival of a first token.

    Args:
        estimate: The estimate so far.
        sample_ms: How long it took, without the time waited for a cold start or in the queue.
        prompt_tokens: The prompt tokens of that request.
        expected_ms: The forecast of the same part.
        weight: From 0 to 1: lower if the request mostly waited in the queue, because then the sample is uncertain.
        now_s: The present time, not before `estimate.at_s`.
    """
    sample_ms = max(sample_ms, FIRST_TOKEN_MS_MIN)
    age_s = now_s - estimate.at_s if estimate.answers else 0.0
    keep = _keep(age_s, LONG_HALF_LIFE_S) * LONG_KEEP
    short = _keep(age_s, SHORT_HALF_LIFE_S) * SHORT_KEEP
    line_ms = _line(estimate, prompt_tokens)
    # The prior may be far off, so the first answers are never outliers: clip only against a fitted line.
    clipped = min(max(sample_ms, line_ms / CLIP), line_ms * CLIP) if estimate.answers >= 3 else sample_ms
    # Longer times scatter more, in proportion: they count less, or one long prompt would determine the line.
    typical_ms = _line(estimate, TYPICAL_PROMPT_TOKENS)
    p, w = prompt_tokens, weight * min(typical_ms / line_ms, RELIEF_MAX) ** 2
    v = weight * min(typical_ms / line_ms, RELIEF_MAX)
    n, sum_p, pp = estimate.n * keep + w, estimate.p * keep + w * p, estimate.pp * keep + w * p * p
    y, py = estimate.y * keep + w * clipped, estimate.py * keep + w * p * clipped
    base, prefill = _fit(estimate.prior, n, sum_p, pp, y, py)
    ratio = sample_ms / max(expected_ms, FIRST_TOKEN_MS_MIN)
    return replace(
        estimate,
        answers=estimate.answers + 1,
        at_s=now_s,
        base_ms=base,
        prefill_ms=prefill,
        n=n,
        p=sum_p,
        pp=pp,
        y=y,
        py=py,
        short_n=estimate.short_n * short + v,
        short_p=estimate.short_p * short + v * p,
        short_y=estimate.short_y * short + v * sample_ms,
        late=_move_late(estimate.late, ratio),
    )


def observe_silence(
    estimate: LatencyEstimate, waited_ms: float, *, prompt_tokens: float, expected_ms: float, now_s: float
) -> LatencyEstimate:
    """Add a wait without a first token: without it, an endpoint that hangs would keep its good estimate."""
    if waited_ms <= expected_ms:
        return estimate
    return observe_first_token(
        estimate, waited_ms, prompt_tokens=prompt_tokens, expected_ms=expected_ms, weight=1.0, now_s=now_s
    )


def observe_decode(estimate: LatencyEstimate, *, output_tokens: int, decode_ms: float) -> LatencyEstimate:
    """Add the decode time of an answer: from its first token to its end."""
    if output_tokens < 2:
        return estimate
    each = decode_ms / (output_tokens - 1)
    return replace(
        estimate,
        decode_n=estimate.decode_n * 0.9 + 1.0,
        decode_ms=estimate.decode_ms * 0.9 + each,
    )


def observe_cold_start(estimate: LatencyEstimate, sample_ms: float) -> LatencyEstimate:
    """Add the duration of a cold start."""
    return replace(estimate, cold_n=estimate.cold_n * 0.7 + 1.0, cold_ms=estimate.cold_ms * 0.7 + max(sample_ms, 1.0))


def observe_outcome(estimate: LatencyEstimate, *, failed: bool, now_s: float) -> LatencyEstimate:
    """Add the success or failure of a request."""
    keep = FAILED_KEEP * (_keep(now_s - estimate.outcome_at_s, FAILED_HALF_LIFE_S) if estimate.outcomes else 1.0)
    return replace(
        estimate,
        outcomes=estimate.outcomes * keep + 1.0,
        failures=estimate.failures * keep + (1.0 if failed else 0.0),
        outcome_at_s=now_s,
    )


def _line(estimate: LatencyEstimate, prompt_tokens: float) -> float:
    if not estimate.answers:
        return estimate.prior.first_token_ms + prompt_tokens * estimate.prior.prefill_ms
    return estimate.base_ms + prompt_tokens * estimate.prefill_ms


def _fit(prior: LatencyPrior, n: float, p: float, pp: float, y: float, py: float) -> tuple[float, float]:
    """Fit base and slope by least squares, drawn towards the prior: the level a little, the slope until many came."""
    mean_p = p / n
    spread, together = pp - p * mean_p, py - p * y / n
    slope = max((together + SLOPE_INERTIA * prior.prefill_ms) / (spread + SLOPE_INERTIA), 0.0)
    belief = LEVEL_INERTIA / (1.0 + n)
    level = (y + belief * (prior.first_token_ms + mean_p * prior.prefill_ms)) / (n + belief)
    base = level - slope * mean_p
    if base < FIRST_TOKEN_MS_MIN:
        # Noise can tilt the line below zero for an empty prompt; then all of the level counts as prefill.
        return FIRST_TOKEN_MS_MIN, max(level - FIRST_TOKEN_MS_MIN, 0.0) / mean_p
    return base, slope


def _move_late(late: float, ratio: float) -> float:
    """Move a running quantile by one step, in logarithms: seldom up by much, often down by little."""
    step = LATE_STEP * (1.0 - LATE_SHARE) if ratio > late else -LATE_STEP * LATE_SHARE
    return min(max(late * math.exp(step), LATE_MIN), LATE_MAX)


def _keep(age_s: float, half_life_s: float) -> float:
    return float(0.5 ** (age_s / half_life_s)) if age_s > 0.0 else 1.0
