"""The process's side of one allocation: reserve and settle without a round trip."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime, timedelta

from goblin.billing.domain.accounts import Allocation, Period, windows_of
from goblin.billing.domain.ledger import LedgerEntry
from goblin.billing.policy.allocation import ALLOCATION_LIFE, AllocationRequest

CLOCK_SKEW = timedelta(seconds=30)
"""Nothing is reserved from an allocation that expires sooner: clocks may differ by so much."""
RENEW_AFTER = ALLOCATION_LIFE / 3
BATCH_MAX = 100
"""Entries in one commit."""
FIRST_AHEAD = 32
"""How many requests like the first one a new allocation covers besides it."""
LOW_PART = 2
"""Renew ahead of time when less than this part of the spare money is left."""


@dataclass(slots=True)
class LocalAllocation:
    """One allocation as its holder knows it, which is exact; the ledger's copy shows at least as much used."""

    allocation_id: str
    account: str
    also: tuple[str, ...] = ()
    granted: Allocation | None = None
    """As the ledger last answered; None: nothing is granted."""
    reserved: dict[str, int] = field(default_factory=dict)
    """Worst cases of what is in flight, by reservation."""
    settled_usd_micros: int = 0
    """All that was ever settled on it, written or not."""
    unwritten: list[LedgerEntry] = field(default_factory=list)
    """Settled and not yet in the ledger; written in this order."""
    writing: tuple[LedgerEntry, ...] = ()
    """The first of them, being written: repeated unchanged until known to be in the ledger, as a commit whose answer
    was lost holds exactly these."""
    seq: int = 0
    """Of the last exchange."""
    exchanged_at: datetime | None = None
    reserved_since_usd_micros: int = 0
    """Reserved since the last exchange, by which the next one is sized."""
    spare_after_exchange_usd_micros: int = 0
    pending: AllocationRequest | None = None
    """The exchange without an answer yet; it is repeated until there is one."""
    windows: Mapping[Period, str] = field(default_factory=dict)
    """The allocation's, kept after it is gone for what is in flight."""
    retired: bool = False
    """Nothing more is reserved from it."""
    ahead: bool = True
    """Ask for spare money beyond the need, so that later requests need no exchange. False, as for an instance: ask for
    the need alone, never shrink while renewing, and only where a budget limits it."""
    expires_at: datetime | None = None
    """When the ledger may count it as spent without word from its holder; None: after `ALLOCATION_LIFE`."""

    @property
    def used_usd_micros(self) -> int:
        return self.settled_usd_micros + sum(self.reserved.values())

    @property
    def spare_usd_micros(self) -> int:
        return (self.granted.granted_usd_micros if self.granted else 0) - self.used_usd_micros

    @property
    def done(self) -> bool:
        """Whether nothing is in flight and everything is written."""
        return not self.reserved and not self.unwritten

    def holds(self, now: datetime) -> bool:
        """Whether anything may be reserved from it."""
        if (
            self.retired
            or self.granted is None
            or (self.pending and self.pending.may_shrink)
            or now + CLOCK_SKEW >= self.granted.expires_at
        ):
            return False
        # A clock behind the ledger's is no reason to refuse; a window that is over is.
        return all(window <= self.granted.windows[period] for period, window in windows_of(now).items())

    def reserve(self, reservation_id: str, amount_usd_micros: int, *, now: datetime) -> bool:
        """Reserve the worst case of a request; False when the allocation does not cover it."""
        if not self.holds(now) or amount_usd_micros > self.spare_usd_micros or reservation_id in self.reserved:
            return False
        self.reserved[reservation_id] = amount_usd_micros
        self.reserved_since_usd_micros += amount_usd_micros
        return True

    def settle(self, reservation_id: str, entry: LedgerEntry | None) -> bool:
        """Replace a reservation by what it cost, or by nothing; False when there is none, as the second time."""
        if self.reserved.pop(reservation_id, None) is None:
            return False
        if entry is not None:
            self.settled_usd_micros += entry.spent_usd_micros
            self.unwritten.append(entry)
        return True

    def batch(self) -> tuple[LedgerEntry, ...]:
        """Return the entries to write next; the same until `wrote` is called."""
        self.writing = self.writing or tuple(self.unwritten[:BATCH_MAX])
        return self.writing

    def wrote(self) -> None:
        """Note that the batch is in the ledger."""
        del self.unwritten[: len(self.writing)]
        self.writing = ()

    def next_request(
        self, *, now: datetime, need_usd_micros: int = 0, waiting_usd_micros: int = 0, may_shrink: bool = True,
        close: bool = False,
    ) -> AllocationRequest:  # fmt: skip
        """Build the next exchange, or return the one whose answer was lost.

        Args:
            now: Aware UTC.
            need_usd_micros: Worst case of the request that waits.
            waiting_usd_micros: Of those that wait behind it.
            may_shrink: Nothing is reserved until the answer is here, so that the allocation may become smaller.
            close: The holder needs it no longer.
        """
        if self.pending is not None:
            return self.pending
        self.seq += 1
        if not self.ahead:
            ahead = 0
        elif self.exchanged_at is None:
            ahead = max(need_usd_micros * FIRST_AHEAD, waiting_usd_micros)
        else:
            # What lasts until the next renewal at the rate since the last exchange, and twice that, for it may grow.
            lasted_s = max(1.0, (now - self.exchanged_at).total_seconds())
            rate = self.reserved_since_usd_micros * RENEW_AFTER.total_seconds() / lasted_s
            ahead = max(int(2 * rate), waiting_usd_micros)
        self.pending = AllocationRequest(
            allocation_id=self.allocation_id,
            account=self.account,
            also=self.also,
            seq=self.seq,
            used_usd_micros=self.used_usd_micros,
            need_usd_micros=need_usd_micros,
            want_usd_micros=0 if close or not self.ahead else need_usd_micros + ahead,
            may_shrink=may_shrink and (self.ahead or close),
            close=close and self.done,
            expires_at=self.expires_at,
            budget_required=not self.ahead,
        )
        return self.pending

    def accept(self, granted: Allocation | None, *, now: datetime) -> None:
        """Take the ledger's answer; None: the allocation is gone."""
        self.pending = None
        self.exchanged_at = now
        self.reserved_since_usd_micros = 0
        self.granted = granted
        if granted is None:
            self.retired = True
        else:
            self.windows = granted.windows
            # An instance's document may not know of an exchange whose answer was lost: go on from the ledger's number.
            self.seq = max(self.seq, granted.seq)
        self.spare_after_exchange_usd_micros = max(0, self.spare_usd_micros)

    def due(self, now: datetime) -> bool:
        """Whether it is time to renew, before a request has to wait."""
        low = self.spare_usd_micros * LOW_PART < self.spare_after_exchange_usd_micros
        late = self.exchanged_at is not None and now - self.exchanged_at >= RENEW_AFTER
        return self.pending is None and (low or late)
