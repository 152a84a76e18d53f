"""The marginal price of a request."""

from __future__ import annotations

from typing import Any

import pytest

from goblin.core.endpoints import Endpoint, Price
from goblin.gateway.policy.marginal_cost import marginal_cost
from goblin.gateway.policy.route import LatencyForecast

HOUR = 3_600_000  # Millionths of a dollar per hour that make one per millisecond.


def cost(*, in_flight: int = 0, forecast: LatencyForecast | None = None, **said: Any) -> int | None:
    endpoint = Endpoint(name="a", provider="x", url="http://x", **said)
    return marginal_cost(
        endpoint,
        endpoint.price,
        forecast or LatencyForecast(service_ms=2000.0, unheard_s=100.0),
        prompt_tokens=1000,
        output_tokens=500,
        in_flight=in_flight,
        cold_ms=20_000.0,
    )


def price(inward: int, outward: int) -> Price:
    return Price(input_usd_micros_per_mtok=inward, output_usd_micros_per_mtok=outward)


def test_an_unknown_price_is_unknown() -> None:
    assert cost() is None


@pytest.mark.parametrize(
    ("inward", "outward", "expected"), [(0, 0, 0), (100_000, 9_000_000, 4600), (2_000_000, 200_000, 2100), (1, 0, 1)]
)
def test_tokens_times_price_rounded_up(inward: int, outward: int, expected: int) -> None:
    assert cost(price=price(inward, outward)) == expected


@pytest.mark.parametrize(
    ("asleep", "in_flight", "unheard_s", "expected"),
    [
        (1.0, 0, 1e6, 20_000 + 2_000 + 300_000),  # A start, the work, an idle tail.
        (0.0, 0, 100.0, 2_000 + 100_000),  # The tail begins anew.
        (0.0, 0, 1e6, 2_000 + 300_000),
        (0.0, 3, 0.0, 500),  # It is busy anyway.
        (0.5, 0, 100.0, 212_000),
    ],
)
def test_seconds_that_the_request_keeps_it_awake(
    asleep: float, in_flight: int, unheard_s: float, expected: int
) -> None:
    forecast = LatencyForecast(service_ms=2000.0, asleep=asleep, unheard_s=unheard_s)
    found = cost(price_usd_micros_per_hour=HOUR, sleeps_after_s=300, parallel=4, in_flight=in_flight, forecast=forecast)
    assert found == expected


def test_what_never_sleeps_is_paid_anyway() -> None:
    assert cost(price_usd_micros_per_hour=HOUR) == 0
