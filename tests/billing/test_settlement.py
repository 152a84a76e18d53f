"""The hourly settlement over fake bills: in the end the ledger says what the providers say, to the millionth."""

from dataclasses import replace
from datetime import UTC, date, datetime, timedelta
from typing import Any

import pytest

from goblin.billing import settlement
from goblin.billing.budget_client import BudgetClient, Reservation, request_settlement
from goblin.billing.domain.accounts import Limit, Period
from goblin.billing.domain.ledger import EntryKind
from goblin.billing.policy.allocation import ThresholdEvent
from goblin.core.clock import SystemClock
from goblin.core.endpoints import Price
from goblin.core.errors import StoreUnavailable
from goblin.jobs import reservations
from goblin.jobs.domain.job import InstanceReservation
from tests.fakes.bills import Charges, FakeBill
from tests.fakes.ledger import MemoryLedger
from tests.fakes.registry import FixedClock

NOW = datetime(2026, 11, 25, 12, tzinfo=UTC)
NEXT = datetime(2026, 11, 26, 6, tzinfo=UTC)
DAY = "2026-11-25"


class Books:
    def __init__(self) -> None:
        self.ledger = MemoryLedger(declared={"total": (Limit(period=Period.MONTH, limit_usd_micros=10_000),)})
        self.clock = FixedClock(NOW)
        self.charges = Charges()
        self.told: list[ThresholdEvent] = []
        self.numbers = iter(range(10**6))
        self.deps = settlement.SettlementDeps(
            ledger=self.ledger, allocation_store=self.ledger, bills=[FakeBill(self.charges, "openai")],
            announce=self.tell, prices={}, clock=self.clock,
        )  # fmt: skip

    async def tell(self, threshold_event: ThresholdEvent) -> None:
        self.told.append(threshold_event)

    def budget_client(self) -> BudgetClient:
        return BudgetClient(
            self.ledger, self.ledger, self.clock, announce=self.tell, new_id=lambda: f"lease{next(self.numbers)}"
        )

    async def send(
        self, budget_client: BudgetClient, account: str, worst: int, cost: int, *, settled: bool = True
    ) -> None:
        """A request that the provider bills, whether or not we live to write it down."""
        found = await budget_client.reserve(f"{account}/ann", ("key/ann",), f"r{next(self.numbers)}", worst)
        assert isinstance(found, Reservation)
        self.charges.charge(account, self.clock.at, cost)
        if settled:
            await budget_client.settle(found, request_settlement(found, cost, model="model/m", note=""))

    async def spent(self) -> dict[str, int]:
        return {b.account: b.spent_usd_micros for b in await self.ledger.balances(DAY)}

    def usage(self, account: str) -> int:
        return self.ledger.kept[account].usages[Period.MONTH].spent_usd_micros


@pytest.fixture
def books() -> Books:
    return Books()


async def test_what_the_dead_spent_is_found_and_the_rest_goes_back(books: Books) -> None:
    living, dying = books.budget_client(), books.budget_client()
    await books.send(living, "openai", 300, 250)
    await books.send(dying, "openai", 400, 310)
    await books.send(dying, "openai", 500, 180, settled=False)
    await living.close()
    books.clock.at += timedelta(hours=1)
    report = await settlement.settle(books.deps)
    assert len(report.expired) == 1
    assert books.usage("total") == 250 + 310 + 500  # Until a bill is final.
    assert report.corrected == {}
    books.clock.at = NEXT
    report = await settlement.settle(books.deps)
    assert report.resolved
    assert books.usage("total") == books.usage("openai") == books.usage("key/ann") == 740
    assert (
        (await books.spent())["openai"] == (await books.spent())["key/ann"] == 740 == books.charges.total("openai", DAY)
    )
    before = dict(books.ledger.written)
    again = await settlement.settle(books.deps)
    assert (again.resolved, again.corrected, books.ledger.written) == ([], {}, before)


async def test_a_bill_beyond_everything_we_know_counts_at_once(books: Books) -> None:
    budget_client = books.budget_client()
    await books.send(budget_client, "openai", 300, 250)
    books.charges.charge("openai", NOW, 40_000)
    report = await settlement.settle(books.deps)
    assert report.corrected == {f"openai {DAY}": 40_000}
    assert "differ too much" in report.alarms[0]
    assert books.usage("total") == 40_250
    # Nothing more is lent until there is room again.
    assert not isinstance(await budget_client.reserve("openai/ann", ("key/ann",), "x", 1), Reservation)


