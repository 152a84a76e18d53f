"""RunPod: `GET /v2/billing`, everything the account is charged for, and `/v2/billing/pods`, each pod for itself.

Source: RunPod's v2 schema, read 2026-11-26. Buckets are snapped to UTC days; the history is about five minutes late.
A pod has its id there and no name.
"""

from __future__ import annotations

from datetime import timedelta
from decimal import Decimal
from typing import Any

import httpx

from goblin.billing.domain.ledger import Bill
from goblin.billing.ports import BillSource
from goblin.providers.common import bills

NAME = "runpod"
VARIABLE = "RUNPOD_API_KEY"
URL = "https://api.runpod.io"


def connect(key: bills.BillingKey, client: httpx.AsyncClient, *, url: str = URL) -> BillSource:
    return Billing(key, bills.BillingApi(NAME, url, client))


class Billing:
    provider = NAME
    final_after = timedelta(hours=1)

    def __init__(self, key: bills.BillingKey, api: bills.BillingApi) -> None:
        self._key = key
        self._api = api

    async def bill(self, day: str) -> Bill:
        # The sum last: what is charged between the two is part of it and of no pod, and never the other way round.
        pods = await self._rows("/v2/billing/pods", day)
        everything = await self._rows("/v2/billing", day)
        try:
            rows = [bills.BillRow(instance_id=str(row["podId"]), dollars=row["totalAmount"]) for row in pods]
            return bills.made(sum((row["totalAmount"] for row in everything), Decimal(0)), rows)
        except bills.STRANGE as error:
            raise self._api.strange(error) from error

    async def _rows(self, path: str, day: str) -> list[Any]:
        params = {
            "bucketSize": "day",
            "startTime": f"{bills.start_of(day):%Y-%m-%dT%H:%M:%SZ}",
            "endTime": f"{bills.end_of(day):%Y-%m-%dT%H:%M:%SZ}",
        }
        headers = {"authorization": f"Bearer {await bills.opened(self._key)}"}
        answer = await self._api.get(path, headers=headers, params=params)
        try:
            # Edges are snapped outwards: a neighbour's bucket must not count.
            return [row for row in answer["records"] if row["startTime"][:10] == day]
        except bills.STRANGE as error:
            raise self._api.strange(error) from error
