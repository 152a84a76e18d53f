"""Simulated controllers, ledger and providers. Calls are cut off, delayed and repeated between any two writes.

The services are those that run in production. Only their scheduling is simulated: a task yields before and after each
call of the ledger or of the job store, any other task may run first, and the task may never resume. The truth is what
the providers charge, by the second.
"""

from __future__ import annotations

import random
from collections import defaultdict
from collections.abc import Callable, Coroutine, Generator, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from types import coroutine
from typing import Any, TypeVar

from goblin.billing import settlement
from goblin.billing.budget_client import BudgetClient
from goblin.billing.domain.accounts import Allocation, Limit, Period
from goblin.billing.domain.ledger import INSTANCE_PREFIX, Balance, Bill, Charge, EntryKind, Freeze, LedgerEntry
from goblin.billing.policy.allocation import AllocationRequest, AllocationResult, InsufficientBudget, ThresholdEvent
from goblin.billing.ports import BillSource
from goblin.core.errors import StoreUnavailable
from goblin.core.labels import attempt_label, job_of_label
from goblin.jobs import reservations
from goblin.jobs.domain.job import InstanceReservation
from goblin.jobs.policy import reservations as reservation_policy
from tests.fakes.ledger import MemoryLedger
from tests.fakes.registry import FixedClock

T = TypeVar("T")
START = datetime(2026, 11, 30, 23, 25, tzinfo=UTC)
"""A day, and a month, end soon."""
TASK_S_MAX = 60
"""A function that has not come to its end by then is killed."""
TICK_S = 60
GONE_WITHIN_S = 2 * TICK_S
"""An instance that nobody wants is found and ended within two ticks."""
PROVIDERS = ("vastai", "runpod")
TELLS_LABELS = frozenset({"vastai"})
JOBS = {"a": "vastai", "b": "vastai", "c": "runpod", "d": "runpod"}
LIMITS = {
    "total": (Limit(period=Period.MONTH, limit_usd_micros=9_000_000),),
    "vastai": (
        Limit(period=Period.DAY, limit_usd_micros=2_500_000), Limit(period=Period.MONTH, limit_usd_micros=5_000_000),
    ),
    "runpod": (Limit(period=Period.DAY, limit_usd_micros=3_000_000),),
    "job/a": (Limit(period=Period.LIFETIME, limit_usd_micros=1_700_000),),
    "job/c": (Limit(period=Period.LIFETIME, limit_usd_micros=2_600_000),),
}  # fmt: skip


@coroutine
def pause() -> Generator[None, None, None]:
    """Let others go first."""
    yield


@dataclass(frozen=True, slots=True)
class PausedLedger:
    """The ledger, yielding before and after each call."""

    inner: MemoryLedger

    async def _call(self, work: Coroutine[Any, Any, Any]) -> Any:
        try:
            await pause()
        except GeneratorExit:
            work.close()
            raise
        try:
            return await work
        finally:
            await pause()

    async def record(self, entry: LedgerEntry) -> bool:
        return bool(await self._call(self.inner.record(entry)))

    async def exchange(self, ask: AllocationRequest, *, now: datetime) -> AllocationResult:
        step: AllocationResult = await self._call(self.inner.exchange(ask, now=now))
        return step

    async def settle(self, allocation_id: str, entries: Sequence[LedgerEntry]) -> bool:
        return bool(await self._call(self.inner.settle(allocation_id, entries)))

    async def allocations(self) -> Sequence[Allocation]:
        found: Sequence[Allocation] = await self._call(self.inner.allocations())
        return found

    async def expire(self, allocation_id: str, *, now: datetime) -> AllocationResult:
        step: AllocationResult = await self._call(self.inner.expire(allocation_id, now=now))
        return step

    async def resolve(self, allocation_id: str, *, spent_usd_micros: int, now: datetime) -> AllocationResult:
        step: AllocationResult = await self._call(
            self.inner.resolve(allocation_id, spent_usd_micros=spent_usd_micros, now=now)
        )
        return step

    async def balances(self, window: str) -> Sequence[Balance]:
        found: Sequence[Balance] = await self._call(self.inner.balances(window))
        return found

    async def instance_settlements(self, day: str) -> Sequence[LedgerEntry]:
        found: Sequence[LedgerEntry] = await self._call(self.inner.instance_settlements(day))
        return found

    async def entries(self, *, limit: int) -> Sequence[LedgerEntry]:
        return await self.inner.entries(limit=limit)

    async def actions(self, *, limit: int) -> Sequence[LedgerEntry]:
        return await self.inner.actions(limit=limit)

    async def freezes(self) -> Sequence[Freeze]:
        return await self.inner.freezes()

    async def accounts(self) -> Any:
        return await self.inner.accounts()

    async def limit(self, account: str, period: Period, limit: Limit | None) -> None:
        await self.inner.limit(account, period, limit)


