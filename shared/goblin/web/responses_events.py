"""Converts our answers to OpenAI's Responses wire format, as the `openai` SDK and the Open Responses schema have it.

    response.created ─ response.in_progress ─ { output_item.added ─ … ─ output_item.done } … ─
    response.completed | response.incomplete | error ─ response.failed

An item is a message (content_part.added ─ output_text.delta … ─ output_text.done ─ content_part.done; or refusal.*),
reasoning (the same with reasoning_text.*, or reasoning_summary_part.* and reasoning_summary_text.*), a function call
(function_call_arguments.delta … ─ .done) or a custom tool's call. Every event has the next `sequence_number`. As the
specification wants, `[DONE]` ends the stream. Where the answer comes from an endpoint that speaks this wire, its own
events are passed on. Source: openai-python 3.57 and the Open Responses specification, read
2026-12-01.
"""

from __future__ import annotations

import uuid
from collections.abc import AsyncGenerator, Callable, Iterator, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

import msgspec

from goblin.core.errors import GoblinError
from goblin.gateway.domain.chat import ChatChunk, ChunkChoice, Delta, ToolCallDelta, Usage
from goblin.web import asgi
from goblin.web.responses_items import CUSTOM_INPUT, sealed
from goblin.web.responses_requests import Asked

Chunks = AsyncGenerator[ChatChunk, None]
Event = dict[str, Any]
Keep = Callable[[list[dict[str, Any]]], None]
"""Takes the items of a response that is whole."""


async def response_events(
    chunks: Chunks, asked: Asked, *, now: Callable[[], datetime], keep: Keep, dropped: Sequence[str] = ()
) -> AsyncGenerator[bytes, None]:
    """Yield the named events of an answer, then `[DONE]`.

    Args:
        chunks: The answer.
        asked: The request.
        now: The clock.
        keep: Takes the items before the last event goes out.
        dropped: What of the request was not passed on, by name.
    """
    writer = ResponseWriter(asked, now=now, dropped=dropped)
    async with aclosing(chunks):
        try:
            async for chunk in chunks:
                for event in writer.write(chunk):
                    yield _encoded(event)
            for event in writer.end():
                if "response" in event:
                    keep(_items(event))
                yield _encoded(event)
        except GoblinError as error:
            for event in writer.fail(error):
                yield _encoded(event)
    yield b"data: [DONE]\n\n"


async def whole_response(
    chunks: Chunks, asked: Asked, *, now: Callable[[], datetime], keep: Keep, dropped: Sequence[str] = ()
) -> bytes:
    """Collect an answer into one `response`. Takes what `response_events` takes, and raises as the chunks do."""
    writer = ResponseWriter(asked, now=now, dropped=dropped)
    async with aclosing(chunks):
        async for chunk in chunks:
            for _ in writer.write(chunk):
                pass
    *_, last = writer.end()
    keep(_items(last))
    return msgspec.json.encode(last["response"])


def _items(event: Event) -> list[dict[str, Any]]:
    """List the items of a response that have an id; those of another endpoint may be of any shape."""
    output = event["response"].get("output")
    found = output if isinstance(output, list) else []
    return [item for item in found if isinstance(item, dict) and isinstance(item.get("id"), str)]


@dataclass(slots=True)
class _Item:
    """One item of the output, while it is written."""

    index: int
    shape: dict[str, Any]
    """The item as it is shown: with all of its text once it is done."""
    part: str = ""
    """The type of its one part: `output_text`, `refusal`, `reasoning_text` or `summary_text`; empty for calls."""
    pieces: list[str] = field(default_factory=list)
    logprobs: list[dict[str, Any]] = field(default_factory=list)

    @property
    def text(self) -> str:
        return "".join(self.pieces)

    @property
    def id(self) -> str:
        named: str = self.shape["id"]
        return named


@dataclass(slots=True)
class _Call:
    """A call whose name has not arrived yet, or its item."""

    call_id: str = ""
    waiting: list[str] = field(default_factory=list)
    item: _Item | None = None


