"""The quirks of servers that copied OpenAI's wire, and what we make of them."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Iterator
from typing import Any

import httpx
import msgspec
import pytest

from goblin.core.endpoints import ORDINARY, Capability, Endpoint
from goblin.core.errors import Broken, Fault, ProviderUnavailable
from goblin.gateway.domain import requests
from goblin.gateway.domain.chat import ChatChunk
from goblin.gateway.domain.endpoint_health import Finding
from goblin.gateway.ports import ChatProvider
from goblin.wiring import endpoints
from tests.fakes.openai_like import FakeOpenAI, Script
from tests.fakes.serving import serve

FAKE = FakeOpenAI()


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    with serve(FAKE.app) as base:
        yield base


@pytest.fixture
def fake() -> FakeOpenAI:
    FAKE.__dict__.update(FakeOpenAI().__dict__)
    return FAKE


@pytest.fixture
async def provider(fake: FakeOpenAI, url: str) -> AsyncIterator[ChatProvider]:
    async with httpx.AsyncClient() as client:
        yield endpoints.connect(Endpoint(name="e", provider="llamacpp", url=url, api_key="k"), client)[1]


async def answer(provider: ChatProvider, **more: Any) -> list[ChatChunk]:
    body = {"model": "tiny", "messages": [{"role": "user", "content": "Hi"}], **more}
    asked = requests.parse(requests.ChatRequest, json.dumps(body).encode())
    return [chunk async for chunk in provider.chat(asked, model="tiny")]


def text(chunks: list[ChatChunk]) -> str:
    return "".join(choice.delta.text for chunk in chunks for choice in chunk.choices)


@pytest.mark.parametrize(
    "script",
    [Script(pings=True), Script(done=False), Script(newline="\r\n"), Script(newline="\r"), Script(usage=False)],
    ids=["comments between events", "no [DONE]", "CRLF", "CR", "no usage"],
)
async def test_a_whole_answer_is_whole_however_it_is_dressed(
    fake: FakeOpenAI, provider: ChatProvider, script: Script
) -> None:
    fake.script = script
    assert text(await answer(provider)) == "Hello, Wörld 🌍"


EVENT = b'data: {"choices":[{"index":0,"delta":{"content":"Hel"},"finish_reason":null}]}\n\n'


@pytest.mark.parametrize(
    "raw",
    [
        b"",
        EVENT + b"data: [DONE]\n\n",
        EVENT + b'data: {"choices":[{"index":0,"delta":{},"finish_reason":"stop"',
        EVENT + b"data: {not json\n\n",
        EVENT + b"data: 7\n\n",
        EVENT + b'event: error\ndata: {"message":"overloaded"}\n\n',
        EVENT + b'data: {"error":{"message":"boom"}}\n\n',
        EVENT
        + b'data: {"choices":[{"index":1,"delta":{"content":"x"},"finish_reason":null}]}\n\n'
        + b'data: {"choices":[{"index":0,"delta":{},"finish_reason":"stop"}]}\n\ndata: [DONE]\n\n',
    ],
    ids=["nothing", "[DONE] without a reason", "truncated event", "no JSON", "no object", "error event",
         "error data", "one of two choices unfinished"],
)  # fmt: skip
async def test_half_an_answer_is_never_taken_for_a_whole_one(
    fake: FakeOpenAI, provider: ChatProvider, raw: bytes
) -> None:
    fake.script = Script(raw=raw)
    with pytest.raises(ProviderUnavailable):
        await answer(provider)


async def test_the_word_error_in_an_answer_is_not_an_error(fake: FakeOpenAI, provider: ChatProvider) -> None:
    fake.script = Script(words=['{"error": "no"}', ' and "error" again'])
    assert text(await answer(provider)) == '{"error": "no"} and "error" again'


async def test_a_page_instead_of_a_stream_is_refused(fake: FakeOpenAI, provider: ChatProvider) -> None:
    fake.script = Script(content_type="text/html", raw=b"<html><title>Welcome</title>data: {}</html>\n\n")
    with pytest.raises(ProviderUnavailable):
        await answer(provider)


async def test_tool_calls_refusals_reasoning_and_probabilities_pass_unchanged(
    fake: FakeOpenAI, provider: ChatProvider
) -> None:
    fake.script = Script(
        deltas=[
            {"reasoning_content": "hm"},
            {"tool_calls": [{"index": 0, "id": "c1", "type": "function", "function": {"name": "f", "arguments": ""}}]},
            {"tool_calls": [{"index": 0, "function": {"arguments": '{"a":1}'}}]},
            {"refusal": "no"},
        ],
        finish="tool_calls",
    )
    chunks = await answer(provider)
    deltas = [json.loads(_encoded(c.delta)) for chunk in chunks for c in chunk.choices]
    assert deltas[1:5] == fake.script.deltas


def _encoded(value: Any) -> bytes:
    return msgspec.json.encode(value)


async def test_asks_for_usage_and_keeps_the_callers_other_wishes(fake: FakeOpenAI, provider: ChatProvider) -> None:
    await answer(provider, stream_options={"include_obfuscation": False}, temperature=0.5, made_up=[1, {"x": 2}])
    asked = fake.asked[-1]
    assert asked["stream_options"] == {"include_obfuscation": False, "include_usage": True}
    assert asked["temperature"] == 0.5
    assert asked["made_up"] == [1, {"x": 2}]


async def test_a_loading_server_says_so(fake: FakeOpenAI, provider: ChatProvider) -> None:
    fake.loading = True
    probe = await provider.probe()
    assert probe.finding is Finding.LOADING
    assert probe.models is None


async def test_a_refused_key_is_found_by_the_probe(fake: FakeOpenAI, provider: ChatProvider) -> None:
    fake.api_key = "another"
    probe = await provider.probe()
    assert probe.finding is Finding.REFUSED
    assert "k" not in probe.reason.split()


class _Sent(httpx.AsyncBaseTransport):
    """Keeps the body of a request and answers that there is no money."""

    body: dict[str, Any]

    def __init__(self, code: str) -> None:
        self._code = code

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        self.body = json.loads(await request.aread())
        return httpx.Response(429, json={"error": {"message": "pay", "type": "requests", "code": self._code}})


@pytest.mark.parametrize(
    ("url", "options", "names"),
    [
        ("https://api.openai.com/v1", {}, {"max_completion_tokens"}),
        ("https://api.openai.com/v1", {"limit": "max_tokens"}, {"max_tokens"}),
        ("https://copy.example/v1", {}, {"max_tokens"}),
        ("https://copy.example/v1", {"limit": "max_completion_tokens"}, {"max_completion_tokens"}),
    ],
)
@pytest.mark.parametrize(
    "code",
    [
        "insufficient_quota",
        "credit_balance_exhausted",
        "organization_usage_limit_exceeded",
        "organization_spend_limit_exceeded",
        "project_spend_limit_exceeded",
    ],
)
async def test_openai_is_sent_the_new_limit_and_its_429_about_money_is_about_money(
    url: str, options: dict[str, str], names: set[str], code: str
) -> None:
    transport = _Sent(code)
    async with httpx.AsyncClient(transport=transport) as client:
        provider = endpoints.connect(Endpoint(name="o", provider="openai", url=url, options=options), client)[1]
        with pytest.raises(ProviderUnavailable) as caught:
            await answer(provider, max_tokens=5)
    assert caught.value.fault is Fault.MONEY
    assert {name for name in ("max_tokens", "max_completion_tokens") if name in transport.body} == names
    assert transport.body["stream_options"] == {"include_usage": True}


async def test_an_unknown_name_for_the_limit_is_refused_at_the_start() -> None:
    async with httpx.AsyncClient() as client:
        with pytest.raises(Broken, match="limit"):
            endpoints.connect(Endpoint(name="o", provider="openai", url="http://x", options={"limit": "n"}), client)


BEGUN = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hel"}]


@pytest.mark.parametrize(
    ("kind", "prefills", "messages", "is_told"),
    [
        ("openai", True, BEGUN, True),
        ("openai", True, BEGUN[:1], False),
        ("openai", False, BEGUN, False),
        ("llamacpp", True, BEGUN, False),  # It continues by itself.
    ],
)
async def test_who_must_be_told_to_continue_a_message_is_told(
    fake: FakeOpenAI, url: str, kind: str, prefills: bool, messages: list[dict[str, str]], is_told: bool
) -> None:
    able = ORDINARY | ({Capability.PREFILL} if prefills else set())
    at = url if kind == "llamacpp" else f"{url}/v1"
    async with httpx.AsyncClient() as client:
        provider = endpoints.connect(Endpoint(name="e", provider=kind, url=at, api_key="k", capabilities=able), client)[
            1
        ]
        await answer(provider, messages=messages)
    sent = {key: fake.asked[-1].get(key) for key in ("continue_final_message", "add_generation_prompt")}
    wanted = (True, False) if is_told else (None, None)
    assert tuple(sent.values()) == wanted


async def test_a_server_that_goes_away_has_not_finished_whatever_it_says(
    fake: FakeOpenAI, provider: ChatProvider
) -> None:
    fake.script = Script(
        raw=b'data: {"choices": [{"index": 0, "delta": {"content": "Hel"}}]}\n\n'
        b'data: {"choices": [{"index": 0, "delta": {}, "finish_reason": "length"}], "cut_short": "shutting_down"}\n\n'
        b"data: [DONE]\n\n"
    )
    with pytest.raises(ProviderUnavailable, match="shutting down"):
        await answer(provider)
