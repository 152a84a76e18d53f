"""Converts our answers to Anthropic's Messages wire format, as the `anthropic` SDK parses it.

    message_start ─ ping ─ { content_block_start ─ content_block_delta … ─ content_block_stop } … ─
    message_delta (stop reason, usage) ─ message_stop

or, when an answer breaks off, `error` as the last event. Where the answer comes from an endpoint that speaks this wire,
its own events are passed on; only the model's name is the caller's. Source: anthropic-python 2.14, read 2026-11-25.
"""

from __future__ import annotations

import re
import uuid
from collections.abc import AsyncGenerator, Callable, Iterator, Mapping, Sequence
from contextlib import aclosing
from typing import Any

import msgspec
from msgspec import UNSET

from goblin.core import decoding
from goblin.core.errors import Broken, GoblinError, InvalidRequest
from goblin.gateway.domain.chat import ChatChunk, Delta, ToolCallDelta, Usage
from goblin.gateway.domain.requests import ChatRequest
from goblin.gateway.policy import attachments, tokens
from goblin.gateway.router import ServedModel
from goblin.web import asgi
from goblin.web.anthropic_blocks import call_name
from goblin.web.anthropic_requests import tool_names
from goblin.web.context_words import too_long

Chunks = AsyncGenerator[ChatChunk, None]

_STOP = {
    "stop": "end_turn",
    "length": "max_tokens",
    "tool_calls": "tool_use",
    "function_call": "tool_use",
    "content_filter": "refusal",
}
_ERRORS = {
    400: "invalid_request_error",
    401: "authentication_error",
    402: "billing_error",
    403: "permission_error",
    404: "not_found_error",
    413: "request_too_large",
    429: "rate_limit_error",
    503: "overloaded_error",
    529: "overloaded_error",
}
OVERLOADED = 529
"""Status that Anthropic's clients retry: it may work later, or at another endpoint."""


async def message_events(
    chunks: Chunks, asked: ChatRequest, *, told: Callable[[], int | None] = lambda: None
) -> AsyncGenerator[bytes, None]:
    """Yield the named events of an answer. The first has the prompt's tokens, the last the usage.

    Args:
        chunks: The answer.
        asked: The request.
        told: Returns the prompt's tokens by the endpoint's own count, if it has told them; otherwise an estimate of
            ours is in the first event.
    """
    writer = MessageWriter(asked, lambda: count_tokens(asked) if (said := told()) is None else said)
    async with aclosing(chunks):
        try:
            async for chunk in chunks:
                for event in writer.write(chunk):
                    yield asgi.server_event(event)
            for event in writer.end():
                yield asgi.server_event(event)
        except GoblinError as error:
            yield asgi.server_event(error_body(error))


async def whole_message(chunks: Chunks, asked: ChatRequest) -> bytes:
    """Collect an answer into one `message`."""
    writer = MessageWriter(asked, lambda: 0)
    message: dict[str, Any] = {}
    blocks: list[_Block] = []
    async with aclosing(chunks):
        events = [event async for chunk in chunks for event in writer.write(chunk)]
    for event in [*events, *writer.end()]:
        match event:
            case {"type": "message_start", "message": started}:
                message |= started
            case {"type": "content_block_start", "content_block": block}:
                blocks.append(_Block(dict(block) if isinstance(block, Mapping) else {}))
            case {"type": "content_block_delta", "index": int(index), "delta": dict() as delta} if index < len(blocks):
                blocks[index].add(delta)
            case {"type": "message_delta", "delta": dict() as delta}:
                told = {name: said for name, said in event.items() if name not in ("type", "delta", "usage")}
                message |= {
                    **delta,
                    **told,
                    "usage": {**_mapping(message.get("usage")), **_mapping(event.get("usage"))},
                }
    message["content"] = [block.whole() for block in blocks]
    return msgspec.json.encode(message)


