"""A fake of both versions of Anthropic's Messages API, with its order of events and its errors."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass, field
from typing import Any

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route

from tests.fakes.openai_like import Script
from tests.fakes.serving import Startable, run

NEW, OLD = "2026-10-21", "2023-06-01"
SAMPLING = ("temperature", "top_p", "top_k")
STATUS_OF = {
    "invalid_request_error": 400,
    "authentication_error": 401,
    "billing_error": 402,
    "permission_error": 403,
    "not_found_error": 404,
    "request_too_large": 413,
    "rate_limit_error": 429,
    "api_error": 500,
    "timeout_error": 504,
    "overloaded_error": 529,
}


class Mistake(Exception):
    """The error that the API answers to a wrong request."""


@dataclass
class FakeAnthropic(Startable):
    models: list[str] = field(default_factory=lambda: ["tiny"])
    api_key: str | None = None
    script: Script = field(default_factory=Script)
    thinking: list[str] = field(default_factory=list)
    """Thoughts before the words."""
    cached: tuple[int, int] = (0, 0)
    """Tokens read from and written to the cache; they are not among `input_tokens`."""
    stop_reason: str | None = None
    stream_error: str = "api_error"
    asked: list[dict[str, Any]] = field(default_factory=list)
    headers: list[dict[str, str]] = field(default_factory=list)
    paths: list[str] = field(default_factory=list)
    left: threading.Event = field(default_factory=threading.Event)

    @property
    def app(self) -> Starlette:
        return Starlette(
            routes=[
                Route("/v1/messages", self._messages, methods=["POST"]),
                Route("/v1/messages/count_tokens", self._count, methods=["POST"]),
                Route("/v1/models", self._models),
            ]
        )

    async def _models(self, request: Request) -> Response:
        self.paths.append(request.url.path)
        if (refused := self._stranger(request)) is not None:
            return refused
        rows = [
            {"type": "model", "id": m, "display_name": m, "created_at": "2026-01-01T00:00:00Z"} for m in self.models
        ]
        return JSONResponse({"data": rows, "has_more": False, "first_id": rows[0]["id"], "last_id": rows[-1]["id"]})

    async def _count(self, request: Request) -> Response:
        self.paths.append(request.url.path)
        return JSONResponse({"input_tokens": 11})

    async def _messages(self, request: Request) -> Response:
        self.paths.append(request.url.path)
        if self.script.status is not None:
            return JSONResponse(self.script.error, self.script.status, headers=self.script.headers)
        if (refused := self._stranger(request)) is not None:
            return refused
        body = await request.json()
        self.asked.append(body)
        self.headers.append(dict(request.headers))
        try:
            check(body, request.headers["anthropic-version"])
        except Mistake as mistake:
            return error("invalid_request_error", str(mistake))
        if body["model"] not in self.models:
            return error("not_found_error", f"model: {body['model']}")
        if not body.get("stream"):
            return JSONResponse(self._whole(body))
        media_type = self.script.content_type
        return StreamingResponse(self._watched(body), media_type=media_type, headers={"request-id": "req_fake"})

    def _stranger(self, request: Request) -> Response | None:
        if request.headers.get("anthropic-version") not in (NEW, OLD):
            return error("invalid_request_error", "anthropic-version: header is required")
        # If both are sent, x-api-key wins.
        sent = request.headers.get("x-api-key") or request.headers.get("authorization", "").removeprefix("Bearer ")
        if not sent or (self.api_key is not None and sent != self.api_key):
            return error("authentication_error", f"invalid x-api-key {sent}")
        return None

    def _whole(self, body: dict[str, Any]) -> dict[str, Any]:
        content: list[dict[str, Any]] = [{"type": "text", "text": "".join(self.script.words)}]
        content += [
            {"type": "tool_use", "id": c.id, "name": c.name, "input": json.loads("".join(c.pieces) or "{}")}
            for c in self.script.calls
        ]
        usage = {"input_tokens": 11, "output_tokens": len(self.script.words)}
        return {**_message(body), "content": content, "stop_reason": self._stop_reason(), "usage": usage}

    def _stop_reason(self) -> str | None:
        if self.script.finish is None:
            return None
        return self.stop_reason or ("tool_use" if self.script.calls else "end_turn")

    async def _watched(self, body: dict[str, Any]) -> AsyncIterator[bytes]:
        if self.script.raw is not None:
            yield self.script.raw
            return
        try:
            async for event in self._events(body):
                yield b"event: " + event["type"].encode() + b"\ndata: " + json.dumps(event).encode() + b"\n\n"
        except asyncio.CancelledError:
            self.left.set()
            raise

    async def _events(self, body: dict[str, Any]) -> AsyncIterator[dict[str, Any]]:
        script = self.script
        start = _message(body)
        if script.usage:
            read, written = self.cached
            cache = {"cache_read_input_tokens": read, "cache_creation_input_tokens": written}
            start["usage"] = {"input_tokens": 11 - read - written, "output_tokens": 1, **cache}
        yield {"type": "message_start", "message": start}
        yield {"type": "ping"}
        yield {"type": "something_new", "data": {}}
        index = 0
        if self.thinking:
            for event in _thinking_block(self.thinking):
                yield event
            index += 1
        if script.words:
            yield {"type": "content_block_start", "index": index, "content_block": {"type": "text", "text": ""}}
            for number, word in enumerate(script.words):
                if number == script.break_after:
                    raise ConnectionError("the fake breaks off")
                if number == script.error_after:
                    said = {"type": self.stream_error, "message": "CUDA error: secret prompt"}
                    yield {"type": "error", "error": said, "request_id": "req_fake"}
                    return
                if number == script.silent_after:
                    await asyncio.Event().wait()
                yield {"type": "content_block_delta", "index": index, "delta": {"type": "text_delta", "text": word}}
            yield {"type": "content_block_stop", "index": index}
            index += 1
        for call in script.calls:
            block = {"type": "tool_use", "id": call.id, "name": call.name, "input": {}}
            yield {"type": "content_block_start", "index": index, "content_block": block}
            for piece in call.pieces:
                delta = {"type": "input_json_delta", "partial_json": piece}
                yield {"type": "content_block_delta", "index": index, "delta": delta}
            yield {"type": "content_block_stop", "index": index}
            index += 1
        if (reason := self._stop_reason()) is not None:
            usage = {"usage": {"output_tokens": len(script.words)}} if script.usage else {}
            yield {"type": "message_delta", "delta": {"stop_reason": reason, "stop_sequence": None}, **usage}
            yield {"type": "message_stop"}


def check(body: dict[str, Any], version: str) -> None:
    """The rules of the API that a mapping is likely to break. Raises `Mistake`."""
    if not isinstance(body.get("max_tokens"), int):
        raise Mistake("max_tokens: Field required")
    for name in SAMPLING:
        if version == NEW and name in body:
            raise Mistake(f"{name}: Extra inputs are not permitted")
    known = {
        "model", "max_tokens", "messages", "system", "stop_sequences", "stream", "tools", "tool_choice", "thinking",
        "metadata", "service_tier", "output_config", *SAMPLING,
    }  # fmt: skip
    for name in body.keys() - known:
        raise Mistake(f"{name}: Extra inputs are not permitted")
    if body.get("temperature", 0) > 1:
        raise Mistake("temperature: Input should be less than or equal to 1")
    open_calls: set[str] = set()
    for number, message in enumerate(body["messages"]):
        if message["role"] not in ("user", "assistant"):
            raise Mistake(f"messages.{number}.role: Input should be 'user' or 'assistant'")
        content = message["content"]
        blocks = [{"type": "text", "text": content}] if isinstance(content, str) else content
        open_calls = _check_turn(number, message["role"], blocks, open_calls, version)
    if body["messages"] and body["messages"][0]["role"] != "user":
        raise Mistake("messages: first message must use the user role")
    if body.get("tool_choice") and not body.get("tools"):
        raise Mistake("tool_choice may only be specified while providing tools.")


def _check_turn(number: int, role: str, blocks: list[dict[str, Any]], calls: set[str], version: str) -> set[str]:
    answered = [block["tool_use_id"] for block in blocks if block["type"] == "tool_result"]
    if calls - set(answered):
        raise Mistake(f"messages.{number}: `tool_use` ids were found without `tool_result` blocks immediately after")
    if set(answered) - calls:
        raise Mistake(f"messages.{number}: unexpected `tool_use_id` found in `tool_result` blocks")
    if answered and [block["type"] for block in blocks[: len(answered)]] != ["tool_result"] * len(answered):
        raise Mistake(f"messages.{number}: `tool_result` blocks must come first")
    for block in blocks:
        if block["type"] == "text" and not block["text"]:
            raise Mistake(f"messages.{number}: text content blocks must be non-empty")
        if block["type"] == "document" and role == "assistant" and version == NEW:
            raise Mistake(f"messages.{number}: document blocks are for the user")
    return {block["id"] for block in blocks if block["type"] == "tool_use"}


def _message(body: dict[str, Any]) -> dict[str, Any]:
    return {
        "id": "msg_fake",
        "type": "message",
        "role": "assistant",
        "model": body["model"],
        "content": [],
        "stop_reason": None,
        "stop_sequence": None,
    }


def _thinking_block(thoughts: list[str]) -> Iterator[dict[str, Any]]:
    yield {
        "type": "content_block_start",
        "index": 0,
        "content_block": {"type": "thinking", "thinking": "", "signature": ""},
    }
    for thought in thoughts:
        yield {"type": "content_block_delta", "index": 0, "delta": {"type": "thinking_delta", "thinking": thought}}
    yield {"type": "content_block_delta", "index": 0, "delta": {"type": "signature_delta", "signature": "c2ln"}}
    yield {"type": "content_block_stop", "index": 0}


def error(kind: str, message: str, headers: dict[str, str] | None = None, **details: Any) -> Response:
    said: dict[str, Any] = {"type": kind, "message": message} | ({"details": details} if details else {})
    return JSONResponse({"type": "error", "error": said, "request_id": "req_fake"}, STATUS_OF[kind], headers)


if __name__ == "__main__":
    run(FakeAnthropic())
