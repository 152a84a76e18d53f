"""The ports of jobs: what is in memory and what speaks to Google's services keep the same contract."""

import asyncio
import json
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import aclosing, closing
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from unittest import mock

import httpx
import msgspec
import pytest

from goblin.cli import paths
from goblin.core.errors import Conflict, NotFound, StoreUnavailable
from goblin.core.events import CheckpointSaved, JobRequested
from goblin.core.ports import ObjectStore
from goblin.gcp.firestore.jobs import FirestoreAttemptKeys, FirestoreJobs, FirestoreMarketHistory
from goblin.gcp.pubsub import PubSubBus
from goblin.gcp.storage import GcsObjects
from goblin.jobs.domain.checkpoints import Checkpoint
from goblin.jobs.domain.instances import AttemptLease
from goblin.jobs.domain.job import AskerKey, Dataset, Job, JobOwner, JobState, Reason
from goblin.jobs.policy.spot.market_history import MarketHistory, PoolHistory
from goblin.jobs.policy.spot.preemption_rates import PreemptionRates
from goblin.jobs.policy.spot.reputation import Reputation
from goblin.jobs.ports import JobStore, MarketHistoryStore, StoredJob
from tests.clouds import RunningCloud, environment
from tests.fakes.jobs import MemoryJobs, MemoryMarket, MemoryObjects, crc32c

PARAMETERS = msgspec.Raw(
    b'{"a":  [[1], [2, [3]]], "big": %d, "b.c": null,"deep": ' % 2**70 + b"[" * 100 + b"]" * 100 + b"}"
)
NOW = datetime(2026, 11, 25, 12, 0, 0, 123456, tzinfo=UTC)
KINDS = ("memory", "google")


@pytest.fixture(scope="module")
def cloud(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningCloud]:
    """With production's declaration, so that a query without its index is refused as there."""
    with RunningCloud(tmp_path_factory.mktemp("cloud"), declaration=paths.declaration()) as running:
        yield running


def firestore(cloud: RunningCloud) -> Any:
    from google.cloud.firestore import AsyncClient

    with mock.patch.dict("os.environ", environment(cloud.addresses)):
        client = AsyncClient(project=cloud.project())
        _ = client._firestore_api  # The address is read when the transport is made.
    return client


@pytest.fixture(params=KINDS)
async def jobs(request: pytest.FixtureRequest) -> AsyncIterator[JobStore]:
    if request.param == "memory":
        yield MemoryJobs()
        return
    yield FirestoreJobs(firestore(request.getfixturevalue("cloud")))


def job(name: str = "j", **changes: Any) -> Job:
    fields: dict[str, Any] = {
        "job_id": name,
        # Lists of lists, 100 levels and large integers: what Firestore has no type for. The text stays as it came.
        "spec": JobRequested(job_id=name, kind="batch", parameters=PARAMETERS),
        "spec_sha256": "00",
        "state": JobState.RUNNING,
        "requested_at": NOW,
        "updated_at": NOW,
        "reasons": (Reason(at=NOW, state=JobState.QUEUED, text="wörds"),),
        "attempt": 2,
        "lease": AttemptLease(
            provider="p", label="goblin-j-a2", token_sha256="ff", placed_at=NOW, until=NOW + timedelta(seconds=45)
        ),
        "dataset": Dataset(uri="gs://bkt/d", generation=2**53 + 1, size=7, items=3),
        "checkpoint": Checkpoint(step=1, attempt=1, manifest_uri="gs://bkt/m", generation=9, dataset_offset=5),
    }
    return Job(**{**fields, **changes})


async def test_a_job_comes_back_as_it_was_written(jobs: JobStore) -> None:
    written = await jobs.create(job())
    read = await jobs.get("j")
    assert written is not None
    assert read == written
    assert read.job == job()


async def test_an_id_is_taken_once(jobs: JobStore) -> None:
    made = await asyncio.gather(*(jobs.create(job(attempt=n)) for n in range(5)))
    assert sum(one is not None for one in made) == 1
    assert await jobs.get("other") is None


