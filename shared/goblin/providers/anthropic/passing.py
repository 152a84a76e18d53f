"""Passes Anthropic's own events beside the chunks that they stand for, to a caller that speaks the same wire."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import zip_longest
from typing import Any

from msgspec.structs import replace

from goblin.core import decoding
from goblin.gateway.domain.chat import ChatChunk, ChunkChoice


def own_events(data: bytes) -> list[dict[str, Any]]:
    """Read an event of the stream as it came; a whole message, which some servers send instead, as its events."""
    try:
        said = decoding.parse(data)
    except decoding.UNREADABLE:
        return []  # The reader of the chunks decides whether the answer can do without.
    if not isinstance(said, dict) or not isinstance(said.get("type"), str):
        return []
    return list(_events_of(said)) if said["type"] == "message" else [said]


def _events_of(message: dict[str, Any]) -> Iterator[dict[str, Any]]:
    ends = {name: message.get(name) for name in ("stop_reason", "stop_sequence")}
    yield {"type": "message_start", "message": {**message, "content": [], **dict.fromkeys(ends)}}
    content = message.get("content")
    for index, block in enumerate(content if isinstance(content, list) else ()):
        yield {"type": "content_block_start", "index": index, "content_block": block}
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
