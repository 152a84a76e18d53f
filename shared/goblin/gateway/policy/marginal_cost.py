"""What one more request costs at an endpoint, in millionths of a dollar, rounded up; unknown is None, never zero.

Billed by the token: tokens * price. Billed while it is awake: the seconds that the request adds to its being awake,
which are the start, the work, and the idle time until it sleeps again:

asleep   ▁▁▁▁▁[start][work][idle tail]▁▁▁      all of it
idle     ▔▔▔▔[since the last one][work][…]▁    the tail begins anew, later by the time since the last one and the work
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
    """The price of this request, given all that goes on anyway.

    Args:
        endpoint: Who would serve it; what it charges per hour adds to what it charges per token.
        price: Of the model there; None when nobody knows it.
        forecast: For this request.
        prompt_tokens: An estimate.
        output_tokens: Expected, or the most there may be.
        in_flight: Requests there now.
        cold_ms: A start of it, when it sleeps.
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
    """How much longer it is awake because of this request; nothing, if it never sleeps: that bill runs anyway."""
    if endpoint.sleeps_after_s is None:
        return 0.0
    if in_flight:
        return forecast.service_ms / endpoint.parallel
    tail_ms = endpoint.sleeps_after_s * 1000.0
    asleep = forecast.asleep
    waking = cold_ms + forecast.service_ms + tail_ms
    awake = min(forecast.unheard_s * 1000.0, tail_ms) + forecast.service_ms
    return asleep * waking + (1.0 - asleep) * awake
