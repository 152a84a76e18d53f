"""A proxy between a program and the gateway: passes everything on, and keeps what the program sent for reading."""

from __future__ import annotations

import gzip
import json
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
from starlette.applications import Starlette
from starlette.background import BackgroundTask
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse
from starlette.routing import Route

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd

HOP = frozenset({"host", "connection", "content-length", "transfer-encoding", "keep-alive"})
KEYS = frozenset({"authorization", "x-api-key", "api-key"})
METHODS = ["GET", "POST", "PUT", "DELETE", "HEAD", "OPTIONS", "PATCH"]


class Recorder:
    """One file for each request: method, path, headers without keys, the body unpacked, status, what was dropped."""

    def __init__(self, target: str) -> None:
        self.folder: Path | None = None
        self.seen: list[dict[str, Any]] = []
        """The requests since `begin`."""
        self._target = target
        self._client: httpx.AsyncClient | None = None
        self.app = Starlette(routes=[Route("/{path:path}", self._forward, methods=METHODS)])

    def begin(self, folder: Path) -> None:
        """Keep what comes from now on in a folder."""
        folder.mkdir(parents=True, exist_ok=True)
        self.folder, self.seen = folder, []

    async def _forward(self, request: Request) -> Response:
        body = await request.body()
        if self._client is None:
            self._client = httpx.AsyncClient(base_url=self._target, timeout=None)
        headers = [(name, value) for name, value in request.headers.raw if name.decode() not in HOP]
        address = request.url.path + (f"?{request.url.query}" if request.url.query else "")
        sent = self._client.build_request(request.method, address, headers=headers, content=body)
        answer = await self._client.send(sent, stream=True)
        self._keep(request, address, body, answer)
        return StreamingResponse(
            _raw(answer),
            answer.status_code,
            {name: value for name, value in answer.headers.items() if name not in HOP},
            background=BackgroundTask(answer.aclose),
        )

    def _keep(self, request: Request, address: str, body: bytes, answer: httpx.Response) -> None:
        said = {
            "method": request.method,
            "path": address,
            "status": answer.status_code,
            "dropped": answer.headers.get("x-goblin-dropped", ""),
            "headers": {k: "…" if k in KEYS else v for k, v in request.headers.items() if k not in HOP},
            "body": _read(body, request.headers.get("content-encoding", "")),
        }
        self.seen.append(said)
        if self.folder is not None:
            name = f"{len(self.seen):03d}-{request.method}-{request.url.path.strip('/').replace('/', '-')}.json"
            (self.folder / name).write_text(json.dumps(said, indent=1, ensure_ascii=False))


async def _raw(answer: httpx.Response) -> AsyncIterator[bytes]:
    try:
        async for piece in answer.aiter_raw():
            yield piece
    finally:
        await answer.aclose()


def _read(body: bytes, encoding: str) -> Any:
    if encoding == "gzip":
        body = gzip.decompress(body)
    elif encoding == "zstd":
        body = zstd.decompress(body)
    try:
        return json.loads(body)
    except ValueError:
        return body.decode("utf-8", "replace")
