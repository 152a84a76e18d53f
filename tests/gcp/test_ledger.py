"""The contract of `Ledger` and `ServingStore`, kept by the adapters on a real (local) Firestore and by the fakes."""

import asyncio
import random
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any
from unittest import mock

import pytest

from goblin.billing.budget_client import BudgetClient
from goblin.billing.domain.accounts import Limit, Period
from goblin.billing.domain.ledger import ACTIONS, BudgetAction, EntryKind, LedgerEntry, lineage
from goblin.billing.policy.allocation import ALLOCATION_LIFE, ThresholdEvent
from goblin.billing.policy.local_allocation import FIRST_AHEAD, LocalAllocation
from goblin.cli import paths
from goblin.core.clock import SystemClock
from goblin.core.errors import Conflict, StoreUnavailable
from goblin.gcp.firestore.ledger import PARTS, FirestoreLedger
from goblin.gcp.firestore.serving import FirestoreServing
from goblin.jobs import reservations
from goblin.jobs.domain.job import InstanceReservation
from goblin.registry.domain.versions import ModelArtifact, ModelName, Promotion, ServingState
from tests.clouds import RunningCloud
from tests.fakes.ledger import MemoryLedger
from tests.fakes.registry import FakeServingStore

AT = datetime(2026, 11, 25, 12, tzinfo=UTC)


@pytest.fixture(scope="module")
def cloud(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningCloud]:
    folder = tmp_path_factory.mktemp("cloud")
    with RunningCloud(folder, services=("firestore",), declaration=paths.declaration()) as running:
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


def entry(entry_id: str, amount: int = 5, kind: EntryKind = EntryKind.SETTLE, **changes: Any) -> LedgerEntry:
    fields: dict[str, Any] = {"account": "openai", "at": AT, **changes}
    return LedgerEntry(entry_id=entry_id, kind=kind, amount_usd_micros=amount, **fields)


def settled(entry_id: str, amount: int) -> LedgerEntry:
    return entry(entry_id, amount, account="openai/ann", also=("key/ann",))


async def spent(ledger: Any, window: str = "2026-11") -> dict[str, tuple[int, int]]:
    return {b.account: (b.spent_usd_micros, b.entries) for b in await ledger.balances(window)}


async def test_which_accounts_have_a_limit_is_told_without_reading_all_of_them(ledger: Any) -> None:
    limit = Limit(period=Period.MONTH, limit_usd_micros=5)
    await ledger.limit("vastai", Period.MONTH, limit)
    await ledger.limit("job/j", Period.LIFETIME, replace(limit, period=Period.LIFETIME))
    await ledger.limit("runpod", Period.MONTH, limit)
    await ledger.limit("runpod", Period.MONTH, None)
    found = await ledger.limited(["total", "vastai", "runpod", "job/j", "job/k"])
    assert [(account.name, account.limits) for account in found] == [
        ("vastai", (limit,)), ("job/j", (replace(limit, period=Period.LIFETIME),)),
    ]  # fmt: skip


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
    rng = random.Random(7)
    facts = [
        entry(f"e{n}", rng.randrange(100), account=rng.choice(["openai", "groq", "openai/key-1"])) for n in range(40)
    ]
    deliveries = facts * 2
    rng.shuffle(deliveries)

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


async def test_many_instances_on_one_budget_never_lend_more_than_it_holds(ledger: Any) -> None:
    await ledger.limit("key/ann", Period.MONTH, Limit(period=Period.MONTH, limit_usd_micros=10_000))
    won: list[int] = []

    async def instance(number: int) -> None:
        local = LocalAllocation(allocation_id=f"l{number}", account="openai/ann", also=("key/ann",))
        for n in range(8):
            if not local.reserve(f"{number}.{n}", 300, now=AT):
                local.accept(
                    (await ledger.exchange(local.next_request(now=AT, need_usd_micros=300), now=AT)).allocation, now=AT
                )
            if local.reserve(f"{number}.{n}", 300, now=AT):
                won.append(300)
                assert local.settle(f"{number}.{n}", settled(f"{number}.{n}", 300))
            account = next(a for a in await ledger.accounts() if a.name == "key/ann")
            usage = account.usages[Period.MONTH]
            assert usage.spent_usd_micros + usage.allocated_usd_micros <= 10_000
            if local.unwritten:
                assert await ledger.settle(local.allocation_id, local.batch())
                local.wrote()
        while not local.retired:
            local.accept((await ledger.exchange(local.next_request(now=AT, close=True), now=AT)).allocation, now=AT)

    await asyncio.gather(*(instance(n) for n in range(8)))
    assert sum(won) == 9_900  # One more would have been too much.
    assert (await spent(ledger))["key/ann"] == (9_900, 33)
    assert (await spent(ledger, "2026-11-25"))["openai"] == (9_900, 33)
    assert await ledger.allocations() == []
    (account,) = [a for a in await ledger.accounts() if a.name == "openai"]
    assert (account.usages[Period.DAY].spent_usd_micros, account.usages[Period.DAY].allocated_usd_micros) == (9_900, 0)