async def test_spending_without_any_entry_is_an_orphan(books: Books) -> None:
    books.charges.charge("openai", NOW, 100)
    report = await settlement.settle(books.deps)
    assert "unknown to the ledger" in report.alarms[0]
    assert [e.account for e in books.ledger.written.values() if e.kind is EntryKind.ALERT] == ["openai"]


async def test_a_bill_that_cannot_be_read_changes_nothing(books: Books) -> None:
    await books.send(books.budget_client(), "openai", 300, 250)
    books.charges.down.add("openai")
    books.clock.at = NEXT
    report = await settlement.settle(books.deps)
    assert list(report.unknown) == ["openai"]
    assert (await books.spent())["openai"] == 250


async def test_where_no_bill_comes_the_dead_are_believed_to_have_spent_it_all(books: Books) -> None:
    await books.send(books.budget_client(), "groq", 500, 180, settled=False)
    books.clock.at += timedelta(hours=1)
    await settlement.settle(books.deps)
    books.clock.at += timedelta(days=5)
    report = await settlement.settle(books.deps)
    assert len(report.resolved) == 1
    assert (await books.spent())["groq"] == 500
    assert await books.ledger.allocations() == []


async def _settled_though_dying(books: Books, deps: settlement.SettlementDeps, writes: int) -> None:
    """Runs that end after so many writes each, and a last one that does not."""
    real, left = books.ledger._write, [writes]

    def dying(*words: Any) -> None:
        real(*words)
        left[0] -= 1
        if left[0] < 0:
            raise StoreUnavailable("the process died here")

    books.ledger._write = dying  # type: ignore[method-assign]
    for _ in range(12):
        try:
            await settlement.settle(deps)
            break
        except StoreUnavailable:
            left[0] = writes
    books.ledger._write = real  # type: ignore[method-assign]
    await settlement.settle(deps)


@pytest.mark.parametrize("writes", range(5))
async def test_a_crash_between_any_two_writes_is_made_good_by_the_next_run(books: Books, writes: int) -> None:
    for cost in (180, 90):
        await books.send(books.budget_client(), "openai", 500, cost, settled=False)
    books.charges.charge("openai", NOW, 3_000)
    books.clock.at = NEXT
    await _settled_though_dying(books, books.deps, writes)
    assert (await books.spent())["openai"] == books.usage("openai") == 3_270
    assert await books.ledger.allocations() == []


async def test_lost_announcements_and_old_prices_are_said(books: Books) -> None:
    budget_client = books.budget_client()
    await books.send(budget_client, "openai", 9_600, 9_600)
    await budget_client.close()
    books.told.clear()  # The process died before it could publish.
    price = Price(input_usd_micros_per_mtok=1, output_usd_micros_per_mtok=1, read_on=date(2026, 1, 1))
    deps = settlement.SettlementDeps(
        ledger=books.ledger, allocation_store=books.ledger, bills=[], announce=books.tell,
        prices={("openai", "m"): price}, clock=books.clock,
    )  # fmt: skip
    report = await settlement.settle(deps)
    assert report.announced == ["total 2026-11 95 %"]
    assert [threshold_event.percent for threshold_event in books.told] == [95]
    assert report.stale_prices == ["openai/m (2026-01-01)"]
    said = [entry.note for entry in await books.ledger.actions(limit=9) if "prices" in entry.note]
    assert said == ["prices older than 90 days, to be read again: openai/m (2026-01-01)"]
    await settlement.settle(deps)
    assert len(await books.ledger.actions(limit=9)) == 1  # Once, and not each hour.