async def test_one_of_many_writers_wins(jobs: JobStore) -> None:
    stored = await jobs.create(job())
    assert stored is not None
    wrote = await asyncio.gather(*(jobs.replace(job(attempt=n), stored.version) for n in range(10, 16)))
    [won] = [one for one in wrote if one is not None]
    assert await jobs.get("j") == won


async def test_a_version_is_good_for_one_write(jobs: JobStore) -> None:
    first = await jobs.create(job())
    assert first is not None
    second = await jobs.replace(job(attempt=3), first.version)
    assert second is not None
    assert await jobs.replace(job(attempt=4), first.version) is None
    assert await jobs.replace(job(attempt=4, lease=None), second.version) is not None
    read = await jobs.get("j")
    assert read is not None
    assert (read.job.attempt, read.job.lease) == (4, None)


async def test_a_job_that_is_not_there_cannot_be_replaced(jobs: JobStore) -> None:
    first = await jobs.create(job())
    assert first is not None
    assert await jobs.replace(job("nobody"), first.version) is None


async def test_the_last_place_of_a_kind_goes_to_one(jobs: JobStore) -> None:
    waiting = [await jobs.create(job(f"p{n}", state=JobState.QUEUED, lease=None)) for n in range(4)]
    await jobs.create(job("q", state=JobState.RUNNING))
    await jobs.create(job("t", spec=JobRequested(job_id="t", kind="training"), state=JobState.RUNNING))

    async def place(stored: StoredJob | None) -> StoredJob | None:
        assert stored is not None
        try:
            return await jobs.place(replace(stored.job, state=JobState.PLACING), stored.version, limit=3)
        except StoreUnavailable:
            return None  # Somebody else's turn; the next tick asks again.

    at_once = await asyncio.gather(*(place(stored) for stored in waiting))
    later = [await place(stored) for stored in waiting]
    placed = [one for one in (*at_once, *later) if one is not None]
    assert len(placed) == 2
    assert [one.job.state for one in placed] == [JobState.PLACING, JobState.PLACING]


async def test_an_output_has_one_holder_however_many_ask_at_once(jobs: JobStore) -> None:
    uri = "gs://bkt/é.jsonl"
    found = set(await asyncio.gather(*(jobs.hold_output(uri, f"h{n}") for n in range(5))))
    assert len(found) == 1
    holder = found.pop()
    assert await jobs.hold_output(uri, holder) == holder
    assert await jobs.hold_output(uri, "late", instead_of="somebody") == holder
    await jobs.release_output(uri, "late")
    assert await jobs.hold_output(uri, "late") == holder
    at_once = await asyncio.gather(*(jobs.hold_output(uri, f"n{n}", instead_of=holder) for n in range(5)))
    assert len(set(at_once)) == 1
    assert at_once[0] != holder
    await jobs.release_output(uri, at_once[0])
    await jobs.release_output(uri, at_once[0])
    assert await jobs.hold_output(uri, "late") == "late"
    assert await jobs.hold_output("gs://bkt/other", "next") == "next"


@pytest.mark.parametrize(("ends_in", "takes"), [(timedelta(hours=1), True), (timedelta(hours=-1), False)])
async def test_an_unreadable_job_keeps_its_place_no_longer_than_its_lease(
    cloud: RunningCloud, ends_in: timedelta, takes: bool
) -> None:
    client = firestore(cloud)
    jobs, lease = FirestoreJobs(client), job().lease
    assert lease is not None
    waiting = await jobs.create(job("waits", state=JobState.QUEUED, lease=None))
    assert waiting is not None
    for name in ("broken", "leaseless"):
        await jobs.create(job(name, lease=replace(lease, until=datetime.now(UTC) + ends_in)))
    for name, fields in {"broken": {"attempt": "x"}, "leaseless": {"attempt": "x", "lease": [1]}}.items():
        await client.collection("jobs").document(name).update(fields)
    placed = await jobs.place(replace(waiting.job, state=JobState.PLACING), waiting.version, limit=1)
    assert (placed is None) is takes


