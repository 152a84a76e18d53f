"""A fake of an app on Fly: a llama.cpp server behind Fly's proxy, and the Machines API with its machines' states."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from tests.fakes.openai_like import FakeOpenAI
from tests.fakes.serving import run


def machine(state: str, *, passing: bool = True) -> dict[str, Any]:
    """One machine as the API lists it."""
    check = {"name": "http", "status": "passing" if passing else "critical", "output": "", "updated_at": ""}
    return {"id": "e784079b449483", "name": "chat-1", "state": state, "region": "iad", "checks": [check]}


@dataclass
class FakeFly(FakeOpenAI):
    """The app and its Machines API. A request to `/health` wakes a stopped machine, so it counts as work."""

    owner: str = "llamacpp"
    path = ""
    token: str = "FlyV1 t"
    machines: list[dict[str, Any]] = field(default_factory=lambda: [machine("started")])
    api_status: int | None = None
    woken: int = 0

    @property
    def app(self) -> Starlette:
        routes = [route for route in super().app.routes if getattr(route, "path", "") != "/health"]
        listing = Route("/machines/v1/apps/{app}/machines", self._list)
        return Starlette(routes=[Route("/health", self._wake), listing, *routes])

    async def _wake(self, request: Request) -> Response:
        self.woken += 1
        return await self._health(request)

    async def _list(self, request: Request) -> Response:
        self.paths.append(request.url.path)
        headers = {"fly-request-id": "01FAKE"}
        if request.headers.get("authorization") != f"Bearer {self.token}":
            said = {"error": "Authenticate: token validation error", "status": "unauthorized"}
            return JSONResponse(said, 401, headers)
        if self.api_status is not None:
            return JSONResponse({"error": "over the allowed quota"}, self.api_status, headers)
        if request.path_params["app"] != "chat":
            return JSONResponse({"error": "App not found"}, 404, headers)
        return JSONResponse(self.machines, headers=headers)


if __name__ == "__main__":
    run(FakeFly())
