"""OpenAI's Responses wire, for endpoints that speak it: sends the request as it came, and reads the events.

Each event goes on unchanged beside what it says, so that a caller of the same wire gets it, and everything else (usage,
failover, money) reads it as it reads a chat. Source: openai-python 3.57, read 2026-12-01.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Any

from msgspec import UNSET

from goblin.core.decoding import UNREADABLE
from goblin.core.errors import GoblinError, ProviderUnavailable
from goblin.gateway.domain.chat import ChatChunk, ChunkChoice, Delta, FunctionDelta, ToolCallDelta, Usage
from goblin.gateway.domain.requests import ChatRequest
from goblin.providers.common.http import Upstream, events
from goblin.providers.common.reading import encodable, parsed
from goblin.providers.common.sse import ServerEvent
from goblin.providers.common.stream_errors import answer_error, is_error

_REASONS = {"max_output_tokens": "length", "content_filter": "content_filter"}
_THOUGHTS = ("response.reasoning_text.delta", "response.reasoning.delta", "response.reasoning_summary_text.delta")


class ResponsesCodec:
    """The Responses route of one endpoint."""

    def __init__(self, upstream: Upstream) -> None:
        self._upstream = upstream

    async def respond(self, request: ChatRequest, *, model: str) -> AsyncGenerator[ChatChunk, None]:
        """Stream the answer to a request that came in this wire. Contract: `ChatProvider.chat`."""
        body = {**(request.responses or {}), "model": model, "stream": True}
        if request.output_tokens_max is not None:
            body["max_output_tokens"] = request.output_tokens_max
        called = begun = False
        async with self._upstream.stream("/responses", body) as response:
            if not response.headers.get("content-type", "").startswith("text/event-stream"):
                raise self._upstream.nonsense()
            async with aclosing(events(self._upstream, response, lambda: False)) as found:
                async for event in found:
                    if (said := self._read(event)) is None:
                        continue
                    if said["type"] in ("error", "response.failed"):
                        raise self._failure(said, begun=begun)
                    chunk = read_event(said, called=called)
                    begun = begun or chunk.starts_answer
                    called = called or any(choice.delta.tool_calls for choice in chunk.choices)
                    yield chunk
                    if chunk.choices[0].finish_reason:
                        return
        raise ProviderUnavailable(f"{self._upstream.name} ended the stream before the answer was complete.")

    def _read(self, event: ServerEvent) -> dict[str, Any] | None:
        """Parse an event; None for a keep-alive. Raises `ProviderUnavailable`."""
        try:
            said = parsed(event.data)
        except UNREADABLE:
            if event.data.strip()[:1] in (b"{", b"["):
                raise self._upstream.nonsense() from None
            return None
        if not isinstance(said, dict):
            return None
        kind = said.get("type")
        if not isinstance(kind, str):
            # Servers that fail in the middle write their error as they would answer it.
            kind = "error" if is_error(said, event.event) else event.event
            said = {**said, "type": kind}
        found: dict[str, Any] | None = None if kind == "message" else encodable(said)
        return found

    def _failure(self, event: dict[str, Any], *, begun: bool) -> GoblinError:
        response = event.get("response")
        error = response.get("error") if isinstance(response, dict) else event.get("error") or event
        return answer_error(self._upstream, {"error": error}, said=begun)


def read_event(event: dict[str, Any], *, called: bool) -> ChatChunk:
    """Convert an event to a chunk that carries it.

    Args:
        event: The event, whose `type` is a text. Of its other fields nothing is certain.
        called: Whether the answer has a function call already.
    """
    kind, delta = event["type"], event.get("delta")
    said: dict[str, Any] = {}
    finish: str | None = None
    usage: Usage | None = None
    if isinstance(delta, str):
        if kind == "response.output_text.delta":
            said["content"] = delta
        elif kind == "response.refusal.delta":
            said["refusal"] = delta
        elif kind in _THOUGHTS:
            said["reasoning_content"] = delta
        elif kind == "response.function_call_arguments.delta":
            said["tool_calls"] = (_call(event, FunctionDelta(arguments=delta)),)
    elif kind == "response.output_item.added":
        item = event.get("item")
        if isinstance(item, dict) and item.get("type") == "function_call":
            name = item.get("name")
            function = FunctionDelta(name=name if isinstance(name, str) else "")
            said["tool_calls"] = (_call(event, function, item.get("call_id")),)
    elif kind in ("response.completed", "response.incomplete") and isinstance(response := event.get("response"), dict):
        why = response.get("incomplete_details")
        reason = why.get("reason") if isinstance(why, dict) else None
        finish = _REASONS.get(str(reason), "length") if kind == "response.incomplete" else None
        finish = finish or ("tool_calls" if called else "stop")
        usage = usage_of(response.get("usage"))
    choice = ChunkChoice(delta=Delta(event=event, **said), finish_reason=finish)
    return ChatChunk(choices=(choice,), usage=UNSET if usage is None else usage)


def _call(event: dict[str, Any], function: FunctionDelta, call_id: object = None) -> ToolCallDelta:
    place = event.get("output_index")
    named = call_id if isinstance(call_id, str) else UNSET
    return ToolCallDelta(index=place if isinstance(place, int) else 0, id=named, function=function)


def usage_of(said: object) -> Usage | None:
    """Convert the counts; None when they are missing."""
    if not isinstance(said, dict):
        return None
    asked, answered = said.get("input_tokens"), said.get("output_tokens")
    if not isinstance(asked, int) or not isinstance(answered, int):
        return None
    return Usage(
        prompt_tokens=asked,
        completion_tokens=answered,
        total_tokens=asked + answered,
        prompt_tokens_details=_details(said.get("input_tokens_details")),
        completion_tokens_details=_details(said.get("output_tokens_details")),
    )


def _details(said: object) -> Any:
    return said if isinstance(said, dict) else UNSET
