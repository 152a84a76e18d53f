"""Latency forecast of an endpoint for one request: queue + cold start, if it sleeps + prefill + decode.

Only free signals tell whether it sleeps: the models in memory at the last probe, and the time of its last answer.
"""

from __future__ import annotations

import math

from goblin.gateway.policy import latency
from goblin.gateway.policy.latency import LatencyEstimate
from goblin.gateway.policy.route import Demand, LatencyForecast

ASLEEP_UNHEARD = 0.5
"""The chance that it sleeps, if it can sleep and nothing was ever observed."""
ASLEEP_TOLD = 0.95
"""The chance that it sleeps, if it was seen asleep: another caller may have woken it since."""
DOZES_FROM, DOZES_TO = 0.9, 1.2
"""Shares of `sleeps_after_s`: awake before the first, asleep after the second, uncertain in between."""
WAKING_LEFT_MIN = 0.1
"""The share of the expected cold start that is still assumed to be left when it takes longer than expected."""
DOUBT = 0.4
"""How much single answers scatter, as a share of the estimate."""
OVERDUE = 1.5
"""How many times its forecast the oldest request must be silent before its silence counts."""


def chance_asleep(*, sleeps_after_s: int | None, heard_ago_s: float | None, told_asleep: bool | None) -> float:
    """Estimate the chance that the next request has to wait for a cold start.

    Args:
        sleeps_after_s: Idle seconds after which the endpoint sleeps; None when it never sleeps.
        heard_ago_s: Seconds since its last sign of life: an answer, or a probe that found the model in memory.
        told_asleep: Whether a probe that is newer than any sign of life found it asleep; None if there is none.
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
    """Forecast the next request.

    Args:
        estimate: The observations so far.
        demand: The request.
        in_flight: Requests sent to the endpoint that have not ended.
        parallel: How many requests it serves at once; more wait in its queue.
        asleep: The chance of a cold start, from `chance_asleep`; ignored while a cold start is in progress.
        waking_for_ms: How long ago its cold start began; None when none is in progress.
        silent_ms: How long the oldest waiting request has waited without any answer of the endpoint since.
        silence_expected_ms: The forecast for that request.
        network_ms: A lower bound: the round trip of a probe.
        unheard_s: Time since its last answer; copied to the forecast.
        now_s: On the clock of `estimate`.
    """
    awake_ms = max(latency.first_token_ms(estimate, demand.prompt_tokens, now_s), network_ms)
    decode_ms = demand.output_tokens_expected * latency.decode_ms(estimate)
    service_ms = awake_ms + decode_ms
    # The declared parallelism counts only as far as answers have confirmed it.
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
        first_ms = silent_ms  # A request has already waited longer than the forecast, and still waits.
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