class ResponseWriter:
    """Converts the chunks of one answer to events, and collects the response that the last event has.

    A message or a reasoning ends where something else begins. Calls end with the answer, because pieces of several may
    come in turn.
    """

    def __init__(self, asked: Asked, *, now: Callable[[], datetime], dropped: Sequence[str] = ()) -> None:
        self._asked = asked
        self._dropped = dropped
        self._now = now
        self._sequence = 0
        self._response: dict[str, Any] = {}
        """The response so far, without its output; empty before the first event."""
        self._key = ""
        self._items: list[_Item] = []
        self._open: _Item | None = None
        """The message or reasoning that is being written."""
        self._calls: dict[int, _Call] = {}
        self._finish = "stop"
        self._usage = Usage()
        self._passed: dict[int, dict[str, Any]] = {}
        """Items of an endpoint that speaks this wire, by their index."""
        self._last: Event | None = None
        """The last event of such an endpoint, kept until the answer has ended."""

    def write(self, chunk: ChatChunk) -> Iterator[Event]:
        """Convert one chunk to events."""
        if isinstance(chunk.usage, Usage):
            self._usage = chunk.usage
        for choice in chunk.choices:
            if choice.delta.event:
                yield from self._pass(choice.delta.event)
            elif choice.index == 0:
                yield from self._begin(chunk)
                yield from self._add(choice)
                self._finish = choice.finish_reason or self._finish

    def end(self) -> Iterator[Event]:
        """Yield the last events of a complete answer."""
        if self._last is not None:
            yield self._event(self._last["type"], response=self._as_ours(self._last["response"]))
            return
        yield from self._begin(ChatChunk())
        reason = {"length": "max_output_tokens", "content_filter": "content_filter"}.get(self._finish)
        yield from self._close_all(cut=reason is not None)
        self._response["usage"] = usage_of(self._usage)
        if reason is None:
            self._response |= {"status": "completed", "completed_at": int(self._now().timestamp())}
            yield self._lifecycle("response.completed")
        else:
            self._response |= {"status": "incomplete", "incomplete_details": {"reason": reason}}
            yield self._lifecycle("response.incomplete")

    def fail(self, error: GoblinError) -> Iterator[Event]:
        """Yield the last events of an answer that broke off.

        Items that are not whole are not closed: a client runs a call once it is done.
        """
        yield from self._begin(ChatChunk())
        yield self._event("error", code=error.code or error.type, message=error.message, param=error.param)
        for item in self._unfinished():
            item.shape = {**self._finished(item), "status": "incomplete"}
        # The codes of a failed response are few, and clients retry a `server_error`.
        code = "rate_limit_exceeded" if error.code == "rate_limit_exceeded" else "server_error"
        self._response |= {"status": "failed", "error": {"code": code, "message": error.message}}
        yield self._lifecycle("response.failed")

    def _pass(self, event: Event) -> Iterator[Event]:
        """Pass on an event of an endpoint that speaks this wire; only the numbers and what we promise are ours."""
        kind, response = event["type"], event.get("response")
        if isinstance(response, dict):
            self._response = {name: value for name, value in self._as_ours(response).items() if name != "output"}
            if kind in ("response.completed", "response.incomplete"):
                self._last = event
                return
            event = {**event, "response": self._as_ours(response)}
        item, index = event.get("item"), event.get("output_index")
        if isinstance(item, dict) and isinstance(index, int):
            self._passed[index] = item
        yield {**event, "sequence_number": self._number()}

    def _as_ours(self, response: dict[str, Any]) -> dict[str, Any]:
        dropped = {"goblin": {"dropped": list(self._dropped)}} if self._dropped else {}
        return {**response, "model": self._asked.chat.model, "store": False, **dropped}

    def _begin(self, chunk: ChatChunk) -> Iterator[Event]:
        if self._response:
            return
        asked = self._asked
        self._key = chunk.id.rpartition("-")[2] or uuid.uuid4().hex
        self._response = {
            "id": f"resp_{self._key}",
            "object": "response",
            "created_at": chunk.created or int(self._now().timestamp()),
            "completed_at": None,
            "status": "in_progress",
            "error": None,
            "incomplete_details": None,
            "model": asked.chat.model,
            **asked.echo,
            "usage": None,
        }
        if self._dropped:
            self._response["goblin"] = {"dropped": list(self._dropped)}
        yield self._lifecycle("response.created")
        yield self._lifecycle("response.in_progress")

    def _add(self, choice: ChunkChoice) -> Iterator[Event]:
        delta: Delta = choice.delta
        if thought := delta.reasoning_content or delta.reasoning:
            yield from self._say("summary_text" if self._asked.summarizes else "reasoning_text", thought, [])
        if delta.content:
            yield from self._say("output_text", delta.content, _logprobs(choice))
        if delta.refusal:
            yield from self._say("refusal", delta.refusal, [])
        for piece in delta.tool_calls or ():
            yield from self._call(piece)

    def _say(self, part: str, text: str, logprobs: list[dict[str, Any]]) -> Iterator[Event]:
        """Add to the open item, or open one."""
        if self._open is None or self._open.part != part:
            yield from self._close_open()
            shape: dict[str, Any] = (
                {"type": "message", "role": "assistant", "content": []}
                if part in ("output_text", "refusal")
                else {"type": "reasoning", "summary": []}
            )
            self._open = self._new(shape, part)
            yield self._added(self._open)
            if part == "summary_text":
                yield self._about("response.reasoning_summary_part.added", self._open, part=_shown(part, "", []))
            else:
                yield self._about("response.content_part.added", self._open, part=_shown(part, "", []))
        item = self._open
        item.pieces.append(text)
        item.logprobs += logprobs
        more = {"logprobs": logprobs} if part == "output_text" else {}
        yield self._about(f"{_STREAMS[part]}.delta", item, delta=text, **more)

    def _call(self, piece: ToolCallDelta) -> Iterator[Event]:
        call = self._calls.setdefault(piece.index, _Call())
        function = piece.function or None
        arguments = (function.arguments if function else None) or ""
        call.call_id = call.call_id or piece.id or ""
        if call.item is None:
            name = (function.name if function else None) or ""
            if not name:
                # The client must learn the name first.
                call.waiting.append(arguments)
                return
            yield from self._open_call(call, name)
            arguments = "".join((*call.waiting, arguments))
        assert call.item is not None  # noqa: S101  Opened above.
        yield from self._argue(call.item, arguments)

    def _argue(self, item: _Item, arguments: str) -> Iterator[Event]:
        """Add to the arguments of a call. The plain input of a custom tool is known only at the end."""
        if arguments:
            item.pieces.append(arguments)
            if item.shape["type"] == "function_call":
                yield self._about("response.function_call_arguments.delta", item, delta=arguments)

    def _open_call(self, call: _Call, name: str) -> Iterator[Event]:
        yield from self._close_open()
        call_id = call.call_id or f"call_{uuid.uuid4().hex[:24]}"
        if name in self._asked.custom_tools:
            call.item = self._new({"type": "custom_tool_call", "call_id": call_id, "name": name, "input": ""})
        else:
            call.item = self._new({"type": "function_call", "call_id": call_id, "name": name, "arguments": ""})
        yield self._added(call.item)

    def _close_all(self, *, cut: bool) -> Iterator[Event]:
        """Close what is open; the last item of an answer that was cut short is incomplete."""
        for call in self._calls.values():
            if call.item is None and any(call.waiting):
                # A call without a name cannot be run, but it was said.
                yield from self._open_call(call, "")
                assert call.item is not None  # noqa: S101  Opened above.
                yield from self._argue(call.item, "".join(call.waiting))
        unfinished = self._unfinished()
        for item in unfinished:
            yield from self._close(item, "incomplete" if cut and item is self._items[-1] else "completed")
        self._open = None

    def _close_open(self) -> Iterator[Event]:
        if self._open is not None:
            yield from self._close(self._open, "completed")
            self._open = None

    def _close(self, item: _Item, status: str) -> Iterator[Event]:
        item.shape = {**self._finished(item), "status": status}
        if item.shape["type"] == "custom_tool_call":
            said = item.shape["input"]
            if said:
                yield self._about("response.custom_tool_call_input.delta", item, delta=said)
            yield self._about("response.custom_tool_call_input.done", item, input=said)
        elif item.shape["type"] == "function_call":
            name, said = item.shape["name"], item.shape["arguments"]
            yield self._about("response.function_call_arguments.done", item, name=name, arguments=said)
        else:
            said = {"refusal" if item.part == "refusal" else "text": item.text}
            more = {"logprobs": item.logprobs} if item.part == "output_text" else {}
            yield self._about(f"{_STREAMS[item.part]}.done", item, **said, **more)
            part = _shown(item.part, item.text, item.logprobs)
            kind = "reasoning_summary_part" if item.part == "summary_text" else "content_part"
            yield self._about(f"response.{kind}.done", item, part=part)
        yield self._event("response.output_item.done", output_index=item.index, item=item.shape)

    def _finished(self, item: _Item) -> dict[str, Any]:
        """Build the item with all that was said."""
        match item.shape["type"]:
            case "function_call":
                return {**item.shape, "arguments": item.text}
            case "custom_tool_call":
                return {**item.shape, "input": _custom_input(item.text)}
            case "message":
                return {**item.shape, "content": [_shown(item.part, item.text, item.logprobs)]}
        shown = [_shown(item.part, item.text, [])]
        field = "summary" if item.part == "summary_text" else "content"
        return {**item.shape, field: shown, "encrypted_content": sealed(item.text)}

    def _unfinished(self) -> list[_Item]:
        return [item for item in self._items if item.shape["status"] == "in_progress"]

    def _new(self, shape: dict[str, Any], part: str = "") -> _Item:
        index = len(self._items)
        prefix = _PREFIXES[shape["type"]]
        item = _Item(index, {"id": f"{prefix}_{self._key}{index:02x}", **shape, "status": "in_progress"}, part)
        self._items.append(item)
        return item

    def _added(self, item: _Item) -> Event:
        return self._event("response.output_item.added", output_index=item.index, item=item.shape)

    def _about(self, kind: str, item: _Item, **fields: Any) -> Event:
        """Build an event about an item, or about its one part."""
        place = {"item_id": item.id, "output_index": item.index}
        if item.part:
            place["summary_index" if item.part == "summary_text" else "content_index"] = 0
        return self._event(kind, **place, **fields)

    def _lifecycle(self, kind: str) -> Event:
        passed = [item for _, item in sorted(self._passed.items())]
        return self._event(kind, response={**self._response, "output": passed + [item.shape for item in self._items]})

    def _event(self, kind: str, **fields: Any) -> Event:
        return {"type": kind, "sequence_number": self._number(), **fields}

    def _number(self) -> int:
        number = self._sequence
        self._sequence += 1
        return number


