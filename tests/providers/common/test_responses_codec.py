"""Events of the Responses wire as servers write them: what they mean, and errors before and after the first word."""

from __future__ import annotations

import json
from typing import Any

import httpx
import msgspec
import pytest

from goblin.core.errors import Fault, InvalidRequest, ProviderUnavailable
from goblin.gateway.domain import requests
from goblin.gateway.domain.chat import ChatChunk
from goblin.providers.common.http import Upstream
from goblin.providers.common.responses_codec import ResponsesCodec
from tests.providers.common.test_odd_answers import Answers, meant

CREATED = {"type": "response.created", "response": {"id": "r", "error": None}}
END = {"type": "response.completed", "response": {"id": "r", "error": None, "usage": {}}}


def said(text: str) -> dict[str, Any]:
    return {"type": "response.output_text.delta", "delta": text, "output_index": 0}


def sse(*events: Any) -> bytes:
    return b"".join(b"data: " + json.dumps(event).encode() + b"\n\n" for event in events)


async def answer(body: bytes) -> list[ChatChunk]:
    asked = requests.parse(requests.ChatRequest, b'{"model":"m","messages":[{"role":"user","content":"Hi"}]}')
    asked = msgspec.structs.replace(asked, responses={"input": "Hi"})
    async with httpx.AsyncClient(transport=Answers([body[:37], body[37:]])) as client:
        codec = ResponsesCodec(Upstream("e", "http://host", None, client))
        return [chunk async for chunk in codec.respond(asked, model="m")]


@pytest.mark.parametrize(
    "body",
    [
        sse(CREATED, said("Hello"), END),
        sse(CREATED, said("Hello"), END).rstrip(),
        sse(CREATED, said("Hello"), END).replace(b"\n", b"\r\n"),
        b"data: ping\n\ndata:\n\ndata: null\n\n" + sse(said("Hel"), [], said("lo"), END) + b"data: [DONE]\n\n",
        b"event: response.output_text.delta\n" + sse({"delta": "Hello"}) + sse(END),
        sse(said("Hello"), END).replace(b'"output_index": 0', b'"output_index": "x"'),
    ],
)
async def test_an_answer_means_what_it_says(body: bytes) -> None:
    got = meant(await answer(body))
    assert got == {"text": "Hello", "thoughts": "", "calls": (), "reasons": ["stop"]}


async def test_an_event_can_be_written_again() -> None:
    chunks = await answer(sse(CREATED, said("\ud83c"), END))
    json.dumps([choice.delta.event for chunk in chunks for choice in chunk.choices], ensure_ascii=False).encode()


@pytest.mark.parametrize(
    ("error", "kind", "fault"),
    [
        ({"code": "context_length_exceeded", "message": "Too long."}, InvalidRequest, None),
        ({"code": "rate_limit_exceeded", "message": "Slow."}, ProviderUnavailable, Fault.RATE),
        ({"code": "server_error", "message": "x"}, ProviderUnavailable, Fault.TRANSIENT),
        ({"code": "insufficient_quota", "message": "x"}, ProviderUnavailable, Fault.MONEY),
    ],
)
async def test_an_error_before_and_after_the_first_word(error: Any, kind: type[Exception], fault: Fault | None) -> None:
    for event in (
        {"type": "response.failed", "response": {"id": "r", "error": error}},
        {"type": "error", **error},
        {"type": "error", "error": error},
        {"error": error},
    ):
        with pytest.raises(kind) as caught:
            await answer(sse(CREATED, event))
        assert getattr(caught.value, "fault", None) is fault
        with pytest.raises(ProviderUnavailable):
            await answer(sse(CREATED, said("Hel"), event))


@pytest.mark.parametrize("rest", [b"", b"data: {oh\n\n", b'data: {"type": "resp', sse({"type": "new"})])
async def test_half_an_answer_is_not_whole(rest: bytes) -> None:
    with pytest.raises(ProviderUnavailable):
        await answer(sse(CREATED, said("Hel")) + rest)
