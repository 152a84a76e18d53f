"""Events that are passed on and events of our own in one answer: blocks are whole, indexes have no gap."""

from __future__ import annotations

import json
from collections.abc import AsyncGenerator
from typing import Any

import pytest

from goblin.gateway.domain.chat import ChatChunk, ChunkChoice, Delta, Usage
from goblin.web import anthropic_requests, anthropic_responses

ASKED = anthropic_requests.parse(
    json.dumps({"model": "m", "max_tokens": 9, "messages": [{"role": "user", "content": "Hi"}]}).encode()
)
STARTED = {
    "id": "msg_up",
    "type": "message",
    "role": "assistant",
    "model": "up",
    "content": [],
    "usage": {"input_tokens": 7},
}


def passed(event: dict[str, Any], **delta: Any) -> ChatChunk:
    return ChatChunk(choices=(ChunkChoice(delta=Delta(**delta, event=event)),))


def said(text: str) -> ChatChunk:
    return ChatChunk(id="chatcmpl-x", choices=(ChunkChoice(delta=Delta(content=text)),))


async def events(*chunks: ChatChunk) -> list[dict[str, Any]]:
    async def given() -> AsyncGenerator[ChatChunk, None]:
        for chunk in chunks:
            yield chunk

    found = [event async for event in anthropic_responses.message_events(given(), ASKED)]
    return [json.loads(event.split(b"data: ", 1)[1]) for event in found]


async def test_another_endpoint_goes_on_in_the_open_block() -> None:
    made = await events(
        passed({"type": "message_start", "message": STARTED}),
        passed({"type": "content_block_start", "index": 0, "content_block": {"type": "text", "text": ""}}),
        passed({"type": "content_block_delta", "index": 0, "delta": {"type": "text_delta", "text": "The cap"}}),
        said("ital"),
        ChatChunk(choices=(ChunkChoice(finish_reason="length"),)),
        ChatChunk(usage=Usage(prompt_tokens=7, completion_tokens=3, total_tokens=10)),
    )
    assert [(event["type"], event.get("index")) for event in made] == [
        ("message_start", None),
        ("content_block_start", 0),
        ("content_block_delta", 0),
        ("content_block_delta", 0),
        ("content_block_stop", 0),
        ("message_delta", None),
        ("message_stop", None),
    ]
    assert made[0]["message"] == {**STARTED, "model": "m", "stop_reason": None, "stop_sequence": None}
    assert made[-2]["delta"] == {"stop_reason": "max_tokens", "stop_sequence": None}
    assert made[-2]["usage"]["output_tokens"] == 3


async def test_an_endpoint_of_the_wire_ends_the_answer_in_its_own_words() -> None:
    end = {
        "type": "message_delta",
        "delta": {"stop_reason": "pause_turn", "stop_sequence": None, "new": 1},
        "usage": {"output_tokens": 3},
        "context_management": {"applied_edits": []},
    }
    made = await events(
        passed({"type": "message_start", "message": STARTED}),
        passed({"type": "ping"}),
        passed({"type": "event_of_next_year", "a": 1}),
        passed({"type": "content_block_start", "index": 5, "content_block": {"type": "new", "x": 1}}),
        passed({"type": "content_block_stop", "index": 5}),
        passed(end),
        passed({"type": "message_stop"}),
        ChatChunk(usage=Usage()),
    )
    assert made[1:3] == [{"type": "ping"}, {"type": "event_of_next_year", "a": 1}]
    assert made[3] == {"type": "content_block_start", "index": 0, "content_block": {"type": "new", "x": 1}}
    assert made[4:] == [{"type": "content_block_stop", "index": 0}, end, {"type": "message_stop"}]


@pytest.mark.parametrize("repeated", [True, False])
async def test_a_whole_input_at_the_beginning_of_a_call_is_read(repeated: bool) -> None:
    call = {"type": "tool_use", "id": "t", "name": "Write", "input": {"a": 1}}
    piece = {
        "type": "content_block_delta",
        "index": 0,
        "delta": {"type": "input_json_delta", "partial_json": '{"a":1}'},
    }
    made = await events(
        passed({"type": "message_start", "message": STARTED}),
        passed({"type": "content_block_start", "index": 0, "content_block": call}),
        *([passed(piece)] if repeated else []),
        passed({"type": "content_block_stop", "index": 0}),
        passed({"type": "message_delta", "delta": {"stop_reason": "tool_use"}, "usage": {"output_tokens": 1}}),
    )
    assert made[1]["content_block"] == {**call, "input": {}}
    assert made[2] == piece
    assert [event["type"] for event in made[3:]] == ["content_block_stop", "message_delta", "message_stop"]


async def test_texts_and_thoughts_at_the_beginning_of_a_block_are_read() -> None:
    thought = {"type": "thinking", "thinking": "Hm.", "signature": "s"}
    made = await events(
        passed({"type": "message_start", "message": STARTED}),
        passed({"type": "content_block_start", "index": 0, "content_block": thought}),
        passed({"type": "content_block_stop", "index": 0}),
        passed({"type": "content_block_start", "index": 1, "content_block": {"type": "text", "text": "Yes"}}),
        passed({"type": "content_block_delta", "index": 1, "delta": {"type": "text_delta", "text": "."}}),
        passed({"type": "content_block_stop", "index": 1}),
        passed({"type": "message_delta", "delta": {"stop_reason": "end_turn"}, "usage": {"output_tokens": 1}}),
    )
    assert [event.get("content_block") or event.get("delta") for event in made[1:-2]] == [
        {"type": "thinking", "thinking": "", "signature": ""},
        {"type": "thinking_delta", "thinking": "Hm."},
        {"type": "signature_delta", "signature": "s"},
        None,
        {"type": "text", "text": ""},
        {"type": "text_delta", "text": "Yes"},
        {"type": "text_delta", "text": "."},
        None,
    ]


async def test_what_clients_need_is_there_where_an_endpoint_leaves_it_out() -> None:
    made = await events(
        passed({"type": "content_block_start", "index": 0, "content_block": {"type": "text", "text": ""}}),
        passed({"type": "content_block_stop", "index": 0}),
        passed({"type": "message_delta", "delta": {"stop_reason": "end_turn"}}),
        ChatChunk(usage=Usage(prompt_tokens=7, completion_tokens=3, total_tokens=10)),
    )
    assert [event["type"] for event in made] == [
        "message_start", "ping", "content_block_start", "content_block_stop", "message_delta", "message_stop",
    ]  # fmt: skip
    assert made[-2]["usage"]["output_tokens"] == 3


async def test_an_empty_answer_is_a_message_too() -> None:
    made = await events(ChatChunk(usage=Usage()))
    assert [event["type"] for event in made] == ["message_start", "ping", "message_delta", "message_stop"]
