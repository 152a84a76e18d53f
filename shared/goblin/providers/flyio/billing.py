"""Fly.io's bill, computed because no API returns it: the time each machine was started, by its events, times its price.

Source: Fly's Machines API and its price page, read 2026-11-23. Event times are milliseconds; a machine that is stopped
costs only its disk. The price of a started machine is configured, because regions differ.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any

import httpx

from goblin.billing.domain.ledger import Bill
from goblin.billing.ports import BillSource
from goblin.providers.common import bills

NAME = "flyio"
VARIABLE = "FLY_API_TOKEN"
URL = "https://api.machines.dev"
RUNS = frozenset({"started", "starting", "stopping", "restarting", "suspending"})
BEGINS, ENDS = frozenset({"start", "restart"}), frozenset({"exit", "stop", "suspend", "destroy"})
DISK_USD_PER_MONTH = Decimal("0.15")
"""Price of a gigabyte of a stopped machine's root disk; we count one gigabyte per machine."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Rate:
    """The price of an app's machines."""

    app: str
    started_usd_per_month: Decimal
    """Price of one machine that runs all the time."""


def connect(
    key: bills.BillingKey,
    client: httpx.AsyncClient,
    *,
    rate: Rate,
    now: Any = lambda: datetime.now(UTC),
    url: str = URL,
) -> BillSource:
    return ComputedBill(key, bills.BillingApi(NAME, url, client), rate, now)


class ComputedBill:
    """An app's computed bill as a `BillSource`."""

    provider = NAME
    final_after = timedelta(0)

    def __init__(self, key: bills.BillingKey, api: bills.BillingApi, rate: Rate, now: Any) -> None:
        self._key = key
        self._api = api
        self._rate = rate
        self._now = now

    async def bill(self, day: str) -> Bill:
        headers = {"authorization": f"Bearer {await bills.opened(self._key)}"}
        path = f"/v1/apps/{self._rate.app}/machines"
        rows = await self._api.get(path, headers=headers, params={"include_deleted": "true"})
        start, end = bills.start_of(day).timestamp(), min(bills.end_of(day), self._now()).timestamp()
        try:
            spans = [runs(row, start, end) for row in rows]
        except bills.STRANGE as error:
            raise self._api.strange(error) from error
        month_s = Decimal(30 * 86400)
        running = sum(spans, Decimal(0)) * self._rate.started_usd_per_month / month_s
        disks = Decimal(len(spans)) * DISK_USD_PER_MONTH * Decimal(max(0.0, end - start)) / month_s
        return bills.made(running + disks)


def runs(machine: Mapping[str, Any], start: float, end: float) -> Decimal:
    """Count the seconds between two instants in which a machine was started.

    Events come newest first and Fly keeps only the last ones: before the first known event the machine counts as
    started.
    """
    events: Sequence[Any] = sorted(machine["events"], key=lambda event: event["timestamp"])
    state_from, running = datetime.fromisoformat(machine["created_at"]).timestamp(), True
    total = Decimal(0)
    for event in events:
        at = float(event["timestamp"]) / 1000
        if event["type"] not in BEGINS | ENDS:
            continue
        if running:
            total += Decimal(max(0.0, min(at, end) - max(state_from, start)))
        running, state_from = event["type"] in BEGINS, at
    if running and (not events or machine["state"] in RUNS):
        total += Decimal(max(0.0, end - max(state_from, start)))
    return total