async def test_a_repeated_step_is_made_once(ledger: Any) -> None:
    lent = 40 * (1 + FIRST_AHEAD)
    local = LocalAllocation(allocation_id="l", account="openai/ann", also=("key/ann",))
    ask = local.next_request(now=AT, need_usd_micros=40)
    first, second = await ledger.exchange(ask, now=AT), await ledger.exchange(ask, now=AT)
    assert first.allocation == second.allocation
    local.accept(second.allocation, now=AT)
    assert local.reserve("r", 40, now=AT)
    assert local.settle("r", settled("r", 25))
    for _ in range(2):
        assert await ledger.settle("l", local.batch())
    assert [
        (allocation.granted_usd_micros, allocation.settled_usd_micros) for allocation in await ledger.allocations()
    ] == [(lent, 25)]
    assert (await spent(ledger))["total"] == (25, 1)


async def test_instances_meet_in_few_documents_and_their_parts_add_up(client: Any) -> None:
    connected = await client()
    ledger = FirestoreLedger(connected)
    for number in range(24):
        local = LocalAllocation(allocation_id=f"lease{number}", account="openai/ann", also=("key/ann",))
        local.accept((await ledger.exchange(local.next_request(now=AT, need_usd_micros=40), now=AT)).allocation, now=AT)
        assert await ledger.settle(local.allocation_id, [settled(f"e{number}", 10)])
    assert (await spent(ledger))["total"] == (240, 24)
    assert (await spent(ledger, "2026-11-25"))["key/ann"] == (240, 24)
    documents = [document.to_dict() for document in await connected.collection("balances").get()]
    total = [one for one in documents if (one["account"], one["window"]) == ("total", "2026-11")]
    assert 8 <= len(total) <= PARTS


async def test_the_dead_count_as_spent_until_a_bill_is_read(ledger: Any) -> None:
    await ledger.limit("openai", Period.DAY, Limit(period=Period.DAY, limit_usd_micros=100))
    dead, heir = (
        LocalAllocation(allocation_id=name, account="openai/ann", also=("key/ann",)) for name in ("dead", "heir")
    )
    dead.accept((await ledger.exchange(dead.next_request(now=AT, need_usd_micros=90), now=AT)).allocation, now=AT)
    assert not (await ledger.expire("dead", now=AT + timedelta(seconds=1))).writes
    later = AT + ALLOCATION_LIFE
    assert (await ledger.expire("dead", now=later)).writes
    assert not (await ledger.expire("dead", now=later)).writes
    refused = await ledger.exchange(heir.next_request(now=later, need_usd_micros=20), now=later)
    assert refused.insufficient is not None
    assert (refused.insufficient.account, refused.insufficient.left_usd_micros) == ("openai", 10)
    heir.accept(refused.allocation, now=later)
    # It was slow, not dead: what it says now comes out of what counts as spent.
    assert await ledger.settle("dead", [settled("late", 30)])
    (lost,) = [allocation for allocation in await ledger.allocations() if allocation.allocation_id == "dead"]
    assert lost.lost_usd_micros == 60
    assert (await ledger.resolve("dead", spent_usd_micros=15, now=later)).writes
    assert not (await ledger.resolve("dead", spent_usd_micros=15, now=later)).writes
    assert not await ledger.settle("dead", [settled("later", 1)])  # It goes to `record`.
    assert (await spent(ledger))["key/ann"] == (45, 2)
    granted = await ledger.exchange(heir.next_request(now=later, need_usd_micros=55), now=later)
    assert granted.insufficient is None


