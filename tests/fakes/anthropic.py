"""A fake of both versions of Anthropic's Messages API: order of events, errors, and what it demands of a request.

It refuses what the API refuses, in its words, so that a test sees a request that the API would not take.
"""

from __future__ import annotations

import asyncio
import hashlib
import itertools
import json
import re
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route

from tests.fakes.openai_like import Script
from tests.fakes.serving import Startable, run

_NUMBERS = itertools.count()
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
    stop_sequence: str | None = None
    blocks: list[dict[str, Any]] | None = None
    """Whole content blocks of the next answers, instead of words and calls."""
    usage: dict[str, Any] = field(default_factory=dict)
    """More fields of the usage."""
    strict: bool = True
    """Refuse what the API of today refuses; that of next year takes more."""
    new_event: bool = True
    """Send an event of a type that no client knows yet, as the API may at any time."""
    stream_error: str = "api_error"
    prepare: Callable[[dict[str, Any]], None] | None = None
    """Sets the next answer by the request."""
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
        if self.prepare is not None:
            self.prepare(await request.json())
        if self.script.status is not None:
            return JSONResponse(self.script.error, self.script.status, headers=self.script.headers)
        if (refused := self._stranger(request)) is not None:
            return refused
        body = await request.json()
        self.asked.append(body)
        self.headers.append(dict(request.headers))
        try:
            if self.strict:
                check(body, request.headers["anthropic-version"], request.headers.get("anthropic-beta", ""))
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
            start["usage"] = {"input_tokens": 11 - read - written, "output_tokens": 1, **cache, **self.usage}
        yield {"type": "message_start", "message": start}
        yield {"type": "ping"}
        if self.new_event:
            yield {"type": "something_new", "data": {}}
        index = 0
        for number, block in enumerate(self.blocks or ()):
            for event in block_events(number, block):
                yield event
        if self.blocks is not None:
            yield self._ending()
            yield {"type": "message_stop"}
            return
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
        if self._stop_reason() is not None:
            yield self._ending()
            yield {"type": "message_stop"}

    def _ending(self) -> dict[str, Any]:
        usage = {"usage": {"output_tokens": len(self.script.words), **self.usage}} if self.script.usage else {}
        delta = {"stop_reason": self._stop_reason(), "stop_sequence": self.stop_sequence}
        return {"type": "message_delta", "delta": delta, **usage}


def signature_of(thinking: str) -> str:
    """The signature that the API gives a thought, and wants back with it."""
    return "sig-" + hashlib.sha256(thinking.encode()).hexdigest()[:16]


