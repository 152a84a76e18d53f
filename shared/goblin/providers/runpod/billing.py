"""RunPod's bill: `GET /v2/billing` for all charges of the account, and `/v2/billing/pods` for those of each pod.

Source: RunPod's v2 schema, read 2026-11-26. Buckets are snapped to UTC days; the history is about five minutes late.
Pods are listed by id, without their name.
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
    """An account's charges as a `BillSource`."""

    provider = NAME
    final_after = timedelta(hours=1)

    def __init__(self, key: bills.BillingKey, api: bills.BillingApi) -> None:
        self._key = key
        self._api = api

    async def bill(self, day: str) -> Bill:
        # Read the sum last: a charge between the two requests is then in the sum and in no pod, never the reverse.
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
            # RunPod snaps the edges outwards: leave out the buckets of neighbouring days.
            return [row for row in answer["records"] if row["startTime"][:10] == day]
        except bills.STRANGE as error:
            raise self._api.strange(error) from error
