"""A fake of the control API of `containers/llamacpp` on a real socket: it downloads, checks digests and swaps models.

It passes the same contract tests as the real server. Any file that begins with `GGUF` loads. Of a model it knows only
the name and the digest.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from typing import Any

import httpx
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route


def _error(status: int, message: str, code: str) -> Response:
    body = {"error": {"message": message, "type": "invalid_request_error", "param": None, "code": code}}
    return JSONResponse(body, status_code=status)


@dataclass
class FakeModelServer:
    alias: str = "goblin-tiny"
    sha256: str | None = None
    loads: list[dict[str, Any]] = field(default_factory=list)
    busy: bool = False
    """Another load is under way."""

    def __post_init__(self) -> None:
        self.app = Starlette(
            routes=[
                Route("/health", self._health),
                Route("/v1/models", self._models),
                Route("/props", self._props),
                Route("/models/load", self._load, methods=["POST"]),
            ]
        )

    async def _health(self, _request: Request) -> Response:
        return JSONResponse({"status": "ok"})

    async def _models(self, _request: Request) -> Response:
        names = dict.fromkeys([self.alias, "goblin-tiny"])
        return JSONResponse({"object": "list", "data": [{"id": name, "object": "model"} for name in names]})

    async def _props(self, _request: Request) -> Response:
        return JSONResponse({"model_alias": self.alias, "model_sha256": self.sha256, "total_slots": 8})

    async def _load(self, request: Request) -> Response:
        body = await request.json()
        self.loads.append(body)
        if self.busy:
            return _error(409, "Another model is being loaded", "load_in_progress")
        try:
            async with httpx.AsyncClient(trust_env=False) as http:
                data = (await http.get(body["url"])).raise_for_status().content
        except httpx.HTTPError as error:
            return _error(502, str(error), "fetch_failed")
        if hashlib.sha256(data).hexdigest() != body["sha256"] or not data.startswith(b"GGUF"):
            return _error(400, "The model was refused: The SHA-256 is another", "model_refused")
        self.alias, self.sha256 = body["alias"], body["sha256"]
        return JSONResponse({"model": self.alias, "sha256": self.sha256, "meta": {}})