async def rented(books: Books, job: str, *, billed: int, hours: float | None, provider: str = "vastai") -> None:
    """An instance of a job that its provider bills; None hours: whoever rented it died and never said it ended."""
    label = f"goblin-{job}-a1"
    plan = InstanceReservation(
        label=label, provider=provider, spot=True, price_usd_micros_per_hour=1000, start_usd_micros=0, since=NOW,
        until=NOW + timedelta(hours=1), reserved_usd_micros=0, shortest_s=600,
    )  # fmt: skip
    client = BudgetClient(books.ledger, books.ledger, SystemClock(), announce=books.tell)
    deps = reservations.ReservationDeps(budget_client=client, ledger=books.ledger)
    reservation = await reservations.reserve(plan, deps, now=NOW)
    assert isinstance(reservation, InstanceReservation)
    named = replace(reservation, instance_id=f"i-{job}")
    books.charges.instance(
        provider, NOW, billed, instance_id=f"i-{job}", label=label if provider == "vastai" else "",
    )  # fmt: skip
    if hours is not None:
        await reservations.settle(replace(named, ended_at=NOW + timedelta(hours=hours)), deps, now=NOW)


def told(books: Books, *providers: str) -> settlement.SettlementDeps:
    return replace(books.deps, bills=[FakeBill(books.charges, provider, tells=True) for provider in providers])


@pytest.mark.parametrize("provider", ["vastai", "runpod"])
async def test_each_job_ends_with_what_its_instances_were_billed(books: Books, provider: str) -> None:
    await rented(books, "a", billed=470, hours=0.5, provider=provider)
    await rented(books, "b", billed=333, hours=1.0, provider=provider)
    books.clock.at = NEXT
    report = await settlement.settle(told(books, provider))
    spent = await books.spent()
    assert (spent[f"{provider}/a"], spent[f"{provider}/b"]) == (spent["job/a"], spent["job/b"]) == (470, 333)
    assert spent[provider] == spent["total"] == books.usage("job/a") + books.usage("job/b") == 803
    assert report.alarms == []  # That it was less than the most that it could be is no news.
    assert (await settlement.settle(told(books, provider))).corrected == {}


async def test_an_instance_that_no_entry_knows_is_an_orphan_by_name(books: Books) -> None:
    await rented(books, "a", billed=500, hours=0.5)
    books.charges.instance("vastai", NOW, 90, instance_id="i-x", label="goblin-ghost-a7")
    report = await settlement.settle(told(books, "vastai"))
    assert report.corrected == {f"vastai/ghost {DAY}": 90}
    assert ["unknown to the ledger" in alarm for alarm in report.alarms] == [True]
    assert (await books.spent())["job/ghost"] == 90


async def test_a_rent_that_runs_explains_what_is_billed_so_far(books: Books) -> None:
    await rented(books, "a", billed=900, hours=None)
    books.clock.at += timedelta(minutes=50)
    report = await settlement.settle(told(books, "vastai"))
    assert (report.corrected, report.alarms, report.expired) == ({}, [], [])


@pytest.mark.parametrize("writes", range(9))
async def test_rents_settled_dead_and_orphaned_are_the_bill_whatever_died_between_two_writes(
    books: Books, writes: int
) -> None:
    await rented(books, "a", billed=470, hours=0.5)
    await rented(books, "b", billed=610, hours=None)
    await rented(books, "c", billed=0, hours=None)
    books.charges.instance("vastai", NOW, 90, instance_id="i-x", label="goblin-ghost-a7")
    books.charges.charge("vastai", NOW, 40)
    books.clock.at = NEXT
    await _settled_though_dying(books, told(books, "vastai"), writes)
    spent = await books.spent()
    assert {job: spent[f"job/{job}"] for job in ("a", "b", "ghost")} == {"a": 470, "b": 610, "ghost": 90}
    assert spent.get("job/c", 0) == 0
    assert spent["vastai"] == books.usage("vastai") == books.charges.total("vastai", DAY)
    assert await books.ledger.allocations() == []
    # Whoever comes back and settles what the bill has settled adds nothing.
    label = "goblin-b-a1"
    reservation = InstanceReservation(
        label=label, provider="vastai", spot=True, price_usd_micros_per_hour=1000, start_usd_micros=0, since=NOW,
        until=NOW + timedelta(hours=1), reserved_usd_micros=1000, ended_at=NOW + timedelta(hours=1),
    )  # fmt: skip
    client = BudgetClient(books.ledger, books.ledger, SystemClock(), announce=books.tell)
    deps = reservations.ReservationDeps(budget_client=client, ledger=books.ledger)
    assert await reservations.settle(reservation, deps, now=NEXT) == 1000
    assert (await books.spent())["job/b"] == 610
