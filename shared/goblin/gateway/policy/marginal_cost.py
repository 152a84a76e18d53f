"""Cost of one more request at an endpoint, in micro-dollars, rounded up; an unknown cost is None, never zero.

An endpoint that bills tokens costs tokens * price. One that bills uptime costs the seconds that the request adds to
its uptime, which are the start, the work, and the idle time until it sleeps again:

asleep   ▁▁▁▁▁[start][work][idle tail]▁▁▁      all of it
idle     ▔▔▔▔[since the last one][work][…]▁    the tail starts over, later by the time since the last request + the work
busy     ▔▔▔▔[work / parallel]▔▔▔▔▔▔▔▔▔▔▔▔▔    a share of the work
"""

from __future__ import annotations

import math

from goblin.core.endpoints import Endpoint, Price
from goblin.gateway.policy.route import LatencyForecast

MS_PER_HOUR = 3_600_000.0


def marginal_cost(
    endpoint: Endpoint,
    price: Price | None,
    forecast: LatencyForecast,
    *,
    prompt_tokens: int,
    output_tokens: float,
    in_flight: int,
    cold_ms: float,
) -> int | None:
    """Compute what a request adds to the cost of an endpoint; None when the price is unknown.

    Args:
        endpoint: The endpoint that would serve it; its price per hour adds to its price per token.
        price: The token price of the model there; None when it is unknown.
        forecast: The forecast for this request.
        prompt_tokens: The estimated prompt tokens.
        output_tokens: The expected or the maximum output tokens.
        in_flight: Requests in flight at the endpoint.
        cold_ms: The duration of a cold start.
    """
    hourly = endpoint.price_usd_micros_per_hour
    if price is None and hourly is None:
        return None
    cost = 0
    if price is not None:
        cost = price.cost_usd_micros(input_tokens=prompt_tokens, output_tokens=math.ceil(output_tokens))
    if hourly:
        cost += math.ceil(_awake_ms(endpoint, forecast, in_flight, cold_ms) * hourly / MS_PER_HOUR)
    return cost


def _awake_ms(endpoint: Endpoint, forecast: LatencyForecast, in_flight: int, cold_ms: float) -> float:
    """Estimate the uptime that this request adds; 0 if the endpoint never sleeps, because that bill runs anyway."""
    if endpoint.sleeps_after_s is None:
        return 0.0
    if in_flight:
        return forecast.service_ms / endpoint.parallel
    tail_ms = endpoint.sleeps_after_s * 1000.0
    asleep = forecast.asleep
    waking = cold_ms + forecast.service_ms + tail_ms
    awake = min(forecast.unheard_s * 1000.0, tail_ms) + forecast.service_ms
    return asleep * waking + (1.0 - asleep) * awake
