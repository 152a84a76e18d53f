"""Converts our answers to Anthropic's Messages wire format, as the `anthropic` SDK parses it.

    message_start ─ ping ─ { content_block_start ─ content_block_delta … ─ content_block_stop } … ─
    message_delta (stop reason, usage) ─ message_stop

or, when an answer breaks off, `error` as the last event. Source: anthropic-python 2.14, read 2026-11-25.
"""

from __future__ import annotations

import uuid
from collections.abc import AsyncGenerator, Iterator, Mapping
from contextlib import aclosing
from typing import Any

import msgspec

from goblin.core.errors import Broken, GoblinError
from goblin.gateway.domain.chat import ChatChunk, Delta, ToolCallDelta, Usage
from goblin.gateway.domain.requests import ChatRequest
from goblin.gateway.policy import tokens

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


async def message_events(chunks: Chunks, asked: ChatRequest) -> AsyncGenerator[bytes, None]:
    """Yield the named events of an answer. The first has an estimate of the prompt's tokens, the last the usage."""
    writer = MessageWriter(asked.model, count_tokens(asked))
    async with aclosing(chunks):
        try:
            async for chunk in chunks:
                for event in writer.write(chunk):
                    yield _event(event)
            for event in writer.end():
                yield _event(event)
        except GoblinError as error:
            yield _event(error_body(error))


async def whole_message(chunks: Chunks, asked: ChatRequest) -> bytes:
    """Collect an answer into one `message`."""
    writer = MessageWriter(asked.model, 0)
    message: dict[str, Any] = {}
    blocks: list[dict[str, Any]] = []
    pieces: list[list[str]] = []
    async with aclosing(chunks):
        events = [event async for chunk in chunks for event in writer.write(chunk)]
    for event in [*events, *writer.end()]:
        match event:
            case {"type": "message_start", "message": started}:
                message |= started
            case {"type": "content_block_start", "content_block": block}:
                blocks.append(block)
                pieces.append([])
            case {"type": "content_block_delta", "index": index, "delta": delta}:
                pieces[index] += [said for name, said in delta.items() if name != "type"]
            case {"type": "message_delta", "delta": delta, "usage": usage}:
                message |= {**delta, "usage": usage}
    message["content"] = [_filled(block, "".join(said)) for block, said in zip(blocks, pieces, strict=True)]
    return msgspec.json.encode(message)


def _filled(block: dict[str, Any], said: str) -> dict[str, Any]:
    match block["type"]:
        case "tool_use":
            return {**block, "input": _parsed(said)}
        case kind:
            return {**block, kind: said}


def _parsed(arguments: str) -> Any:
    """Parse tool arguments into an object, which the SDK expects; a model may have written something else."""
    try:
        parsed = msgspec.json.decode(arguments or "{}")
    except msgspec.DecodeError:
        return {"_": arguments}
    return parsed if isinstance(parsed, dict) else {"_": parsed}


class MessageWriter:
    """Converts the chunks of one answer to events; closes each block before the next begins."""

    def __init__(self, model: str, prompt_tokens: int) -> None:
        self._model = model
        self._prompt_tokens = prompt_tokens
        self._started = False
        self._open = ""
        """The open block: `text`, `thinking`, or `tool` with the call's index; empty for none."""
        self._count = 0
        """Number of blocks so far."""
        self._blocks: dict[int, int] = {}
        """Index of the block of each tool call."""
        self._finish = "stop"
        self._usage = Usage()

    def write(self, chunk: ChatChunk) -> Iterator[dict[str, Any]]:
        """Convert one chunk to events."""
        if not self._started:
            yield from self._start(chunk.id)
        if isinstance(chunk.usage, Usage):
            self._usage = chunk.usage
        for choice in chunk.choices:
            if choice.index == 0:
                yield from self._add(choice.delta)
                self._finish = choice.finish_reason or self._finish

    def end(self) -> Iterator[dict[str, Any]]:
        """Yield the last events of a complete answer."""
        if not self._started:
            yield from self._start("")
        yield from self._close()
        stop = {"stop_reason": _STOP.get(self._finish, "end_turn"), "stop_sequence": None}
        yield {"type": "message_delta", "delta": stop, "usage": usage_of(self._usage)}
        yield {"type": "message_stop"}

    def _start(self, chunk_id: str) -> Iterator[dict[str, Any]]:
        self._started = True
        message: dict[str, Any] = {
            "id": f"msg_{chunk_id.rpartition('-')[2] or uuid.uuid4().hex}",
            "type": "message",
            "role": "assistant",
            "model": self._model,
            "content": [],
            "stop_reason": None,
            "stop_sequence": None,
            "usage": usage_of(Usage(prompt_tokens=self._prompt_tokens)),
        }
        yield {"type": "message_start", "message": message}
        yield {"type": "ping"}

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
            block = {"type": "tool_use", "id": piece.id or f"toolu_{uuid.uuid4().hex}", "name": name, "input": {}}
            yield from self._switch(f"tool {piece.index}", block)
            self._blocks[piece.index] = self._count - 1
        # A block begins with an empty input, so that a call without arguments needs no more.
        if function and function.arguments and not (opens and function.arguments == "{}"):
            delta = {"type": "input_json_delta", "partial_json": function.arguments}
            yield {"type": "content_block_delta", "index": self._blocks[piece.index], "delta": delta}

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


def count_tokens(asked: ChatRequest) -> int:
    """Estimate the tokens of a prompt."""
    return tokens.estimate_tokens(asked.prompt_bytes())


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


def _count(value: object) -> int:
    return value if isinstance(value, int) else 0


def error_body(error: GoblinError) -> dict[str, Any]:
    """Build the body of an error, as the SDK parses it."""
    kind = _ERRORS.get(error.status, "invalid_request_error" if error.status < 500 else "api_error")
    return {"type": "error", "error": {"type": kind, "message": error.message}, "request_id": None}


def refusal(error: Exception) -> tuple[int, bytes]:
    """Build status and body of an error response. Unexpected exceptions reveal no details."""
    known = error if isinstance(error, GoblinError) else Broken("Internal error. The cause is in the server's log.")
    status = OVERLOADED if known.status == 503 else known.status
    return status, msgspec.json.encode(error_body(known))


def model_list(model_ids: list[str]) -> dict[str, Any]:
    """Build the list of models, as a single page."""
    rows = [model_object(model_id) for model_id in model_ids]
    ends = {"first_id": model_ids[0], "last_id": model_ids[-1]} if model_ids else {"first_id": None, "last_id": None}
    return {"data": rows, "has_more": False, **ends}


def model_object(model_id: str) -> dict[str, str]:
    """Build a model's object. Its creation time is unknown, for which Anthropic's wire format uses the epoch."""
    made = "1970-01-01T00:00:00Z"
    return {"type": "model", "id": model_id, "display_name": model_id, "created_at": made, "lifecycle": "active"}


def _event(event: dict[str, Any]) -> bytes:
    return f"event: {event['type']}\ndata: ".encode() + msgspec.json.encode(event) + b"\n\n"
