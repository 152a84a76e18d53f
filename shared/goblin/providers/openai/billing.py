"""OpenAI's bill: `GET /v1/organization/costs`, with an admin key; a bucket is a UTC day.

Source: OpenAI's API reference, and openai-python's models of it, read 2026-11-25. `amount.value` is dollars.
"""

from __future__ import annotations

from datetime import timedelta
from decimal import Decimal

import httpx

from goblin.billing.domain.ledger import Bill
from goblin.billing.ports import BillSource
from goblin.providers.common import bills

NAME = "openai"
VARIABLE = "OPENAI_ADMIN_KEY"
URL = "https://api.openai.com"


def connect(key: bills.BillingKey, client: httpx.AsyncClient, *, url: str = URL) -> BillSource:
    return OrganizationCosts(key, bills.BillingApi(NAME, url, client))


class OrganizationCosts:
    """An organisation's costs as a `BillSource`."""

    provider = NAME
    final_after = timedelta(hours=12)

    def __init__(self, key: bills.BillingKey, api: bills.BillingApi) -> None:
        self._key = key
        self._api = api

    async def bill(self, day: str) -> Bill:
        params = {
            "start_time": str(int(bills.start_of(day).timestamp())),
            "end_time": str(int(bills.end_of(day).timestamp())),
            "bucket_width": "1d",
            "limit": "1",
        }
        headers = {"authorization": f"Bearer {await bills.opened(self._key)}"}
        total = Decimal(0)
        for _ in range(bills.PAGES_MAX):
            page = await self._api.get("/v1/organization/costs", headers=headers, params=params)
            try:
                for bucket in page["data"]:
                    for result in bucket["results"]:
                        if result["amount"]["currency"] != "usd":
                            raise ValueError("the currency is not usd")
                        total += result["amount"]["value"]
                if not page["has_more"]:
                    return bills.made(total)
                params = {**params, "page": str(page["next_page"])}
            except bills.STRANGE as error:
                raise self._api.strange(error) from error
        raise self._api.strange(ValueError("too many pages"))