class _Block:
    """One content block, collected from its deltas."""

    def __init__(self, shape: dict[str, Any]) -> None:
        self._shape = shape
        self._pieces: dict[str, list[str]] = {}
        self._json: list[str] = []

    def add(self, delta: Mapping[str, Any]) -> None:
        match delta:
            case {"type": "input_json_delta", "partial_json": str(piece)}:
                self._json.append(piece)
            case {"type": "citations_delta", "citation": citation}:
                before = self._shape.get("citations")
                self._shape["citations"] = [*(before if isinstance(before, list) else ()), citation]
            case {"type": "text_delta" | "thinking_delta"}:
                for name, said in delta.items():
                    if name in ("text", "thinking") and isinstance(said, str):
                        self._pieces.setdefault(name, []).append(said)
            case _:  # The others, such as a signature, replace what they name.
                self._shape |= {name: said for name, said in delta.items() if name != "type"}

    def whole(self) -> dict[str, Any]:
        found = {name: str(self._shape.get(name) or "") + "".join(said) for name, said in self._pieces.items()}
        if self._json:
            found["input"] = _parsed("".join(self._json))
        return {**self._shape, **found}


def _parsed(arguments: str) -> Any:
    """Parse tool arguments into an object, which the SDK expects; a model may have written something else."""
    try:
        parsed = decoding.parse(arguments or "{}")
    except decoding.UNREADABLE:
        return {"_": arguments}
    return parsed if isinstance(parsed, dict) else {"_": parsed}


