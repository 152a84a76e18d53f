"""Providers' own bills, one file each: what a UTC day came to, in whole millionths of a dollar."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from decimal import Decimal, InvalidOperation
from typing import Any

import httpx

from goblin.billing.domain.ledger import Bill, Charge
from goblin.core.endpoints import KeySource
from goblin.core.errors import ProviderUnavailable
from goblin.core.money import to_micros

TIMEOUT_S = 20.0
PAGES_MAX = 100
WAITS_S = (1.5, 3.0, 6.0)
"""Before one asks again who asked too soon. Vast.ai wants a second between two looks at charges."""
BillingKey = str | KeySource


@dataclass(frozen=True, slots=True)
class BillingApi:
    """Somebody's API over a shared client."""

    name: str
    url: str
    client: httpx.AsyncClient
    sleep: Callable[[float], Awaitable[object]] = asyncio.sleep

    async def get(self, path: str, *, headers: Mapping[str, str], params: Mapping[str, str]) -> Any:
        """An answer, with every number as it was written. Raises `ProviderUnavailable`."""
        try:
            answer = await self._ask(path, headers, params)
            for wait_s in WAITS_S:
                if answer.status_code != httpx.codes.TOO_MANY_REQUESTS:
                    break
                # Days and pages are read one after the other, faster than some allow.
                await self.sleep(wait_s)
                answer = await self._ask(path, headers, params)
            if answer.status_code != httpx.codes.OK:
                raise ProviderUnavailable(f"The bill of {self.name} answered {answer.status_code}.")
            return json.loads(answer.text, parse_float=Decimal, parse_int=Decimal)
        except (httpx.HTTPError, ValueError) as error:
            raise ProviderUnavailable(f"The bill of {self.name} cannot be read: {type(error).__name__}.") from error

    async def _ask(self, path: str, headers: Mapping[str, str], params: Mapping[str, str]) -> httpx.Response:
        return await self.client.get(self.url + path, headers=dict(headers), params=params, timeout=TIMEOUT_S)

    def strange(self, error: Exception) -> ProviderUnavailable:
        """What to raise when an answer is not what was agreed; it is never taken for zero."""
        return ProviderUnavailable(f"The bill of {self.name} has another shape: {type(error).__name__}.")


STRANGE = (KeyError, TypeError, AttributeError, InvalidOperation, ValueError)
"""What reading an answer of another shape raises."""


async def opened(key: BillingKey) -> str:
    """A key now."""
    return key if isinstance(key, str) else await key.key()


def start_of(day: str) -> datetime:
    return datetime.fromisoformat(day).replace(tzinfo=UTC)


def end_of(day: str) -> datetime:
    return start_of(day) + timedelta(days=1)


@dataclass(frozen=True, kw_only=True, slots=True)
class BillRow:
    """One instance's part of a day."""

    instance_id: str
    label: str = ""
    dollars: Decimal


def made(dollars: Decimal, rows: Sequence[BillRow] | None = None) -> Bill:
    """A day's bill in whole millionths, rounded up once: the parts of the rows add up to their sum.

    Args:
        dollars: All of it.
        rows: Its instances; None: it tells none.

    Raises:
        ValueError: A bill is not negative.
    """
    so_far, charges = Decimal(0), []
    for row in sorted(rows or (), key=lambda row: (row.label, row.instance_id)):
        after = so_far + _sound(row.dollars)
        charge = Charge(instance_id=row.instance_id, label=row.label, usd_micros=to_micros(after) - to_micros(so_far))
        charges.append(charge)
        so_far = after
    # The sum and its parts may have been read one after the other.
    return Bill(usd_micros=to_micros(max(_sound(dollars), so_far)), charges=None if rows is None else tuple(charges))


def _sound(dollars: Decimal) -> Decimal:
    if not dollars.is_finite() or dollars < 0:
        raise ValueError("a bill is not negative")
    return dollars
