"""Servers on rented instances: found by the list, never taken for gone when the list is."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import aclosing
from typing import Any

import httpx
import msgspec
import pytest
from starlette.responses import JSONResponse, PlainTextResponse, Response

from goblin.core.endpoints import Endpoint
from goblin.core.errors import Fault, ProviderUnavailable
from goblin.gateway.domain import requests
from goblin.gateway.domain.endpoint_health import Finding, Warmth
from goblin.gateway.ports import ChatProvider
from goblin.providers.vastai import inference as vastai
from goblin.providers.vastai.instances import ServerInstance, VastInstances
from goblin.wiring import endpoints
from tests.fakes.openai_like import Script
from tests.fakes.serving import closed_port, serve
from tests.fakes.vastai import FakeVast, instance

FAKE = FakeVast()


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    with serve(FAKE.app) as base:
        yield base


@pytest.fixture
def port(url: str) -> int:
    return int(url.rpartition(":")[2])


@pytest.fixture
def fake() -> FakeVast:
    FAKE.__dict__.update(FakeVast().__dict__)
    return FAKE


def endpoint(url: str, **more: Any) -> Endpoint:
    said = {"api_key": "server", "account_key": "vast-account", "options": {"label": "chat"}, **more}
    return Endpoint(name="vast", provider="vastai", url=url, **said)


@pytest.fixture
async def connect(fake: FakeVast, url: str) -> AsyncIterator[Callable[..., ChatProvider]]:
    async with httpx.AsyncClient() as client:
        yield lambda **more: endpoints.connect(endpoint(url, **more), client)[1]


@pytest.fixture
def provider(connect: Callable[..., ChatProvider]) -> ChatProvider:
    return connect()


async def answer(provider: ChatProvider) -> str:
    body = b'{"model": "tiny", "messages": [{"role": "user", "content": "Hi"}]}'
    stream = provider.chat(requests.parse(requests.ChatRequest, body), model="tiny")
    async with aclosing(stream):
        return "".join([choice.delta.text async for chunk in stream for choice in chunk.choices])


UNKNOWN = [
    JSONResponse({"success": False, "error": "deprecated_endpoint"}, 410),
    PlainTextResponse("API requests too frequent: endpoint threshold=4.5", 429),
    JSONResponse({"detail": "slow"}, 429),
    JSONResponse({"success": False, "msg": "oops"}, 200),
    PlainTextResponse("<html>Bad gateway</html>", 502),
    JSONResponse({"instances": "none"}, 200),
]


async def test_the_accounts_key_never_reaches_an_instance(fake: FakeVast, provider: ChatProvider) -> None:
    assert await answer(provider) == "Hello, Wörld 🌍"
    assert fake.keys == ["Bearer server"]


async def test_one_list_serves_many_requests(fake: FakeVast, provider: ChatProvider) -> None:
    for _ in range(5):
        await answer(provider)
    assert fake.lists == 1


@pytest.mark.parametrize("refusal", UNKNOWN)
async def test_a_list_that_cannot_be_had_is_unknown_and_never_empty(
    fake: FakeVast, provider: ChatProvider, monkeypatch: pytest.MonkeyPatch, refusal: Response
) -> None:
    monkeypatch.setattr(vastai, "KNOWN_S", 0.0)
    monkeypatch.setattr(vastai, "AGAIN_S", 0.0)
    monkeypatch.setattr(vastai, "LIST_INTERVAL_S", 0.0)
    assert await answer(provider) == "Hello, Wörld 🌍"
    fake.refusal = refusal
    # The addresses that were known are still there.
    assert await answer(provider) == "Hello, Wörld 🌍"
    assert (await provider.probe()).finding is Finding.OK
    assert fake.lists == 3


@pytest.mark.parametrize("refusal", UNKNOWN)
async def test_nothing_known_at_all_is_not_nothing_rented(
    fake: FakeVast, provider: ChatProvider, refusal: Response, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(vastai, "LIST_INTERVAL_S", 60.0)
    monkeypatch.setattr(vastai, "AGAIN_S", 60.0)
    fake.refusal = refusal
    with pytest.raises(ProviderUnavailable) as caught:
        await answer(provider)
    assert caught.value.fault in (Fault.TRANSIENT, Fault.RATE)
    assert "no instance is rented" not in caught.value.message
    probe = await provider.probe()
    assert probe.finding in (Finding.UNCLEAR, Finding.FAILED)
    assert fake.lists == 1


async def test_a_wrong_key_is_told_as_404_and_is_about_the_key(connect: Callable[..., ChatProvider]) -> None:
    provider = connect(account_key="wrong")
    with pytest.raises(ProviderUnavailable) as caught:
        await answer(provider)
    assert caught.value.fault is Fault.AUTH
    assert (await provider.probe()).finding is Finding.REFUSED


@pytest.mark.parametrize(
    ("rows", "fault", "finding", "warmth"),
    [
        ([], Fault.CAPACITY, Finding.FAILED, Warmth.UNKNOWN),
        ([instance(1, None)], Fault.LOADING, Finding.LOADING, Warmth.STARTING),
        ([instance(1, None, actual_status=None)], Fault.LOADING, Finding.LOADING, Warmth.STARTING),
        ([instance(1, 8000, ports=None)], Fault.LOADING, Finding.LOADING, Warmth.STARTING),
        ([instance(1, 8000, intended_status="stopped")], Fault.CAPACITY, Finding.FAILED, Warmth.UNKNOWN),
        ([instance(1, 8000, actual_status="exited")], Fault.CAPACITY, Finding.FAILED, Warmth.UNKNOWN),
        ([instance(1, 8000, actual_status="offline")], Fault.CAPACITY, Finding.FAILED, Warmth.UNKNOWN),
        ([instance(1, 8000, label="training")], Fault.CAPACITY, Finding.FAILED, Warmth.UNKNOWN),
    ],
)
async def test_states_of_instances(
    fake: FakeVast, provider: ChatProvider, rows: list[dict[str, Any]], fault: Fault, finding: Finding, warmth: Warmth
) -> None:
    fake.instances = rows
    with pytest.raises(ProviderUnavailable) as caught:
        await answer(provider)
    assert caught.value.fault is fault
    probe = await provider.probe()
    assert (probe.finding, probe.warmth) == (finding, warmth)


async def test_every_page_is_read(fake: FakeVast, provider: ChatProvider, port: int) -> None:
    stopped = [instance(n, port, intended_status="stopped") for n in range(5)]
    fake.instances, fake.page = [*stopped, instance(9, port)], 2
    assert await answer(provider) == "Hello, Wörld 🌍"
    assert fake.lists == 3


async def test_a_server_that_fails_is_doubted_and_the_list_read_anew(
    fake: FakeVast, provider: ChatProvider, port: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(vastai, "LIST_INTERVAL_S", 0.0)
    dead = int(closed_port().rpartition(":")[2])
    fake.instances = [instance(1, dead), instance(2, port)]
    with pytest.raises(ProviderUnavailable, match="cannot be reached"):
        await answer(provider)
    assert [await answer(provider) for _ in range(3)] == ["Hello, Wörld 🌍"] * 3
    assert fake.lists == 2
    probe = await provider.probe()
    assert (probe.finding, probe.warmth, probe.models) == (Finding.OK, Warmth.WARM, ("tiny",))


async def test_a_refused_request_is_no_reason_to_doubt(fake: FakeVast, provider: ChatProvider) -> None:
    fake.script = Script(status=429, error={"error": {"message": "slow"}})
    for _ in range(2):
        with pytest.raises(ProviderUnavailable):
            await answer(provider)
    assert fake.lists == 1


async def test_a_server_that_loads_says_so(fake: FakeVast, provider: ChatProvider) -> None:
    fake.loading = True
    assert (await provider.probe()).finding is Finding.LOADING


@pytest.mark.parametrize(
    ("ip", "port", "address"),
    [
        ("203.0.113.7", "31022", None),  # Set aside for documentation.
        ("8.8.8.8\n", "31022", "http://8.8.8.8:31022"),
        ("2001:4860:4860::8888", 31022, "http://[2001:4860:4860::8888]:31022"),
        ("127.0.0.1", "31022", None),
        ("169.254.169.254", "80", None),
        ("10.0.0.7", "31022", None),
        ("host.example", "31022", None),
        ("8.8.8.8", "0", None),
        ("8.8.8.8", "80/x", None),
        ("8.8.8.8", "99999", None),
        (None, "80", None),
    ],
)
async def test_an_address_is_one_of_the_internets(ip: str | None, port: Any, address: str | None) -> None:
    async with httpx.AsyncClient() as client:
        instances = VastInstances(endpoint("https://console.vast.ai"), client, label="chat")
        row = json.loads(json.dumps({"id": 1, "public_ipaddr": ip, "ports": {"8000/tcp": [{"HostPort": port}]}}))
        found = instances.address(_instance(row), 8000, "http")
    assert found == address


def _instance(row: dict[str, Any]) -> ServerInstance:
    return msgspec.convert(row, ServerInstance)
