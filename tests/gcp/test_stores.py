"""One contract for the stores: in memory, as the tests of services use them, and in Firestore."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from typing import Any
from unittest import mock

import pytest

from goblin.core.endpoints import Capability
from goblin.core.errors import StoreUnavailable
from goblin.gateway.domain.chat import Usage
from goblin.gateway.domain.endpoint_health import EndpointHealth, Pause, Status
from goblin.gateway.ports import (
    ApiKey,
    AttemptRecord,
    CachedAnswer,
    CacheStore,
    HealthStore,
    IdempotencyClaim,
    IdempotencyStore,
    KeyStore,
    Receipt,
    ReceiptBatchStore,
    StoredHttpReply,
)
from tests.clouds import RunningCloud
from tests.fakes.serving import closed_port
from tests.fakes.stores import MemoryAnswers, MemoryHealth, MemoryKeys, MemoryReceipts, MemoryReplies

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
RECORD = Receipt(
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
USAGE = Usage(prompt_tokens=1, completion_tokens=2, total_tokens=3)
CLAIM = IdempotencyClaim(body_digest="d", until=NOW + timedelta(minutes=15), expires_at=NOW + timedelta(days=1))
REPLY = StoredHttpReply(
    status=200, media_type="text/event-stream", headers={"x-goblin-request-id": "r1"}, body=b"data: \xff\n\n"
)


@dataclass
class Stores:
    keys: KeyStore
    health: HealthStore
    requests: ReceiptBatchStore
    answers: CacheStore
    replies: IdempotencyStore


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
    from goblin.gcp.firestore.answers import FirestoreCache, FirestoreIdempotency
    from goblin.gcp.firestore.gateway import FirestoreHealth, FirestoreKeys, FirestoreReceipts

    return Stores(
        FirestoreKeys(client),
        FirestoreHealth(client),
        FirestoreReceipts(client),
        FirestoreCache(client),
        FirestoreIdempotency(client),
    )


@pytest.fixture(params=["memory", "firestore"])
async def stores(request: pytest.FixtureRequest) -> AsyncIterator[Stores]:
    if request.param == "memory":
        yield Stores(MemoryKeys(), MemoryHealth(), MemoryReceipts(), MemoryAnswers(), MemoryReplies())
        return
    cloud: RunningCloud = request.getfixturevalue("cloud")
    yield in_firestore(firestore_client(str(cloud.addresses.firestore), cloud.project()))


async def test_keys_come_back_as_they_were_put(stores: Stores) -> None:
    assert await stores.keys.get(KEY.digest) is None
    await stores.keys.put(KEY)
    assert await stores.keys.get(KEY.digest) == KEY
    await stores.keys.put(replace(KEY, disabled=True))
    assert await stores.keys.get(KEY.digest) == replace(KEY, disabled=True)


async def test_all_of_a_key_comes_back(stores: Stores) -> None:
    limited = replace(
        KEY,
        tenant="acme",
        scopes=("inference",),
        models=("m", "org/*"),
        rate_per_minute=60,
        parallel_max=4,
        expires_at=NOW + timedelta(days=1),
    )
    await stores.keys.put(limited)
    assert await stores.keys.get(KEY.digest) == limited


async def test_keys_are_listed_from_the_oldest_and_revoked(stores: Stores) -> None:
    assert await stores.keys.all() == []
    assert not await stores.keys.disable(KEY.digest)
    newer = replace(KEY, digest="cd" * 32, created_at=NOW + timedelta(hours=1))
    await stores.keys.put(newer)
    await stores.keys.put(KEY)
    assert await stores.keys.disable(KEY.digest)
    assert await stores.keys.all() == [replace(KEY, disabled=True), newer]


async def test_answers_come_back_and_are_replaced(stores: Stores) -> None:
    assert await stores.answers.get("k") is None
    for text in ("Hello", "Wörld 🌍"):
        answer = CachedAnswer(text=text, finish_reason="stop", usage=USAGE, expires_at=NOW)
        await stores.answers.put("k", answer)
        assert await stores.answers.get("k") == answer


async def test_a_request_is_claimed_once_and_its_reply_given_to_who_comes_later(stores: Stores) -> None:
    assert await stores.replies.claim("e", CLAIM, now=NOW) is None
    assert await stores.replies.claim("e", replace(CLAIM, body_digest="other"), now=NOW) == CLAIM
    await stores.replies.finish("e", REPLY)
    later = NOW + timedelta(hours=1)
    assert await stores.replies.claim("e", CLAIM, now=later) == replace(CLAIM, reply=REPLY)


@pytest.mark.parametrize("finished", [True, False])
async def test_a_claim_ends_and_the_next_one_holds(stores: Stores, finished: bool) -> None:
    await stores.replies.claim("e", CLAIM, now=NOW)
    if finished:
        await stores.replies.finish("e", REPLY)
    end = CLAIM.expires_at if finished else CLAIM.until
    renewed = replace(CLAIM, until=end + timedelta(minutes=1), expires_at=end + timedelta(days=1))
    assert await stores.replies.claim("e", renewed, now=end) is None
    assert await stores.replies.claim("e", CLAIM, now=end) == renewed


async def test_a_released_claim_is_free(stores: Stores) -> None:
    await stores.replies.release("e")
    await stores.replies.claim("e", CLAIM, now=NOW)
    await stores.replies.release("e")
    assert await stores.replies.claim("e", CLAIM, now=NOW) is None


async def test_of_many_who_claim_at_once_one_gets_it(cloud: RunningCloud) -> None:
    replies = in_firestore(firestore_client(str(cloud.addresses.firestore), cloud.project())).replies
    found = await asyncio.gather(*(replies.claim("e", CLAIM, now=NOW) for _ in range(8)))
    assert found.count(None) == 1


async def test_pauses_are_kept_beside_the_judgement(stores: Stores) -> None:
    pause = Pause(
        model="org/m.1", kind=Capability.CHAT, open_until=NOW, reason="it answered 500", openings=1, told_at=NOW
    )
    await stores.health.pause("gcp_ollama", pause)
    assert await stores.health.all() == {}
    await stores.health.put(HEALTH)
    account = replace(pause, model="", kind=None)
    newer = replace(pause, openings=2)
    for told in (account, newer):
        await stores.health.pause("gcp_ollama", told)
    await stores.health.put(replace(HEALTH, reason="other"))
    (found,) = (await stores.health.all()).values()
    assert (found.reason, sorted(found.pauses, key=lambda p: p.model)) == ("other", [account, newer])


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


async def test_many_receipts_are_written_at_once(stores: Stores) -> None:
    many = [replace(RECORD, request_id=f"r{number}") for number in range(200)]
    await stores.requests.put_all(many)
    assert [await stores.requests.get(name) for name in ("r0", "r199")] == [many[0], many[-1]]


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
    from goblin.gcp.firestore import gateway

    monkeypatch.setattr(gateway, "DEADLINE_S", 0.1)
    gone = in_firestore(firestore_client(closed_port().removeprefix("http://"), "p"))
    with pytest.raises(StoreUnavailable):
        await gone.keys.get(KEY.digest)
    with pytest.raises(StoreUnavailable):
        await gone.health.all()
    with pytest.raises(StoreUnavailable):
        await gone.requests.put(RECORD)