class MessageWriter:
    """Converts the chunks of one answer to events; closes each block before the next begins."""

    def __init__(self, asked: ChatRequest, prompt_tokens: Callable[[], int]) -> None:
        """Start an answer.

        Args:
            asked: The request.
            prompt_tokens: Counts the prompt's tokens, for the first event.
        """
        original = asked.original.body if asked.original is not None else {}
        self._model = asked.model
        self._names = tool_names(original.get("tools"))
        self._stops = original.get("stop_sequences") or ()
        self._ids = {call.id for message in asked.messages for call in message.tool_calls or ()}
        """Ids of calls that the conversation has already; those of one conversation must differ."""
        self._prompt_tokens = prompt_tokens
        self._started = False
        self._open = ""
        """The open block: `text`, `thinking`, `tool` with the call's index, or `passed`; empty for none."""
        self._count = 0
        """Number of blocks so far."""
        self._blocks: dict[int, int] = {}
        """Index of the block of each tool call."""
        self._passed: dict[int, int] = {}
        """Index of each block that is passed on, by the index that its endpoint gave it."""
        self._inputs: dict[int, Any] = {}
        """The whole input of each call that some servers send with its beginning; clients read it from deltas alone."""
        self._end: dict[str, Any] | None = None
        """The endpoint's own `message_delta`."""
        self._finish = "stop"
        self._stop: str | None = None
        """The stop sequence that ended the answer, where the endpoint says so."""
        self._usage = Usage()

    def write(self, chunk: ChatChunk) -> Iterator[dict[str, Any]]:
        """Convert one chunk to events."""
        if isinstance(chunk.usage, Usage):
            self._usage = chunk.usage
        for choice in chunk.choices:
            if choice.index:
                continue
            if choice.delta.event is not UNSET:
                yield from self._pass(choice.delta.event)
                continue
            if not self._started:
                yield from self._start(chunk.id)
            self._end = None
            yield from self._add(choice.delta)
            self._finish = choice.finish_reason or self._finish
            if isinstance(choice.stop_reason, str) and choice.stop_reason in self._stops:
                self._stop = choice.stop_reason

    def end(self) -> Iterator[dict[str, Any]]:
        """Yield the last events of a complete answer."""
        if not self._started:
            yield from self._start("")
        yield from self._close()
        if self._end is not None:
            yield {**self._end, "usage": _mapping(self._end.get("usage")) or usage_of(self._usage)}
        else:
            reason = "stop_sequence" if self._stop is not None else _STOP.get(self._finish, "end_turn")
            stop = {"stop_reason": reason, "stop_sequence": self._stop}
            yield {"type": "message_delta", "delta": stop, "usage": usage_of(self._usage)}
        yield {"type": "message_stop"}

    def _pass(self, event: dict[str, Any]) -> Iterator[dict[str, Any]]:
        """Pass on an event of an endpoint that speaks this wire; only indexes and the model's name are ours."""
        kind = event.get("type")
        if not self._started and kind not in (None, "message_start", "ping"):
            yield from self._start("")
        match kind:
            case "message_start":
                message = event.get("message")
                if not self._started and isinstance(message, dict):
                    self._started = True
                    ours = self._message("")
                    usage = _mapping(message.get("usage")) or ours["usage"]
                    yield {**event, "message": {**ours, **message, "model": self._model, "usage": usage}}
            case "content_block_start" | "content_block_delta" | "content_block_stop":
                index = event.get("index")
                if isinstance(index, int):
                    yield from self._pass_block(event, index)
            case "message_delta":
                delta = event.get("delta")
                if isinstance(delta, dict) and delta.get("stop_reason"):
                    self._end = event
                else:
                    yield event
            case None | "message_stop":
                pass
            case _:
                yield event

    def _pass_block(self, event: dict[str, Any], index: int) -> Iterator[dict[str, Any]]:
        """Pass on an event of a content block under our index. What a block says at its beginning becomes deltas."""
        if event["type"] == "content_block_start":
            yield from self._close()
            block = _mapping(event.get("content_block"))
            shape, said = _begun(block)
            if str(block.get("type")).endswith("tool_use") and block.get("input"):
                # Only the end of the block shows whether deltas repeat it.
                self._inputs[index], shape = block["input"], {**shape, "input": {}}
            self._open = "text" if block.get("type") == "text" else "passed"
            self._passed[index] = self._count
            self._count += 1
            yield {**event, "index": self._passed[index], "content_block": shape}
            yield from (self._delta(delta) for delta in said)
        elif (ours := self._passed.get(index)) is not None:
            whole = self._inputs.pop(index, None)
            if event["type"] == "content_block_delta":
                yield {**event, "index": ours}
                return
            if whole is not None:
                piece = {"type": "input_json_delta", "partial_json": msgspec.json.encode(whole).decode()}
                yield {"type": "content_block_delta", "index": ours, "delta": piece}
            del self._passed[index]
            if ours == self._count - 1:
                yield from self._close()

    def _start(self, chunk_id: str) -> Iterator[dict[str, Any]]:
        self._started = True
        yield {"type": "message_start", "message": self._message(chunk_id)}
        yield {"type": "ping"}

    def _message(self, chunk_id: str) -> dict[str, Any]:
        return {
            "id": f"msg_{chunk_id.rpartition('-')[2] or uuid.uuid4().hex}",
            "type": "message",
            "role": "assistant",
            "model": self._model,
            "content": [],
            "stop_reason": None,
            "stop_sequence": None,
            "usage": usage_of(Usage(prompt_tokens=self._prompt_tokens())),
        }

    def _add(self, delta: Delta) -> Iterator[dict[str, Any]]:
        if thought := delta.reasoning_content or delta.reasoning:
            yield from self._switch("thinking", {"type": "thinking", "thinking": "", "signature": ""})
            yield self._delta({"type": "thinking_delta", "thinking": thought})
        for said in (delta.content, delta.refusal):
            if said:
                yield from self._switch("text", {"type": "text", "text": ""})
                yield self._delta({"type": "text_delta", "text": said})
        for piece in delta.tool_calls or ():
            yield from self._call(piece)

    def _call(self, piece: ToolCallDelta) -> Iterator[dict[str, Any]]:
        function = piece.function or None
        opens = piece.index not in self._blocks
        if opens:
            name = (function.name if function else "") or ""
            named = self._names.get(name, name)
            block = {"type": "tool_use", "id": self._new_id(piece.id or ""), "name": named, "input": {}}
            yield from self._switch(f"tool {piece.index}", block)
            self._blocks[piece.index] = self._count - 1
        # A block begins with an empty input, so that a call without arguments needs no more.
        if function and function.arguments and not (opens and function.arguments == "{}"):
            delta = {"type": "input_json_delta", "partial_json": function.arguments}
            yield {"type": "content_block_delta", "index": self._blocks[piece.index], "delta": delta}

    def _new_id(self, said: str) -> str:
        """Return a call's id that the conversation does not have yet, in the alphabet of Anthropic's API."""
        found = re.sub("[^a-zA-Z0-9_-]", "_", said)
        if not found or call_name(found) in self._ids:
            found = f"toolu_{uuid.uuid4().hex}"
        self._ids.add(call_name(found))
        return found

    def _switch(self, block: str, shape: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
        if self._open == block:
            return
        yield from self._close()
        self._open = block
        yield {"type": "content_block_start", "index": self._count, "content_block": dict(shape)}
        self._count += 1

    def _close(self) -> Iterator[dict[str, Any]]:
        if self._open:
            self._open = ""
            yield {"type": "content_block_stop", "index": self._count - 1}

    def _delta(self, delta: dict[str, Any]) -> dict[str, Any]:
        return {"type": "content_block_delta", "index": self._count - 1, "delta": delta}


_WHOLE = (
    ("text", "text", "text_delta"),
    ("thinking", "thinking", "thinking_delta"),
    ("thinking", "signature", "signature_delta"),
)


def _begun(block: dict[str, Any]) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Return a block as Anthropic begins it, empty, and what it has said: clients read that from deltas alone."""
    kind = block.get("type")
    said = [
        (name, delta) for of, name, delta in _WHOLE if of == kind and isinstance(block.get(name), str) and block[name]
    ]
    deltas = [{"type": delta, name: block[name]} for name, delta in said]
    return {**block, **{name: "" for name, _ in said}}, deltas


def count_tokens(asked: ChatRequest) -> int:
    """Estimate the tokens of a prompt, its images and files included."""
    return tokens.estimate_tokens(asked.prompt_bytes()) + attachments.attachment_tokens(asked)


def usage_of(usage: Usage) -> dict[str, int]:
    """Convert to Anthropic's counts, where cached tokens are not part of the input."""
    details = usage.prompt_tokens_details or {}
    read, written = (_count(details.get(name)) for name in ("cached_tokens", "cache_creation_tokens"))
    return {
        "input_tokens": max(usage.prompt_tokens - read - written, 0),
        "cache_creation_input_tokens": written,
        "cache_read_input_tokens": read,
        "output_tokens": usage.completion_tokens,
    }


def _mapping(value: object) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


def _count(value: object) -> int:
    return value if isinstance(value, int) else 0


def error_body(error: GoblinError) -> dict[str, Any]:
    """Build the body of an error, as the SDK parses it."""
    kind = _ERRORS.get(error.status, "invalid_request_error" if error.status < 500 else "api_error")
    message = error.message
    if isinstance(error, InvalidRequest):
        message = too_long(error.message, error.code) or message
    return {"type": "error", "error": {"type": kind, "message": message}, "request_id": None}


def refusal(error: Exception) -> tuple[int, bytes]:
    """Build status and body of an error response. Unexpected exceptions reveal no details."""
    known = error if isinstance(error, GoblinError) else Broken("Internal error. The cause is in the server's log.")
    status = OVERLOADED if known.status == 503 else known.status
    return status, msgspec.json.encode(error_body(known))


def model_list(models: Sequence[ServedModel]) -> dict[str, Any]:
    """Build the list of models, as a single page."""
    rows = [model_object(model) for model in models]
    ends = {"first_id": models[0].id, "last_id": models[-1].id} if models else {"first_id": None, "last_id": None}
    return {"data": rows, "has_more": False, **ends}


def model_object(model: ServedModel) -> dict[str, Any]:
    """Build a model's object. Its creation time is unknown, for which Anthropic's wire format uses the epoch."""
    return {
        "type": "model",
        "id": model.id,
        "display_name": model.id,
        "created_at": "1970-01-01T00:00:00Z",
        "lifecycle": "active",
        "max_input_tokens": model.context_tokens,
    }
