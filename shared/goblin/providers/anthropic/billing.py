"""Anthropic's bill: `GET /v1/organizations/cost_report`, with an admin key; a bucket is a UTC day.

Source: Anthropic's Admin API reference, read 2026-11-25. `amount` is a decimal text of cents: "123.45" is $1.2345.
The report does not include Priority Tier.
"""

from __future__ import annotations

from datetime import timedelta
from decimal import Decimal

import httpx

from goblin.billing.domain.ledger import Bill
from goblin.billing.ports import BillSource
from goblin.providers.common import bills

NAME = "anthropic"
VARIABLE = "ANTHROPIC_ADMIN_KEY"
URL = "https://api.anthropic.com"


def connect(key: bills.BillingKey, client: httpx.AsyncClient, *, url: str = URL) -> BillSource:
    return AnthropicCosts(key, bills.BillingApi(NAME, url, client))


class AnthropicCosts:
    """An organisation's cost report as a `BillSource`."""

    provider = NAME
    final_after = timedelta(hours=12)

    def __init__(self, key: bills.BillingKey, api: bills.BillingApi) -> None:
        self._key = key
        self._api = api

    async def bill(self, day: str) -> Bill:
        params = {
            "starting_at": f"{bills.start_of(day):%Y-%m-%dT%H:%M:%SZ}",
            "ending_at": f"{bills.end_of(day):%Y-%m-%dT%H:%M:%SZ}",
            "bucket_width": "1d",
        }
        headers = {"x-api-key": await bills.opened(self._key), "anthropic-version": "2023-06-01"}
        cents = Decimal(0)
        for _ in range(bills.PAGES_MAX):
            page = await self._api.get("/v1/organizations/cost_report", headers=headers, params=params)
            try:
                for bucket in page["data"]:
                    cents += sum((Decimal(row["amount"]) for row in bucket["results"]), Decimal(0))
                if not page["has_more"]:
                    return bills.made(cents / 100)
                params = {**params, "page": str(page["next_page"])}
            except bills.STRANGE as error:
                raise self._api.strange(error) from error
        raise self._api.strange(ValueError("too many pages"))
