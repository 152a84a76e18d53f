"""What every provider must do, held against a wire-faithful fake over a real socket.

A new file in `adapters/providers/` is found by itself and fails until its fake stands in `FAKES`.
"""

from __future__ import annotations

import asyncio
import importlib
import json
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import aclosing
from dataclasses import dataclass, replace
from typing import Any

import httpx
import pytest

from goblin import wiring
from goblin.domain import requests
from goblin.domain.chat import ChatChunk, Usage
from goblin.domain.health import Finding
from goblin.domain.models import Capability, Endpoint
from goblin.errors import Fault, InvalidRequest, ProviderUnavailable
from goblin.ports import ChatProvider
from tests.fakes.ollama import FakeOllama
from tests.fakes.openai_like import FakeOpenAI
from tests.fakes.serving import closed_port, serve

FAKES: dict[str, tuple[Callable[[], Any], str]] = {
    "llamacpp": (lambda: FakeOpenAI(owner="llamacpp"), ""),
    "openai": (FakeOpenAI, "/v1"),
    "ollama": (FakeOllama, ""),
}
"""What stands in for each provider, and the path that its URL ends in."""


@dataclass
class Served:
    name: str
    fake: Any
    url: str


@pytest.fixture(scope="module", params=sorted(wiring.provider_names()))
def served(request: pytest.FixtureRequest) -> Iterator[Served]:
    assert request.param in FAKES, f"give adapters/providers/{request.param}.py a fake"
    make, path = FAKES[request.param]
    fake = make()
    with serve(fake.app) as base:
        yield Served(request.param, fake, base + path)


@pytest.fixture
def name(served: Served) -> str:
    return served.name


@pytest.fixture
def fake(served: Served) -> Any:
    """As new for each test."""
    served.fake.__dict__.update(FAKES[served.name][0]().__dict__)
    return served.fake


@pytest.fixture
def url(served: Served) -> str:
    return served.url


@pytest.fixture
async def client() -> AsyncIterator[httpx.AsyncClient]:
    async with httpx.AsyncClient() as client:
        yield client


@pytest.fixture
def provider(name: str, url: str, client: httpx.AsyncClient) -> ChatProvider:
    return wiring.connect(Endpoint(name="under_test", provider=name, url=url, api_key="k"), client)[1]


def chat(**more: Any) -> requests.ChatRequest:
    body = {"model": "tiny", "messages": [{"role": "user", "content": "Hi"}], **more}
    return requests.parse(requests.ChatRequest, _json(body))


def completion(**more: Any) -> requests.CompletionRequest:
    return requests.parse(requests.CompletionRequest, _json({"model": "tiny", "prompt": "Once", **more}))


def _json(body: dict[str, Any]) -> bytes:
    return json.dumps(body).encode()


async def collect(stream: Any, seen: list[ChatChunk] | None = None) -> list[ChatChunk]:
    seen = [] if seen is None else seen
    async with aclosing(stream):
        async for chunk in stream:
            seen.append(chunk)
    return seen


def text(chunks: list[ChatChunk]) -> str:
    return "".join(choice.delta.text for chunk in chunks for choice in chunk.choices)


def usage(chunks: list[ChatChunk]) -> Usage | None:
    told = [chunk.usage for chunk in chunks if isinstance(chunk.usage, Usage)]
    return told[-1] if told else None


async def test_streams_an_answer_with_its_reason_to_finish_and_usage(fake: Any, provider: ChatProvider) -> None:
    chunks = await collect(provider.chat(chat(), model="tiny"))
    assert text(chunks) == "Hello, Wörld 🌍"
    assert [c.finish_reason for chunk in chunks for c in chunk.choices if c.finish_reason] == ["stop"]
    assert usage(chunks) == Usage(prompt_tokens=11, completion_tokens=5, total_tokens=16)
    assert fake.asked[-1]["stream"] is True
    assert fake.asked[-1]["model"] == "tiny"


