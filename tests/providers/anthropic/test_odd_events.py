"""Events of Anthropic's wire as other servers write them, each with what it means."""

from __future__ import annotations

import json
from collections.abc import AsyncGenerator
from typing import Any

import httpx
import msgspec
import pytest

from goblin.core.endpoints import Endpoint
from goblin.core.errors import Fault, InvalidRequest, ProviderUnavailable
from goblin.gateway.domain import requests
from goblin.gateway.domain.chat import ChatChunk, Usage
from goblin.gateway.stream_usage import TOOL_CALLS_MAX
from goblin.providers.anthropic.passing import own_events
from goblin.web.anthropic_responses import message_events, whole_message
from goblin.wiring import endpoints
from tests.providers.common.test_odd_answers import Answers, ask, meant

START: dict[str, Any] = {"type": "message_start", "message": {"usage": {"input_tokens": 11, "output_tokens": 1}}}
TEXT = {"type": "content_block_start", "index": 0, "content_block": {"type": "text", "text": ""}}
END: list[dict[str, Any]] = [
    {"type": "message_delta", "delta": {"stop_reason": "end_turn"}, "usage": {"output_tokens": 5}},
    {"type": "message_stop"},
]
CALLS = (("add", {"a": 1}),)


def said(text: Any, index: Any = 0, **more: Any) -> dict[str, Any]:
    delta = {"type": "text_delta", "text": text}
    return {"type": "content_block_delta", "index": index, "delta": delta, **more}


def tool(given: Any, call_id: Any = "c1", index: int = 0) -> dict[str, Any]:
    block = {"type": "tool_use", "id": call_id, "name": "add", "input": given}
    return {"type": "content_block_start", "index": index, "content_block": block}


def written(json_text: Any, index: int = 0) -> dict[str, Any]:
    delta = {"type": "input_json_delta", "partial_json": json_text}
    return {"type": "content_block_delta", "index": index, "delta": delta}


STOP = {"type": "content_block_stop", "index": 0}


def sse(events: list[Any], *, named: bool = True) -> bytes:
    names = (f"event: {event['type']}\n" if named else "" for event in events)
    return "".join(f"{name}data: {json.dumps(event)}\n\n" for name, event in zip(names, events, strict=True)).encode()


def typeless(event: dict[str, Any]) -> bytes:
    """The type stands beside the data only."""
    rest = {key: value for key, value in event.items() if key != "type"}
    return f"event:{event['type']}\ndata:{json.dumps(rest)}\n\n".encode()


async def answer(body: bytes, content_type: str = "text/event-stream") -> list[ChatChunk]:
    return await ask(Answers([body], content_type), "anthropic")


def usage(chunks: list[ChatChunk]) -> Usage | None:
    return next((chunk.usage for chunk in reversed(chunks) if isinstance(chunk.usage, Usage)), None)


@pytest.mark.parametrize(
    "events",
    [
        [tool({"a": 1}), STOP],
        [tool({"a": 1})],
        [tool('{"a": 1}'), STOP],
        [tool({}), written('{"a"'), written(": 1}"), STOP],
        [tool({"a": 1}), written(""), STOP],
        [tool({"a": 1}), written('{"a": 1}'), STOP],
        [tool(None), written({"a": 1}), STOP],
        [tool({}), written('{"a": 1}', index=7), STOP],
        [tool({}), {**written('{"a": 1}'), "index": None}, STOP],
        [tool({"a": 1}, call_id=None), STOP],
        [tool({"a": 1}, call_id=17), STOP],
    ],
)
async def test_a_call_has_its_arguments_wherever_they_are(events: list[Any]) -> None:
    chunks = await answer(sse([START, *events, *END]))
    assert meant(chunks) == {"text": "", "thoughts": "", "calls": CALLS, "reasons": ["tool_calls"]}


async def test_two_calls_under_one_index_are_two() -> None:
    events = [tool({"a": 1}), tool({"b": 2}, "c2"), STOP]
    assert meant(await answer(sse([START, *events, *END])))["calls"] == (*CALLS, ("add", {"b": 2}))


ANSWERS = [
    sse([START, TEXT, said("Hello"), STOP, *END], named=False),
    sse([said("Hel"), said("lo"), *END]),
    sse([START, said("Hello", index="0"), *END]),
    sse([START, {**TEXT, "content_block": {"type": "text", "text": "Hel"}}, said("lo"), *END]),
    sse([START, {**TEXT, "content_block": None}, said("Hello"), *END]),
    sse([START, {**TEXT, "content_block": {"type": "text", "text": None}}, said("Hello"), *END]),
    sse([START, said([{"type": "text", "text": "Hello"}]), *END]),
    sse([{**START, "message": None}, said("Hello"), *END]),
    sse([{**START, "message": {"usage": []}}, said("Hello"), *END]),
    sse([START, {"type": "new", "delta": 7, "index": {}}, said("Hello"), *END]),
    sse([START, {"type": "content_block_delta", "index": 0, "delta": {"text": "Hello"}}, *END]),
    sse([START, said("Hello"), {"type": "message_delta", "delta": None}, {"type": "message_stop"}]),
    sse([START, said("Hello"), {"type": "message_stop"}]),
    sse([START, said("Hello"), END[0]]),
    sse([START, said("Hello"), {"type": "message_delta", "stop_reason": "end_turn", "delta": {}}]),
    sse([START, said("Hello"), *END, {"type": "error", "error": {"type": "api_error"}}]),
    b": hi\r\n\r\n" + sse([START, said("Hello"), *END]).replace(b"\n", b"\r\n"),
    b"".join(typeless(event) for event in [START, said("Hello"), *END]),
    sse([START, said("Hel")]) + b"data: null\n\ndata:\n\n" + sse([said("lo"), *END]),
]  # fmt: skip
"""Bodies that all say `Hello`."""


