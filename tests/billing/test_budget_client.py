"""Purses of instances on one ledger: what is refused, what is written, and how often the ledger is asked."""

import asyncio
import contextlib
import itertools
import random
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from goblin.billing.allocation_pool import IDLE_AFTER
from goblin.billing.budget_client import (
    BLIND_S,
    REFUSED_S,
    UNWRITTEN_MAX,
    BudgetClient,
    Reservation,
    request_settlement,
)
from goblin.billing.domain.accounts import Limit, Period, WhenUnreachable
from goblin.billing.policy.allocation import (
    ALLOCATION_LIFE,
    AllocationRequest,
    AllocationResult,
    InsufficientBudget,
    ThresholdEvent,
)
from goblin.billing.policy.local_allocation import CLOCK_SKEW, FIRST_AHEAD, RENEW_AFTER
from goblin.core.errors import StoreUnavailable
from tests.fakes.ledger import MemoryLedger
from tests.fakes.registry import FixedClock

NOW = datetime(2026, 11, 25, 12, tzinfo=UTC)
ANN = ("openai/ann", ("key/ann",))


class FarLedger(MemoryLedger):
    """Answers take a moment, so that others come between."""

    async def exchange(self, ask: AllocationRequest, *, now: datetime) -> AllocationResult:
        await asyncio.sleep(0)
        step = await super().exchange(ask, now=now)
        await asyncio.sleep(0)
        return step


class Hanging(MemoryLedger):
    async def exchange(self, ask: AllocationRequest, *, now: datetime) -> AllocationResult:
        await asyncio.Event().wait()
        raise AssertionError


class Firm:
    """Instances that share a ledger and a clock."""

    def __init__(self, limit: int, ledger: MemoryLedger | None = None, instances: int = 1) -> None:
        self.ledger = ledger or FarLedger()
        self.ledger.declared = {"key/ann": (Limit(period=Period.MONTH, limit_usd_micros=limit),)}
        self.clock = FixedClock(NOW)
        self.told: list[ThresholdEvent] = []
        self.paid = 0
        self.numbers = itertools.count()
        self.spenders = [self._budget_client() for _ in range(instances)]

    def _budget_client(self) -> BudgetClient:
        async def tell(threshold_event: ThresholdEvent) -> None:
            self.told.append(threshold_event)

        name = lambda: f"lease{next(self.numbers)}"  # noqa: E731
        return BudgetClient(self.ledger, self.ledger, self.clock, announce=tell, new_id=name)

    async def ask(self, amount: int, budget_client: int = 0) -> Reservation | InsufficientBudget:
        found = await self.spenders[budget_client].reserve(*ANN, f"r{next(self.numbers)}", amount)
        self.check()
        return found

    async def pay(self, reservation: Reservation | InsufficientBudget, cost: int, budget_client: int = 0) -> None:
        assert isinstance(reservation, Reservation)
        entry = request_settlement(reservation, cost, model="model/m", note="")
        self.paid += cost
        await self.spenders[budget_client].settle(reservation, entry)
        self.check()

    def usage(self) -> Any:
        return self.ledger.kept["key/ann"].usages[Period.MONTH]

    def check(self) -> None:
        (limit,) = self.ledger.declared["key/ann"]
        usage = self.usage()
        assert usage.spent_usd_micros + usage.allocated_usd_micros <= limit.limit_usd_micros

    async def spent(self) -> int:
        balances = {b.account: b.spent_usd_micros for b in await self.ledger.balances("2026-11")}
        return balances.get("key/ann", 0)


async def test_requests_on_a_lease_ask_nobody() -> None:
    firm = Firm(10_000_000)
    for _ in range(6):  # Until it is known how busy it is.
        await firm.pay(await firm.ask(100), 60)
    before = firm.ledger.exchanges
    for _ in range(50):
        await firm.pay(await firm.ask(100), 60)
    assert firm.ledger.exchanges <= before + 2  # Renewed ahead of time, while nobody waits.
    await firm.spenders[0].maintain()
    assert await firm.spent() == 56 * 60
    assert firm.ledger.commits < 10


async def test_a_renewal_that_several_saw_coming_is_made_once() -> None:
    firm = Firm(10_000_000)
    await firm.ask(100)
    assert firm.ledger.exchanges == 1
    found = await asyncio.gather(*(firm.ask(100) for _ in range(FIRST_AHEAD)))
    assert all(isinstance(one, Reservation) for one in found)
    for _ in range(50):
        await asyncio.sleep(0)
    assert firm.ledger.exchanges == 2  # One for all of them, and one ahead of those to come.


