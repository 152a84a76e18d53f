"""What every provider must do, held against a wire-faithful fake over a real socket.

A new `providers/NAME/inference.py` is found by itself and fails until its fake stands in `FAKES`; one that speaks in
several ways stands there as often, as `name:way`.
"""

from __future__ import annotations

import asyncio
import importlib
import json
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from contextlib import aclosing
from dataclasses import dataclass, field, replace
from typing import Any

import httpx
import pytest

from goblin.core.endpoints import Capability, Endpoint
from goblin.core.errors import Fault, InvalidRequest, ProviderUnavailable
from goblin.gateway.domain import requests
from goblin.gateway.domain.chat import ChatChunk, Usage
from goblin.gateway.domain.endpoint_health import Finding
from goblin.gateway.ports import ChatProvider
from goblin.wiring import endpoints
from tests.fakes.anthropic import FakeAnthropic
from tests.fakes.flyio import FakeFly
from tests.fakes.groq import FakeGroq
from tests.fakes.ollama import FakeOllama
from tests.fakes.openai_like import Call, FakeOpenAI
from tests.fakes.runpod import FakeRunPod
from tests.fakes.serving import closed_port, serve
from tests.fakes.vastai import FakeVast

LIMITS = ("max_tokens", "max_completion_tokens")


@dataclass(frozen=True, kw_only=True)
class Stand:
    """The fake that stands in for a provider, and what it expects."""

    make: Callable[[], Any]
    path: str = ""
    """What the endpoint's URL ends in."""
    endpoint: Callable[[str], Mapping[str, Any]] = field(default=lambda base: {})
    """More about the endpoint, given where the fake is served."""
    limits: Mapping[str, tuple[str, ...]] = field(default_factory=lambda: dict.fromkeys(LIMITS, ("max_tokens",)))
    """Under which names the vendor gets the caller's `max_tokens`, and `max_completion_tokens`."""


FAKES = {
    "anthropic": Stand(make=FakeAnthropic),
    "flyio": Stand(make=lambda: FakeOpenAI(owner="llamacpp")),
    "flyio:machines": Stand(
        make=FakeFly,
        endpoint=lambda base: {"account_key": "FlyV1 t", "options": {"app": "chat", "api": f"{base}/machines/v1"}},
    ),
    "groq": Stand(make=FakeGroq, path="/openai/v1", limits=dict.fromkeys(LIMITS, ("max_completion_tokens",))),
    "llamacpp": Stand(make=lambda: FakeOpenAI(owner="llamacpp")),
    "ollama": Stand(make=FakeOllama, limits=dict.fromkeys(LIMITS, ())),
    "openai": Stand(make=FakeOpenAI, path="/v1", limits={name: (name,) for name in LIMITS}),
    "runpod": Stand(make=FakeRunPod, path="/v2/ep1", endpoint=lambda base: {"models": ("tiny",)}),
    "runpod:queue": Stand(
        make=FakeRunPod, path="/v2/ep1", endpoint=lambda base: {"models": ("tiny",), "options": {"route": "queue"}}
    ),
    "runpod:plain": Stand(
        make=lambda: FakeRunPod(shape="chunks"),
        path="/v2/ep1",
        endpoint=lambda base: {"models": ("tiny",), "options": {"route": "queue", "worker": "plain"}},
    ),
    "runpod:balancer": Stand(
        make=FakeRunPod,
        endpoint=lambda base: {
            "models": ("tiny",),
            "options": {"route": "balancer", "endpoint_id": "ep1", "api": f"{base}/management/v2"},
        },
    ),
    "vastai": Stand(make=FakeVast, endpoint=lambda base: {"account_key": "vast-account", "options": {"label": "chat"}}),
}


@dataclass
class Served:
    name: str
    """The provider's."""
    stand: Stand
    fake: Any
    base: str

    @property
    def url(self) -> str:
        return self.base + self.stand.path

    def endpoint(self, name: str, url: str) -> Endpoint:
        more = {"api_key": "k", "models": None, **self.stand.endpoint(self.base)}
        return Endpoint(name=name, provider=self.name, url=url, **more)


@pytest.fixture(scope="module", params=sorted({*FAKES, *endpoints.provider_names()}))
def served(request: pytest.FixtureRequest) -> Iterator[Served]:
    assert request.param in FAKES, f"give providers/{request.param}/inference.py a fake"
    stand = FAKES[request.param]
    fake = stand.make()
    with serve(fake.app) as base:
        yield Served(request.param.partition(":")[0], stand, fake, base)


@pytest.fixture
def name(served: Served) -> str:
    return served.name


@pytest.fixture
def fake(served: Served) -> Any:
    """As new for each test."""
    served.fake.__dict__.update(served.stand.make().__dict__)
    return served.fake


@pytest.fixture
def lacks(name: str) -> Mapping[Capability, str]:
    found: Mapping[Capability, str] = importlib.import_module(f"goblin.providers.{name}.inference").UNSUPPORTED
    return found


@pytest.fixture
async def client() -> AsyncIterator[httpx.AsyncClient]:
    async with httpx.AsyncClient() as client:
        yield client


@pytest.fixture
def provider(served: Served, client: httpx.AsyncClient) -> ChatProvider:
    return endpoints.connect(served.endpoint("under_test", served.url), client)[1]


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


