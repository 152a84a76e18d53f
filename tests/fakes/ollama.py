"""A fake of Ollama's own API: JSON lines, errors in the middle of them, models loaded and unloaded."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import Any

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response, StreamingResponse
from starlette.routing import Route

from tests.fakes.openai_like import Script
from tests.fakes.serving import Startable, run

WHEN = "2026-11-23T10:00:00.000000Z"


@dataclass
class FakeOllama(Startable):
    models: list[str] = field(default_factory=lambda: ["tiny", "llama3:latest"])
    loaded: list[str] = field(default_factory=list)
    script: Script = field(default_factory=Script)
    tool_calls: list[dict[str, Any]] | None = None
    asked: list[dict[str, Any]] = field(default_factory=list)
    paths: list[str] = field(default_factory=list)
    left: threading.Event = field(default_factory=threading.Event)

    @property
    def app(self) -> Starlette:
        return Starlette(
            routes=[
                Route("/", self._root),
                Route("/api/version", self._version),
                Route("/api/tags", self._tags),
                Route("/api/ps", self._ps),
                Route("/api/chat", self._chat, methods=["POST"]),
                Route("/api/generate", self._generate, methods=["POST"]),
                Route("/api/embed", self._embed, methods=["POST"]),
            ]
        )

    async def _root(self, request: Request) -> Response:
        return PlainTextResponse("Ollama is running")

    async def _version(self, request: Request) -> Response:
        self.paths.append(request.url.path)
        return JSONResponse({"version": "0.33.0"})

    async def _tags(self, request: Request) -> Response:
        self.paths.append(request.url.path)
        return JSONResponse({"models": [_row(name) | {"modified_at": WHEN} for name in self.models]})

    async def _ps(self, request: Request) -> Response:
        self.paths.append(request.url.path)
        rows = [_row(name) | {"expires_at": WHEN, "size_vram": 4, "context_length": 8192} for name in self.loaded]
        # Go encodes an empty slice that was never made as null.
        return JSONResponse({"models": rows or None})

    async def _chat(self, request: Request) -> Response:
        return await self._stream(request, lambda text: {"message": {"role": "assistant", "content": text}})

    async def _generate(self, request: Request) -> Response:
        return await self._stream(request, lambda text: {"response": text})

    async def _embed(self, request: Request) -> Response:
        body = await self._asked(request)
        if (refused := self._refused(body)) is not None:
            return refused
        inputs = body["input"] if isinstance(body["input"], list) else [body["input"]]
        vectors = [[float(i), 0.5, -1.0] for i in range(len(inputs))]
        answer = {"model": body["model"], "embeddings": vectors, "total_duration": 5, "load_duration": 1}
        return JSONResponse(answer | ({"prompt_eval_count": 3 * len(inputs)} if self.script.usage else {}))

    async def _asked(self, request: Request) -> dict[str, Any]:
        self.paths.append(request.url.path)
        body: dict[str, Any] = await request.json()
        self.asked.append(body)
        return body

    def _refused(self, body: dict[str, Any]) -> Response | None:
        if self.script.status is not None:
            return JSONResponse(self.script.error, self.script.status, headers=self.script.headers)
        if body["model"] not in self.models and f"{body['model']}:latest" not in self.models:
            return JSONResponse({"error": f"model '{body['model']}' not found"}, 404)
        return None

    async def _stream(self, request: Request, shape: Any) -> Response:
        body = await self._asked(request)
        if (refused := self._refused(body)) is not None:
            return refused
        return StreamingResponse(self._watched(self._lines(body, shape)), media_type="application/x-ndjson")

    async def _watched(self, source: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
        try:
            async for line in source:
                yield line
        except asyncio.CancelledError:
            self.left.set()
            raise

    async def _lines(self, body: dict[str, Any], shape: Any) -> AsyncIterator[bytes]:
        script = self.script
        base = {"model": body["model"], "created_at": WHEN}
        for number, word in enumerate(script.words):
            if number == script.break_after:
                raise ConnectionError("the fake breaks off")
            if number == script.error_after:
                yield _line({"error": "llama runner process has terminated: CUDA error"})
                return
            if number == script.silent_after:
                await asyncio.Event().wait()
            yield _line({**base, **shape(word), "done": False})
        whole = [{"name": c.name, "arguments": json.loads("".join(c.pieces) or "{}")} for c in script.calls]
        for call in self.tool_calls or whole:
            message = {"role": "assistant", "content": "", "tool_calls": [{"function": call}]}
            yield _line({**base, "message": message, "done": False})
        if script.finish is None:
            return
        counts = {"prompt_eval_count": 11, "eval_count": len(script.words)} if script.usage else {}
        durations = {"total_duration": 9, "load_duration": 2, "prompt_eval_duration": 3, "eval_duration": 4}
        yield _line({**base, **shape(""), "done": True, "done_reason": script.finish, **durations, **counts})


def _row(name: str) -> dict[str, Any]:
    details = {"parent_model": "", "format": "gguf", "family": "llama", "families": ["llama"]}
    return {"name": name, "model": name, "size": 4, "digest": "d", "details": details}


def _line(value: dict[str, Any]) -> bytes:
    return json.dumps(value).encode() + b"\n"


if __name__ == "__main__":
    run(FakeOllama())
