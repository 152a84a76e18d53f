"""Charges of providers, and five billing APIs that report these same charges."""

from __future__ import annotations

import json
from collections import defaultdict
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any

import httpx

from goblin.billing.domain.ledger import Bill, Charge
from goblin.core.errors import ProviderUnavailable

PAGE = 2


@dataclass
class Charges:
    """Charges in micro-dollars, by provider and day."""

    rows: dict[tuple[str, str], list[int]] = field(default_factory=lambda: defaultdict(list))
    instances: dict[tuple[str, str], dict[tuple[str, str], int]] = field(default_factory=lambda: defaultdict(dict))
    """What rented instances cost, beside the rows, by instance and its label on the wire."""
    down: set[str] = field(default_factory=set)
    asked: list[httpx.Request] = field(default_factory=list)

    def charge(self, provider: str, at: datetime, micros: int) -> None:
        self.rows[provider, f"{at.astimezone(UTC):%Y-%m-%d}"].append(micros)

    def instance(self, provider: str, at: datetime, micros: int, *, instance_id: str, label: str = "") -> None:
        of_day = self.instances[provider, f"{at.astimezone(UTC):%Y-%m-%d}"]
        of_day[instance_id, label] = of_day.get((instance_id, label), 0) + micros

    def total(self, provider: str, day: str) -> int:
        rented = self.instances.get((provider, day), {})
        return sum(self.rows.get((provider, day), [])) + sum(rented.values())

    @property
    def transport(self) -> httpx.MockTransport:
        return httpx.MockTransport(self._answer)

    def _answer(self, request: httpx.Request) -> httpx.Response:
        self.asked.append(request)
        name, answer = {
            "/v1/organization/costs": ("openai", self._openai),
            "/v1/organizations/cost_report": ("anthropic", self._anthropic),
            "/v2/billing": ("runpod", self._runpod),
            "/v2/billing/pods": ("runpod", self._pods),
            "/api/v0/charges/": ("vastai", self._vastai),
        }[request.url.path]
        if name in self.down:
            return httpx.Response(503, json={"error": "down"})
        key = request.headers.get("authorization", "") + request.headers.get("x-api-key", "")
        if "admin" not in key:
            return httpx.Response(401, json={"error": "no"})
        return httpx.Response(200, text=json.dumps(answer(request.url.params), default=float))

    def _page(self, provider: str, day: str, token: Any) -> tuple[list[int], str | None]:
        rows = self.rows.get((provider, day), [])
        start = int(token or 0)
        more = str(start + PAGE) if start + PAGE < len(rows) else None
        return rows[start : start + PAGE], more

    def _openai(self, params: httpx.QueryParams) -> Any:
        day = f"{datetime.fromtimestamp(int(params['start_time']), UTC):%Y-%m-%d}"
        rows, more = self._page("openai", day, params.get("page"))
        results = [{"amount": {"value": row / 1e6, "currency": "usd"}, "line_item": None} for row in rows]
        data = [{"object": "bucket", "start_time": int(params["start_time"]), "results": results}]
        return {"object": "page", "data": data, "has_more": more is not None, "next_page": more}

    def _anthropic(self, params: httpx.QueryParams) -> Any:
        rows, more = self._page("anthropic", params["starting_at"][:10], params.get("page"))
        results = [{"amount": str(Decimal(row) / 10_000), "currency": "USD"} for row in rows]
        data = [{"starting_at": params["starting_at"], "results": results}]
        return {"data": data, "has_more": more is not None, "next_page": more}

    def _runpod(self, params: httpx.QueryParams) -> Any:
        day = params["startTime"][:10]
        after = f"{datetime.fromisoformat(day) + timedelta(days=1):%Y-%m-%d}"
        records = [
            {"startTime": f"{one}T00:00:00Z", "totalAmount": self.total("runpod", one) / 1e6} for one in (day, after)
        ]
        return {"records": records, "metadata": {"recordCount": 2}}

    def _pods(self, params: httpx.QueryParams) -> Any:
        day = params["startTime"][:10]
        records = [
            {"startTime": f"{day}T00:00:00Z", "podId": pod, "totalAmount": micros / 1e6}
            for (pod, _), micros in self.instances.get(("runpod", day), {}).items()
        ]
        return {"records": records, "metadata": {"recordCount": len(records)}}

    def _vastai(self, params: httpx.QueryParams) -> Any:
        day = json.loads(params["select_filters"])["day"]
        name = f"{datetime.fromtimestamp(day['gte'], UTC):%Y-%m-%d}"
        rows, more = self._page("vastai", name, params.get("after_token"))
        results: list[Any] = [
            {"type": "instance", "source": f"instance-{n}", "amount": row / 1e6} for n, row in enumerate(rows)
        ]
        if params.get("after_token") is None:
            results += [
                {
                    "type": "instance", "source": f"instance-{one}", "amount": micros / 1e6,
                    "metadata": {"template_id": 101, "label": label},
                }
                for (one, label), micros in self.instances.get(("vastai", name), {}).items()
            ]  # fmt: skip
        return {"success": True, "results": results, "next_token": more}


@dataclass
class FakeBill:
    """The port `BillSource` over the same charges, without HTTP."""

    charges: Charges
    provider: str
    final_after: timedelta = timedelta(hours=1)
    tells: bool = False
    """Instance by instance."""

    async def bill(self, day: str) -> Bill:
        if self.provider in self.charges.down:
            raise ProviderUnavailable("down")
        told = tuple(
            Charge(instance_id=instance_id, label=label, usd_micros=micros)
            for (instance_id, label), micros in self.charges.instances.get((self.provider, day), {}).items()
        )
        return Bill(usd_micros=self.charges.total(self.provider, day), charges=told if self.tells else None)