@dataclass(frozen=True, kw_only=True, slots=True)
class Document:
    """The money fields of a job's document."""

    version: int = 0
    attempt: int = 0
    label: str | None = None
    """Of the attempt that may live."""
    reservations: tuple[InstanceReservation, ...] = ()
    spent_usd_micros: int = 0


@dataclass(kw_only=True, slots=True)
class Machine:
    """An instance as its provider knows it."""

    label: str
    provider: str
    instance_id: str
    usd_micros_per_hour: int
    start_usd_micros: int
    born_at: datetime
    gone_at: datetime | None = None

    def cost(self, end: datetime) -> dict[str, int]:
        """Until an instant, by day; each in whole millionths, never rounded up."""
        days, first, began = {}, self.born_at, self.start_usd_micros
        last = min(end, self.gone_at) if self.gone_at is not None else end
        while first < last:
            midnight = first.replace(hour=0, minute=0, second=0, microsecond=0) + timedelta(days=1)
            lasted_s = (min(last, midnight) - first).total_seconds()
            days[f"{first:%Y-%m-%d}"] = began + int(self.usd_micros_per_hour * lasted_s / 3600)
            first, began = midnight, 0
        return days


@dataclass(slots=True)
class Task:
    work: Coroutine[Any, Any, None]
    born_at: datetime


