"""The contract of `Ledger` and `ServingStore`, kept by the adapters on a real (local) Firestore and by the fakes."""

import asyncio
import random
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any
from unittest import mock

import pytest

from goblin.adapters.gcp.ledger import FirestoreLedger
from goblin.adapters.gcp.serving import FirestoreServing
from goblin.cli import places
from goblin.domain.money import ACTIONS, Entry, EntryKind, lineage
from goblin.domain.registry import Artifact, ModelName, Promotion, Serving
from goblin.errors import Conflict, StoreUnavailable
from tests.clouds import RunningCloud
from tests.fakes.ledger import MemoryLedger
from tests.fakes.registry import FakeServingStore

AT = datetime(2026, 11, 25, 12, tzinfo=UTC)


@pytest.fixture(scope="module")
def cloud(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningCloud]:
    folder = tmp_path_factory.mktemp("cloud")
    with RunningCloud(folder, services=("firestore",), declaration=places.declaration()) as running:
        yield running


@pytest.fixture
def client(cloud: RunningCloud) -> Any:
    async def connect() -> Any:
        from google.cloud import firestore

        with mock.patch.dict("os.environ", {"FIRESTORE_EMULATOR_HOST": str(cloud.addresses.firestore)}):
            made = firestore.AsyncClient(project=cloud.project())
            _ = made._firestore_api
        return made

    return connect


@pytest.fixture(params=["firestore", "memory"])
async def ledger(request: pytest.FixtureRequest, client: Any) -> Any:
    return MemoryLedger() if request.param == "memory" else FirestoreLedger(await client())


@pytest.fixture(params=["firestore", "memory"])
async def store(request: pytest.FixtureRequest, client: Any) -> Any:
    return FakeServingStore() if request.param == "memory" else FirestoreServing(await client())


def entry(entry_id: str, amount: int = 5, kind: EntryKind = EntryKind.SETTLE, **changes: Any) -> Entry:
    fields: dict[str, Any] = {"account": "openai", "at": AT, **changes}
    return Entry(entry_id=entry_id, kind=kind, amount_usd_micros=amount, **fields)


async def spent(ledger: Any, window: str = "2026-11") -> dict[str, tuple[int, int]]:
    return {b.account: (b.spent_usd_micros, b.entries) for b in await ledger.balances(window)}


async def test_an_entry_counts_once_in_every_account_above_it(ledger: Any) -> None:
    assert await ledger.record(entry("a", 5))
    assert not await ledger.record(entry("a", 5, at=AT + timedelta(seconds=9), note="again"))
    assert await ledger.record(entry("b", 2, account="openai/key-1"))
    assert await ledger.record(entry("c", 1, kind=EntryKind.CREDIT))
    assert await ledger.record(entry("d", -3, kind=EntryKind.ADJUST, account="groq"))
    assert await spent(ledger) == {"total": (3, 4), "openai": (6, 3), "openai/key-1": (2, 1), "groq": (-3, 1)}


async def test_an_id_stands_for_one_fact(ledger: Any) -> None:
    await ledger.record(entry("a", 5))
    for other in (entry("a", 6), entry("a", 5, account="groq"), entry("a", 5, kind=EntryKind.CREDIT)):
        with pytest.raises(Conflict):
            await ledger.record(other)
    assert await spent(ledger) == {"total": (5, 1), "openai": (5, 1)}


async def test_months_are_apart(ledger: Any) -> None:
    await ledger.record(entry("a", 5))
    await ledger.record(entry("b", 7, at=datetime(2026, 12, 1, tzinfo=UTC)))
    assert await spent(ledger) == {"total": (5, 1), "openai": (5, 1)}
    assert await spent(ledger, "2026-12") == {"total": (7, 1), "openai": (7, 1)}


async def test_a_freeze_acts_with_its_entry_and_is_lifted_by_name(ledger: Any) -> None:
    first, second = entry("f1", 0, EntryKind.FREEZE, note="over"), entry("f2", 0, EntryKind.FREEZE, note="again")
    assert await ledger.record(first)
    assert await ledger.record(replace(second, at=AT + timedelta(minutes=1)))
    assert [(f.entry_id, f.account, f.reason) for f in await ledger.freezes()] == [
        ("f1", "openai", "over"), ("f2", "openai", "again"),
    ]  # fmt: skip
    thaw = entry("t1", 0, EntryKind.THAW, lifts=("f1",), at=AT + timedelta(minutes=2))
    assert await ledger.record(thaw)
    assert [f.entry_id for f in await ledger.freezes()] == ["f2"]  # Nobody has seen that one.
    assert not await ledger.record(first)  # The event comes once more.
    assert [f.entry_id for f in await ledger.freezes()] == ["f2"]
    assert [a.entry_id for a in await ledger.actions(limit=9)] == ["t1", "f2", "f1"]
    assert await spent(ledger) == {}


async def test_what_is_listed_is_what_was_written(ledger: Any) -> None:
    written = [entry(f"e{n}", n, at=AT + timedelta(minutes=n), note="n") for n in range(5)]
    for one in written:
        await ledger.record(one)
    assert await ledger.entries(limit=3) == written[:1:-1]


async def test_many_writers_at_once_lose_nothing_and_count_nothing_twice(ledger: Any) -> None:
    dice = random.Random(7)
    facts = [
        entry(f"e{n}", dice.randrange(100), account=dice.choice(["openai", "groq", "openai/key-1"])) for n in range(40)
    ]
    deliveries = facts * 2
    dice.shuffle(deliveries)

    await asyncio.gather(*(ledger.record(fact) for fact in deliveries))
    sums: dict[str, int] = {}
    for fact in facts:
        for account in lineage(fact.account):
            sums[account] = sums.get(account, 0) + fact.spent_usd_micros
    assert {account: amount for account, (amount, _) in (await spent(ledger)).items()} == sums
    kept = [e for e in await ledger.entries(limit=100) if e.kind not in ACTIONS]
    assert sum(e.spent_usd_micros for e in kept) == sums["total"]


async def test_an_answer_that_was_lost_is_no_second_entry(client: Any) -> None:
    ledger = FirestoreLedger(await client())
    real = ledger._client.batch

    def losing() -> Any:
        batch = real()
        commit = batch.commit

        async def lost(**named: Any) -> None:
            await commit(**named)
            raise TimeoutError

        batch.commit = lost
        return batch

    with mock.patch.object(ledger._client, "batch", losing), pytest.raises(StoreUnavailable):
        await ledger.record(entry("a", 5))
    assert not await ledger.record(entry("a", 5))
    assert await spent(ledger) == {"total": (5, 1), "openai": (5, 1)}


async def test_what_a_server_serves_and_refused_is_kept(store: Any) -> None:
    assert await store.get("llm") == Serving(endpoint="llm")
    artifact = Artifact(uri="gs://b/m", generation=2**60, size=3, crc32c="AAAAAA==", sha256="0" * 64)
    promotion = Promotion(
        name=ModelName("acme", "tiny"), version="1.0.0", artifact=artifact, seq=1, event_id="e", promoted_at=AT,
        promoted_by="ann",
    )  # fmt: skip
    known = Serving(endpoint="llm", served=promotion, refused=promotion, refusal="torn", updated_at=AT)
    await store.put(known)
    await store.put(Serving(endpoint="a"))
    assert await store.get("llm") == known
    assert await store.all() == [Serving(endpoint="a"), known]