def block_events(index: int, block: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """A whole block as the API streams it."""
    deltas: list[dict[str, Any]] = []
    match block["type"]:
        case "text":
            shape = {"type": "text", "text": ""}
            deltas = [{"type": "citations_delta", "citation": one} for one in block.get("citations", ())]
            deltas += [{"type": "text_delta", "text": half} for half in _halves(block["text"])]
        case "thinking":
            shape = {"type": "thinking", "thinking": "", "signature": ""}
            deltas = [{"type": "thinking_delta", "thinking": half} for half in _halves(block["thinking"])]
            deltas.append({"type": "signature_delta", "signature": block["signature"]})
        case "tool_use" | "server_tool_use" | "mcp_tool_use":
            shape = {**block, "input": {}}
            deltas = [
                {"type": "input_json_delta", "partial_json": half} for half in _halves(json.dumps(block["input"]))
            ]
        case _:
            shape = block
    yield {"type": "content_block_start", "index": index, "content_block": shape}
    for delta in deltas:
        yield {"type": "content_block_delta", "index": index, "delta": delta}
    yield {"type": "content_block_stop", "index": index}


def _halves(text: str) -> list[str]:
    return [half for half in (text[: len(text) // 2], text[len(text) // 2 :]) if half]


_WORD = re.compile(r"[a-zA-Z0-9_-]+")
_IN_BETA = {"context_management": "context-management-", "mcp_servers": "mcp-client-", "speed": "fast-mode-"}
"""Fields that are known only with a beta."""


def check(body: dict[str, Any], version: str, betas: str = "") -> None:
    """What the API demands of a request. Raises `Mistake`."""
    if not isinstance(body.get("max_tokens"), int) or body["max_tokens"] < 1:
        raise Mistake("max_tokens: Field required")
    for name in SAMPLING:
        if version == NEW and name in body:
            raise Mistake(f"{name}: Extra inputs are not permitted")
    known = {
        "model", "max_tokens", "messages", "system", "stop_sequences", "stream", "tools", "tool_choice", "thinking",
        "metadata", "service_tier", "output_config", "cache_control", "container", "inference_geo", *SAMPLING,
    } | {name for name, beta in _IN_BETA.items() if beta in betas}  # fmt: skip
    for name in body.keys() - known:
        raise Mistake(f"{name}: Extra inputs are not permitted")
    if body.get("temperature", 0) > 1:
        raise Mistake("temperature: Input should be less than or equal to 1")
    if len((body.get("metadata") or {}).get("user_id") or "") > 256:
        raise Mistake("metadata.user_id: String should have at most 256 characters")
    if not all(stop.strip() for stop in body.get("stop_sequences") or ()):
        raise Mistake("stop_sequences: each stop sequence must contain non-whitespace")
    if (marks := json.dumps(body).count('"cache_control": {')) > 4:
        raise Mistake(f"A maximum of 4 blocks with cache_control may be provided. Found {marks}.")
    _check_tools(body)
    if isinstance(body.get("system"), list):
        for number, block in enumerate(body["system"]):
            _check_text(f"system.{number}", block)
    _check_messages(body["messages"], version)


def _check_tools(body: dict[str, Any]) -> None:
    tools = body.get("tools") or []
    for number, tool in enumerate(tools):
        if not _WORD.fullmatch(tool["name"]) or len(tool["name"]) > 128:
            raise Mistake(f"tools.{number}.custom.name: String should match pattern '^[a-zA-Z0-9_-]{{1,128}}$'")
        if tool.get("type", "custom") != "custom":
            continue
        schema = tool.get("input_schema")
        if not isinstance(schema, dict) or schema.get("type") != "object":
            raise Mistake(f"tools.{number}.custom.input_schema.type: Input should be 'object'")
        if {"anyOf", "oneOf", "allOf"} & schema.keys():
            raise Mistake(
                f"tools.{number}.custom.input_schema: does not support oneOf, allOf, or anyOf at the top level"
            )
    if len({tool["name"] for tool in tools}) < len(tools):
        raise Mistake("tools: Tool names must be unique.")
    choice = body.get("tool_choice")
    if choice and not tools:
        raise Mistake("tool_choice may only be specified while providing tools.")
    if choice and choice["type"] == "tool" and choice["name"] not in [tool["name"] for tool in tools]:
        raise Mistake(f"Tool '{choice['name']}' not found in provided tools")


def _check_messages(messages: list[dict[str, Any]], version: str) -> None:
    if not messages:
        raise Mistake("messages: at least one message is required")
    if messages[0]["role"] != "user":
        raise Mistake("messages: first message must use the user role")
    open_calls: set[str] = set()
    all_calls: list[str] = []
    for number, message in enumerate(messages):
        role, content = message["role"], message["content"]
        if role not in ("user", "assistant", "system"):
            raise Mistake(f"messages.{number}.role: Input should be 'user' or 'assistant'")
        blocks = [{"type": "text", "text": content}] if isinstance(content, str) else content
        last = number == len(messages) - 1
        if not blocks or content == "":
            raise Mistake(f"messages.{number}: all messages must have non-empty content")
        if role == "system":
            for block in blocks:
                _check_text(f"messages.{number}", block)
            continue
        open_calls = _check_turn(number, role, blocks, open_calls, version)
        all_calls += open_calls
        ends = blocks[-1].get("text", "") if role == "assistant" else ""
        if last and ends != ends.rstrip():
            raise Mistake("messages: final assistant content cannot end with trailing whitespace")
    if open_calls:
        raise Mistake("messages: `tool_use` ids were found without `tool_result` blocks immediately after")
    if len(set(all_calls)) < len(all_calls):
        raise Mistake("messages: `tool_use` ids must be unique")


def _check_turn(number: int, role: str, blocks: list[dict[str, Any]], calls: set[str], version: str) -> set[str]:
    answered = [block["tool_use_id"] for block in blocks if block["type"] == "tool_result"]
    if calls - set(answered):
        raise Mistake(f"messages.{number}: `tool_use` ids were found without `tool_result` blocks immediately after")
    if set(answered) - calls:
        raise Mistake(f"messages.{number}: unexpected `tool_use_id` found in `tool_result` blocks")
    if answered and [block["type"] for block in blocks[: len(answered)]] != ["tool_result"] * len(answered):
        raise Mistake(f"messages.{number}: `tool_result` blocks must come first")
    for place, block in enumerate(blocks):
        _check_block(f"messages.{number}.content.{place}", role, block, version)
    return {block["id"] for block in blocks if block["type"] == "tool_use"}


def _check_block(where: str, role: str, block: dict[str, Any], version: str) -> None:
    match block["type"]:
        case "text":
            _check_text(where, block)
        case "tool_use":
            if not _WORD.fullmatch(block["id"]):
                raise Mistake(f"{where}.tool_use.id: String should match pattern '^[a-zA-Z0-9_-]+$'")
            if not isinstance(block["input"], dict):
                raise Mistake(f"{where}.tool_use.input: Input should be a valid dictionary")
        case "tool_result":
            if "content" in block and not isinstance(block["content"], str | list):
                raise Mistake(f"{where}.tool_result.content: Input should be a valid string")
            for inner in block.get("content") or () if isinstance(block.get("content"), list) else ():
                if inner["type"] == "text":
                    _check_text(where, inner)
        case "thinking":
            if block.get("signature") != signature_of(block["thinking"]):
                raise Mistake(f"{where}: Invalid `signature` in `thinking` block")
        case "redacted_thinking":
            if not block.get("data"):
                raise Mistake(f"{where}.redacted_thinking.data: Field required")
        case "document" if role == "assistant" and version == NEW:
            raise Mistake(f"{where}: document blocks are for the user")


def _check_text(where: str, block: dict[str, Any]) -> None:
    if not block["text"]:
        raise Mistake(f"{where}: text content blocks must be non-empty")
    if not block["text"].strip():
        raise Mistake(f"{where}: text content blocks must contain non-whitespace text")


def _message(body: dict[str, Any]) -> dict[str, Any]:
    return {
        "id": f"msg_fake{next(_NUMBERS)}",  # Clients take turns of one id as one.
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
    signed = {"type": "signature_delta", "signature": signature_of("".join(thoughts))}
    yield {"type": "content_block_delta", "index": 0, "delta": signed}
    yield {"type": "content_block_stop", "index": 0}


def error(kind: str, message: str, headers: dict[str, str] | None = None, **details: Any) -> Response:
    said: dict[str, Any] = {"type": kind, "message": message} | ({"details": details} if details else {})
    return JSONResponse({"type": "error", "error": said, "request_id": "req_fake"}, STATUS_OF[kind], headers)


if __name__ == "__main__":
    run(FakeAnthropic())
