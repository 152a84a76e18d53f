"""Facts about prices: which endpoints are free, and which prices are old."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import date, datetime, timedelta

from goblin.core.endpoints import Endpoint, Price

STALE_AFTER = timedelta(days=90)


def is_free(endpoint: Endpoint) -> bool:
    """Tell whether requests to an endpoint cost nothing; an unknown price is not zero."""
    price = endpoint.price
    if bills_time(endpoint):
        return False
    return price is not None and not (price.input_usd_micros_per_mtok or price.output_usd_micros_per_mtok)


def bills_use(endpoint: Endpoint) -> bool:
    """Tell whether what a request does at an endpoint may be charged: by its tokens, or by a third party in any way.

    A machine of ours, or one that we rent, charges at most for its time.
    """
    price = endpoint.price
    if endpoint.external or (price is None and not bills_time(endpoint)):
        return True
    return price is not None and bool(price.input_usd_micros_per_mtok or price.output_usd_micros_per_mtok)


def is_stale(read_on: date | None, now: datetime) -> bool:
    """Tell whether a price must be read again. A price without a date was set by the operator and does not age."""
    return read_on is not None and now.date() - read_on > STALE_AFTER


def stale(prices: Mapping[tuple[str, str], Price], now: datetime) -> list[str]:
    """List the prices that are to be read again, each as text for a person, with its date."""
    return [
        f"{provider}/{model} ({price.read_on})"
        for (provider, model), price in sorted(prices.items())
        if is_stale(price.read_on, now)
    ]


def bills_time(endpoint: Endpoint) -> bool:
    """Tell whether requests to an endpoint are charged for the time that they keep its machine running."""
    return bool(endpoint.price_usd_micros_per_hour) and endpoint.sleeps_after_s is not None
