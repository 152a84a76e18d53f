"""Random runs of many allocation holders on one ledger: no budget is ever overspent, in any interleaving of steps.

The ledger's steps and the local allocations are the functions that run in production. Only the documents are in memory.
The test keeps the truth beside them: the requests that were really sent, and what the provider will bill for them.
"""

from __future__ import annotations

import contextlib
import os
import random
from collections import defaultdict
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    Bundle,
    RuleBasedStateMachine,
    consumes,
    invariant,
    multiple,
    rule,
    run_state_machine_as_test,
)

from goblin.billing.domain.accounts import Limit, Period, windows_of
from goblin.billing.domain.ledger import EntryKind, LedgerEntry, lineage
from goblin.billing.policy.allocation import ALLOCATION_LIFE, AllocationRequest, AllocationResult
from goblin.billing.policy.local_allocation import LocalAllocation
from goblin.core.errors import StoreUnavailable
from tests.fakes.ledger import MemoryLedger

START = datetime(2026, 11, 30, 23, 50, tzinfo=UTC)  # Close to the end of a day and a month.
PATHS = [("openai", ()), ("openai/ann", ("key/ann",)), ("openai/bob", ("key/bob",)), ("groq/ann", ("key/ann",))]
LIMITS = {
    "total": (Limit(period=Period.MONTH, limit_usd_micros=30_000), Limit(period=Period.DAY, limit_usd_micros=25_000)),
    "openai": (Limit(period=Period.DAY, limit_usd_micros=20_000),),
    "key/ann": (Limit(period=Period.LIFETIME, limit_usd_micros=15_000),),
    "groq": (Limit(period=Period.MONTH, limit_usd_micros=7_000),),
}
STEPS = int(os.environ.get("GOBLIN_SIMULATION_STEPS", "40"))
WORST = st.one_of(st.integers(1, 60), st.integers(1, 4_000), st.sampled_from([6_999, 7_000, 7_001, 14_000, 20_000]))
EXAMPLES = int(os.environ.get("GOBLIN_SIMULATION_EXAMPLES", "150"))
WALKS = EXAMPLES // 5


@dataclass
class Request:
    """One request in flight. It was sent, so it will cost something up to its worst case."""

    local: LocalAllocation
    request_id: str
    worst: int
    at: datetime
    alive: bool = True


@dataclass
class Truth:
    """Spent and possible spend by account and window, as the provider sees it. No crash changes it."""

    sums: dict[tuple[str, Period, str], int] = field(default_factory=lambda: defaultdict(int))

    def add(self, account: str, also: tuple[str, ...], amount: int, windows: Any) -> None:
        for name in (*lineage(account), *also):
            for period, window in windows.items():
                self.sums[name, period, window] += amount


def run(work: Any) -> Any:
    """The fake never really waits."""
    try:
        work.send(None)
    except StopIteration as done:
        return done.value
    raise AssertionError("it waited")


