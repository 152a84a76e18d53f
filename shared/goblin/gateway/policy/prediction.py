"""What to expect of an endpoint for this request: queue + start, if it sleeps + prefill + decode.

Only free signals say whether it sleeps: what the last look at it said is in memory, and when it last answered.
"""

from __future__ import annotations

import math

from goblin.gateway.policy import latency
from goblin.gateway.policy.latency import LatencyEstimate
from goblin.gateway.policy.route import Demand, LatencyForecast

ASLEEP_UNHEARD = 0.5
"""It may sleep, and nobody has ever said whether it does."""
ASLEEP_TOLD = 0.95
"""It was seen asleep; somebody else may have woken it since."""
DOZES_FROM, DOZES_TO = 0.9, 1.2
"""Shares of `sleeps_after_s`: awake before, asleep after, in doubt between."""
WAKING_LEFT_MIN = 0.1
"""A start that takes longer than expected still takes at least this share of it."""
DOUBT = 0.4
"""How much single answers scatter."""
OVERDUE = 1.5
"""How many times its prediction the oldest request must be silent before silence says something."""


def chance_asleep(*, sleeps_after_s: int | None, heard_ago_s: float | None, told_asleep: bool | None) -> float:
    """How likely the next request has to wait for a start.

    Args:
        sleeps_after_s: The endpoint's own; None when it never sleeps.
        heard_ago_s: Since it last gave a sign of life: an answer, or a look that found the model in memory.
        told_asleep: What the last look said, if that is newer than any sign of life; None if it said nothing.
    """
    if told_asleep:
        return ASLEEP_TOLD
    if sleeps_after_s is None:
        return 0.0
    if heard_ago_s is None:
        return ASLEEP_UNHEARD
    share = heard_ago_s / sleeps_after_s
    if share <= DOZES_FROM:
        return 0.0
    if share >= DOZES_TO:
        return ASLEEP_TOLD
    return ASLEEP_TOLD * (share - DOZES_FROM) / (DOZES_TO - DOZES_FROM)


def predict(
    estimate: LatencyEstimate,
    demand: Demand,
    *,
    in_flight: int,
    parallel: int,
    asleep: float = 0.0,
    waking_for_ms: float | None = None,
    silent_ms: float = 0.0,
    silence_expected_ms: float = 0.0,
    network_ms: float = 0.0,
    unheard_s: float = 0.0,
    now_s: float,
) -> LatencyForecast:
    """Expectations for the next request.

    Args:
        pace: What was observed.
        demand: The request.
        in_flight: Requests sent there that have not ended, counted from the moment they were sent.
        parallel: How many it serves at once; the ones beyond wait their turn.
        asleep: See `chance_asleep`; ignored while it is waking.
        waking_for_ms: How long ago its start began; None when none is under way.
        silent_ms: How long it has kept the oldest of those waiting, if it answered nobody since.
        silence_expected_ms: What was predicted for that one.
        network_ms: A floor: the round trip that a free look took.
        unheard_s: Passed through.
        now_s: On the clock of `estimate`.
    """
    awake_ms = max(latency.first_token_ms(estimate, demand.prompt_tokens, now_s), network_ms)
    decode_ms = demand.output_tokens_expected * latency.decode_ms(estimate)
    service_ms = awake_ms + decode_ms
    # It must earn its width: what a newcomer says it can do in parallel is not known before it has done it.
    width = min(parallel, 1 + 2 * estimate.answers)
    queue_ms = (in_flight + 1 - width) * service_ms / width if in_flight >= width else 0.0
    cold_ms = 0.0
    if waking_for_ms is not None:
        start_ms = latency.cold_start_ms(estimate)
        cold_ms = max(start_ms - waking_for_ms, start_ms * WAKING_LEFT_MIN)
    elif asleep:
        cold_ms = asleep * latency.cold_start_ms(estimate)
    first_ms = awake_ms + queue_ms + cold_ms
    if waking_for_ms is None and silent_ms > first_ms and silent_ms > OVERDUE * silence_expected_ms:
        first_ms = silent_ms  # Somebody has waited longer than we would believe, and waits on.
    return LatencyForecast(
        demand=demand,
        first_token_ms=first_ms,
        total_ms=first_ms + decode_ms,
        awake_ms=awake_ms,
        queue_ms=queue_ms,
        busy=in_flight / width,
        asleep=asleep,
        waking=waking_for_ms is not None,
        late_ms=first_ms * estimate.late,
        service_ms=service_ms,
        doubt=DOUBT / math.sqrt(1.0 + estimate.n) if estimate.answers else 0.0,
        failed_share=latency.failed_share(estimate, now_s),
        unheard_s=unheard_s,
    )
