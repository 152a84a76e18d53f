"""What Groq adds to OpenAI's wire."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Iterator
from typing import Any

import httpx
import pytest

from goblin.core.endpoints import Endpoint
from goblin.core.errors import Fault, ProviderUnavailable
from goblin.gateway.domain import requests
from goblin.gateway.domain.chat import ChatChunk, Usage
from goblin.gateway.ports import ChatProvider
from goblin.wiring import endpoints
from tests.fakes.groq import FakeGroq
from tests.fakes.openai_like import Script
from tests.fakes.serving import serve

FAKE = FakeGroq()


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    with serve(FAKE.app) as base:
        yield base + FAKE.path


@pytest.fixture
def fake() -> FakeGroq:
    FAKE.__dict__.update(FakeGroq().__dict__)
    return FAKE


@pytest.fixture
async def provider(fake: FakeGroq, url: str) -> AsyncIterator[ChatProvider]:
    async with httpx.AsyncClient() as client:
        yield endpoints.connect(Endpoint(name="g", provider="groq", url=url, api_key="k"), client)[1]


async def answer(provider: ChatProvider, **more: Any) -> list[ChatChunk]:
    body = {"model": "tiny", "messages": [{"role": "user", "content": "Hi", "name": "Ann"}], **more}
    asked = requests.parse(requests.ChatRequest, json.dumps(body).encode())
    return [chunk async for chunk in provider.chat(asked, model="tiny")]


async def test_names_of_speakers_are_left_out(fake: FakeGroq, provider: ChatProvider) -> None:
    await answer(provider)
    assert fake.asked[-1]["messages"] == [{"role": "user", "content": "Hi"}]


EVENT = b'data: {"choices":[{"index":0,"delta":{"content":"Hel"},"finish_reason":null}],"x_groq":{"id":"r"}}\n\n'


async def test_usage_is_found_where_groq_puts_it(fake: FakeGroq, provider: ChatProvider) -> None:
    last = {"choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}]}
    told = {"x_groq": {"usage": {"prompt_tokens": 3, "completion_tokens": 1, "total_tokens": 4, "queue_time": 0.1}}}
    fake.script = Script(raw=EVENT + b"data: " + json.dumps(last | told).encode() + b"\n\ndata: [DONE]\n\n")
    chunks = await answer(provider)
    assert [c.usage for c in chunks if isinstance(c.usage, Usage)] == [
        Usage(prompt_tokens=3, completion_tokens=1, total_tokens=4)
    ]


@pytest.mark.parametrize(
    ("error", "fault"),
    [("over capacity", Fault.TRANSIENT), ({"code": "capacity_exceeded", "message": "x"}, Fault.CAPACITY)],
)
async def test_an_error_in_its_own_words(fake: FakeGroq, provider: ChatProvider, error: Any, fault: Fault) -> None:
    said = {"choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}], "x_groq": {"error": error}}
    fake.script = Script(raw=EVENT + b"data: " + json.dumps(said).encode() + b"\n\n")
    with pytest.raises(ProviderUnavailable) as caught:
        await answer(provider)
    assert caught.value.fault is fault


async def test_a_full_flex_tier_is_a_matter_of_capacity(fake: FakeGroq, provider: ChatProvider) -> None:
    fake.full = True
    with pytest.raises(ProviderUnavailable) as caught:
        await answer(provider, service_tier="flex")
    assert caught.value.fault is Fault.CAPACITY


@pytest.mark.parametrize(
    ("headers", "wait_s"),
    [
        ({"retry-after": "2"}, 2.0),
        ({"x-ratelimit-remaining-tokens": "0", "x-ratelimit-reset-tokens": "7.66s"}, 7.66),
        ({"x-ratelimit-remaining-requests": "0", "x-ratelimit-reset-requests": "2m59.56s"}, 179.56),
        ({"x-ratelimit-remaining-requests": "0", "x-ratelimit-reset-requests": "1h0m0s"}, 3600.0),
        ({"x-ratelimit-remaining-requests": "0", "x-ratelimit-reset-requests": "250ms"}, 0.25),
        ({"x-ratelimit-remaining-requests": "0", "x-ratelimit-reset-requests": "soon"}, None),
        ({"x-ratelimit-remaining-requests": "9", "x-ratelimit-reset-requests": "1h0m0s"}, None),
    ],
)
async def test_limits_per_day_and_per_minute(
    fake: FakeGroq, provider: ChatProvider, headers: dict[str, str], wait_s: float | None
) -> None:
    error = {"message": "limit", "type": "tokens", "code": "rate_limit_exceeded"}
    fake.script = Script(status=429, error={"error": error}, headers=headers)
    with pytest.raises(ProviderUnavailable) as caught:
        await answer(provider)
    assert (caught.value.fault, caught.value.retry_after_s) == (Fault.RATE, wait_s)