class Interrupting(FarLedger):
    """An exchange that finds its lease changed by a write of the same instance."""

    writing = False
    disturbed = 0

    async def exchange(self, ask: AllocationRequest, *, now: datetime) -> AllocationResult:
        self.disturbed += self.writing
        before = self.commits
        step = await super().exchange(ask, now=now)
        self.disturbed += self.commits != before
        return step

    async def settle(self, allocation_id: str, entries: Any) -> bool:
        self.writing = True
        for _ in range(3):
            await asyncio.sleep(0)
        self.writing = False
        return await super().settle(allocation_id, entries)


async def test_an_instance_does_not_disturb_its_own_exchanges() -> None:
    ledger = Interrupting()
    firm = Firm(10_000_000, ledger)

    async def request() -> None:
        await firm.pay(await firm.ask(100), 60)

    for _ in range(10):
        await asyncio.gather(*(request() for _ in range(30)))
        firm.clock.at += RENEW_AFTER
    assert ledger.commits > 5
    assert ledger.exchanges > 3
    assert ledger.disturbed == 0


async def test_what_waits_to_be_written_is_bounded() -> None:
    firm = Firm(10_000_000)
    for _ in range(6):
        await firm.pay(await firm.ask(100), 60)
    writing, go_on = asyncio.Event(), asyncio.Event()
    before = firm.ledger.settle

    async def slow(allocation_id: str, entries: Any) -> bool:
        writing.set()
        await go_on.wait()
        return await before(allocation_id, entries)

    firm.ledger.settle = slow  # type: ignore[method-assign]
    tasks = [asyncio.create_task(firm.pay(await firm.ask(100), 60)) for _ in range(2 * UNWRITTEN_MAX)]
    await writing.wait()
    for _ in range(10):
        await asyncio.sleep(0)
    waiting = [task for task in tasks if not task.done()]
    assert len(waiting) >= UNWRITTEN_MAX // 2  # These are held up, as whoever asked them is.
    go_on.set()
    await asyncio.gather(*waiting)
    await firm.spenders[0].maintain()
    assert await firm.spent() == firm.paid


async def test_the_request_that_would_cross_is_refused_with_the_reason() -> None:
    firm = Firm(1000)
    first = await firm.ask(900)
    refused = await firm.ask(101)
    assert isinstance(refused, InsufficientBudget)
    assert (refused.account, refused.left_usd_micros, refused.resets_at) == (
        "key/ann", 100, datetime(2026, 12, 1, tzinfo=UTC),
    )  # fmt: skip
    await firm.pay(first, 10)
    firm.clock.at += timedelta(seconds=REFUSED_S)
    assert isinstance(await firm.ask(990), Reservation)


async def test_a_refusal_holds_for_a_moment() -> None:
    firm = Firm(1000)
    assert isinstance(await firm.ask(2000), InsufficientBudget)
    pending = firm.ledger.exchanges
    assert isinstance(await firm.ask(3000), InsufficientBudget)
    assert firm.ledger.exchanges == pending
    assert isinstance(await firm.ask(10), Reservation)  # Smaller ones are not concerned.


@pytest.mark.parametrize("instances", [1, 4, 16, 64])
async def test_the_last_cent_two_hundred_requests_at_once_and_many_instances(instances: int) -> None:
    limit, worst = 10_000, 90
    firm, rng = Firm(limit, instances=instances), random.Random(instances)
    under_way: list[tuple[Reservation, int]] = []

    async def request(number: int) -> bool:
        place = number % instances
        found = await firm.ask(worst, place)
        if isinstance(found, InsufficientBudget):
            return False
        under_way.append((found, place))
        return True

    won = sum(await asyncio.gather(*(request(n) for n in range(200))))
    # Nothing is left that another worst case would fit into.
    assert won == limit // worst
    for reservation, place in under_way:
        await firm.pay(reservation, rng.randint(1, worst), place)
    # They go on until everybody is refused: what is stranded then is less than one worst case and a twentieth.
    under_way.clear()
    spent, refused = firm.paid, set()
    for number in itertools.count():
        firm.clock.at += timedelta(seconds=REFUSED_S)
        if not await request(number):
            refused.add(number % instances)
            if len(refused) == instances:
                break
        else:
            refused.clear()
            reservation, place = under_way.pop()
            await firm.pay(reservation, rng.randint(1, worst), place)
    assert spent < firm.paid <= limit
    assert limit - firm.paid - worst < limit // 20
    for budget_client in firm.spenders:
        await budget_client.close()
    assert firm.usage().allocated_usd_micros == 0
    assert firm.usage().spent_usd_micros == await firm.spent() <= limit
    assert await firm.ledger.allocations() == []