async def test_limits_are_kept_with_what_is_spent(ledger: Any) -> None:
    await ledger.record(entry("a", 5))
    day = Limit(period=Period.DAY, limit_usd_micros=7, action=BudgetAction.FREEZE)
    month = Limit(period=Period.MONTH, limit_usd_micros=9)
    await ledger.limit("openai", Period.DAY, Limit(period=Period.DAY, limit_usd_micros=1))
    await ledger.limit("openai", Period.MONTH, month)
    await ledger.limit("openai", Period.DAY, day)
    await ledger.limit("groq", Period.DAY, day)
    groq, openai, _ = await ledger.accounts()
    assert (groq.limits, openai.limits) == ((day,), (month, day))
    assert openai.usages[Period.LIFETIME].spent_usd_micros == 5
    await ledger.limit("openai", Period.DAY, None)
    assert [a.limits for a in await ledger.accounts()] == [(day,), (month,), ()]


async def test_what_a_server_serves_and_refused_is_kept(store: Any) -> None:
    assert await store.get("llm") == ServingState(endpoint="llm")
    artifact = ModelArtifact(uri="gs://b/m", generation=2**60, size=3, crc32c="AAAAAA==", sha256="0" * 64)
    promotion = Promotion(
        name=ModelName("acme", "tiny"), version="1.0.0", artifact=artifact, seq=1, event_id="e", promoted_at=AT,
        promoted_by="ann",
    )  # fmt: skip
    known = ServingState(endpoint="llm", served=promotion, refused=promotion, refusal="torn", updated_at=AT)
    await store.put(known)
    await store.put(ServingState(endpoint="a"))
    assert await store.get("llm") == known
    assert await store.all() == [ServingState(endpoint="a"), known]


async def test_what_was_rented_on_a_day_is_listed_by_it(ledger: Any) -> None:
    day = f"{AT:%Y-%m-%d}"
    rented = [
        entry(f"rent:goblin-j-a{n}:1:settled", n, account="vastai/j", also=("job/j",), instance_id=f"i{n}")
        for n in (2, 1)
    ]
    for one in rented:
        await ledger.record(one)
    await ledger.record(replace(rented[0], entry_id="rent:goblin-j-a3:1:settled", at=AT + timedelta(days=1)))
    await ledger.record(entry("request:1", 3))
    assert await ledger.instance_settlements(day) == sorted(rented, key=lambda one: one.entry_id)


async def test_a_rent_lives_in_the_ledger_as_it_does_in_memory(ledger: Any) -> None:
    """Reserved, prolonged, settled twice with each answer lost once: one entry, nothing left lent."""

    async def nobody(threshold_event: ThresholdEvent) -> None:
        pass

    client = BudgetClient(ledger, ledger, SystemClock(), announce=nobody)
    deps = reservations.ReservationDeps(budget_client=client, ledger=ledger)
    await ledger.limit("job/j", Period.LIFETIME, Limit(period=Period.LIFETIME, limit_usd_micros=5_000_000))
    plan = InstanceReservation(
        label="goblin-j-a1", provider="vastai", spot=True, price_usd_micros_per_hour=3_600_000, start_usd_micros=0,
        since=AT, until=AT + timedelta(seconds=4020), reserved_usd_micros=0, shortest_s=720,
    )  # fmt: skip
    rent = await reservations.reserve(plan, deps, now=AT)
    assert isinstance(rent, InstanceReservation)
    assert await reservations.reserve(plan, deps, now=AT) == rent
    kept = (await reservations.renew(rent, deps, now=AT + timedelta(seconds=3400))).current
    assert kept.until == rent.until + timedelta(seconds=900)
    refused = await reservations.renew(kept, deps, now=kept.until - timedelta(seconds=300))
    assert refused.ends_job
    ended = replace(kept, ended_at=AT + timedelta(seconds=4500), instance_id="i")
    (allocation,) = await ledger.allocations()
    assert (allocation.expires_at - kept.until) >= timedelta(minutes=10)
    for _ in range(3):
        assert await reservations.settle(ended, deps, now=AT + timedelta(seconds=4600)) == 4_500_000
    assert await ledger.allocations() == []
    usages = {account.name: account.usages[Period.LIFETIME] for account in await ledger.accounts()}
    for name in ("total", "vastai", "vastai/j", "job/j"):
        assert (usages[name].spent_usd_micros, usages[name].allocated_usd_micros) == (4_500_000, 0)
    (written,) = await ledger.instance_settlements(f"{AT:%Y-%m-%d}")
    assert (written.entry_id, written.instance_id) == ("rent:goblin-j-a1:1:settled", "i")
