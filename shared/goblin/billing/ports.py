"""What the ledger needs from outside; the docstrings are the contract."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime, timedelta
from typing import Protocol

from goblin.billing.domain.accounts import Account, Allocation, Limit, Period
from goblin.billing.domain.ledger import Balance, Bill, Freeze, LedgerEntry
from goblin.billing.domain.run_service import RunService
from goblin.billing.policy.allocation import AllocationRequest, AllocationResult


class Ledger(Protocol):
    """Entries, append-only; balances and freezes are kept beside them in the same commit.

    Every method raises `StoreUnavailable`; after it from `record`, the same entry may be given again.
    """

    async def record(self, entry: LedgerEntry) -> bool:
        """Write an entry, once: True when it was written now, False when it was there.

        The balances of all its accounts, in its month and its day, and the tallies of their budgets move with it, and
        a freeze or thaw takes effect with it, or none of that happens. The second time nothing does. A settlement
        that a lease covers is not given here but to `AllocationStore.settle`.

        Raises:
            Conflict: The id belongs to an entry that moves other money. Its instant and note may differ, as those of
                an event delivered twice do.
        """

    async def balances(self, window: str) -> Sequence[Balance]:
        """Every account that has entries in the month or day, by name."""

    async def entries(self, *, limit: int) -> Sequence[LedgerEntry]:
        """The last entries, the newest first."""

    async def instance_settlements(self, day: str) -> Sequence[LedgerEntry]:
        """The settlements of rented instances that count in a day, by id."""

    async def actions(self, *, limit: int) -> Sequence[LedgerEntry]:
        """The last alerts, freezes and thaws, the newest first."""

    async def freezes(self) -> Sequence[Freeze]:
        """What is frozen now, the oldest first."""

    async def accounts(self) -> Sequence[Account]:
        """Every account that was ever lent from or has a limit, by name, with the limits that are configured."""

    async def limited(self, accounts: Sequence[str]) -> Sequence[Account]:
        """Those of some accounts that have a limit, configured or set, in their order, as they stand."""

    async def limit(self, account: str, period: Period, limit: Limit | None) -> None:
        """Replace the limit of an account for a period; None: there is none. What is configured holds beside it."""


class AllocationStore(Protocol):
    """Leases on budgets. Each method makes one step of `policy.spending` in one commit.

    Every method raises `StoreUnavailable`, within its deadline; then nobody knows whether the step was made, and the
    same call may be made again.
    """

    async def exchange(self, ask: AllocationRequest, *, now: datetime) -> AllocationResult:
        """Open, renew, shrink or close a lease."""

    async def settle(self, allocation_id: str, entries: Sequence[LedgerEntry]) -> bool:
        """Write what was spent from a lease: one commit that waits for no exchange.

        Args:
            lease_id: Whose accounts and windows the entries have.
            entries: At least one; given again, they must be exactly the same ones.

        Returns:
            False when there is no such lease any more and nothing was written: then each goes to `Ledger.record`.
        """

    async def allocations(self) -> Sequence[Allocation]:
        """All that are open or expired, by id."""

    async def expire(self, allocation_id: str, *, now: datetime) -> AllocationResult:
        """Count a lease as spent if its time is over."""

    async def resolve(self, allocation_id: str, *, spent_usd_micros: int, now: datetime) -> AllocationResult:
        """Replace what an expired lease may have spent by what a bill says it did."""


class BillSource(Protocol):
    """What a provider itself says that it takes."""

    @property
    def provider(self) -> str:
        """The account it concerns: the adapter's file."""

    @property
    def final_after(self) -> timedelta:
        """How long after its end a day's bill may still change."""

    async def bill(self, day: str) -> Bill:
        """A UTC day so far.

        Raises:
            ProviderUnavailable: Nobody knows; never taken for zero.
        """


class ServiceScaler(Protocol):
    """How many instances Cloud Run services keep.

    Both methods raise `ProviderUnavailable`, within half a minute; the same call may be made again.
    """

    async def read(self, name: str) -> RunService:
        """A service by its full name. Raises `Broken`: what was kept on it cannot be read."""

    async def write(self, service: RunService) -> None:
        """Give it that scaling, and keep on it what it had before, in one update.

        Raises:
            Conflict: It has changed since it was read.
        """