async def test_a_place_is_not_taken_at_another_version(jobs: JobStore) -> None:
    first = await jobs.create(job(state=JobState.QUEUED))
    assert first is not None
    assert await jobs.replace(job(state=JobState.CANCELLED), first.version) is not None
    assert await jobs.place(job(state=JobState.PLACING), first.version, limit=9) is None


@pytest.fixture(params=KINDS)
async def market(request: pytest.FixtureRequest) -> AsyncIterator[MarketHistoryStore]:
    if request.param == "memory":
        yield MemoryMarket()
        return
    yield FirestoreMarketHistory(firestore(request.getfixturevalue("cloud")))


@pytest.mark.parametrize(
    "fields",
    [
        {}, {"json": 7}, {"json": None}, {"json": "{"}, {"json": "[" * 5000}, {"json": '{"pools": 1}'},
        {"json": b"\xff"},
        {"json": '{"pools": {"p": {"looked_at": "0001-01-01T00:00:00+01:00"}}}'},
    ],
)  # fmt: skip
async def test_a_market_history_that_cannot_be_read_begins_anew(cloud: RunningCloud, fields: dict[str, Any]) -> None:
    client = firestore(cloud)
    await client.collection("market").document("watched").set(fields)
    history, version = await FirestoreMarketHistory(client).load()
    assert history == MarketHistory()
    assert await FirestoreMarketHistory(client).save(MarketHistory(), version)


async def test_what_was_seen_of_the_market_is_written_by_one_at_a_time(market: MarketHistoryStore) -> None:
    assert await market.load() == (MarketHistory(), None)
    pool = PoolHistory(
        provider="vastai", gpu="RTX_4090", gpu_count=1, seen_at=NOW, rates=PreemptionRates(losses=1.5, age_s=60.0)
    )
    machine = Reputation(failures=1, last_at=NOW, last_kind="boot")
    first = MarketHistory(pools={"vastai/RTX 4090/`x`": pool}, machines={"vastai/1": machine})
    assert await market.save(first, None)
    assert not await market.save(MarketHistory(), None)
    read, version = await market.load()
    assert read == first
    assert await market.save(MarketHistory(), version)
    assert not await market.save(first, version)


async def test_open_jobs_come_oldest_first_and_all_jobs_newest_first(jobs: JobStore) -> None:
    for number in (2, 0, 3, 1):
        at = NOW + timedelta(minutes=number)
        await jobs.create(job(f"j{number}", requested_at=at, open=number != 3))
    assert [stored.job.job_id for stored in await jobs.list_open(10)] == ["j0", "j1", "j2"]
    assert [stored.job.job_id for stored in await jobs.list_open(2)] == ["j0", "j1"]
    assert [found.job_id for found in await jobs.list_recent(3, tenant=None)] == ["j3", "j2", "j1"]


async def test_a_store_that_does_not_answer_is_unavailable() -> None:
    from google.cloud.firestore import AsyncClient

    with mock.patch.dict("os.environ", {"FIRESTORE_EMULATOR_HOST": "127.0.0.1:1"}):
        client = AsyncClient(project="p")
        _ = client._firestore_api
    with pytest.raises(StoreUnavailable):
        await FirestoreJobs(client).get("j")


async def test_attempt_keys_are_where_the_gateway_looks(cloud: RunningCloud) -> None:
    from goblin.gcp.firestore.gateway import FirestoreKeys

    client = firestore(cloud)
    mine, gateways = FirestoreAttemptKeys(client), FirestoreKeys(client)
    await mine.open("ab", name="job:j", until=NOW, asker="", models=None)
    key = await gateways.get("ab")
    assert key is not None
    assert (key.asker, key.models) == ("", None)
    await mine.open("ab", name="job:j", until=NOW + timedelta(hours=1), asker="cd", models=["m", "n"])
    key = await gateways.get("ab")
    assert key is not None
    assert (key.name, key.expires_at, key.disabled) == ("job:j", NOW + timedelta(hours=1), False)
    assert (key.asker, key.models, key.scopes) == ("cd", ("m", "n"), ("inference",))
    await mine.close("ab")
    await mine.close("ab")
    assert await gateways.get("ab") is None


