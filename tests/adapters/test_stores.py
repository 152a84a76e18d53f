"""One contract for the stores: in memory, as the tests of services use them, and in Firestore."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from typing import Any
from unittest import mock

import pytest

from goblin.domain.health import EndpointHealth, Status
from goblin.errors import StoreUnavailable
from goblin.ports import ApiKey, AttemptRecord, HealthStore, KeyStore, RequestRecord, RequestStore
from tests.clouds import RunningCloud
from tests.fakes.serving import closed_port
from tests.fakes.stores import MemoryHealth, MemoryKeys, MemoryRequests

NOW = datetime(2026, 11, 23, 12, 0, 0, 123456, tzinfo=UTC)
KEY = ApiKey(digest="ab" * 32, name="me", created_at=NOW)
HEALTH = EndpointHealth(
    endpoint="gcp_ollama",
    provider="ollama",
    status=Status.DEGRADED,
    reason="slow",
    latency_ms=45,
    checked_at=NOW,
    models=("a", "b"),
    loaded=None,
    failures=1,
)
RECORD = RequestRecord(
    request_id="r1",
    key_digest=KEY.digest,
    key_name="me",
    operation="chat",
    model="m",
    stream=True,
    strategy="failover",
    outcome="ok",
    provider="gcp_ollama",
    attempts=(AttemptRecord(endpoint="gcp_ollama", reason="number 1 in order", outcome="ok", first_token_ms=7),),
    rejected={"x": "does not serve m"},
    prompt_tokens=1,
    completion_tokens=2,
    usage_estimated=False,
    first_token_ms=7,
    duration_ms=9,
    created_at=NOW,
    expires_at=NOW + timedelta(days=30),
)


@dataclass
class Stores:
    keys: KeyStore
    health: HealthStore
    requests: RequestStore


@pytest.fixture(scope="module")
def cloud(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningCloud]:
    with RunningCloud(tmp_path_factory.mktemp("cloud"), services=("firestore",)) as cloud:
        yield cloud


def firestore_client(address: str, project: str) -> Any:
    from google.cloud.firestore import AsyncClient

    with mock.patch.dict(os.environ, {"FIRESTORE_EMULATOR_HOST": address}):
        client = AsyncClient(project=project)
        _ = client._firestore_api  # The address is read when the transport is made.
    return client


def in_firestore(client: Any) -> Stores:
    from goblin.adapters.gcp.firestore import FirestoreHealth, FirestoreKeys, FirestoreRequests

    return Stores(FirestoreKeys(client), FirestoreHealth(client), FirestoreRequests(client))


@pytest.fixture(params=["memory", "firestore"])
async def stores(request: pytest.FixtureRequest) -> AsyncIterator[Stores]:
    if request.param == "memory":
        yield Stores(MemoryKeys(), MemoryHealth(), MemoryRequests())
        return
    cloud: RunningCloud = request.getfixturevalue("cloud")
    yield in_firestore(firestore_client(str(cloud.addresses.firestore), cloud.project()))


async def test_keys_come_back_as_they_were_put(stores: Stores) -> None:
    assert await stores.keys.get(KEY.digest) is None
    await stores.keys.put(KEY)
    assert await stores.keys.get(KEY.digest) == KEY
    await stores.keys.put(replace(KEY, disabled=True))
    assert await stores.keys.get(KEY.digest) == replace(KEY, disabled=True)


async def test_health_comes_back_by_endpoint(stores: Stores) -> None:
    assert await stores.health.all() == {}
    await stores.health.put(HEALTH)
    await stores.health.put(replace(HEALTH, endpoint="other", loaded=("a",), checked_at=None))
    await stores.health.put(replace(HEALTH, status=Status.HEALTHY))
    assert await stores.health.all() == {
        "gcp_ollama": replace(HEALTH, status=Status.HEALTHY),
        "other": replace(HEALTH, endpoint="other", loaded=("a",), checked_at=None),
    }


async def test_receipts_come_back_and_are_replaced(stores: Stores) -> None:
    assert await stores.requests.get("r1") is None
    await stores.requests.put(RECORD)
    assert await stores.requests.get("r1") == RECORD
    await stores.requests.put(replace(RECORD, outcome="cut"))
    assert await stores.requests.get("r1") == replace(RECORD, outcome="cut")


async def test_a_key_written_by_hand_needs_no_digest_field(cloud: RunningCloud) -> None:
    client = firestore_client(str(cloud.addresses.firestore), cloud.project())
    by_hand = {"name": "me", "disabled": False, "created_at": NOW}
    await client.collection("keys").document(KEY.digest).set(by_hand)
    assert await in_firestore(client).keys.get(KEY.digest) == KEY


async def test_a_document_that_is_none_of_ours_is_an_error_of_the_store(cloud: RunningCloud) -> None:
    client = firestore_client(str(cloud.addresses.firestore), cloud.project())
    await client.collection("keys").document(KEY.digest).set({"name": 7})
    with pytest.raises(StoreUnavailable, match="not a ApiKey"):
        await in_firestore(client).keys.get(KEY.digest)


async def test_health_that_cannot_be_read_does_not_hide_the_others(cloud: RunningCloud) -> None:
    client = firestore_client(str(cloud.addresses.firestore), cloud.project())
    await client.collection("health").document("odd").set({"endpoint": "odd", "status": "sleepy"})
    stores = in_firestore(client)
    await stores.health.put(HEALTH)
    assert list(await stores.health.all()) == ["gcp_ollama"]


async def test_a_store_that_is_gone_is_noticed_soon(monkeypatch: pytest.MonkeyPatch) -> None:
    from goblin.adapters.gcp import firestore

    monkeypatch.setattr(firestore, "DEADLINE_S", 0.1)
    gone = in_firestore(firestore_client(closed_port().removeprefix("http://"), "p"))
    with pytest.raises(StoreUnavailable):
        await gone.keys.get(KEY.digest)
    with pytest.raises(StoreUnavailable):
        await gone.health.all()
    with pytest.raises(StoreUnavailable):
        await gone.requests.put(RECORD)