@pytest.mark.parametrize("body", ANSWERS)
async def test_an_answer_means_what_it_says(body: bytes) -> None:
    got = meant(await answer(body))
    assert got == {"text": "Hello", "thoughts": "", "calls": (), "reasons": ["stop"]}


async def test_halves_of_characters_are_joined() -> None:
    body = sse([START, said("\ud83c"), said("\udf0d"), said("\ud83c"), *END])
    assert meant(await answer(body))["text"] == "🌍\ufffd"


@pytest.mark.parametrize("content_type", ["application/json", "text/event-stream", ""])
async def test_a_whole_message_is_an_answer(content_type: str) -> None:
    content = [
        {"type": "thinking", "thinking": "Hm.", "signature": "x"},
        {"type": "text", "text": "Hello"},
        {"type": "tool_use", "id": "c1", "name": "add", "input": {"a": 1}},
    ]
    counts = {"input_tokens": 11, "output_tokens": 5}
    message = {"type": "message", "content": content, "stop_reason": "tool_use", "usage": counts}
    chunks = await answer(json.dumps(message).encode(), content_type)
    assert meant(chunks) == {"text": "Hello", "thoughts": "Hm.", "calls": CALLS, "reasons": ["tool_calls"]}
    assert usage(chunks) == Usage(prompt_tokens=11, completion_tokens=5, total_tokens=16)
    plain = json.dumps({**message, "content": "Hello", "stop_reason": None}).encode()
    assert meant(await answer(plain))["text"] == "Hello"


@pytest.mark.parametrize(
    ("start", "end", "counts"),
    [
        ({"input_tokens": 11, "output_tokens": 1}, {"output_tokens": 5}, (11, 5)),
        ({"input_tokens": 0, "output_tokens": 0}, {"input_tokens": 11, "output_tokens": 5}, (11, 5)),
        ({"input_tokens": 11}, {"input_tokens": 0, "output_tokens": 5}, (11, 5)),
        ({"input_tokens": "11"}, {"output_tokens": 5.0}, (11, 5)),
        ({"input_tokens": 3, "cache_read_input_tokens": 8}, {"output_tokens": 5}, (11, 5)),
        ({"input_tokens": 11, "output_tokens": 1}, None, (11, 0)),
        ({"input_tokens": 11, "cache_read_input_tokens": "x"}, {"output_tokens": 5, "server_tool_use": 7}, (11, 5)),
        (None, {"output_tokens": 5}, (0, 5)),
        ({}, {}, None),
        ({"input_tokens": -1}, {"output_tokens": 10**30}, None),
        ("x", [], None),
    ],
)
async def test_counts_are_read_where_there_are_some(start: Any, end: Any, counts: tuple[int, int] | None) -> None:
    events = [{**START, "message": {"usage": start}}, said("Hello"), {**END[0], "usage": end}, END[1]]
    found = usage(await answer(sse(events)))
    assert (found and (found.prompt_tokens, found.completion_tokens)) == counts


@pytest.mark.parametrize(
    ("error", "kind", "fault"),
    [
        (
            {"type": "invalid_request_error", "message": "prompt is too long: 9 tokens > 8 maximum"},
            InvalidRequest,
            None,
        ),
        ({"type": "overloaded_error", "message": "Overloaded"}, ProviderUnavailable, Fault.CAPACITY),
        ({"type": "authentication_error", "message": "x"}, ProviderUnavailable, Fault.AUTH),
        ("boom", ProviderUnavailable, Fault.TRANSIENT),
    ],
)
async def test_an_error_before_and_after_the_first_word(error: Any, kind: type[Exception], fault: Fault | None) -> None:
    with pytest.raises(kind) as caught:
        await answer(sse([START, {"type": "error", "error": error}]))
    assert getattr(caught.value, "fault", None) is fault
    with pytest.raises(ProviderUnavailable):
        await answer(sse([START, said("Hel"), {"type": "error", "error": error}]))


@pytest.mark.parametrize("rest", [[], [{"type": "message_delta", "delta": {"stop_reason": "error"}}], [{"type": "x"}]])
async def test_half_an_answer_is_not_whole(rest: list[Any]) -> None:
    with pytest.raises(ProviderUnavailable):
        await answer(sse([START, said("Hel"), *rest]))
    with pytest.raises(ProviderUnavailable):
        await answer(sse([START, said("Hel")]) + b"data: {oh\n\n" + sse(END))


