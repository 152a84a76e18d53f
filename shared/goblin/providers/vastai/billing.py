"""Vast.ai's bill: `GET /api/v0/charges/`, one row per source and day, with GPU, disk and traffic together.

Source: docs.vast.ai/api-reference/billing/show-charges, read 2026-11-26: `source` is `instance-ID`, and
`metadata.label` is the instance's. The filter on days is required; errors may come with status 200.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from datetime import timedelta
from decimal import Decimal
from typing import Any

import httpx

from goblin.billing.domain.ledger import Bill
from goblin.billing.ports import BillSource
from goblin.core.labels import is_attempt_label
from goblin.providers.common import bills

NAME = "vastai"
VARIABLE = "VASTAI_API_KEY"
URL = "https://console.vast.ai"
INSTANCE = "instance-"


def connect(key: bills.BillingKey, client: httpx.AsyncClient, *, namespace: str = "", url: str = URL) -> BillSource:
    """Connect to the charges of an account.

    Args:
        key: The account's API key.
        client: Shared HTTP client.
        namespace: Follows the labels of our attempts; charges with another deployment's namespace are left out.
        url: Base URL of the API.
    """
    return Charges(key, bills.BillingApi(NAME, url, client), namespace)


class Charges:
    """An account's charges as a `BillSource`."""

    provider = NAME
    final_after = timedelta(hours=2)

    def __init__(self, key: bills.BillingKey, api: bills.BillingApi, namespace: str) -> None:
        self._key = key
        self._api = api
        self._namespace = namespace

    async def bill(self, day: str) -> Bill:
        first, last = int(bills.start_of(day).timestamp()), int(bills.end_of(day).timestamp()) - 1
        filters = {"day": {"gte": first, "lte": last}, "type": {"in": ["instance", "volume", "serverless"]}}
        params = {"select_filters": json.dumps(filters), "format": "table", "limit": "100"}
        headers = {"authorization": f"Bearer {await bills.opened(self._key)}"}
        total, rows = Decimal(0), []
        for _ in range(bills.PAGES_MAX):
            page = await self._api.get("/api/v0/charges/", headers=headers, params=params)
            try:
                if page["success"] is not True:
                    raise ValueError("success is not true")
                for found in page["results"]:
                    label, namespace = _label(found)
                    if label and namespace != self._namespace:
                        continue
                    total += found["amount"]
                    if label:
                        source = str(found["source"]).removeprefix(INSTANCE)
                        rows.append(bills.BillRow(instance_id=source, label=label, dollars=found["amount"]))
                if not page.get("next_token"):
                    return bills.made(total, rows)
                params = {**params, "after_token": str(page["next_token"])}
            except bills.STRANGE as error:
                raise self._api.strange(error) from error
        raise self._api.strange(ValueError("too many pages"))


def _label(row: Mapping[str, Any]) -> tuple[str, str]:
    """Split `LABEL@NAMESPACE` into an attempt's label and its namespace; empty when it is not an attempt's label."""
    label, _, namespace = str((row.get("metadata") or {}).get("label") or "").partition("@")
    return (label, namespace) if is_attempt_label(label) else ("", "")
