"""Shared code for reading providers' bills: the cost of one UTC day, in whole micro-dollars."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any

import httpx

from goblin.billing.domain.ledger import Bill, Charge
from goblin.core import decoding
from goblin.core.endpoints import KeySource
from goblin.core.errors import ProviderUnavailable
from goblin.core.money import to_micros
from goblin.core.redaction import learn
from goblin.providers.common import rental_http
from httpguard.text import is_bounded

TIMEOUT_S = 20.0
PAGES_MAX = 100
DOLLARS_MAX = 10_000_000
"""More than a day costs: such a bill is not believed. To convert `1e999999` would take minutes, too."""
WAITS_S = (1.5, 3.0, 6.0)
"""Waits before retries after a 429. Vast.ai requires a second between two requests for charges."""
BillingKey = str | KeySource
"""An API key, or the source that it is read from."""


@dataclass(frozen=True, slots=True)
class BillingApi:
    """A provider's billing API over a shared HTTP client."""

    name: str
    url: str
    client: httpx.AsyncClient
    sleep: Callable[[float], Awaitable[object]] = asyncio.sleep

    async def get(self, path: str, *, headers: Mapping[str, str], params: Mapping[str, str]) -> Any:
        """Get a JSON response, with numbers as `Decimal` and so exact. Raises `ProviderUnavailable`."""
        try:
            status, data = await self._ask(path, headers, params)
            for wait_s in WAITS_S:
                if status != httpx.codes.TOO_MANY_REQUESTS:
                    break
                # Days and pages are read one after the other, faster than some providers allow.
                await self.sleep(wait_s)
                status, data = await self._ask(path, headers, params)
            if status != httpx.codes.OK:
                raise ProviderUnavailable(f"The billing API of {self.name} answered {status}.")
            if not is_bounded(data):
                raise ValueError("nested too deeply")
            return json.loads(data, parse_float=Decimal, parse_int=Decimal)
        except (httpx.HTTPError, *decoding.UNREADABLE) as error:
            raise ProviderUnavailable(f"The bill of {self.name} cannot be read: {type(error).__name__}.") from error

    async def _ask(self, path: str, headers: Mapping[str, str], params: Mapping[str, str]) -> tuple[int, bytes]:
        """Send one request; return its status and its body."""
        asked = {"accept-encoding": "identity", **headers}
        request = self.client.build_request("GET", self.url + path, headers=asked, params=params, timeout=TIMEOUT_S)
        response, data = await rental_http.exchange(self.client, request)
        return response.status_code, data

    def strange(self, error: Exception) -> ProviderUnavailable:
        """Build the error for a response of unexpected shape, which is never counted as zero."""
        return ProviderUnavailable(f"The bill of {self.name} has an unexpected shape: {type(error).__name__}.")


STRANGE = (LookupError, AttributeError, *decoding.UNREADABLE)
"""Exceptions that reading a response of unexpected shape raises."""


async def opened(key: BillingKey) -> str:
    """Read the key that is valid now."""
    now = key if isinstance(key, str) else await key.key()
    learn(now)
    return now


def start_of(day: str) -> datetime:
    return datetime.fromisoformat(day).replace(tzinfo=UTC)


def end_of(day: str) -> datetime:
    return start_of(day) + timedelta(days=1)


@dataclass(frozen=True, kw_only=True, slots=True)
class BillRow:
    """One instance's part of a day's bill."""

    instance_id: str
    label: str = ""
    dollars: Decimal


def made(dollars: Decimal, rows: Sequence[BillRow] | None = None) -> Bill:
    """Build a day's bill in whole micro-dollars, rounded so that the charges add up to the rounded sum.

    Args:
        dollars: The whole bill.
        rows: The parts of its instances; None when the provider does not itemise.

    Raises:
        ValueError: An amount is negative, not finite, or above `DOLLARS_MAX`.
    """
    so_far, charges = Decimal(0), []
    for row in sorted(rows or (), key=lambda row: (row.label, row.instance_id)):
        after = so_far + _sound(row.dollars)
        charge = Charge(instance_id=row.instance_id, label=row.label, usd_micros=to_micros(after) - to_micros(so_far))
        charges.append(charge)
        so_far = after
    # The total and its parts may come from two requests, with new charges in between.
    return Bill(usd_micros=to_micros(max(_sound(dollars), so_far)), charges=None if rows is None else tuple(charges))


def _sound(dollars: Decimal) -> Decimal:
    if not dollars.is_finite() or not 0 <= dollars <= DOLLARS_MAX:
        raise ValueError("an amount is negative, not finite, or no bill of a day")
    return dollars
