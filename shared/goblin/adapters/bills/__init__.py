"""Providers' own bills, one file each: what a UTC day came to, in whole millionths of a dollar."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from decimal import Decimal, InvalidOperation
from typing import Any

import httpx

from goblin.domain.models import KeySource
from goblin.domain.money import to_micros
from goblin.errors import ProviderUnavailable

TIMEOUT_S = 20.0
PAGES_MAX = 100
Key = str | KeySource


@dataclass(frozen=True, slots=True)
class Api:
    """Somebody's API over a shared client."""

    name: str
    url: str
    client: httpx.AsyncClient

    async def get(self, path: str, *, headers: Mapping[str, str], params: Mapping[str, str]) -> Any:
        """An answer, with every number as it was written. Raises `ProviderUnavailable`."""
        try:
            answer = await self.client.get(self.url + path, headers=dict(headers), params=params, timeout=TIMEOUT_S)
            if answer.status_code != httpx.codes.OK:
                raise ProviderUnavailable(f"The bill of {self.name} answered {answer.status_code}.")
            return json.loads(answer.text, parse_float=Decimal, parse_int=Decimal)
        except (httpx.HTTPError, ValueError) as error:
            raise ProviderUnavailable(f"The bill of {self.name} cannot be read: {type(error).__name__}.") from error

    def strange(self, error: Exception) -> ProviderUnavailable:
        """What to raise when an answer is not what was agreed; it is never taken for zero."""
        return ProviderUnavailable(f"The bill of {self.name} has another shape: {type(error).__name__}.")


STRANGE = (KeyError, TypeError, AttributeError, InvalidOperation, ValueError)
"""What reading an answer of another shape raises."""


async def opened(key: Key) -> str:
    """A key now."""
    return key if isinstance(key, str) else await key.key()


def start_of(day: str) -> datetime:
    return datetime.fromisoformat(day).replace(tzinfo=UTC)


def end_of(day: str) -> datetime:
    return start_of(day) + timedelta(days=1)


def whole(dollars: Decimal) -> int:
    """Rounded up once, over the whole sum."""
    if not dollars.is_finite() or dollars < 0:
        raise ValueError("a bill is not negative")
    return to_micros(dollars)
