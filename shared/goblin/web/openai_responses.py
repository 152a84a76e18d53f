"""Converts our answers to OpenAI's wire format, exactly as the `openai` SDK parses it."""

from __future__ import annotations

import base64
import logging
import struct
from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import dataclass, field
from typing import Any

import msgspec
from msgspec import UNSET

from goblin.core.errors import GoblinError
from goblin.gateway.domain.chat import ChatChunk, ChunkChoice, Delta, Embeddings, Usage

log = logging.getLogger(__name__)

Chunks = AsyncGenerator[ChatChunk, None]


async def chat_events(chunks: Chunks, *, include_usage: bool) -> AsyncGenerator[bytes, None]:
    """Yield `chat.completion.chunk` events, then `[DONE]`; or an error event without `[DONE]`."""
    async with aclosing(chunks):
        try:
            async for chunk in chunks:
                if include_usage:
                    # With `include_usage`, all of OpenAI's chunks but the last have `usage: null`.
                    told = chunk.usage if isinstance(chunk.usage, Usage) else None
                    yield _event(msgspec.structs.replace(chunk, usage=told))
                elif chunk.choices:
                    yield _event(chunk)
            yield b"data: [DONE]\n\n"
        except GoblinError as error:
            yield _event(error.body())


async def completion_events(chunks: Chunks, *, include_usage: bool) -> AsyncGenerator[bytes, None]:
    """Yield `text_completion` events of the older route; otherwise like `chat_events`."""
    async with aclosing(chunks):
        try:
            async for chunk in chunks:
                if chunk.choices or include_usage:
                    told = chunk.usage if isinstance(chunk.usage, Usage) else None
                    extra = {"usage": told} if include_usage else {}
                    yield _event(_head(chunk, "text_completion", [_text_choice(c) for c in chunk.choices]) | extra)
            yield b"data: [DONE]\n\n"
        except GoblinError as error:
            yield _event(error.body())


async def whole_chat(chunks: Chunks) -> bytes:
    """Collect an answer into one `chat.completion`."""
    answer = await _collect(chunks)
    choices = [part.chat_choice(index) for index, part in sorted(answer.parts.items())]
    return msgspec.json.encode(_head(answer.last, "chat.completion", choices) | {"usage": answer.last.usage})


async def whole_completion(chunks: Chunks) -> bytes:
    """Collect an answer into one `text_completion`."""
    answer = await _collect(chunks)
    choices = [part.text_choice(index) for index, part in sorted(answer.parts.items())]
    return msgspec.json.encode(_head(answer.last, "text_completion", choices) | {"usage": answer.last.usage})


def embedding_list(answer: Embeddings, *, model: str, as_base64: bool) -> bytes:
    """Build a `list` of `embedding`; base64 is of little-endian float32, and is the SDK's default."""
    usage = answer.usage or Usage()
    return msgspec.json.encode(
        {
            "object": "list",
            "data": [
                {
                    "object": "embedding",
                    "index": row.index,
                    "embedding": _packed(row.embedding) if as_base64 else row.embedding,
                }
                for row in answer.data
            ],
            "model": model,
            "usage": {"prompt_tokens": usage.prompt_tokens, "total_tokens": usage.total_tokens},
        }
    )


def model_object(model_id: str, owner: str) -> dict[str, Any]:
    """Build a model's object. `created` is unknown and so 0, because OpenAI's type requires a number."""
    return {"id": model_id, "object": "model", "created": 0, "owned_by": owner}


