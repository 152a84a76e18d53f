"""RunPod: `GET /v2/billing`, everything the account is charged for: pods, serverless, volumes.

Source: RunPod's v2 schema, read 2026-11-23. Buckets are snapped to UTC days; the history is about five minutes late.
"""

from __future__ import annotations

from datetime import timedelta
from decimal import Decimal

import httpx

from goblin.adapters import bills
from goblin.money_ports import BillSource

NAME = "runpod"
VARIABLE = "RUNPOD_API_KEY"
URL = "https://api.runpod.io"


def connect(key: bills.Key, client: httpx.AsyncClient, *, url: str = URL) -> BillSource:
    return Billing(key, bills.Api(NAME, url, client))


class Billing:
    provider = NAME
    final_after = timedelta(hours=1)

    def __init__(self, key: bills.Key, api: bills.Api) -> None:
        self._key = key
        self._api = api

    async def billed_usd_micros(self, day: str) -> int:
        params = {
            "bucketSize": "day",
            "startTime": f"{bills.start_of(day):%Y-%m-%dT%H:%M:%SZ}",
            "endTime": f"{bills.end_of(day):%Y-%m-%dT%H:%M:%SZ}",
        }
        headers = {"authorization": f"Bearer {await bills.opened(self._key)}"}
        answer = await self._api.get("/v2/billing", headers=headers, params=params)
        try:
            # Edges are snapped outwards: a neighbour's bucket must not count.
            rows = [row for row in answer["records"] if row["startTime"][:10] == day]
            return bills.whole(sum((row["totalAmount"] for row in rows), Decimal(0)))
        except bills.STRANGE as error:
            raise self._api.strange(error) from error