@pytest.mark.parametrize("said", [{"max_tokens": 7}, {"max_completion_tokens": 7}])
async def test_a_limit_arrives_under_one_name_that_is_known_there(
    fake: Any, served: Served, provider: ChatProvider, said: dict[str, int]
) -> None:
    await collect(provider.chat(chat(**said), model="tiny"))
    sent = fake.asked[-1]
    assert tuple(key for key in LIMITS if key in sent) == served.stand.limits[next(iter(said))]
    assert 7 in [*sent.values(), *sent.get("options", {}).values()]


async def test_continues_a_text(provider: ChatProvider, lacks: Mapping[Capability, str]) -> None:
    if Capability.COMPLETIONS in lacks:
        with pytest.raises(ProviderUnavailable, match=lacks[Capability.COMPLETIONS]) as caught:
            await collect(provider.complete(completion(), model="tiny"))
        assert caught.value.fault is Fault.UNSUPPORTED
        return
    chunks = await collect(provider.complete(completion(), model="tiny"))
    assert text(chunks) == "Hello, Wörld 🌍"
    assert usage(chunks) == Usage(prompt_tokens=11, completion_tokens=5, total_tokens=16)


async def test_embeds_in_the_order_of_the_inputs(provider: ChatProvider, lacks: Mapping[Capability, str]) -> None:
    asked = requests.parse(requests.EmbeddingsRequest, _json({"model": "tiny", "input": ["a", "b"]}))
    if Capability.EMBEDDINGS in lacks:
        with pytest.raises(ProviderUnavailable, match=lacks[Capability.EMBEDDINGS]) as caught:
            await provider.embed(asked, model="tiny")
        assert caught.value.fault is Fault.UNSUPPORTED
        return
    answer = await provider.embed(asked, model="tiny")
    assert [row.embedding[0] for row in answer.data] == [0.0, 1.0]
    assert answer.usage is not None
    assert answer.usage.prompt_tokens == 6


TOOLS = [{"type": "function", "function": {"name": "add", "parameters": {"type": "object", "properties": {}}}}]


async def test_tool_calls_come_in_pieces_that_make_json(fake: Any, provider: ChatProvider) -> None:
    fake.script = replace(fake.script, calls=[Call("c1", "add", ['{"a": ', '1, "b": "ö"}']), Call("c2", "now", ["{}"])])
    chunks = await collect(provider.chat(chat(tools=TOOLS), model="tiny"))
    calls: dict[int, list[str]] = {}
    for piece in [piece for chunk in chunks for c in chunk.choices for piece in c.delta.tool_calls or ()]:
        call = calls.setdefault(piece.index, ["", "", ""])
        call[0] += piece.id or ""
        call[1] += piece.function.name or ""
        call[2] += piece.function.arguments or ""
    assert sorted(calls) == [0, 1]
    assert [(name, json.loads(arguments)) for _, name, arguments in calls.values()] == [
        ("add", {"a": 1, "b": "ö"}),
        ("now", {}),
    ]
    assert all(call_id for call_id, _, _ in calls.values())
    assert [c.finish_reason for chunk in chunks for c in chunk.choices if c.finish_reason] == ["tool_calls"]


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
        (410, {"message": "gone"}, {}, Fault.MISSING, None),
        (408, {"message": "too slow"}, {}, Fault.TRANSIENT, None),
        (429, {"message": "slow down"}, {"Retry-After": "Wed, 21 Oct 2026 07:28:00 GMT"}, Fault.RATE, None),
        (503, {"message": "back soon"}, {"Retry-After": "3"}, Fault.TRANSIENT, 3.0),
        (529, {"message": "Overloaded", "type": "overloaded_error"}, {}, Fault.CAPACITY, None),
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
    gone = endpoints.connect(Endpoint(name="gone", provider=name, url=closed_port()), client)[1]
    with pytest.raises(ProviderUnavailable, match="gone cannot be reached"):
        await collect(gone.chat(chat(), model="tiny"))
    probe = await gone.probe()
    assert probe.finding is Finding.FAILED
    assert probe.reason == "gone cannot be reached."


async def test_a_dead_kept_connection_is_opened_anew(fake: Any, served: Served) -> None:
    """llama-server closes connections right after a stream, just when the next request is sent on them."""
    transport = _DiesOnce()
    async with httpx.AsyncClient(transport=transport) as client:
        again = endpoints.connect(served.endpoint("x", served.url), client)[1]
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


WORK = ("chat", "completions", "generate", "embeddings", "messages", "run", "runsync")


async def test_a_probe_finds_the_models_and_costs_nothing(fake: Any, provider: ChatProvider) -> None:
    probe = await provider.probe()
    assert probe.finding is Finding.OK
    assert probe.models is not None
    assert "tiny" in probe.models
    assert probe.latency_ms is not None
    assert probe.latency_ms >= 1
    assert not [path for path in fake.paths if path.endswith(WORK)]


async def test_its_fake_can_be_started_alone(served: Served, client: httpx.AsyncClient) -> None:
    async with served.stand.make() as fake:
        assert fake.url.startswith(fake.base)
        stand = replace(served, base=fake.base)
        alone = endpoints.connect(stand.endpoint("alone", stand.url), client)[1]
        assert text(await collect(alone.chat(chat(), model="tiny"))) == "Hello, Wörld 🌍"
        assert fake.asked


async def test_what_it_cannot_do_has_a_reason(name: str) -> None:
    module = importlib.import_module(f"goblin.providers.{name}.inference")
    assert name == module.NAME
    assert all(isinstance(lack, Capability) and reason for lack, reason in module.UNSUPPORTED.items())
    assert (module.__doc__ or "").count("read 20"), "say what the facts were read in, and when"
