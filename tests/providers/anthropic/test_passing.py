"""Anthropic's events beside the chunks that they stand for."""

from __future__ import annotations

import json
from typing import Any

import httpx
import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from goblin.core.errors import InvalidRequest, ProviderUnavailable
from goblin.gateway.domain.chat import ChatChunk, ChunkChoice, Delta
from goblin.providers.anthropic.inference import EventReader
from goblin.providers.anthropic.passing import Passing, beside, own_events
from goblin.providers.common.http import Upstream
from goblin.providers.common.sse import ServerEvent

MESSAGE = {
    "id": "msg_1",
    "type": "message",
    "role": "assistant",
    "model": "m",
    "content": [{"type": "thinking", "thinking": "Hm.", "signature": "s"}, {"type": "text", "text": "Yes."}],
    "stop_reason": "end_turn",
    "stop_sequence": None,
    "usage": {"input_tokens": 1, "output_tokens": 2},
}


@pytest.mark.parametrize("data", [b"", b"[DONE]", b"null", b"[]", b"{}", b'{"type": 1}', b"\xff"])
def test_what_is_no_event_is_none(data: bytes) -> None:
    assert own_events(data) == []


def test_an_event_stays_as_it_is_and_a_whole_message_becomes_events() -> None:
    event = {"type": "event_of_next_year", "x": [1]}
    assert own_events(json.dumps(event).encode()) == [event]
    start, *blocks, end = own_events(json.dumps(MESSAGE).encode())
    assert start["message"] == {**MESSAGE, "content": [], "stop_reason": None}
    assert [block.get("content_block") for block in blocks] == [
        MESSAGE["content"][0], None, MESSAGE["content"][1], None,  # type: ignore[index]
    ]  # fmt: skip
    assert end == {
        "type": "message_delta",
        "delta": {"stop_reason": "end_turn", "stop_sequence": None},
        "usage": MESSAGE["usage"],
    }


@pytest.mark.parametrize(("chunks", "events"), [(0, 2), (1, 2), (2, 1), (2, 2), (0, 0)])
def test_no_event_and_no_chunk_is_lost(chunks: int, events: int) -> None:
    made = [ChatChunk(choices=(ChunkChoice(delta=Delta(content=str(n)), finish_reason="stop"),)) for n in range(chunks)]
    said: list[dict[str, Any]] = [{"type": str(n)} for n in range(events)]
    found = list(beside(made, said))
    assert [chunk.choices[0].delta.event for chunk in found if chunk.choices[0].delta.event] == said
    assert [chunk.choices[0].delta.content for chunk in found if chunk.choices[0].delta.content] == [
        str(n) for n in range(chunks)
    ]
    assert len(found) == max(chunks, events)


words = st.sampled_from(["text", "thinking", "partial_json", "type", "id", "input", "stop_reason", "signature"])
kinds = st.sampled_from(["text", "tool_use", "text_delta", "thinking_delta", "input_json_delta", "\ud83c", "\udf0d"])
odd = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**40), 2**70) | st.floats(allow_nan=False) | kinds,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(words, inner, max_size=3),
    max_leaves=6,
)
received = st.fixed_dictionaries(
    {},
    optional={
        "type": st.sampled_from(
            ["message_start", "content_block_start", "content_block_delta", "content_block_stop", "message_delta",
             "message_stop", "message", "ping", "", "new"]
        ) | odd,
        **dict.fromkeys(("index", "delta", "content_block", "message", "usage", "content", "error"), odd),
    },
)  # fmt: skip


@given(st.lists(received, max_size=6), st.sampled_from(["message", "content_block_delta", "error"]))
def test_whatever_comes_is_read_or_refused_and_can_be_written(events: list[Any], name: str) -> None:
    reader = EventReader(Upstream("e", "http://host", None, httpx.AsyncClient()), answer_is_tool=False)
    passing = Passing()
    for event in events:
        data = ServerEvent(name, json.dumps(event).encode())
        try:
            chunks = list(passing.beside(reader.feed(data), data))
        except (ProviderUnavailable, InvalidRequest):
            return
        msgspec.json.encode([chunk.choices[0].delta.event for chunk in chunks])