async def test_nothing_of_ours_goes_upstream(fake: Any, provider: ChatProvider) -> None:
    await collect(provider.chat(chat(goblin={"strategy": "failover"}), model="tiny"))
    assert "goblin" not in fake.asked[-1]


async def test_continues_a_text(provider: ChatProvider) -> None:
    chunks = await collect(provider.complete(completion(), model="tiny"))
    assert text(chunks) == "Hello, Wörld 🌍"
    assert usage(chunks) == Usage(prompt_tokens=11, completion_tokens=5, total_tokens=16)


async def test_embeds_in_the_order_of_the_inputs(provider: ChatProvider) -> None:
    asked = requests.parse(requests.EmbeddingsRequest, _json({"model": "tiny", "input": ["a", "b"]}))
    answer = await provider.embed(asked, model="tiny")
    assert [row.embedding[0] for row in answer.data] == [0.0, 1.0]
    assert answer.usage is not None
    assert answer.usage.prompt_tokens == 6


async def test_usage_may_be_missing(fake: Any, provider: ChatProvider) -> None:
    fake.script = replace(fake.script, usage=False)
    chunks = await collect(provider.chat(chat(), model="tiny"))
    assert text(chunks) == "Hello, Wörld 🌍"
    assert usage(chunks) is None


async def test_a_stream_that_ends_early_is_an_error(fake: Any, provider: ChatProvider) -> None:
    """Also when it ends politely: without a reason to finish an answer is not whole."""
    fake.script = replace(fake.script, finish=None)
    with pytest.raises(ProviderUnavailable) as caught:
        await collect(provider.chat(chat(), model="tiny"))
    assert caught.value.fault is Fault.TRANSIENT


async def test_a_broken_connection_is_an_error_after_the_words_that_came(fake: Any, provider: ChatProvider) -> None:
    fake.script = replace(fake.script, break_after=2)
    seen: list[ChatChunk] = []
    with pytest.raises(ProviderUnavailable):
        await collect(provider.chat(chat(), model="tiny"), seen)
    assert text(seen) == "Hello"


async def test_an_error_in_the_stream_is_an_error(fake: Any, provider: ChatProvider) -> None:
    fake.script = replace(fake.script, error_after=2)
    with pytest.raises(ProviderUnavailable) as caught:
        await collect(provider.chat(chat(), model="tiny"))
    assert caught.value.fault is Fault.TRANSIENT
    assert "CUDA" not in caught.value.message


@pytest.mark.parametrize(
    ("status", "error", "headers", "fault", "wait_s"),
    [
        (429, {"message": "slow down", "code": "rate_limit_exceeded"}, {"Retry-After": "7"}, Fault.RATE, 7.0),
        (429, {"message": "slow down"}, {"retry-after-ms": "250"}, Fault.RATE, 0.25),
        (429, {"message": "slow down"}, {}, Fault.RATE, None),
        (429, {"message": "pay", "code": "insufficient_quota"}, {}, Fault.MONEY, None),
        (402, {"message": "pay"}, {}, Fault.MONEY, None),
        (401, {"message": "bad key sk-secret"}, {}, Fault.AUTH, None),
        (403, {"message": "no"}, {}, Fault.AUTH, None),
        (404, {"message": "no such model"}, {}, Fault.MISSING, None),
        (500, {"message": "oops"}, {}, Fault.TRANSIENT, None),
        (501, {"message": "no", "type": "not_supported_error"}, {}, Fault.UNSUPPORTED, None),
        (503, {"code": 503, "message": "Loading model", "type": "unavailable_error"}, {}, Fault.LOADING, None),
        (503, "server busy, please try again. maximum pending requests exceeded", {}, Fault.CAPACITY, None),
        (502, None, {}, Fault.TRANSIENT, None),
    ],
)
async def test_a_refusal_says_whose_fault_it_is(
    fake: Any, provider: ChatProvider, status: int, error: Any, headers: dict[str, str], fault: Fault, wait_s: float
) -> None:
    fake.script = replace(fake.script, status=status, error={"error": error}, headers=headers)
    with pytest.raises(ProviderUnavailable) as caught:
        await collect(provider.chat(chat(), model="tiny"))
    assert caught.value.fault is fault
    assert caught.value.retry_after_s == wait_s
    assert "secret" not in caught.value.message


