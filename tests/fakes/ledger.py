"""The port `Ledger` in memory, held to the adapter's contract by the same tests."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from goblin.domain.money import ACTIONS, Balance, Entry, EntryKind, Freeze, lineage, month_of
from goblin.errors import Conflict, StoreUnavailable


@dataclass
class MemoryLedger:
    written: dict[str, Entry] = field(default_factory=dict)
    frozen: dict[str, Freeze] = field(default_factory=dict)
    down: bool = False
    reads: int = 0

    def _check(self) -> None:
        if self.down:
            raise StoreUnavailable("the ledger is down")

    async def record(self, entry: Entry) -> bool:
        self._check()
        there = self.written.get(entry.entry_id)
        if there is not None:
            if (there.account, there.spent_usd_micros) != (entry.account, entry.spent_usd_micros):
                raise Conflict(entry.entry_id)
            return False
        self.written[entry.entry_id] = entry
        if entry.kind is EntryKind.FREEZE:
            self.frozen[entry.entry_id] = Freeze(
                entry_id=entry.entry_id, account=entry.account, reason=entry.note, since=entry.at
            )
        for lifted in entry.lifts:
            self.frozen.pop(lifted, None)
        return True

    async def balances(self, window: str) -> Sequence[Balance]:
        self._check()
        sums: dict[str, list[int]] = {}
        for entry in self.written.values():
            if month_of(entry.at) == window and entry.kind not in ACTIONS:
                for account in lineage(entry.account):
                    sums.setdefault(account, []).append(entry.spent_usd_micros)
        return [
            Balance(account=account, window=window, spent_usd_micros=sum(parts), entries=len(parts))
            for account, parts in sorted(sums.items())
        ]

    async def entries(self, *, limit: int) -> Sequence[Entry]:
        self._check()
        return sorted(self.written.values(), key=lambda entry: entry.at, reverse=True)[:limit]

    async def actions(self, *, limit: int) -> Sequence[Entry]:
        return [entry for entry in await self.entries(limit=len(self.written)) if entry.kind in ACTIONS][:limit]

    async def freezes(self) -> Sequence[Freeze]:
        self.reads += 1
        self._check()
        return sorted(self.frozen.values(), key=lambda freeze: freeze.since)