@dataclass(slots=True)
class World:
    rng: random.Random
    ledger: MemoryLedger = field(default_factory=lambda: MemoryLedger(declared=LIMITS))
    now: datetime = START
    jobs: dict[str, Document] = field(default_factory=lambda: {job_id: Document() for job_id in JOBS})
    machines: list[Machine] = field(default_factory=list)
    tasks: list[Task] = field(default_factory=list)
    at_rest: bool = False
    """Nothing new is rented, nobody dies any more."""
    refusals: int = 0
    renewals: int = 0
    turns: int = 0

    @property
    def deps(self) -> reservations.ReservationDeps:
        paused = PausedLedger(self.ledger)
        client = BudgetClient(paused, paused, FixedClock(self.now), announce=nobody)
        return reservations.ReservationDeps(budget_client=client, ledger=paused)

    # Time and turns.

    def start(self, work: Coroutine[Any, Any, None]) -> None:
        self.tasks.append(Task(work, self.now))

    def turn(self) -> None:
        """Some task goes on for one call; sometimes it dies instead."""
        for task in [task for task in self.tasks if self.now - task.born_at > timedelta(seconds=TASK_S_MAX)]:
            self.tasks.remove(task)
            task.work.close()
        if not self.tasks:
            return
        task = self.rng.choice(self.tasks)
        if not self.at_rest and self.rng.random() < 0.01:
            self.tasks.remove(task)
            task.work.close()
            return
        try:
            task.work.send(None)
        except StopIteration:
            self.tasks.remove(task)
        except StoreUnavailable:
            self.tasks.remove(task)

    def finish(self) -> None:
        """Everybody comes to an end."""
        while self.tasks:
            self.turn()

    def pass_time(self, seconds: float) -> None:
        """Nobody lives beyond what is paid: reconcile sees to that each minute, whatever else goes wrong."""
        later = self.now + timedelta(seconds=seconds)
        for machine in self.machines:
            if machine.gone_at is not None:
                continue
            job_id = job_of_label(machine.label)
            document = self.jobs[job_id]
            if document.label != machine.label:
                machine.gone_at = self.now + timedelta(seconds=self.rng.uniform(0, min(seconds, GONE_WITHIN_S)))
                continue
            leave_at = min(reservation_policy.leave_at(reservation) for reservation in document.reservations[-1:])
            if later >= leave_at:
                first = max(self.now, leave_at)
                spare_s = (document.reservations[-1].until - first).total_seconds()
                machine.gone_at = first + timedelta(seconds=self.rng.uniform(0, max(0.0, spare_s)))
                self.jobs[job_id] = replace(document, label=None, version=document.version + 1)
        self.now = later

    @staticmethod
    def now_of(work: Coroutine[Any, Any, T]) -> T:
        """What a call of the fake, which never waits, answers."""
        try:
            work.send(None)
        except StopIteration as done:
            answer: T = done.value
            return answer
        raise AssertionError("it waited")

    # What controllers do, as they do it.

    async def read(self, job_id: str) -> Document:
        await pause()
        return self.jobs[job_id]

    async def write(self, job_id: str, after: Document, version: int) -> bool:
        await pause()
        if self.jobs[job_id].version != version:
            return False
        self.jobs[job_id] = replace(after, version=version + 1)
        await pause()
        return True

    async def change(self, job_id: str, decide: Callable[[Document], Document | None]) -> bool:
        while True:
            before = await self.read(job_id)
            after = decide(before)
            if after is None:
                return False
            if await self.write(job_id, after, before.version):
                return True

    async def place(self, job_id: str) -> None:
        """Write, put aside, write, rent."""
        before = await self.read(job_id)
        if before.label is not None or self.at_rest:
            return
        now, attempt = self.now, before.attempt + 1
        label = attempt_label(job_id, attempt)
        plan = self.plan(job_id, label, now)
        planned = replace(before, attempt=attempt, label=label, reservations=(*before.reservations, plan))
        if not await self.write(job_id, planned, before.version):
            return
        try:
            found = await reservations.reserve(plan, self.deps, now=now)
        except StoreUnavailable:
            found = None
        if not isinstance(found, InstanceReservation):
            self.refusals += isinstance(found, InsufficientBudget)
            await self.change(job_id, lambda job: self.without_instance(job, label))
            return
        reservation = found

        def put(job: Document) -> Document | None:
            if job.label != label or plan not in job.reservations:
                return None
            return replace(job, reservations=tuple(reservation if one == plan else one for one in job.reservations))

        if not await self.change(job_id, put):
            await reservations.settle(reservation_policy.ended(reservation, reservation.since), self.deps, now=self.now)
            return
        await self.rent(job_id, reservation)

    async def rent(self, job_id: str, reservation: InstanceReservation) -> None:
        await pause()
        if self.rng.random() < 0.2:
            await self.change(job_id, lambda job: self.without_instance(job, reservation.label))
            return
        machine = Machine(
            label=reservation.label, provider=reservation.provider, instance_id=f"i-{reservation.label}",
            usd_micros_per_hour=self.rng.randint(1, reservation.price_usd_micros_per_hour),
            start_usd_micros=self.rng.randint(0, reservation.start_usd_micros), born_at=self.now,
        )  # fmt: skip
        self.machines.append(machine)
        await pause()
        if self.rng.random() < 0.1:
            return  # Nobody heard its name.
        await self.change(
            job_id,
            lambda job: replace(
                job, reservations=reservation_policy.named(job.reservations, reservation.label, machine.instance_id)
            ),
        )

    def plan(self, job_id: str, label: str, now: datetime) -> InstanceReservation:
        start_s, work_s = self.rng.choice([30, 300]), self.rng.choice([300, 1800, 3600])
        return InstanceReservation(
            label=label, provider=JOBS[job_id], spot=True, since=now,
            price_usd_micros_per_hour=self.rng.choice([40_000, 300_000, 1_200_000]),
            start_usd_micros=self.rng.choice([0, 20_000]),
            until=now + timedelta(seconds=start_s + work_s + reservation_policy.IDLE_S), reserved_usd_micros=0,
            shortest_s=start_s + reservation_policy.SLICE_S_MIN + reservation_policy.IDLE_S,
        )  # fmt: skip

    @staticmethod
    def without_instance(job: Document, label: str) -> Document | None:
        if job.label != label:
            return None
        unspent = tuple(
            reservation_policy.ended(reservation, reservation.since) if reservation.label == label else reservation
            for reservation in job.reservations
        )
        return replace(job, label=None, reservations=unspent)

    async def tick(self, job_id: str) -> None:
        """Prolong, or ask to leave."""
        job = await self.read(job_id)
        reservation = next((one for one in job.reservations if one.label == job.label and one.ended_at is None), None)
        if reservation is None:
            return
        try:
            kept = await reservations.renew(reservation, self.deps, now=self.now)
        except StoreUnavailable:
            kept = reservations.Renewal(reservations=(reservation,), refused="no answer")
        self.refusals += bool(kept.refused)
        if kept.reservations != (reservation,):
            self.renewals += len(kept.reservations) == 1
            self.turns += len(kept.reservations) == 2

            def put(job: Document) -> Document | None:
                if reservation not in job.reservations:
                    return None
                at = job.reservations.index(reservation)
                return replace(
                    job, reservations=(*job.reservations[:at], *kept.reservations, *job.reservations[at + 1 :])
                )

            await self.change(job_id, put)

    async def leave(self, job_id: str) -> None:
        """The attempt is over, for any reason."""
        await self.change(job_id, lambda job: replace(job, label=None) if job.label else None)

    async def end(self, job_id: str) -> None:
        """Settle what a whole inventory does not have, if nobody wanted it before that was listed."""
        before = await self.read(job_id)
        inventory = {
            machine.label for machine in self.machines if machine.gone_at is None or machine.gone_at > self.now
        }
        gone = {
            reservation.label
            for reservation in before.reservations
            if reservation.label != before.label
            and reservation.label not in inventory
            and not reservation_policy.may_come(reservation, self.now)
        }
        await pause()
        now = self.now

        def end(job: Document) -> Document | None:
            after = tuple(
                reservation_policy.ended(reservation, now) if reservation.label in gone else reservation
                for reservation in job.reservations
            )
            return replace(job, reservations=after) if after != job.reservations else None

        await self.change(job_id, end)
        for reservation in (await self.read(job_id)).reservations:
            if reservation.ended_at is None:
                continue
            cost = await reservations.settle(reservation, self.deps, now=self.now)
            await self.change(job_id, lambda job, reservation=reservation, cost=cost: self.drop(job, reservation, cost))  # type: ignore[misc]

    @staticmethod
    def drop(job: Document, reservation: InstanceReservation, cost: int) -> Document | None:
        if reservation not in job.reservations:
            return None
        left = tuple(one for one in job.reservations if one != reservation)
        return replace(job, reservations=left, spent_usd_micros=job.spent_usd_micros + cost)

    async def settle(self) -> None:
        """The hourly settlement."""
        paused = PausedLedger(self.ledger)
        await settlement.settle(
            settlement.SettlementDeps(
                ledger=paused, allocation_store=paused, bills=[ProviderBill(self, name) for name in PROVIDERS],
                announce=nobody, prices={}, clock=FixedClock(self.now),
            )
        )  # fmt: skip

    # Truth.

    def really_spent(self) -> dict[tuple[str, str], int]:
        """What the providers have charged until now, by account and day; all of an account's under no day."""
        sums: dict[tuple[str, str], int] = defaultdict(int)
        for machine in self.machines:
            for day, micros in machine.cost(self.now).items():
                for account in reservation_policy.accounts_of(machine.provider, job_of_label(machine.label)):
                    sums[account, day] += micros
                    sums[account, ""] += micros
        return sums

    def tails_of_the_dead(self) -> dict[str, int]:
        """What ran over midnight on the lease of the day before, and was resolved by that day's bill before its end was
        written: the next day's bill tells of it, as a fact that comes late."""
        sums: dict[str, int] = defaultdict(int)
        for machine in self.machines:
            if any(f"{INSTANCE_PREFIX}{machine.label}:{part}:resolve" in self.ledger.written for part in (1, 2, 3)):
                _, *after = machine.cost(self.now).values() or [0]
                for account in reservation_policy.accounts_of(machine.provider, job_of_label(machine.label)):
                    sums[account] += sum(after)
        return sums


async def nobody(threshold_event: ThresholdEvent) -> None:
    """Who is told of thresholds."""


@dataclass(slots=True)
class ProviderBill(BillSource):
    world: World
    provider: str
    final_after: timedelta = timedelta(hours=2)

    async def bill(self, day: str) -> Bill:
        await pause()
        charges = []
        for machine in self.world.machines:
            micros = machine.cost(self.world.now).get(day, 0)
            if micros and machine.provider == self.provider:
                label = machine.label if self.provider in TELLS_LABELS else ""
                charges.append(Charge(instance_id=machine.instance_id, label=label, usd_micros=micros))
        return Bill(usd_micros=sum(one.usd_micros for one in charges), charges=tuple(charges))


def adjusted_upwards(ledger: MemoryLedger) -> int:
    """What bills told that nothing was put aside for."""
    return sum(max(0, one.amount_usd_micros) for one in ledger.written.values() if one.kind is EntryKind.ADJUST)