_PREFIXES = {"message": "msg", "reasoning": "rs", "function_call": "fc", "custom_tool_call": "ctc"}
_STREAMS = {
    "output_text": "response.output_text",
    "refusal": "response.refusal",
    "reasoning_text": "response.reasoning_text",
    "summary_text": "response.reasoning_summary_text",
}


def _shown(part: str, text: str, logprobs: list[dict[str, Any]]) -> dict[str, Any]:
    match part:
        case "output_text":
            return {"type": part, "text": text, "annotations": [], "logprobs": logprobs}
        case "refusal":
            return {"type": part, "refusal": text}
    return {"type": part, "text": text}


def _custom_input(arguments: str) -> str:
    """Extract the plain text for a custom tool; a model may have written it without the JSON around it."""
    try:
        parsed = msgspec.json.decode(arguments or "{}")
    except msgspec.DecodeError:
        return arguments
    said = parsed.get(CUSTOM_INPUT, "") if isinstance(parsed, dict) else parsed
    return said if isinstance(said, str) else arguments


def _logprobs(choice: ChunkChoice) -> list[dict[str, Any]]:
    """Convert the log probabilities of a chunk; the SDK requires every field."""
    rows = (choice.logprobs or {}).get("content")
    return [
        {**_logprob(row), "top_logprobs": [_logprob(top) for top in _rows(row.get("top_logprobs"))]}
        for row in _rows(rows)
    ]


