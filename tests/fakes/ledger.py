"""The port `Ledger` in memory. It passes the same contract tests as the adapter."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime

from goblin.billing.domain.accounts import Account, Allocation, BudgetUsage, Limit, Period, window_of
from goblin.billing.domain.ledger import (
    ACTIONS,
    LENDING,
    Balance,
    BudgetAction,
    EntryKind,
    Freeze,
    LedgerEntry,
    day_of,
    is_instance_settlement,
    month_of,
)
from goblin.billing.policy import allocation as allocation_policy
from goblin.billing.policy.allocation import AllocationRequest, AllocationResult
from goblin.core.errors import Conflict, StoreUnavailable


@dataclass
class MemoryLedger:
    declared: Mapping[str, Sequence[Limit]] = field(default_factory=dict)
    written: dict[str, LedgerEntry] = field(default_factory=dict)
    frozen: dict[str, Freeze] = field(default_factory=dict)
    kept: dict[str, Account] = field(default_factory=dict)
    lent: dict[str, Allocation] = field(default_factory=dict)
    down: bool = False
    reads: int = 0
    exchanges: int = 0
    commits: int = 0
    """Of what was spent."""
    writes: int = 0
    """Of anything."""
    lose_answers: int = 0
    """So many of the next writes are made and not answered."""

    def _check(self) -> None:
        if self.down:
            raise StoreUnavailable("the ledger is down")

    def _answer(self) -> None:
        self.writes += 1
        if self.lose_answers:
            self.lose_answers -= 1
            raise StoreUnavailable("the answer was lost")

    async def record(self, entry: LedgerEntry) -> bool:
        self._check()
        there = self.written.get(entry.entry_id)
        if there is not None:
            if (there.accounts, there.spent_usd_micros) != (entry.accounts, entry.spent_usd_micros):
                raise Conflict(entry.entry_id)
            return False
        if entry.kind in ACTIONS:
            self.written[entry.entry_id] = entry
            self._act(entry)
        else:
            self._write(allocation_policy.record_entry(entry, self._accounts(entry.accounts), now=entry.at), None)
        self._answer()
        return True

    def _act(self, entry: LedgerEntry) -> None:
        if entry.kind is EntryKind.FREEZE:
            self.frozen[entry.entry_id] = Freeze(
                entry_id=entry.entry_id, account=entry.account, reason=entry.note, since=entry.at, action=entry.reaction
            )
        for lifted in entry.lifts:
            self.frozen.pop(lifted, None)

    async def exchange(self, request: AllocationRequest, *, now: datetime) -> AllocationResult:
        self._check()
        self.exchanges += 1
        entry = LedgerEntry(
            entry_id="x", kind=EntryKind.SETTLE, account=request.account, also=request.also, amount_usd_micros=0, at=now
        )
        step = allocation_policy.exchange(
            request, self.lent.get(request.allocation_id), self._accounts(entry.accounts), now=now
        )
        self._write(step, request.allocation_id)
        self._answer()
        return step

    async def settle(self, allocation_id: str, entries: Sequence[LedgerEntry]) -> bool:
        self._check()
        if entries[0].entry_id in self.written:
            return True
        allocation = self.lent.get(allocation_id)
        if allocation is None:
            return False
        self.commits += 1
        for entry in entries:
            self.written[entry.entry_id] = entry
        spent = sum(entry.spent_usd_micros for entry in entries)
        self.lent[allocation_id] = replace(allocation, settled_usd_micros=allocation.settled_usd_micros + spent)
        self._answer()
        return True

    async def allocations(self) -> Sequence[Allocation]:
        self._check()
        return [self.lent[name] for name in sorted(self.lent)]

    async def expire(self, allocation_id: str, *, now: datetime) -> AllocationResult:
        return self._step(
            allocation_id, lambda allocation, accounts: allocation_policy.expire(allocation, accounts, now=now)
        )

    async def resolve(self, allocation_id: str, *, spent_usd_micros: int, now: datetime) -> AllocationResult:
        return self._step(
            allocation_id,
            lambda allocation, accounts: allocation_policy.resolve(
                allocation, accounts, spent_usd_micros=spent_usd_micros, now=now
            ),
        )

    def _step(
        self, allocation_id: str, decide: Callable[[Allocation, Sequence[Account]], AllocationResult]
    ) -> AllocationResult:
        self._check()
        allocation = self.lent.get(allocation_id)
        if allocation is None:
            return AllocationResult(writes=False)
        step = decide(allocation, self._accounts(allocation.accounts))
        self._write(step, allocation_id)
        self._answer()
        return step

    def _write(self, step: AllocationResult, allocation_id: str | None) -> None:
        if not step.writes:
            return
        for account in step.accounts:
            self.kept[account.name] = replace(account, limits=self._own(account.name))
        if allocation_id is not None and step.allocation is not None:
            self.lent[allocation_id] = step.allocation
        elif allocation_id is not None:
            self.lent.pop(allocation_id, None)
        for entry in step.entries:
            assert entry.entry_id not in self.written, entry.entry_id
            self.written[entry.entry_id] = entry

    def _own(self, name: str) -> tuple[Limit, ...]:
        return self.kept[name].limits if name in self.kept else ()

    def _accounts(self, names: Sequence[str]) -> list[Account]:
        found = [self.kept.get(name, Account(name=name)) for name in names]
        return [replace(a, limits=(*a.limits, *self.declared.get(a.name, ()))) for a in found]

    async def accounts(self) -> Sequence[Account]:
        self._check()
        return self._accounts(sorted({*self.kept, *self.declared}))

    async def limited(self, accounts: Sequence[str]) -> Sequence[Account]:
        self._check()
        return [account for account in self._accounts(accounts) if account.limits]

    async def limit(self, account: str, period: Period, limit: Limit | None) -> None:
        self._check()
        kept = tuple(one for one in self._own(account) if one.period is not period)
        limits = (*kept, limit) if limit is not None else kept
        self.kept[account] = replace(self.kept.get(account, Account(name=account)), limits=limits)

    def used(
        self, account: str, *, spent: int, limit: int = 10, period: Period = Period.MONTH,
        action: BudgetAction = BudgetAction.FREEZE, told_percent: int = 0, at: datetime,
    ) -> None:  # fmt: skip
        """Let a budget be spent as far as that."""
        usage = BudgetUsage(window=window_of(period, at), spent_usd_micros=spent, told_percent=told_percent)
        self.kept[account] = Account(
            name=account,
            limits=(Limit(period=period, limit_usd_micros=limit, action=action),),
            usages={period: usage},
        )

    async def balances(self, window: str) -> Sequence[Balance]:
        self._check()
        sums: dict[str, list[int]] = {}
        for entry in self.written.values():
            if window in (month_of(entry.at), day_of(entry.at)) and entry.kind not in ACTIONS | LENDING:
                for account in entry.accounts:
                    sums.setdefault(account, []).append(entry.spent_usd_micros)
        return [
            Balance(account=account, window=window, spent_usd_micros=sum(parts), entries=len(parts))
            for account, parts in sorted(sums.items())
        ]

    def settled(self) -> list[LedgerEntry]:
        """What was spent, in order."""
        return [entry for entry in self.written.values() if entry.kind is EntryKind.SETTLE]

    async def entries(self, *, limit: int) -> Sequence[LedgerEntry]:
        self._check()
        return sorted(self.written.values(), key=lambda entry: entry.at, reverse=True)[:limit]

    async def instance_settlements(self, day: str) -> Sequence[LedgerEntry]:
        self._check()
        found = [entry for entry in self.written.values() if is_instance_settlement(entry) and day_of(entry.at) == day]
        return sorted(found, key=lambda entry: entry.entry_id)

    async def actions(self, *, limit: int) -> Sequence[LedgerEntry]:
        return [entry for entry in await self.entries(limit=len(self.written)) if entry.kind in ACTIONS][:limit]

    async def freezes(self) -> Sequence[Freeze]:
        self.reads += 1
        self._check()
        return sorted(self.frozen.values(), key=lambda freeze: freeze.since)