@pytest.mark.parametrize("status", [400, 413, 422])
async def test_the_callers_own_mistake_is_told_as_the_provider_put_it(
    fake: Any, provider: ChatProvider, status: int
) -> None:
    error = {"message": "too hot", "type": "invalid_request_error", "param": "temperature", "code": "too_hot"}
    fake.script = replace(fake.script, status=status, error={"error": error})
    with pytest.raises(InvalidRequest) as caught:
        await collect(provider.chat(chat(), model="tiny"))
    assert (caught.value.message, caught.value.param, caught.value.code) == ("too hot", "temperature", "too_hot")


async def test_an_error_page_is_not_an_answer(fake: Any, provider: ChatProvider) -> None:
    fake.script = replace(fake.script, status=200, error="<html>Welcome</html>")
    with pytest.raises(ProviderUnavailable):
        await collect(provider.chat(chat(), model="tiny"))


async def test_closing_the_stream_tells_the_provider_to_stop(fake: Any, provider: ChatProvider) -> None:
    fake.script = replace(fake.script, silent_after=1)
    stream = provider.chat(chat(), model="tiny")
    async with aclosing(stream):
        async for chunk in stream:
            if chunk.starts_answer:
                break
    assert await asyncio.to_thread(fake.left.wait, 5), "the provider still generates"


async def test_nobody_there_is_an_error(name: str, client: httpx.AsyncClient) -> None:
    gone = wiring.connect(Endpoint(name="gone", provider=name, url=closed_port()), client)[1]
    with pytest.raises(ProviderUnavailable, match="gone cannot be reached"):
        await collect(gone.chat(chat(), model="tiny"))
    probe = await gone.probe()
    assert probe.finding is Finding.FAILED
    assert probe.reason == "gone cannot be reached."


async def test_a_dead_kept_connection_is_opened_anew(fake: Any, provider: ChatProvider, url: str, name: str) -> None:
    """llama-server closes connections right after a stream, just when the next request is sent on them."""
    transport = _DiesOnce()
    async with httpx.AsyncClient(transport=transport) as client:
        again = wiring.connect(Endpoint(name="x", provider=name, url=url, api_key="k"), client)[1]
        assert text(await collect(again.chat(chat(), model="tiny"))) == "Hello, Wörld 🌍"
    assert transport.died


class _DiesOnce(httpx.AsyncBaseTransport):
    """The first request finds its connection closed before a byte of the answer."""

    def __init__(self) -> None:
        self.died = False
        self._real = httpx.AsyncHTTPTransport()

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        if not self.died:
            self.died = True
            raise httpx.RemoteProtocolError("Server disconnected without sending a response.")
        return await self._real.handle_async_request(request)

    async def aclose(self) -> None:
        await self._real.aclose()


async def test_a_probe_finds_the_models_and_costs_nothing(fake: Any, provider: ChatProvider) -> None:
    probe = await provider.probe()
    assert probe.finding is Finding.OK
    assert probe.models is not None
    assert "tiny" in probe.models
    assert probe.latency_ms is not None
    assert probe.latency_ms >= 1
    assert not [path for path in fake.paths if path.endswith(("chat", "completions", "generate", "embeddings"))]


async def test_what_it_cannot_do_has_a_reason(name: str) -> None:
    module = importlib.import_module(f"goblin.adapters.providers.{name}")
    assert name == module.NAME
    assert all(isinstance(lack, Capability) and reason for lack, reason in module.UNSUPPORTED.items())
    assert (module.__doc__ or "").count("read 20"), "say what the facts were read in, and when"