async def test_what_has_become_of_a_key_that_asked_is_read_as_the_gateway_reads_it(cloud: RunningCloud) -> None:
    client = firestore(cloud)
    keys = FirestoreAttemptKeys(client)
    assert await keys.asker("ef") is None
    fields = {"name": "ann", "disabled": False, "created_at": NOW}
    await client.collection("keys").document("ef").set(fields)
    assert await keys.asker("ef") == AskerKey(disabled=False, expires_at=None, runs_jobs=True)
    await (
        client.collection("keys")
        .document("ef")
        .set({**fields, "disabled": True, "expires_at": NOW, "scopes": ["inference"]})
    )
    assert await keys.asker("ef") == AskerKey(disabled=True, expires_at=NOW, runs_jobs=False)
    await client.collection("keys").document("ef").set({**fields, "scopes": 7})
    with pytest.raises(StoreUnavailable, match="cannot be read"):
        await keys.asker("ef")


async def test_a_tenant_lists_its_own_however_many_others_are_newer(jobs: JobStore) -> None:
    ann, bob = JobOwner(tenant="tenant:ann", key_name="a", key_digest="aa", models=("m", "org/*")), JobOwner()
    for number in range(6):
        at = NOW + timedelta(minutes=number)
        await jobs.create(job(f"j{number}", requested_at=at, owner=ann if number < 3 else bob))
    assert [found.job_id for found in await jobs.list_recent(2, tenant="tenant:ann")] == ["j2", "j1"]
    assert [found.job_id for found in await jobs.list_recent(9, tenant="tenant:nobody")] == []
    assert [found.job_id for found in await jobs.list_recent(9, tenant="operator")] == ["j5", "j4", "j3"]
    assert (await jobs.list_recent(2, tenant="tenant:ann"))[0].owner == ann


async def test_a_job_stored_before_there_were_owners_is_the_operators(cloud: RunningCloud) -> None:
    client = firestore(cloud)
    jobs = FirestoreJobs(client)
    assert await jobs.create(job()) is not None
    from google.cloud.firestore import DELETE_FIELD

    await (
        client.collection("jobs")
        .document("j")
        .update({"owner": DELETE_FIELD, "spec.tenant": DELETE_FIELD, "dataset.models": DELETE_FIELD})
    )
    read = await jobs.get("j")
    assert read is not None
    assert read.job == job()
    assert read.job.owner.tenant == "operator"


@dataclass
class Bucket:
    """An object store, and a way past it."""

    store: ObjectStore
    uri: Callable[[str], str]
    overwrite: Callable[[str, bytes], None]


@pytest.fixture(params=KINDS)
def bucket(request: pytest.FixtureRequest) -> Bucket:
    if request.param == "memory":
        store = MemoryObjects()
        return Bucket(store, lambda name: f"gs://bucket/{name}", lambda uri, data: void(store.write(uri, data)))
    cloud: RunningCloud = request.getfixturevalue("cloud")
    client = cloud.storage_client()
    name = f"{client.project}-jobs"
    client.create_bucket(name)

    def overwrite(uri: str, data: bytes) -> None:
        client.bucket(name).blob(uri.removeprefix(f"gs://{name}/")).upload_from_string(data)

    return Bucket(GcsObjects(client, signer=signer(cloud)), lambda rest: f"gs://{name}/{rest}", overwrite)


def void(_: object) -> None:
    return None


def signer(cloud: RunningCloud) -> Any:
    from google.oauth2 import service_account

    assert cloud.cloud is not None
    return service_account.Credentials.from_service_account_info(cloud.cloud.identity.service_account)


