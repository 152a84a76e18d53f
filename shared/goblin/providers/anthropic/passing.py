"""Passes Anthropic's own events beside the chunks that they stand for, to a caller that speaks the same wire.

A well formed event stays as it came. What its server wrote oddly is put right as `EventReader` reads it, because the
caller's client expects Anthropic's own shapes: halves of characters, types, indexes, and texts of another shape.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import zip_longest
from typing import Any

from msgspec.structs import replace

from goblin.core import decoding
from goblin.gateway.domain.chat import ChatChunk, ChunkChoice
from goblin.providers.common.reading import Halves, count_of, encodable, parsed, text_of
from goblin.providers.common.sse import ServerEvent
from goblin.providers.common.tool_calls import argument_text, call_id_of

_DELTAS = {"text": "text_delta", "thinking": "thinking_delta", "partial_json": "input_json_delta"}
"""Type of a block's delta, by the field that it adds to."""


class Passing:
    """The events of one answer."""

    def __init__(self) -> None:
        self._halves = Halves()
        self._open: dict[int, None] = {}
        """Indexes of the blocks that have begun, in their order."""

    def beside(self, chunks: Iterable[ChatChunk], event: ServerEvent) -> Iterator[ChatChunk]:
        """Put an event beside the chunks that were made of it. Raises what making them raises."""
        made = list(chunks)
        found = own_events(event.data, event.event)
        return beside(made, [one for said in found for one in self._in_order(said)])

    def _in_order(self, event: dict[str, Any]) -> Iterator[dict[str, Any]]:
        """Begin a block whose start is missing, and join the halves of characters that two deltas share."""
        index, delta = event.get("index"), event.get("delta")
        match event["type"]:
            case "content_block_start":
                self._open[event["index"]] = None
            case "content_block_delta" if isinstance(delta, dict):
                if index not in self._open:
                    if delta.get("type") == "input_json_delta":
                        index = next(reversed(self._open), index)
                    elif (name := str(delta.get("type")).removesuffix("_delta")) in _DELTAS:
                        self._open[event["index"]] = None
                        yield {"type": "content_block_start", "index": index, "content_block": {"type": name, name: ""}}
                texts = ((name, delta.get(name)) for name in _DELTAS)
                joined = {name: self._halves.join((index, name), said) for name, said in texts if isinstance(said, str)}
                event = {**event, "index": index, "delta": {**delta, **joined}}
            case "content_block_stop":
                self._open.pop(event["index"], None)
                for name, kind in _DELTAS.items():
                    if lost := self._halves.take((index, name)):
                        yield {"type": "content_block_delta", "index": index, "delta": {"type": kind, name: lost}}
        yield encodable(event)


def own_events(data: bytes, name: str = "message") -> list[dict[str, Any]]:
    """Read an event of the stream as it came; a whole message, which some servers send instead, as its events.

    Args:
        data: Its data. What is no event, or is an error, yields nothing: the reader of the chunks decides about those.
        name: The event's name, which counts where the data has no type.
    """
    try:
        said = parsed(data)
    except decoding.UNREADABLE:
        return []
    if not isinstance(said, dict) or said.get("error"):
        return []
    kind = said.get("type")
    if not isinstance(kind, str) or not kind:
        if kind or (name == "message" and "content" not in said):
            return []
        said = {**said, "type": name}
    if said["type"] == "message":
        return list(_events_of(said))
    return [] if said["type"] == "error" else [_well_formed(said)]


def _well_formed(event: dict[str, Any]) -> dict[str, Any]:
    """Complete an event by what clients read without asking whether it is there."""
    kind, delta = event["type"], event.get("delta")
    if kind.startswith("content_block_") and not isinstance(event.get("index"), int):
        event = {**event, "index": count_of(event.get("index")) or 0}
    if kind == "message_delta":
        ends = delta if isinstance(delta, dict) else {"stop_sequence": None}
        if not ends.get("stop_reason"):
            ends = {**ends, "stop_reason": event.get("stop_reason")}
        return {**event, "delta": ends}
    if kind == "content_block_start":
        block = event.get("content_block")
        return {**event, "content_block": _block(block if isinstance(block, dict) else {"type": "text"})}
    if isinstance(delta, dict) and (name := next((name for name in _DELTAS if name in delta), None)):
        said = delta[name]
        text = said if isinstance(said, str) else argument_text(said) if name == "partial_json" else text_of(said)
        return {**event, "delta": {**delta, "type": delta.get("type") or _DELTAS[name], name: text}}
    return event


def _block(block: dict[str, Any]) -> dict[str, Any]:
    match block.get("type"):
        case "tool_use" if not isinstance(block.get("id"), str) or not block["id"] or block.get("input") is None:
            given = block.get("input")
            return {**block, "id": call_id_of(block.get("id")), "input": {} if given is None else given}
        case "text" | "thinking" as kind if not isinstance(block.get(kind), str):
            return {**block, kind: text_of(block.get(kind))}
    return block


def _events_of(message: dict[str, Any]) -> Iterator[dict[str, Any]]:
    ends = {name: message.get(name) for name in ("stop_reason", "stop_sequence")}
    yield {"type": "message_start", "message": {**message, "content": [], **dict.fromkeys(ends)}}
    content = message.get("content")
    if isinstance(content, str):
        content = [{"type": "text", "text": content}]
    for index, block in enumerate(content if isinstance(content, list) else ()):
        whole = _block(block) if isinstance(block, dict) else block
        yield {"type": "content_block_start", "index": index, "content_block": whole}
        yield {"type": "content_block_stop", "index": index}
    yield {"type": "message_delta", "delta": ends, "usage": message.get("usage") or {}}


def beside(chunks: Iterable[ChatChunk], events: Iterable[dict[str, Any]]) -> Iterator[ChatChunk]:
    """Put events beside the chunks that they stand for.

    A chunk without an event of its own gets an empty one: an event before it has told what it says.
    """
    for chunk, event in zip_longest(list(chunks), events):
        told = chunk or ChatChunk()
        choice = told.choices[0] if told.choices else ChunkChoice()
        choice = replace(choice, delta=replace(choice.delta, event=event or {}))
        yield replace(told, choices=(choice, *told.choices[1:]))