def _rows(rows: object) -> list[dict[str, Any]]:
    return [row for row in rows if isinstance(row, dict)] if isinstance(rows, list) else []


def _logprob(row: dict[str, Any]) -> dict[str, Any]:
    token = str(row.get("token", ""))
    read = row.get("bytes") or list(token.encode("utf-8", "surrogatepass"))
    return {"token": token, "logprob": row.get("logprob", 0.0), "bytes": read}


def usage_of(usage: Usage) -> dict[str, Any]:
    """Convert to the counts of the Responses wire, which has all details."""
    asked, answered = usage.prompt_tokens_details or {}, usage.completion_tokens_details or {}
    return {
        "input_tokens": usage.prompt_tokens,
        "input_tokens_details": {
            "cached_tokens": _count(asked.get("cached_tokens")),
            "cache_write_tokens": _count(asked.get("cache_write_tokens") or asked.get("cache_creation_tokens")),
        },
        "output_tokens": usage.completion_tokens,
        "output_tokens_details": {"reasoning_tokens": _count(answered.get("reasoning_tokens"))},
        "total_tokens": usage.total_tokens or usage.prompt_tokens + usage.completion_tokens,
    }


def _count(value: object) -> int:
    return value if isinstance(value, int) else 0


def _encoded(event: Event) -> bytes:
    return asgi.server_event(event)