async def content(bucket: Bucket, uri: str, start: int = 0, generation: int | None = None) -> bytes:
    facts = await bucket.store.stat(uri)
    at = generation or (facts.generation if facts else 1)
    async with aclosing(bucket.store.read(uri, generation=at, start=start)) as chunks:
        return b"".join([chunk async for chunk in chunks])


async def test_an_object_is_created_once(bucket: Bucket) -> None:
    uri = bucket.uri("a/b c.json")
    assert await bucket.store.stat(uri) is None
    made = await bucket.store.create(uri, b"one", content_type="application/json")
    assert made is not None
    assert (made.uri, made.size, made.crc32c) == (uri, 3, crc32c(b"one"))
    assert await bucket.store.create(uri, b"two", content_type="application/json") is None
    assert await bucket.store.stat(uri) == made
    assert await content(bucket, uri) == b"one"


async def test_names_are_listed_in_order_from_a_start(bucket: Bucket) -> None:
    for name in ("j/00000003/a1/M", "j/00000006/a1/M", "j/00000006/a2/M", "j/00000012/a1/M", "k/00000009/a1/M"):
        await bucket.store.create(bucket.uri(name), b"x", content_type="text/plain")
    found = await bucket.store.list_from(bucket.uri("j/"), bucket.uri("j/00000004/a0"))
    assert found == [bucket.uri(name) for name in ("j/00000006/a1/M", "j/00000006/a2/M", "j/00000012/a1/M")]
    assert await bucket.store.list_from(bucket.uri("j/"), bucket.uri("j/00000013/a0")) == []


