"""What upstreams say oddly is read for what it means: the table of odd answers, at the adapter."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Iterable
from typing import Any

import httpx
import pytest

from goblin.core.endpoints import Endpoint
from goblin.core.errors import Fault, GoblinError, InvalidRequest, ProviderUnavailable
from goblin.gateway.domain import requests
from goblin.gateway.domain.chat import ChatChunk
from goblin.gateway.stream_usage import StreamUsage
from goblin.providers.common import http
from goblin.wiring import endpoints
from tests.fakes import odd_answers
from tests.fakes.odd_answers import Odd

TOOLS = [{"type": "function", "function": {"name": name}} for name in ("add", "now")]


class Pieces(httpx.AsyncByteStream):
    def __init__(self, pieces: Iterable[bytes]) -> None:
        self._pieces = pieces

    async def __aiter__(self) -> AsyncIterator[bytes]:
        for piece in self._pieces:
            yield piece


class Answers(httpx.AsyncBaseTransport):
    """Answers every request with one body, in the given pieces."""

    def __init__(self, pieces: Iterable[bytes], content_type: str = "text/event-stream", status: int = 200) -> None:
        self._pieces = pieces
        self._headers = {"content-type": content_type} if content_type else {}
        self._status = status

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        await request.aread()
        return httpx.Response(self._status, headers=self._headers, stream=Pieces(self._pieces))


async def ask(transport: httpx.AsyncBaseTransport, provider: str = "llamacpp", **more: Any) -> list[ChatChunk]:
    body = {"model": "tiny", "messages": [{"role": "user", "content": "Hi"}], "tools": TOOLS, **more}
    asked = requests.parse(requests.ChatRequest, json.dumps(body).encode())
    async with httpx.AsyncClient(transport=transport) as client:
        connected = endpoints.connect(Endpoint(name="e", provider=provider, url="http://host", api_key="k"), client)[1]
        return [chunk async for chunk in connected.chat(asked, model="tiny")]


def meant(chunks: Iterable[ChatChunk]) -> dict[str, Any]:
    """Text, thoughts, calls and reasons of an answer, as a client joins them."""
    text, thoughts, reasons = "", "", []
    calls: dict[int, list[str]] = {}
    for choice in (choice for chunk in chunks for choice in chunk.choices):
        text += choice.delta.content or ""
        thoughts += choice.delta.reasoning_content or choice.delta.reasoning or ""
        reasons += [choice.finish_reason] if choice.finish_reason else []
        assert len({piece.index for piece in choice.delta.tool_calls or ()}) == len(choice.delta.tool_calls or ())
        for piece in choice.delta.tool_calls or ():
            function = piece.function or None
            if piece.index not in calls:
                assert piece.id
                assert piece.type == "function"
                assert function
                assert function.name
                calls[piece.index] = [function.name, ""]
                assert piece.index == len(calls) - 1, "calls begin in their order"
            else:
                assert not piece.id
                assert not (function and function.name)
            calls[piece.index][1] += (function.arguments if function else "") or ""
    return {
        "text": text,
        "thoughts": thoughts,
        "calls": tuple((name, json.loads(arguments)) for name, arguments in calls.values()),
        "reasons": reasons,
    }


def expected(odd: Odd) -> dict[str, Any]:
    return {"text": odd.text, "thoughts": odd.thoughts, "calls": odd.calls, "reasons": [odd.finish]}


def test_the_table_names_each_answer_once() -> None:
    assert len({odd.name for odd in odd_answers.ALL}) == len(odd_answers.ALL) > 150


@pytest.mark.parametrize("odd", odd_answers.ALL, ids=lambda odd: odd.name)
async def test_an_odd_answer_means_what_it_says(odd: Odd) -> None:
    for pieces in ([odd.body], [odd.body[i : i + 1] for i in range(len(odd.body))]):
        chunks = await ask(Answers(pieces, odd.content_type))
        assert meant(chunks) == expected(odd)
        json.dumps([choice.delta.text for chunk in chunks for choice in chunk.choices]).encode()
    counts = StreamUsage()
    for chunk in chunks:
        counts.add(chunk)
    usage, estimated = counts.counted(lambda: 4000)
    told = odd.usage or (None, None)
    assert estimated is (None in told)
    assert (usage.prompt_tokens, told[1] or usage.completion_tokens) == (told[0] or 1000, usage.completion_tokens)
    assert usage.completion_tokens > 0
    assert usage.total_tokens == usage.prompt_tokens + usage.completion_tokens


@pytest.mark.parametrize("reason", odd_answers.BROKEN_REASONS, ids=str)
async def test_a_reason_that_is_an_error_breaks_the_answer(reason: Any) -> None:
    said = odd_answers.sse([*odd_answers.SAID, odd_answers.chunk({}, reason), "[DONE]"])
    with pytest.raises(ProviderUnavailable) as caught:
        await ask(Answers([said]))
    assert caught.value.fault in (Fault.TRANSIENT, Fault.CAPACITY)


async def test_calls_that_were_cut_by_the_limit_are_not_completed() -> None:
    said = [odd_answers.chunk({"tool_calls": [odd_answers.fn('{"a', "add", id="c1", index=0)]}, "length")]
    chunks = await ask(Answers([odd_answers.sse(said)]))
    pieces = [piece for chunk in chunks for choice in chunk.choices for piece in choice.delta.tool_calls or ()]
    assert [piece.function.arguments for piece in pieces if piece.function] == ['{"a']
    assert chunks[-1].choices[0].finish_reason == "length"


async def test_an_older_call_is_read_and_ends_as_one() -> None:
    said = [
        odd_answers.chunk({"function_call": {"name": "add", "arguments": {"a": 1}}}),
        odd_answers.STOP,
    ]
    chunks = await ask(Answers([odd_answers.sse(said)]))
    called = chunks[0].choices[0].delta.function_call
    assert called
    assert (called.name, called.arguments) == ("add", '{"a":1}')
    assert chunks[-1].choices[0].finish_reason == "function_call"


@pytest.mark.parametrize(
    "rest",
    [
        b'data: {"choices":[{"index":0,"delta":{"content":"lo"},"fin',
        b'data: {"choices":[{"index":0,"delta":{"content":"lo"}\n\ndata: [DONE]\n\n',
        b"data: {not json}\n\n" + odd_answers.sse(odd_answers.TAIL),
        b'data: {"choices":[{"in\n\n' + odd_answers.sse(odd_answers.TAIL),
        b'data: {"error": {"message": "boom"}}\n\n' + odd_answers.sse(odd_answers.TAIL),
        b'{"error": "upstream gone"}\n',
        b'data: {"object": "error", "message": "boom", "code": 500}\n\n',
        b"event: error\ndata: it broke\n\n",
        b'data: {"detail": "Internal Server Error"}\n\n',
        b'data: {"code": 500, "message": "oops"}\n\n',
    ],
)  # fmt: skip
async def test_what_was_lost_or_failed_is_never_passed_over(rest: bytes) -> None:
    with pytest.raises(ProviderUnavailable):
        await ask(Answers([odd_answers.sse(odd_answers.SAID[:2]) + rest]))


LIMIT = "context_length_exceeded"
TOO_LONG = "This model's maximum context length is 4096 tokens. However, you requested 5000 tokens."


@pytest.mark.parametrize(
    ("error", "kind", "fault", "code"),
    [
        ({"error": {"message": TOO_LONG, "code": 400}}, InvalidRequest, None, LIMIT),
        ({"error": {"message": "x", "code": LIMIT}}, InvalidRequest, None, LIMIT),
        ({"object": "error", "message": TOO_LONG, "type": "BadRequestError"}, InvalidRequest, None, LIMIT),
        ({"error": TOO_LONG}, InvalidRequest, None, LIMIT),
        ({"detail": TOO_LONG}, InvalidRequest, None, LIMIT),
        ({"error": {"message": "bad", "type": "invalid_request_error"}}, InvalidRequest, None, None),
        ({"error": {"message": "Rate limit exceeded", "code": 429}}, ProviderUnavailable, Fault.RATE, None),
        ({"error": {"message": "x", "type": "overloaded_error"}}, ProviderUnavailable, Fault.CAPACITY, None),
        ({"error": {"message": "x", "code": "insufficient_quota"}}, ProviderUnavailable, Fault.MONEY, None),
        ({"error": {"message": "No auth", "code": 401}}, ProviderUnavailable, Fault.AUTH, None),
        ({"error": {"message": "Provider returned error", "code": 502}}, ProviderUnavailable, Fault.TRANSIENT, None),
        ({"error": "boom"}, ProviderUnavailable, Fault.TRANSIENT, None),
        ([{"error": {"code": 429, "message": "x", "status": "EXHAUSTED"}}], ProviderUnavailable, Fault.RATE, None),
    ],
)  # fmt: skip
@pytest.mark.parametrize("framed", [True, False], ids=["event", "body"])
async def test_an_error_instead_of_an_answer_is_a_refusal(
    error: Any, kind: type[GoblinError], fault: Fault | None, code: str | None, framed: bool
) -> None:
    body = odd_answers.sse([error, "[DONE]"]) if framed else json.dumps(error).encode()
    with pytest.raises(kind) as caught:
        await ask(Answers([body], "text/event-stream" if framed else "application/json"))
    assert getattr(caught.value, "fault", None) is fault
    if kind is InvalidRequest:
        assert caught.value.code == code
    begun = odd_answers.sse(odd_answers.SAID[:2]) + odd_answers.sse([error])
    with pytest.raises(ProviderUnavailable):
        await ask(Answers([begun]))


async def test_a_status_that_means_done_is_no_refusal() -> None:
    assert meant(await ask(Answers([odd_answers.GOOD], status=201)))["text"] == odd_answers.TEXT


class NeverEnds(httpx.AsyncBaseTransport):
    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        import asyncio

        class Body(httpx.AsyncByteStream):
            async def __aiter__(self) -> AsyncIterator[bytes]:
                yield odd_answers.GOOD
                await asyncio.Event().wait()

        return httpx.Response(200, headers={"content-type": "text/event-stream"}, stream=Body())


async def test_a_response_that_is_not_ended_does_not_hold_the_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http, "LINGER_S", 0.01)
    chunks = await ask(NeverEnds())
    assert meant(chunks)["reasons"] == ["stop"]


@pytest.mark.parametrize("name", ["openai", "groq", "llamacpp", "flyio"])
async def test_every_provider_with_openais_wire_reads_alike(name: str) -> None:
    for odd in (*odd_answers.TEXTS[:6], *odd_answers.COUNTS[:3], *odd_answers.CALLS[5:9]):
        assert meant(await ask(Answers([odd.body]), name)) == expected(odd)


@pytest.mark.parametrize("odd", [*odd_answers.TEXTS, *odd_answers.FRAMES], ids=lambda odd: odd.name)
async def test_a_completion_is_read_alike(odd: Odd) -> None:
    asked = requests.parse(requests.CompletionRequest, b'{"model": "tiny", "prompt": "Once"}')
    async with httpx.AsyncClient(transport=Answers([odd.body], odd.content_type)) as client:
        provider = endpoints.connect(Endpoint(name="e", provider="openai", url="http://host/v1"), client)[1]
        chunks = [chunk async for chunk in provider.complete(asked, model="tiny")]
    assert meant(chunks)["text"] == odd.text


VECTORS = [[0.0, 0.5], [1.0, 0.5]]
BASE64 = ["AAAAAAAAAD8=", "AACAPwAAAD8="]


@pytest.mark.parametrize(
    ("answer", "usage"),
    [
        ({"data": [{"index": i, "embedding": v} for i, v in enumerate(VECTORS)], "usage": {"prompt_tokens": 6}}, 6),
        ({"data": [{"index": 1, "embedding": VECTORS[1]}, {"index": 0, "embedding": VECTORS[0]}], "usage": None}, None),
        ({"data": [{"embedding": v} for v in VECTORS], "usage": {}}, None),
        ({"data": [{"index": None, "embedding": [v]} for v in VECTORS], "usage": {"prompt_tokens": "6"}}, 6),
        ({"data": [{"index": "0", "embedding": v} if not i else {"index": 1.0, "embedding": v}
                   for i, v in enumerate(VECTORS)], "object": 7, "model": None, "usage": {"prompt_tokens": -1}}, None),
        ({"data": [{"index": i, "embedding": v} for i, v in enumerate(BASE64)], "usage": {"total_tokens": 0}}, None),
        ([{"index": i, "embedding": v} for i, v in enumerate(VECTORS)], None),
    ],
)  # fmt: skip
async def test_vectors_are_read_alike(answer: Any, usage: int | None) -> None:
    asked = requests.parse(requests.EmbeddingsRequest, b'{"model": "tiny", "input": ["a", "b"]}')
    async with httpx.AsyncClient(transport=Answers([json.dumps(answer).encode()], "application/json")) as client:
        provider = endpoints.connect(Endpoint(name="e", provider="openai", url="http://host/v1"), client)[1]
        found = await provider.embed(asked, model="tiny")
    assert [row.embedding for row in found.data] == VECTORS
    assert (found.usage and found.usage.prompt_tokens) == usage


@pytest.mark.parametrize(
    ("answer", "kind"),
    [
        ({"data": None}, ProviderUnavailable),
        ({"data": [{"index": 0, "embedding": "???"}]}, ProviderUnavailable),
        ({"data": [{"index": 0, "embedding": ["x"]}]}, ProviderUnavailable),
        ({"error": {"message": TOO_LONG, "code": 400}}, InvalidRequest),
        ([], ProviderUnavailable),
        (7, ProviderUnavailable),
    ],
)
async def test_no_vectors_are_an_error(answer: Any, kind: type[GoblinError]) -> None:
    asked = requests.parse(requests.EmbeddingsRequest, b'{"model": "tiny", "input": ["a", "b"]}')
    async with httpx.AsyncClient(transport=Answers([json.dumps(answer).encode()], "application/json")) as client:
        provider = endpoints.connect(Endpoint(name="e", provider="openai", url="http://host/v1"), client)[1]
        with pytest.raises(kind):
            await provider.embed(asked, model="tiny")


@pytest.mark.parametrize(
    ("answer", "models"),
    [
        ({"data": [{"id": "a"}, {"id": "b"}]}, ("a", "b")),
        ({"data": [{"id": "a", "created": None}, {"id": None}, None, {}]}, ("a",)),
        ({"data": None}, ()),
        ({"models": [{"id": "a"}]}, ("a",)),
        ([{"id": "a"}], ("a",)),
        ({"data": ["a"]}, ("a",)),
    ],
)
async def test_a_list_of_models_is_read_alike(answer: Any, models: tuple[str, ...]) -> None:
    async with httpx.AsyncClient(transport=Answers([json.dumps(answer).encode()], "application/json")) as client:
        provider = endpoints.connect(Endpoint(name="e", provider="openai", url="http://host/v1"), client)[1]
        probe = await provider.probe()
    assert probe.models == models
