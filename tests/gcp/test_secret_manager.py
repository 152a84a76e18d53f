"""Keys of providers from a real Secret Manager's wire: read late, believed a while, read again when refused."""

from __future__ import annotations

import json
import logging
from collections.abc import AsyncIterator, Iterator
from typing import Any

import httpx
import pytest

from goblin.core.endpoints import Endpoint
from goblin.core.errors import Fault, ProviderUnavailable
from goblin.gateway.domain import requests
from goblin.gateway.ports import ChatProvider
from goblin.gcp.secret_manager import CACHE_TTL_S, LOOK_AGAIN_S, SecretKey, SecretManager
from goblin.wiring import endpoints
from goblin.wiring.settings import BadConfiguration
from tests.clouds import RunningCloud
from tests.fakes.openai_like import FakeOpenAI
from tests.fakes.serving import closed_port, serve


@pytest.fixture(scope="module")
def cloud(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningCloud]:
    with RunningCloud(tmp_path_factory.mktemp("secrets")) as cloud:
        yield cloud


@pytest.fixture
def project(cloud: RunningCloud) -> str:
    return cloud.project()


@pytest.fixture
def secrets(cloud: RunningCloud, project: str) -> SecretManager:
    return SecretManager(project, emulator=cloud.storage_url)


def rotate(cloud: RunningCloud, project: str, key: bytes, *, first: bool = False) -> None:
    client = cloud.secrets_client()
    if first:
        parent, secret = f"projects/{project}", {"replication": {"automatic": {}}}
        client.create_secret(request={"parent": parent, "secret_id": "openai", "secret": secret})
    client.add_secret_version(request={"parent": f"projects/{project}/secrets/openai", "payload": {"data": key}})


async def ask(provider: ChatProvider) -> str:
    body = {"model": "tiny", "messages": [{"role": "user", "content": "Hi"}]}
    asked = requests.parse(requests.ChatRequest, json.dumps(body).encode())
    chunks = [chunk async for chunk in provider.chat(asked, model="tiny")]
    return "".join(choice.delta.text for chunk in chunks for choice in chunk.choices)


@pytest.fixture
def fake() -> FakeOpenAI:
    return FakeOpenAI(api_key="sk-one")


@pytest.fixture
async def provider(fake: FakeOpenAI, secrets: SecretManager) -> AsyncIterator[ChatProvider]:
    with serve(fake.app) as base:
        async with httpx.AsyncClient() as client:
            endpoint = Endpoint(name="e", provider="openai", url=f"{base}/v1", api_key="secret:openai")
            yield endpoints.connect(endpoint, client, secrets)[1]


async def test_a_rotated_key_works_without_a_redeploy(
    cloud: RunningCloud,
    project: str,
    fake: FakeOpenAI,
    provider: ChatProvider,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr("goblin.gcp.secret_manager.LOOK_AGAIN_S", 0.0)
    caplog.set_level(logging.DEBUG, logger="goblin")
    rotate(cloud, project, b"sk-one\n", first=True)
    assert await ask(provider) == "Hello, Wörld 🌍"
    fake.api_key = "sk-two"
    with pytest.raises(ProviderUnavailable) as caught:
        await ask(provider)
    assert caught.value.fault is Fault.AUTH
    rotate(cloud, project, b"sk-two")
    assert await ask(provider) == "Hello, Wörld 🌍"
    assert "sk-" not in caplog.text


async def test_a_secret_that_is_not_there_is_for_a_person(provider: ChatProvider) -> None:
    with pytest.raises(ProviderUnavailable, match="secrets/openai/versions/latest: NotFound") as caught:
        await ask(provider)
    assert caught.value.fault is Fault.AUTH


@pytest.mark.parametrize("data", [b"", b"two words", b"a\nb", b"\xff\xfe", b"k" * 9000])
async def test_what_is_no_key_is_never_sent_nor_shown(secrets: SecretManager, data: bytes, monkeypatch: Any) -> None:
    monkeypatch.setattr(secrets, "_access", lambda _: data)
    with pytest.raises(ProviderUnavailable, match="holds no key") as caught:
        await secrets.read("projects/p/secrets/s/versions/1")
    assert "two" not in str(caught.value)


async def test_a_store_that_is_away_is_a_passing_fault() -> None:
    with pytest.raises(ProviderUnavailable) as caught:
        await SecretManager("p", emulator=closed_port()).source("s").key()
    assert caught.value.fault is Fault.TRANSIENT


class Clock:
    at = 0.0

    def __call__(self) -> float:
        return self.at


class Store:
    """Counts its readers."""

    def __init__(self) -> None:
        self.key: str | None = "sk-one"
        self.reads = 0

    async def read(self, resource: str) -> str:
        self.reads += 1
        if self.key is None:
            raise ProviderUnavailable("away")
        return self.key


async def test_it_is_read_once_in_half_an_hour_and_kept_while_the_store_is_away() -> None:
    clock, store = Clock(), Store()
    source = SecretKey("r", store.read, monotonic=clock)
    assert store.reads == 0
    assert [await source.key() for _ in range(3)] == ["sk-one"] * 3
    assert store.reads == 1
    clock.at = CACHE_TTL_S
    store.key = "sk-two"
    assert await source.key() == "sk-two"
    clock.at *= 2
    store.key = None
    assert await source.key() == "sk-two"
    assert store.reads == 3


async def test_an_hour_of_ticks_reads_it_twice_and_a_refused_key_waits_for_no_tick() -> None:
    clock, store = Clock(), Store()
    source = SecretKey("r", store.read, monotonic=clock)
    for minute in range(60):
        clock.at = 60.0 * minute
        assert await source.key() == "sk-one"
    assert store.reads == 2
    store.key = "sk-two"
    assert await source.renew("sk-one")
    assert await source.key() == "sk-two"


async def test_a_key_that_stays_refused_is_not_looked_up_for_every_request() -> None:
    clock, store = Clock(), Store()
    source = SecretKey("r", store.read, monotonic=clock)
    key = await source.key()
    assert [await source.renew(key) for _ in range(5)] == [False] * 5
    assert store.reads == 1
    clock.at = LOOK_AGAIN_S
    store.key = "sk-two"
    assert await source.renew(key)
    # Another request that still held the old one finds the work done.
    assert await source.renew(key)
    assert store.reads == 2


@pytest.mark.parametrize(
    ("name", "resource"),
    [
        ("openai", "projects/p/secrets/openai/versions/latest"),
        ("openai/versions/3", "projects/p/secrets/openai/versions/3"),
        ("projects/other/secrets/openai", "projects/other/secrets/openai/versions/latest"),
    ],
)
def test_names_of_secrets(name: str, resource: str) -> None:
    assert SecretManager("p").source(name)._resource == resource


@pytest.mark.parametrize("key", ["secret:", "secret:a b", "secret:../x", "secret:projects/p/keys/x"])
async def test_a_name_that_cannot_be_is_refused_at_the_start(key: str) -> None:
    endpoint = Endpoint(name="e", provider="openai", url="http://x", api_key=key)
    async with httpx.AsyncClient() as client:
        with pytest.raises(BadConfiguration, match="Endpoint e"):
            endpoints.connect(endpoint, client, SecretManager("p"))
