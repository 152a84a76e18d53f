"""Vast.ai: `GET /api/v0/charges/`, one row per source and day: GPU, disk and traffic together.

Source: Vast.ai's API pages, read 2026-11-23. The filter on days is required; errors may come with status 200.
"""

from __future__ import annotations

import json
from datetime import timedelta
from decimal import Decimal

import httpx

from goblin.adapters import bills
from goblin.money_ports import BillSource

NAME = "vastai"
VARIABLE = "VASTAI_API_KEY"
URL = "https://console.vast.ai"


def connect(key: bills.Key, client: httpx.AsyncClient, *, url: str = URL) -> BillSource:
    return Charges(key, bills.Api(NAME, url, client))


class Charges:
    provider = NAME
    final_after = timedelta(hours=2)

    def __init__(self, key: bills.Key, api: bills.Api) -> None:
        self._key = key
        self._api = api

    async def billed_usd_micros(self, day: str) -> int:
        first, last = int(bills.start_of(day).timestamp()), int(bills.end_of(day).timestamp()) - 1
        filters = {"day": {"gte": first, "lte": last}, "type": {"in": ["instance", "volume", "serverless"]}}
        params = {"select_filters": json.dumps(filters), "format": "table", "limit": "100"}
        headers = {"authorization": f"Bearer {await bills.opened(self._key)}"}
        total = Decimal(0)
        for _ in range(bills.PAGES_MAX):
            page = await self._api.get("/api/v0/charges/", headers=headers, params=params)
            try:
                if page["success"] is not True:
                    raise ValueError("no success")
                total += sum((row["amount"] for row in page["results"]), Decimal(0))
                if not page.get("next_token"):
                    return bills.whole(total)
                params = {**params, "after_token": str(page["next_token"])}
            except bills.STRANGE as error:
                raise self._api.strange(error) from error
        raise self._api.strange(ValueError("endless pages"))
