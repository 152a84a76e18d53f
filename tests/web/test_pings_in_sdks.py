"""Pings and early errors as the official SDKs read them."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import anthropic
import httpx
import httpx2  # Of Anthropic's SDK.
import openai
import pytest

from goblin.web.heartbeat import ANTHROPIC, OPENAI, RESPONSES, StreamWords

HELLO: Any = [{"role": "user", "content": "Hi"}]
CHUNK = {"id": "c", "object": "chat.completion.chunk", "created": 1, "model": "m"}
ERROR = json.dumps({"error": {"message": "No.", "type": "insufficient_quota", "param": None, "code": "out"}}).encode()
ANTHROPIC_ERROR = b'{"type":"error","error":{"type":"overloaded_error","message":"No."}}'


def serving(*parts: bytes) -> Callable[[httpx.Request], httpx.Response]:
    head = {"content-type": "text/event-stream; charset=utf-8"}
    return lambda _: httpx.Response(200, content=b"".join(parts), headers=head)


def openai_client(*parts: bytes) -> openai.OpenAI:
    transport = httpx.MockTransport(serving(*parts))
    return openai.OpenAI(
        api_key="k", base_url="http://g/v1", max_retries=0, http_client=httpx.Client(transport=transport)
    )


def chat_chunk(text: str) -> bytes:
    choice = {"index": 0, "delta": {"content": text}, "finish_reason": None}
    return b"data: " + json.dumps({**CHUNK, "choices": [choice]}).encode() + b"\n\n"


def test_openais_sdk_skips_pings_wherever_they_stand() -> None:
    ping = OPENAI.ping
    parts = ping, ping, chat_chunk("Hel"), ping, chat_chunk("lo"), ping, b"data: [DONE]\n\n"
    with openai_client(*parts) as client:
        chunks = list(client.chat.completions.create(model="m", messages=HELLO, stream=True))
    assert [chunk.choices[0].delta.content for chunk in chunks] == ["Hel", "lo"]


@pytest.mark.parametrize("words", [OPENAI, RESPONSES])
def test_openais_sdk_raises_or_tells_an_early_error(words: StreamWords) -> None:
    with openai_client(words.ping, words.error(ERROR)) as client:
        if words is OPENAI:
            with pytest.raises(openai.APIError) as caught:
                list(client.chat.completions.create(model="m", messages=HELLO, stream=True))
            assert (caught.value.code, caught.value.message) == ("out", "No.")
            return
        (event,) = client.responses.create(model="m", input="Hi", stream=True)
        assert event.type == "error"
        assert (event.code, event.message, event.sequence_number) == ("out", "No.", 0)


def test_anthropics_sdk_skips_pings_and_raises_an_early_error() -> None:
    start = {"id": "m", "type": "message", "role": "assistant", "content": [], "model": "m", "stop_reason": None}
    start |= {"stop_sequence": None, "usage": {"input_tokens": 1, "output_tokens": 1}}

    def event(kind: str, **fields: Any) -> bytes:
        return f"event: {kind}\ndata: {json.dumps({'type': kind, **fields})}\n\n".encode()

    ping = ANTHROPIC.ping
    parts = (
        ping, event("message_start", message=start), ping,
        event("content_block_start", index=0, content_block={"type": "text", "text": ""}), ping,
        event("content_block_delta", index=0, delta={"type": "text_delta", "text": "Hello"}), ping,
        event("content_block_stop", index=0),
        event("message_delta", delta={"stop_reason": "end_turn", "stop_sequence": None}, usage={"output_tokens": 1}),
        event("message_stop"),
    )  # fmt: skip

    def client(*parts: bytes) -> anthropic.Anthropic:
        head = {"content-type": "text/event-stream; charset=utf-8"}
        transport = httpx2.MockTransport(lambda _: httpx2.Response(200, content=b"".join(parts), headers=head))
        http = httpx2.Client(transport=transport)
        return anthropic.Anthropic(api_key="k", base_url="http://g", max_retries=0, http_client=http)

    with client(*parts) as good, good.messages.stream(model="m", max_tokens=5, messages=HELLO) as stream:
        assert stream.get_final_text() == "Hello"
    with client(ping, ANTHROPIC.error(ANTHROPIC_ERROR)) as bad, pytest.raises(anthropic.APIStatusError) as caught:
        list(bad.messages.create(model="m", max_tokens=5, messages=HELLO, stream=True))
    assert "No." in str(caught.value)
