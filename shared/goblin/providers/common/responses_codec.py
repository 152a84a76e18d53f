"""OpenAI's Responses wire, for endpoints that speak it: sends the request as it came, and reads the events.

Each event goes on unchanged beside what it says, so that a caller of the same wire gets it, and everything else (usage,
failover, money) reads it as it reads a chat. Source: openai-python 3.57, read 2026-12-01.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Any

from msgspec import UNSET

from goblin.core.errors import Fault, ProviderUnavailable
from goblin.gateway.domain.chat import ChatChunk, ChunkChoice, Delta, FunctionDelta, ToolCallDelta, Usage
from goblin.gateway.domain.requests import ChatRequest
from goblin.providers.common.http import Upstream, events
from goblin.providers.common.refusals import detail_of

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
        called = False
        async with self._upstream.stream("/responses", body) as response:
            if not response.headers.get("content-type", "").startswith("text/event-stream"):
                raise self._upstream.nonsense()
            async with aclosing(events(self._upstream, response, lambda: False)) as found:
                async for event in found:
                    if event.data == b"[DONE]":
                        continue
                    said = self._upstream.decode(event.data)
                    if not isinstance(said, dict) or not isinstance(said.get("type"), str):
                        continue
                    self._raise_if_failed(said)
                    chunk = read_event(said, called=called)
                    called = called or any(choice.delta.tool_calls for choice in chunk.choices)
                    yield chunk
                    if chunk.choices[0].finish_reason:
                        return
        raise ProviderUnavailable(f"{self._upstream.name} ended the stream before the answer was complete.")

    def _raise_if_failed(self, event: dict[str, Any]) -> None:
        if event["type"] not in ("error", "response.failed"):
            return
        response = event.get("response")
        error = response.get("error") if isinstance(response, dict) else event.get("error") or event
        detail = detail_of({"error": error})
        fault = self._upstream.judge(429 if detail.code == "rate_limit_exceeded" else 500, detail)
        raise ProviderUnavailable(f"{self._upstream.name} sent an error in the stream.", fault=fault or Fault.TRANSIENT)


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