async def native(body: bytes, content_type: str = "text/event-stream") -> dict[str, Any]:
    """What a caller of Anthropic's wire gets, whose request and answer are passed through."""
    asked = requests.parse(requests.ChatRequest, b'{"model":"m","messages":[{"role":"user","content":"Hi"}]}')
    original = requests.Original(
        provider="anthropic", body={"messages": [{"role": "user", "content": "Hi"}], "max_tokens": 9}
    )
    asked = msgspec.structs.replace(asked, original=original, max_tokens=9)
    endpoint = Endpoint(name="e", provider="anthropic", url="http://host", api_key="k")
    async with httpx.AsyncClient(transport=Answers([body], content_type)) as client:
        chunks = [chunk async for chunk in endpoints.connect(endpoint, client)[1].chat(asked, model="m")]
    assert all(choice.delta.event is not msgspec.UNSET for chunk in chunks for choice in chunk.choices)

    async def again() -> AsyncGenerator[ChatChunk, None]:
        for chunk in chunks:
            yield chunk

    events = [
        json.loads(line[6:]) async for event in message_events(again(), asked) for line in event.splitlines()[1:2]
    ]
    kinds = [event["type"] for event in events if event["type"] != "ping"]
    assert kinds[0] == "message_start"
    assert kinds[-2:] == ["message_delta", "message_stop"]
    assert kinds.count("content_block_start") == kinds.count("content_block_stop")
    whole: dict[str, Any] = json.loads(await whole_message(again(), asked))
    return whole


@pytest.mark.parametrize("body", ANSWERS)
async def test_a_caller_of_the_same_wire_gets_the_same_answer(body: bytes) -> None:
    whole = await native(body)
    assert "".join(block["text"] for block in whole["content"]) == "Hello"
    assert (whole["role"], whole["stop_reason"]) == ("assistant", "end_turn")


async def test_a_caller_of_the_same_wire_gets_whole_characters_and_calls() -> None:
    body = sse([START, TEXT, said("\ud83c"), said("\udf0d"), said("\ud83c"), STOP, *END])
    assert (await native(body))["content"] == [{"type": "text", "text": "🌍\ufffd"}]
    invalid = sse([START, TEXT, said("Wx"), STOP, *END]).replace(b"Wx", b"W\xc3")
    assert (await native(invalid))["content"] == [{"type": "text", "text": "W\ufffd"}]
    for events in ([tool({}), written({"a": 1}), STOP], [tool(None), written('{"a": 1}', index=7), STOP]):
        (call,) = (await native(sse([START, *events, *END])))["content"]
        assert (call["id"], call["name"], call["input"]) == ("c1", "add", {"a": 1})
    (call,) = (await native(sse([START, tool({"a": 1}, call_id=None), STOP, *END])))["content"]
    assert call["id"]


async def test_a_well_formed_event_is_passed_as_it_came() -> None:
    start = {"type": "message_start", "message": {"id": "msg_1", "type": "message", "role": "assistant", "content": [],
             "model": "m", "stop_reason": None, "stop_sequence": None, "usage": {"input_tokens": 1, "extra": [1]}},
             "future": 1}  # fmt: skip
    events = [start, {**TEXT, "new": {}}, said("Hello", more=None), {"type": "event_of_next_year", "x": [None]}, STOP]
    assert [one for event in events for one in own_events(json.dumps(event).encode())] == events


async def test_caches_and_searches_are_counted() -> None:
    news = {"output_tokens": 5, "server_tool_use": {"web_search_requests": 2, "x_requests": "many"}}
    started = {"input_tokens": 3, "cache_read_input_tokens": 4, "cache_creation_input_tokens": 4,
               "cache_creation": {"ephemeral_1h_input_tokens": 4, "ephemeral_5m_input_tokens": 0}}  # fmt: skip
    body = sse([{**START, "message": {"usage": started}}, said("Hello"), {**END[0], "usage": news}, END[1]])
    found = usage(await answer(body))
    assert found is not None
    assert (found.prompt_tokens, found.completion_tokens) == (11, 5)
    assert found.prompt_tokens_details == {
        "cached_tokens": 4, "cache_creation_tokens": 4, "cache_creation_1h_tokens": 4, "web_search_requests": 2,
    }  # fmt: skip


async def test_calls_without_end_end() -> None:
    body = sse([START, *(tool({}, f"c{number}", number) for number in range(TOOL_CALLS_MAX + 1)), *END])
    with pytest.raises(ProviderUnavailable, match="more tool calls"):
        await answer(body)


async def test_a_caller_of_the_same_wire_gets_counts_where_the_endpoint_has_none() -> None:
    body = sse([{**START, "message": {}}, TEXT, said("Hello"), STOP, {**END[0], "usage": None}, END[1]])
    counts = (await native(body))["usage"]
    assert {"input_tokens", "output_tokens"} <= counts.keys()