class Spending(RuleBasedStateMachine):
    allocations = Bundle("purses")
    requests = Bundle("requests")
    written = Bundle("written")

    def __init__(self) -> None:
        super().__init__()
        self.ledger = MemoryLedger(declared=LIMITS)
        self.now = START
        self.truth = Truth()
        self.names = 0
        self.open: list[Request] = []
        self.dead: list[LocalAllocation] = []
        self.live: list[LocalAllocation] = []
        self.answers: dict[str, AllocationResult] = {}
        self.asks: list[AllocationRequest] = []
        """All that were ever sent: the network may bring any of them once more."""

    def _name(self, kind: str) -> str:
        self.names += 1
        return f"{kind}{self.names}"

    @rule(target=allocations, path=st.sampled_from(PATHS))
    def an_instance_starts(self, path: Any) -> LocalAllocation:
        local = LocalAllocation(allocation_id=self._name("lease"), account=path[0], also=path[1])
        self.live.append(local)
        return local

    @rule(seconds=st.sampled_from([1, 20, 70, 200, 700]))
    def time_passes(self, seconds: int) -> None:
        self.now += timedelta(seconds=seconds)

    @rule(lost=st.integers(1, 3))
    def answers_get_lost(self, lost: int) -> None:
        self.ledger.lose_answers = lost

    @rule(down=st.booleans())
    def the_store_is_down(self, down: bool) -> None:
        self.ledger.down = down

    @rule(target=requests, local=allocations, worst=WORST, skew=st.sampled_from([-5, 0, 5]), patient=st.booleans())
    def a_request_comes(self, local: LocalAllocation, worst: int, skew: int, patient: bool) -> Any:
        if local not in self.live:
            return multiple()
        request_id = self._name("request")
        now = self.now + timedelta(seconds=skew)
        if not local.reserve(request_id, worst, now=now):
            local.next_request(now=now, need_usd_micros=worst)
            if patient:
                self.the_ledger_answers(local)
                self.the_answer_is_heard(local)
            if not local.reserve(request_id, worst, now=now):
                return multiple()
        # It is sent: from here on its worst case may be spent, whatever happens to the instance.
        self.truth.add(local.account, local.also, worst, local.windows)
        request = Request(local, request_id, worst, now)
        self.open.append(request)
        return request

    @rule(local=allocations, may_shrink=st.booleans(), close=st.booleans(), waiting=st.sampled_from([0, 0, 50, 3_000]))
    def an_instance_asks(self, local: LocalAllocation, may_shrink: bool, close: bool, waiting: int) -> None:
        if local in self.live and not local.retired:
            local.next_request(now=self.now, may_shrink=may_shrink or close, close=close, waiting_usd_micros=waiting)

    @rule(local=allocations)
    def the_ledger_answers(self, local: LocalAllocation) -> None:
        """It has made the step; whether the instance hears of it is another matter."""
        if local not in self.live or local.pending is None:
            return
        self.asks.append(local.pending)
        with contextlib.suppress(StoreUnavailable):
            self.answers[local.allocation_id] = run(self.ledger.exchange(local.pending, now=self.now))

    @rule(local=allocations)
    def the_answer_is_heard(self, local: LocalAllocation) -> None:
        if local in self.live and (step := self.answers.pop(local.allocation_id, None)) is not None:
            local.accept(step.allocation, now=self.now)

    def _exchange(self, local: LocalAllocation, **words: Any) -> None:
        """To the end."""
        for _ in range(2):
            if not local.retired:
                local.next_request(now=self.now, **words)
                self.the_ledger_answers(local)
                self.the_answer_is_heard(local)

    @rule(request=consumes(requests), share=st.floats(0, 1), again=st.booleans())
    def a_request_ends(self, request: Request, share: float, again: bool) -> None:
        if request not in self.open or not request.alive:
            return
        self.open.remove(request)
        local, cost = request.local, int(request.worst * share)
        entry = LedgerEntry(
            entry_id=request.request_id, kind=EntryKind.SETTLE, account=local.account, also=local.also,
            amount_usd_micros=cost, at=request.at,
        )  # fmt: skip
        self.truth.add(local.account, local.also, cost - request.worst, local.windows)
        assert local.settle(request.request_id, entry)
        if again:
            assert not local.settle(request.request_id, entry)

    @rule(local=allocations)
    def an_instance_writes(self, local: LocalAllocation) -> None:
        if local not in self.live or not local.unwritten:
            return
        entries = local.batch()
        try:
            if not run(self.ledger.settle(local.allocation_id, entries)):
                for entry in entries:
                    run(self.ledger.record(entry))
        except StoreUnavailable:
            return
        local.wrote()

    @rule(local=consumes(allocations))
    def an_instance_dies(self, local: LocalAllocation) -> None:
        if local in self.live:
            self.live.remove(local)
            self.dead.append(local)
            for request in self.open:
                if request.local is local:
                    request.alive = False

    @rule()
    def leases_of_the_dead_expire(self) -> None:
        try:
            for allocation in run(self.ledger.allocations()):
                run(self.ledger.expire(allocation.allocation_id, now=self.now))
        except StoreUnavailable:
            pass

    @rule(data=st.data())
    def an_old_message_comes_again(self, data: Any) -> None:
        """The network repeats itself: an ask, or entries."""
        if self.asks and not self.ledger.down and not self.ledger.lose_answers:
            run(self.ledger.exchange(data.draw(st.sampled_from(self.asks)), now=self.now))
        seen = [entry for entry in self.ledger.written.values() if entry.kind is EntryKind.SETTLE]
        if seen and not self.ledger.down:
            entry = data.draw(st.sampled_from(seen))
            assert run(self.ledger.settle("whichever", [entry]))

    @invariant()
    def no_budget_is_overspent(self) -> None:
        """By the ledger's own figures, and by what was really sent."""
        for account in self.ledger._accounts(sorted({*self.ledger.kept, *self.ledger.declared})):
            for limit in account.limits:
                usage = account.usages.get(limit.period)
                if usage is None:
                    continue
                held = usage.spent_usd_micros + usage.allocated_usd_micros
                real = self.truth.sums[account.name, limit.period, usage.window]
                assert usage.allocated_usd_micros >= 0, (account, limit)
                assert real <= held <= limit.limit_usd_micros, (account.name, limit, usage, real)

    @invariant()
    def no_purse_spends_what_it_was_not_lent(self) -> None:
        for local in self.live:
            allocation = self.ledger.lent.get(local.allocation_id)
            if allocation is not None and not allocation.expired:
                assert local.used_usd_micros <= allocation.granted_usd_micros, (local, allocation)

    def teardown(self) -> None:
        """Everybody ends; the provider's bill is read; then every tally is what was really spent."""
        self.ledger.down, self.ledger.lose_answers = False, 0
        for request in list(self.open):
            if request.alive:
                self.a_request_ends(request, 0.5, False)
        for local in list(self.live):
            while local.unwritten:
                self.an_instance_writes(local)
            self._exchange(local, close=True)
            self.no_budget_is_overspent()
        self.now += ALLOCATION_LIFE * 2
        self.leases_of_the_dead_expire()
        for allocation in run(self.ledger.allocations()):
            assert allocation.expired, allocation
            found = min(allocation.lost_usd_micros, self._unseen(allocation.allocation_id))
            run(self.ledger.resolve(allocation.allocation_id, spent_usd_micros=found, now=self.now))
        windows = windows_of(self.now)
        for account in run(self.ledger.accounts()):
            for period, usage in account.usages.items():
                assert usage.allocated_usd_micros == 0, account
                if usage.window == windows[period]:
                    assert usage.spent_usd_micros == self.truth.sums[account.name, period, usage.window], account
        self._entries_add_up()

    def _entries_add_up(self) -> None:
        """What was lent came back, was settled, or was lost and given back."""
        sums = dict.fromkeys(EntryKind, 0)
        for entry in self.ledger.written.values():
            sums[entry.kind] += entry.amount_usd_micros
        assert sums[EntryKind.RESERVE] == sums[EntryKind.SETTLE] + sums[EntryKind.RELEASE]

    def _unseen(self, allocation_id: str) -> int:
        """What a dead borrower really spent without an entry."""
        lost = sum(r.worst for r in self.open if r.local.allocation_id == allocation_id)
        unwritten = [e for p in self.dead if p.allocation_id == allocation_id for e in p.unwritten]
        return lost + sum(e.spent_usd_micros for e in unwritten if e.entry_id not in self.ledger.written)