@dataclass(slots=True)
class _Part:
    """One choice of an answer, collected from its chunks."""

    content: list[str] = field(default_factory=list)
    refusal: list[str] = field(default_factory=list)
    reasoning: dict[str, list[str]] = field(default_factory=dict)
    tool_calls: dict[int, dict[str, Any]] = field(default_factory=dict)
    function_call: dict[str, str] | None = None
    audio: dict[str, Any] | None = None
    logprobs: dict[str, Any] | None = None
    finish_reason: str | None = None

    def add(self, choice: ChunkChoice) -> None:
        delta = choice.delta
        if isinstance(delta.content, str):
            self.content.append(delta.content)
        if isinstance(delta.refusal, str):
            self.refusal.append(delta.refusal)
        for name in ("reasoning_content", "reasoning"):
            if isinstance(piece := getattr(delta, name), str):
                self.reasoning.setdefault(name, []).append(piece)
        if isinstance(delta.audio, dict):
            self.audio = {**(self.audio or {}), **delta.audio}
        self._add_calls(delta)
        if choice.logprobs is not None:
            self.logprobs = _joined(self.logprobs, choice.logprobs)
        self.finish_reason = choice.finish_reason or self.finish_reason

    def _add_calls(self, delta: Delta) -> None:
        for piece in delta.tool_calls or ():
            call = self.tool_calls.setdefault(
                piece.index, {"id": "", "type": "function", "function": {"name": "", "arguments": ""}}
            )
            call["id"] = piece.id or call["id"]
            call["type"] = piece.type or call["type"]
            if piece.function is not UNSET:
                call["function"]["name"] += piece.function.name or ""
                call["function"]["arguments"] += piece.function.arguments or ""
        if delta.function_call:
            old = self.function_call or {"name": "", "arguments": ""}
            self.function_call = {
                "name": old["name"] + (delta.function_call.name or ""),
                "arguments": old["arguments"] + (delta.function_call.arguments or ""),
            }

    def chat_choice(self, index: int) -> dict[str, Any]:
        has_calls = bool(self.tool_calls or self.function_call or self.refusal)
        text = "".join(self.content)
        message: dict[str, Any] = {
            "role": "assistant",
            "content": None if has_calls and not text else text,
            "refusal": "".join(self.refusal) if self.refusal else None,
        }
        message |= {name: "".join(pieces) for name, pieces in self.reasoning.items()}
        if self.tool_calls:
            message["tool_calls"] = [call for _, call in sorted(self.tool_calls.items())]
        if self.function_call:
            message["function_call"] = self.function_call
        if self.audio:
            message["audio"] = self.audio
        return {
            "index": index,
            "message": message,
            "logprobs": self.logprobs,
            "finish_reason": self.finish_reason,
        }

    def text_choice(self, index: int) -> dict[str, Any]:
        return {
            "index": index,
            "text": "".join(self.content),
            "logprobs": self.logprobs,
            "finish_reason": self.finish_reason,
        }


@dataclass(slots=True)
class _Collected:
    parts: dict[int, _Part]
    last: ChatChunk
    """The last chunk, which has the usage."""


async def _collect(chunks: Chunks) -> _Collected:
    parts: dict[int, _Part] = {}
    last = ChatChunk()
    async with aclosing(chunks):
        async for chunk in chunks:
            for choice in chunk.choices:
                parts.setdefault(choice.index, _Part()).add(choice)
            if last.system_fingerprint and not chunk.system_fingerprint:
                chunk = msgspec.structs.replace(chunk, system_fingerprint=last.system_fingerprint)
            last = chunk
    return _Collected(parts, last)


def _joined(before: dict[str, Any] | None, piece: dict[str, Any]) -> dict[str, Any]:
    """Append a piece of log probabilities, which are lists under several names."""
    joined = dict(before or {})
    for name, values in piece.items():
        old = joined.get(name)
        joined[name] = [*old, *values] if isinstance(old, list) and isinstance(values, list) else values
    return joined


def _head(chunk: ChatChunk, kind: str, choices: list[Any]) -> dict[str, Any]:
    head: dict[str, Any] = {
        "id": chunk.id,
        "object": kind,
        "created": chunk.created,
        "model": chunk.model,
        "choices": choices,
    }
    if chunk.system_fingerprint:
        head["system_fingerprint"] = chunk.system_fingerprint
    return head


def _text_choice(choice: ChunkChoice) -> dict[str, Any]:
    return {
        "index": choice.index,
        "text": choice.delta.content or "",
        "logprobs": choice.logprobs,
        "finish_reason": choice.finish_reason,
    }


def _packed(vector: list[float]) -> str:
    return base64.b64encode(struct.pack(f"<{len(vector)}f", *vector)).decode()


def _event(value: object) -> bytes:
    return b"data: " + msgspec.json.encode(value) + b"\n\n"
