"""Traffic of a model: how often requests arrive, and how long its answers are."""

from __future__ import annotations

import math

from msgspec import Struct
from msgspec.structs import replace

MEMORY_S = 60.0
OUTPUT_TOKENS_PRIOR = 256.0
OUTPUT_KEEP = 0.95


class Traffic(Struct, frozen=True, kw_only=True, gc=False):
    """Decaying sums; a new one has seen no request."""

    per_s: float = 0.0
    at_s: float = 0.0
    output_n: float = 0.0
    output_tokens: float = 0.0


def observe_arrival(traffic: Traffic, *, now_s: float) -> Traffic:
    """Add the arrival of one request."""
    return replace(traffic, per_s=arrivals_per_s(traffic, now_s=now_s) + 1.0 / MEMORY_S, at_s=now_s)


def arrivals_per_s(traffic: Traffic, *, now_s: float) -> float:
    """Compute the arrival rate, averaged over about the last minute."""
    return traffic.per_s * math.exp(min(traffic.at_s - now_s, 0.0) / MEMORY_S)


def observe_answer(traffic: Traffic, *, output_tokens: int) -> Traffic:
    """Add the length of one answer."""
    return replace(
        traffic,
        output_n=traffic.output_n * OUTPUT_KEEP + 1.0,
        output_tokens=traffic.output_tokens * OUTPUT_KEEP + output_tokens,
    )


def expect_output(traffic: Traffic, *, output_tokens_max: int | None) -> float:
    """Estimate the output tokens of the next answer, within the caller's limit."""
    mean = (OUTPUT_TOKENS_PRIOR + traffic.output_tokens) / (1.0 + traffic.output_n)
    return mean if output_tokens_max is None else min(mean, float(output_tokens_max))