@pytest.mark.parametrize("size", [0, 1, 299, 300, 301, 1 << 20, (1 << 20) + 1])
async def test_reading_gives_every_byte_from_the_start_on(bucket: Bucket, size: int) -> None:
    uri, data = bucket.uri("data"), bytes(n % 251 for n in range(size))
    await bucket.store.create(uri, data, content_type="application/octet-stream")
    assert await content(bucket, uri) == data
    assert await content(bucket, uri, start=size // 2) == data[size // 2 :]
    assert await content(bucket, uri, start=size) == b""


async def test_another_generation_is_not_read(bucket: Bucket) -> None:
    uri = bucket.uri("data")
    made = await bucket.store.create(uri, b"one", content_type="text/plain")
    assert made is not None
    bucket.overwrite(uri, b"two")
    with pytest.raises(NotFound):
        await content(bucket, uri, generation=made.generation)
    with pytest.raises(NotFound):
        await content(bucket, bucket.uri("nothing"))


async def test_composing_joins_in_order_create_only_with_metadata(bucket: Bucket) -> None:
    parts = []
    for number in range(32):
        made = await bucket.store.create(bucket.uri(f"p{number}"), f"{number}\n".encode(), content_type="text/plain")
        assert made is not None
        parts.append(made)
    uri = bucket.uri("whole")
    whole = await bucket.store.compose(parts, uri, metadata={"goblin-job": "j"})
    assert whole is not None
    data = "".join(f"{number}\n" for number in range(32)).encode()
    assert await content(bucket, uri) == data
    assert (whole.size, whole.crc32c, whole.metadata) == (len(data), crc32c(data), {"goblin-job": "j"})
    assert await bucket.store.compose(parts[:1], uri, metadata={}) is None
    one = await bucket.store.compose(parts[:1], bucket.uri("one"), metadata={})
    assert one is not None
    assert one.size == 2


@pytest.mark.parametrize("what", ["replaced", "gone"])
async def test_composing_refuses_a_source_that_changed(bucket: Bucket, what: str) -> None:
    made = await bucket.store.create(bucket.uri("p"), b"part", content_type="text/plain")
    assert made is not None
    if what == "gone":
        await bucket.store.delete(made)
    else:
        bucket.overwrite(made.uri, b"other")
    with pytest.raises(Conflict):
        await bucket.store.compose([made], bucket.uri("whole"), metadata={})
    assert await bucket.store.stat(bucket.uri("whole")) is None


async def test_deleting_takes_one_generation_and_may_be_repeated(bucket: Bucket) -> None:
    made = await bucket.store.create(bucket.uri("p"), b"part", content_type="text/plain")
    assert made is not None
    await bucket.store.delete(replace(made, generation=made.generation + 1))
    assert await bucket.store.stat(made.uri) == made
    await bucket.store.delete(made)
    await bucket.store.delete(made)
    assert await bucket.store.stat(made.uri) is None


@pytest.fixture
def real(cloud: RunningCloud) -> tuple[GcsObjects, str]:
    client = cloud.storage_client()
    name = f"{client.project}-signed"
    client.create_bucket(name)
    return GcsObjects(client, signer=signer(cloud)), name


async def test_a_grant_to_put_fits_the_announced_bytes_once(real: tuple[GcsObjects, str]) -> None:
    store, name = real
    uri, data = f"gs://{name}/checkpoints/j/part.jsonl", b"some results"
    grant = await store.sign_put(uri, size=len(data), crc32c=crc32c(data))
    async with httpx.AsyncClient(trust_env=False) as http:

        async def put(body: bytes, headers: Any = grant.headers, url: str = grant.url) -> int:
            return (await http.put(url, content=body, headers=headers)).status_code

        assert await put(b"some resulty") == 400, "another checksum"
        assert await put(data + b"x") == 400, "another length"
        assert await put(data, {}) == 403, "the headers are part of what was signed"
        assert await put(data, url=grant.url.replace("part.jsonl", "MANIFEST.json")) == 403
        assert await store.stat(uri) is None
        assert await put(data) == 200
        assert await put(data) == 412, "a grant never overwrites"
    facts = await store.stat(uri)
    assert facts is not None
    assert (facts.size, facts.crc32c) == (len(data), crc32c(data))


async def test_a_grant_to_get_reads_ranges_of_one_object(real: tuple[GcsObjects, str]) -> None:
    store, name = real
    made = await store.create(f"gs://{name}/datasets/j.jsonl", b"0123456789", content_type="application/jsonl")
    assert made is not None
    grant = await store.sign_get(made.uri, generation=made.generation)
    async with httpx.AsyncClient(trust_env=False) as http:
        answer = await http.get(grant.url, headers={**grant.headers, "range": "bytes=4-6"})
        assert (answer.status_code, answer.content) == (206, b"456")
        assert (await http.get(grant.url, headers={"range": "bytes=10-19"})).status_code == 416
        assert (await http.get(grant.url.replace("j.jsonl", "k.jsonl"))).status_code == 403
        assert (await http.put(grant.url, content=b"x")).status_code == 403


async def test_an_event_is_published_as_its_schema_says(cloud: RunningCloud) -> None:
    from google.cloud import pubsub_v1

    project = cloud.project()
    with mock.patch.dict("os.environ", environment(cloud.addresses)):
        publisher, subscriber = pubsub_v1.PublisherClient(), pubsub_v1.SubscriberClient()
    with closing(publisher.transport), subscriber:
        topic, wanted = publisher.topic_path(project, "checkpoint-saved"), subscriber.subscription_path(project, "mine")
        publisher.create_topic(name=topic)
        subscriber.create_subscription(name=wanted, topic=topic)
        event = CheckpointSaved(job_id="j", attempt=1, step=3, manifest_uri="gs://bkt/m", manifest_generation=4)
        await PubSubBus(publisher, project=project).publish("checkpoint-saved", event)
        [got] = subscriber.pull(subscription=wanted, max_messages=5, timeout=10).received_messages
        said = {"job_id": "j", "attempt": 1, "step": 3, "manifest_uri": "gs://bkt/m", "manifest_generation": 4}
        assert json.loads(got.message.data) == said
        with pytest.raises(StoreUnavailable):
            await PubSubBus(publisher, project=project).publish("nobodys-topic", event)


def test_every_query_has_its_index_in_the_declaration() -> None:
    said = json.loads(Path(paths.declaration()).read_text())
    assert ["open", "requested_at"] in [
        [field["path"] for field in index["fields"]] for index in said["indexes"] if index["collection"] == "jobs"
    ]
