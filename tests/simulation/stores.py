"""Dependencies of the functions: the ports in memory, behind the network, with a clock for each function instance."""

from __future__ import annotations

import itertools
from collections.abc import Awaitable, Callable
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any

import msgspec

from goblin.billing.budget_client import BudgetClient
from goblin.billing.policy.allocation import AllocationResult, ThresholdEvent
from goblin.billing.policy.budgets import budget_exceeded_event
from goblin.jobs import reservations
from goblin.jobs.domain.job import Job
from goblin.jobs.lifecycle import JobDeps
from goblin.jobs.ports import StoredJob
from tests.fakes.jobs import BUCKET, FakeClock, MemoryAttemptKeys, MemoryJobs, MemoryMarket
from tests.fakes.ledger import MemoryLedger
from tests.simulation.network import Reached

if TYPE_CHECKING:
    from tests.simulation.life import Life


class SimulatedClock:
    """Clock of one function instance, a little fast or slow."""

    def __init__(self, clock: FakeClock, ahead_s: float) -> None:
        self._clock, self._ahead = clock, timedelta(seconds=ahead_s)

    def now(self) -> datetime:
        return self._clock.now() + self._ahead

    def monotonic(self) -> float:
        return self._clock.monotonic()


class Jobs(MemoryJobs):
    """The job store. It reports every write and keeps no history."""

    def __init__(self, wrote: Callable[[Job | None, Job], None]) -> None:
        super().__init__()
        self._wrote = wrote
        self._writes = 0

    def _put(self, job: Job) -> StoredJob:
        before = self.stored.get(job.job_id)
        self._writes += 1
        if self._writes % 16 == 0:  # A store gives back what it can write; to try it each time takes too long.
            job = msgspec.json.decode(msgspec.json.encode(job), type=Job)
        stored = self.stored[job.job_id] = StoredJob(job=job, version=str(self._writes))
        self._wrote(before.job if before else None, job)
        return stored


class SimulatedLedger(MemoryLedger):
    """The ledger. It reports every write."""

    booked: Callable[[Any, Any], None] = staticmethod(lambda accounts, entries: None)

    def _write(self, step: AllocationResult, allocation_id: str | None) -> None:
        super()._write(step, allocation_id)
        if step.writes and step.accounts:
            self.booked(self._accounts([account.name for account in step.accounts]), step.entries)

    def put_aside(self, label: str) -> int:
        """For an attempt's instance, over all its days."""
        found = 0
        for part in itertools.count(1):
            name = f"rent:{label}:{part}"
            lease, settled = self.lent.get(name), self.written.get(f"{name}:settled")
            if lease is not None:
                found += max(lease.granted_usd_micros, lease.settled_usd_micros)
            elif settled is not None:
                found += settled.amount_usd_micros
            else:
                return found
        raise AssertionError


def announcer(bus: Any) -> Callable[[ThresholdEvent], Awaitable[None]]:
    """Publish thresholds that were passed, as the functions do."""

    async def announce(event: ThresholdEvent) -> None:
        await bus.publish("budget-exceeded", budget_exceeded_event(event))

    return announce


def function(life: Life, history: MemoryMarket, ahead_s: float) -> JobDeps:
    """An instance of a function, in a process of its own."""
    net, secrets = life.network, itertools.count(1)
    instance = life.rng.randrange(10**6)
    ledger = Reached(
        life.ledger, net, "ledger",
        reads=(
            "balances", "entries", "instance_settlements", "actions", "freezes", "accounts", "allocations", "limited",
        ),
    )  # fmt: skip
    bus: Any = Reached(life.post, net, "bus")
    clock = SimulatedClock(life.clock, ahead_s)

    everything: dict[str, Any] = {
        "jobs": Reached(life.jobs, net, "jobs", reads=("get", "list_open", "list_recent")),
        "objects": Reached(life.objects, net, "objects", reads=("stat", "list_from", "sign_get", "sign_put")),
        "bus": bus,
        "keys": Reached(MemoryAttemptKeys(), net, "keys"),
        "market": Reached(history, net, "market", reads=("load",)),
        "money": reservations.ReservationDeps(
            budget_client=BudgetClient(ledger, ledger, clock, announce=announcer(bus)),  # type: ignore[arg-type]
            ledger=ledger,  # type: ignore[arg-type]
        ),
    }
    return JobDeps(
        **everything, compute=life.providers, clock=clock, bucket=BUCKET, url="http://goblin",
        limits=life.limits, new_secret=lambda: f"secret-{instance:06d}-{next(secrets):06d}",
    )  # fmt: skip