async def test_when_the_ledger_is_silent_nothing_is_spent_and_nobody_waits_long(monkeypatch: Any) -> None:
    monkeypatch.setattr("goblin.billing.budget_client.RESERVE_S_MAX", 0.05)
    firm = Firm(1000, Hanging())
    with pytest.raises(StoreUnavailable):
        await firm.spenders[0].reserve(*ANN, "a", 1)
    started = asyncio.get_running_loop().time()
    for n in range(20):  # These do not wait for it again.
        with pytest.raises(StoreUnavailable):
            await firm.spenders[0].reserve(*ANN, f"b{n}", 1)
    assert asyncio.get_running_loop().time() - started < 0.05


async def lent(unreachable: WhenUnreachable) -> Firm:
    """A firm with something spare, whose ledger falls silent."""
    firm = Firm(10_000_000)
    limit = Limit(period=Period.MONTH, limit_usd_micros=10_000_000, unreachable=unreachable)
    firm.ledger.declared = {"key/ann": (limit,), "total": (replace(limit, unreachable=WhenUnreachable.SPEND_LENT),)}
    for _ in range(6):
        await firm.pay(await firm.ask(100), 60)
    await firm.spenders[0].maintain()
    assert firm.usage().allocated_usd_micros > 300
    firm.ledger.down = True
    await firm.pay(await firm.ask(100), 60)
    await firm.spenders[0].maintain()  # What was spent cannot be written: that is how it is noticed.
    return firm


async def test_while_the_ledger_is_silent_a_budget_refuses_even_what_was_lent() -> None:
    firm = await lent(WhenUnreachable.REFUSE)
    for _ in range(2):
        with pytest.raises(StoreUnavailable):
            await firm.ask(100)
        firm.clock.at += timedelta(seconds=BLIND_S)
    firm.ledger.down = False
    assert isinstance(await firm.ask(100), Reservation)  # It is asked again by itself.
    before = firm.ledger.exchanges
    assert isinstance(await firm.ask(100), Reservation)
    assert firm.ledger.exchanges == before


async def test_a_budget_may_say_that_what_was_lent_is_spent_meanwhile_and_no_more() -> None:
    firm = await lent(WhenUnreachable.SPEND_LENT)
    sent = 0
    with contextlib.suppress(StoreUnavailable):
        while sent < 10_000:
            await firm.pay(await firm.ask(100), 60)
            sent += 1
    assert 0 < sent < 10_000
    firm.check()
    firm.ledger.down = False
    await firm.spenders[0].maintain()
    firm.check()
    assert await firm.spent() == firm.paid


async def test_what_was_lent_is_not_spent_beyond_its_time_however_long_the_silence() -> None:
    firm = await lent(WhenUnreachable.SPEND_LENT)
    firm.clock.at += ALLOCATION_LIFE - CLOCK_SKEW
    with pytest.raises(StoreUnavailable):
        await firm.ask(1)


async def test_an_answer_that_was_lost_lends_nothing_twice() -> None:
    firm = Firm(1000)
    firm.ledger.lose_answers = 1
    with pytest.raises(StoreUnavailable):
        await firm.ask(600)
    firm.clock.at += timedelta(seconds=BLIND_S)
    assert isinstance(await firm.ask(600), Reservation)
    assert firm.usage().allocated_usd_micros == 600


async def test_what_could_not_be_written_is_written_later_and_once() -> None:
    firm = Firm(100_000)
    first, second = await firm.ask(50), await firm.ask(50)
    firm.ledger.down = True
    await firm.pay(first, 20)
    await firm.pay(second, 30)
    assert firm.ledger.written.keys().isdisjoint({f"request:{first.reservation_id}"})  # type: ignore[union-attr]
    firm.ledger.down, firm.ledger.lose_answers = False, 1
    await firm.spenders[0].maintain()  # It is written, and nobody hears of it.
    firm.clock.at += timedelta(seconds=BLIND_S)
    third = await firm.ask(50)
    await firm.pay(third, 5)
    await firm.spenders[0].maintain()
    assert await firm.spent() == 55
    await firm.spenders[0].close()
    assert (firm.usage().spent_usd_micros, firm.usage().allocated_usd_micros) == (55, 0)