def test_no_budget_is_ever_overspent() -> None:
    """`GOBLIN_SIMULATION_EXAMPLES` and `…_STEPS` make it longer; a failure prints its steps and how to repeat them."""
    run_state_machine_as_test(
        Spending,
        settings=settings(
            max_examples=EXAMPLES, stateful_step_count=STEPS, deadline=None, print_blob=True,
            suppress_health_check=list(HealthCheck), phases=(Phase.generate, Phase.shrink),
        ),
    )  # fmt: skip


def walk(seed: int, steps: int) -> Spending:
    """A long life from a seed: busier than what a search for short failures makes."""
    rng, life = random.Random(seed), Spending()
    for path in PATHS * 2:
        life.an_instance_starts(path)

    def local() -> LocalAllocation:
        return rng.choice(life.live)

    def comes() -> None:
        worst = rng.choice([rng.randint(1, 60), rng.randint(1, 4_000), rng.choice([500, 7_000, 7_001, 14_000])])
        life.a_request_comes(local(), worst, rng.choice([-5, 0, 5]), rng.random() < 0.7)

    def ends() -> None:
        if waiting := [request for request in life.open if request.alive]:
            life.a_request_ends(rng.choice(waiting), rng.choice([0.0, 0.3, 1.0, rng.random()]), rng.random() < 0.1)

    def dies() -> None:
        one = local()
        life.an_instance_dies(one)
        life.an_instance_starts((one.account, one.also))

    def retires() -> None:
        for one in [one for one in life.live if one.retired and one.done and one not in life.dead]:
            life.live.remove(one)
            life.an_instance_starts((one.account, one.also))

    def store() -> None:
        life.the_store_is_down(rng.random() < 0.3)

    def asks() -> None:
        may_shrink = rng.random() < 0.5
        life.an_instance_asks(local(), may_shrink, rng.random() < 0.1, rng.choice([0, 0, 50, 3_000]))

    def again() -> None:
        if life.asks and not life.ledger.down and not life.ledger.lose_answers:
            run(life.ledger.exchange(rng.choice(life.asks[-20:]), now=life.now))

    deeds: list[tuple[int, Any]] = [
        (30, comes), (25, ends), (10, asks), (12, lambda: life.the_ledger_answers(local())),
        (14, lambda: life.the_answer_is_heard(local())), (12, lambda: life.an_instance_writes(local())),
        (3, lambda: life.time_passes(rng.choice([1, 1, 5, 20, 70, 200]))), (1, dies), (4, retires), (2, store),
        (2, lambda: life.answers_get_lost(1)), (1, life.leases_of_the_dead_expire), (1, again),
    ]  # fmt: skip
    for _ in range(steps):
        rng.choices([deed for _, deed in deeds], [weight for weight, _ in deeds])[0]()
        life.no_budget_is_overspent()
        life.no_purse_spends_what_it_was_not_lent()
    life.teardown()
    return life


@pytest.mark.parametrize("block", range(4))
def test_long_lives_from_seeds(block: int) -> None:
    """`GOBLIN_SIMULATION_SEED` names the first seed."""
    first = int(os.environ.get("GOBLIN_SIMULATION_SEED", "0"))
    requests = 0
    for seed in range(first + block * WALKS, first + (block + 1) * WALKS):
        try:
            requests += walk(seed, 600).names
        except AssertionError as error:
            raise AssertionError(f"seed {seed}: {error}") from error
    assert requests > WALKS * 50  # They did something.
