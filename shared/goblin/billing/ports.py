"""Ports of this room. The docstrings are the contract."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime, timedelta
from typing import Protocol

from goblin.billing.domain.accounts import Account, Allocation, Limit, Period
from goblin.billing.domain.ledger import Balance, Bill, Freeze, LedgerEntry
from goblin.billing.domain.run_service import RunService
from goblin.billing.policy.allocation import AllocationRequest, AllocationResult


class Ledger(Protocol):
    """Append-only entries. Balances and freezes are kept beside them in the same commit.

    Every method raises `StoreUnavailable`. After that, `record` may be called again with the same entry.
    """

    async def record(self, entry: LedgerEntry) -> bool:
        """Write an entry once: True when it was written now, False when it was there already.

        In the same commit the balances of all its accounts change, in its month and its day, with the usage of their
        budgets, and a freeze or thaw takes effect. A second call changes nothing. A settlement that an allocation
        covers goes to `AllocationStore.settle` instead.

        Raises:
            Conflict: The id belongs to an entry that moves other money. Its instant and note may differ, as they do
                for an event that is delivered twice.
        """

    async def balances(self, window: str) -> Sequence[Balance]:
        """List the balances of all accounts with entries in a month or day, by name."""

    async def entries(self, *, limit: int) -> Sequence[LedgerEntry]:
        """List the last entries, the newest first."""

    async def instance_settlements(self, day: str) -> Sequence[LedgerEntry]:
        """List the settlements of rented instances that count in a day, by id."""

    async def actions(self, *, limit: int) -> Sequence[LedgerEntry]:
        """List the last entries that move no money, such as alerts, freezes and thaws, the newest first."""

    async def freezes(self) -> Sequence[Freeze]:
        """List what is frozen now, the oldest first."""

    async def accounts(self) -> Sequence[Account]:
        """List every account that has a usage or a limit, by name, with its configured limits too."""

    async def limited(self, accounts: Sequence[str]) -> Sequence[Account]:
        """List those of some accounts that have a limit, configured or set, in the given order, with their usage."""

    async def limit(self, account: str, period: Period, limit: Limit | None) -> None:
        """Replace the limit of an account for a period; None removes it. Configured limits hold beside it."""


class AllocationStore(Protocol):
    """Allocations of budgets. Each method makes one step of `policy.allocation` in one commit.

    Every method raises `StoreUnavailable`, within its deadline. Then it is unknown whether the step was made, and the
    same call may be made again.
    """

    async def exchange(self, ask: AllocationRequest, *, now: datetime) -> AllocationResult:
        """Open, renew, shrink or close an allocation."""

    async def settle(self, allocation_id: str, entries: Sequence[LedgerEntry]) -> bool:
        """Write what was spent from an allocation, in one commit that waits for no exchange.

        Args:
            allocation_id: The allocation whose accounts and windows the entries have.
            entries: At least one. A repeated call must give exactly the same ones.

        Returns:
            False when the allocation is gone and nothing was written: then give each entry to `Ledger.record`.
        """

    async def allocations(self) -> Sequence[Allocation]:
        """List all allocations that are open or expired, by id."""

    async def expire(self, allocation_id: str, *, now: datetime) -> AllocationResult:
        """Count an allocation as spent if its time is over."""

    async def resolve(self, allocation_id: str, *, spent_usd_micros: int, now: datetime) -> AllocationResult:
        """Replace what an expired allocation may have spent by what a bill says it spent."""


class BillSource(Protocol):
    """What a provider itself says that it charges."""

    @property
    def provider(self) -> str:
        """The provider's name, which is its account too."""

    @property
    def final_after(self) -> timedelta:
        """Time after the end of a day during which its bill may still change."""

    async def bill(self, day: str) -> Bill:
        """Read the bill of a UTC day so far.

        Raises:
            ProviderUnavailable: The bill is unknown, which is never taken for zero.
        """


class ServiceScaler(Protocol):
    """The scaling of Cloud Run services.

    Both methods raise `ProviderUnavailable`, within half a minute. The same call may be made again.
    """

    async def read(self, name: str) -> RunService:
        """Read a service by its full name. Raises `Broken` when the scaling kept on it cannot be read."""

    async def write(self, service: RunService) -> None:
        """Set the scaling of a service, and keep its former scaling on it, in one update.

        Raises:
            Conflict: The service has changed since it was read.
        """