async def test_an_attempt_is_settled_once_and_what_was_not_sent_costs_nothing() -> None:
    firm = Firm(1000)
    first, second = await firm.ask(50), await firm.ask(50)
    assert isinstance(second, Reservation)
    await firm.pay(first, 20)
    await firm.pay(first, 20)
    await firm.spenders[0].settle(second, None)
    await firm.spenders[0].close()
    assert await firm.spent() == 20


async def test_leases_go_back_when_nobody_comes() -> None:
    firm = Firm(10_000_000)
    for _ in range(6):
        await firm.pay(await firm.ask(100), 60)
    assert firm.usage().allocated_usd_micros > 0
    firm.clock.at += IDLE_AFTER
    await firm.spenders[0].maintain()
    assert firm.usage().allocated_usd_micros == 0
    assert await firm.ledger.allocations() == []
    assert isinstance(await firm.ask(100), Reservation)


async def test_between_rare_requests_nothing_is_kept() -> None:
    firm = Firm(10_000_000)
    for _ in range(3):
        await firm.pay(await firm.ask(100), 60)
        assert await firm.ledger.allocations() == []
        firm.clock.at += IDLE_AFTER


async def test_a_new_day_is_paid_from_a_new_lease() -> None:
    firm = Firm(1000)
    firm.ledger.declared = {"key/ann": (Limit(period=Period.DAY, limit_usd_micros=1000),)}
    old = await firm.ask(900)
    firm.clock.at += timedelta(days=1)
    new = await firm.spenders[0].reserve(*ANN, "new", 900)
    assert isinstance(new, Reservation)
    await firm.spenders[0].settle(old, request_settlement(old, 800, model="model/m", note=""))  # type: ignore[arg-type]
    await firm.spenders[0].settle(new, request_settlement(new, 7, model="model/m", note=""))
    await firm.spenders[0].maintain()
    await firm.spenders[0].close()
    days = [{b.account: b.spent_usd_micros for b in await firm.ledger.balances(f"2026-11-{d}")} for d in (25, 26)]
    assert [day["key/ann"] for day in days] == [800, 7]
    assert await firm.ledger.allocations() == []
    assert firm.ledger.kept["key/ann"].usages[Period.DAY].spent_usd_micros == 7


async def test_a_limit_that_is_lowered_holds_for_what_was_lent_before_within_a_renewal() -> None:
    firm = Firm(10_000_000)
    for _ in range(6):
        await firm.pay(await firm.ask(100), 60)
    assert firm.usage().allocated_usd_micros > 1000
    firm.ledger.declared = {"key/ann": (Limit(period=Period.MONTH, limit_usd_micros=500),)}
    firm.clock.at += RENEW_AFTER
    under_way = await firm.spenders[0].reserve(*ANN, "still", 100)  # It is told while this goes on.
    assert isinstance(under_way, Reservation)
    for _ in range(50):
        await asyncio.sleep(0)
    assert firm.usage().spent_usd_micros + firm.usage().allocated_usd_micros == 6 * 60 + 100
    assert isinstance(await firm.ask(100), InsufficientBudget)
    await firm.pay(under_way, 60)


async def test_thresholds_are_told_once_each() -> None:
    firm = Firm(1000)
    for _ in range(24):
        found = await firm.ask(50)
        if isinstance(found, Reservation):
            await firm.pay(found, 48)
        firm.clock.at += timedelta(seconds=REFUSED_S)
        await firm.spenders[0].maintain()
        await asyncio.sleep(0)
    assert [threshold_event.percent for threshold_event in firm.told] == [50, 80, 95, 100]
    assert {(c.account, c.window, c.limit_usd_micros) for c in firm.told} == {("key/ann", "2026-11", 1000)}


async def test_a_lease_that_the_ledger_gave_up_is_replaced() -> None:
    firm = Firm(10_000)
    first = await firm.ask(100)
    firm.clock.at += timedelta(hours=1)
    for allocation in await firm.ledger.allocations():
        await firm.ledger.expire(allocation.allocation_id, now=firm.clock.at)
    second = await firm.ask(100)
    assert isinstance(second, Reservation)
    await firm.pay(first, 30)
    await firm.pay(second, 40)
    await firm.spenders[0].maintain()
    assert await firm.spent() == 70
    (lost,) = await firm.ledger.allocations()
    await firm.ledger.resolve(lost.allocation_id, spent_usd_micros=0, now=firm.clock.at)
    await firm.spenders[0].close()
    assert (firm.usage().spent_usd_micros, firm.usage().allocated_usd_micros) == (70, 0)
