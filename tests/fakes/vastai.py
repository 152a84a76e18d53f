"""A fake of Vast.ai's API and, on the same port, of the server on an instance that it lists."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import Any

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from tests.fakes.openai_like import FakeOpenAI
from tests.fakes.serving import run


def instance(number: int, port: int | None, **fields: Any) -> dict[str, Any]:
    """A row as the list has it; with a port it runs."""
    ports = {"8000/tcp": [{"HostIp": "0.0.0.0", "HostPort": str(port)}], "22/tcp": None} if port else None
    status = "running" if port else "loading"
    row = {"id": number, "machine_id": 7, "label": "chat", "actual_status": status, "intended_status": "running"}
    return {**row, "public_ipaddr": "127.0.0.1\n", "ports": ports, "is_bid": True, "dph_total": 0.21, **fields}


@dataclass
class FakeVast(FakeOpenAI):
    path = ""
    account_key: str = "vast-account"
    instances: list[dict[str, Any]] | None = None
    """None: one that runs, and is this very server."""
    refusal: Response | None = None
    """What the list answers instead."""
    page: int = 25
    lists: int = 0
    keys: list[str] = field(default_factory=list)
    """What came as a key to the instance."""

    @property
    def app(self) -> Starlette:
        return Starlette(
            routes=[
                Route("/api/v0/instances/", self._ended),
                Route("/api/v1/instances/", self._list),
                Route("/health", self._health),
                Route("/v1/models", self._models),
                Route("/v1/chat/completions", self._noting, methods=["POST"]),
                Route("/v1/completions", self._complete, methods=["POST"]),
                Route("/v1/embeddings", self._embed, methods=["POST"]),
            ]
        )

    async def _ended(self, request: Request) -> Response:
        return JSONResponse({"success": False, "error": "deprecated_endpoint", "msg": "use /api/v1/instances/"}, 410)

    async def _noting(self, request: Request) -> Response:
        self.keys.append(request.headers.get("authorization", ""))
        return await self._chat(request)

    async def _list(self, request: Request) -> Response:
        self.lists += 1
        if request.headers.get("authorization") != f"Bearer {self.account_key}":
            return JSONResponse({"success": False, "error": "auth_error", "msg": "Invalid user key"}, 404)
        if self.refusal is not None:
            return self.refusal
        limit = int(request.query_params["limit"])
        if limit > 25:
            return JSONResponse({"success": False, "error": "invalid_request", "msg": "limit"}, 400)
        filters = json.loads(request.query_params.get("select_filters", "{}"))
        rows = [instance(1, request.url.port)] if self.instances is None else self.instances
        rows = [row for row in rows if all(row[name] == said["eq"] for name, said in filters.items())]
        start = int(request.query_params.get("after_token", "0"))
        end = start + min(limit, self.page)
        token = str(end) if end < len(rows) else None
        labels = {row["label"]: sum(row["label"] == other["label"] for other in rows) for row in rows}
        counts = {"instances_found": len(rows), "total_instances": len(rows), "label_counts": labels}
        return JSONResponse({"success": True, **counts, "next_token": token, "instances": rows[start:end]})


if __name__ == "__main__":
    run(FakeVast())
