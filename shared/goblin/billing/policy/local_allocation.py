"""What one borrower does with one lease: it reserves and settles without asking anybody."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime, timedelta

from goblin.billing.domain.accounts import Lease, Period, windows_of
from goblin.billing.domain.ledger import Entry
from goblin.billing.policy.allocation import LEASE_LIFE, Ask

SAFETY = timedelta(seconds=30)
"""Clocks may differ by so much: nothing is reserved from a lease that expires sooner."""
RENEW_AFTER = LEASE_LIFE / 3
BATCH_MAX = 100
"""Entries in one commit."""
FIRST_AHEAD = 32
"""Requests like the first one that a new lease is to cover besides it."""
LOW_PART = 2
"""Renewed ahead of time when less than this part of the spare money is left."""


@dataclass(slots=True)
class Purse:
    """The borrower's side of a lease. What it knows is exact; the ledger knows at least as much to be gone."""

    lease_id: str
    account: str
    also: tuple[str, ...] = ()
    lease: Lease | None = None
    """As the ledger last said."""
    reserved: dict[str, int] = field(default_factory=dict)
    """Worst cases of what is under way, by reservation."""
    settled_usd_micros: int = 0
    """All that was ever settled on it, written down or not."""
    unwritten: list[Entry] = field(default_factory=list)
    """Settled, and not yet in the ledger; written in this order."""
    writing: tuple[Entry, ...] = ()
    """The first of them, being written: repeated as it is until it is known to be in the ledger, for a commit whose
    answer was lost holds exactly these."""
    seq: int = 0
    asked_at: datetime | None = None
    taken_usd_micros: int = 0
    """Reserved since the last exchange: what the next one goes by."""
    spare_then_usd_micros: int = 0
    """What was spare after the last exchange."""
    asked: Ask | None = None
    """The exchange whose answer is not here yet; lost or not, it is repeated until it is."""
    windows: Mapping[Period, str] = field(default_factory=dict)
    """The lease's, which outlive it for what is under way."""
    retired: bool = False
    """Nothing more is reserved from it."""

    @property
    def used_usd_micros(self) -> int:
        return self.settled_usd_micros + sum(self.reserved.values())

    @property
    def spare_usd_micros(self) -> int:
        return (self.lease.granted_usd_micros if self.lease else 0) - self.used_usd_micros

    @property
    def done(self) -> bool:
        """Nothing is under way and everything is written down."""
        return not self.reserved and not self.unwritten

    def holds(self, now: datetime) -> bool:
        """Whether anything may be reserved from it."""
        if (
            self.retired
            or self.lease is None
            or (self.asked and self.asked.still)
            or now + SAFETY >= self.lease.expires_at
        ):
            return False
        # A clock behind the ledger's is no reason; a window that is over is.
        return all(window <= self.lease.windows[period] for period, window in windows_of(now).items())

    def reserve(self, reservation_id: str, amount_usd_micros: int, *, now: datetime) -> bool:
        """Put the worst case of a request aside; False when the lease does not cover it."""
        if not self.holds(now) or amount_usd_micros > self.spare_usd_micros or reservation_id in self.reserved:
            return False
        self.reserved[reservation_id] = amount_usd_micros
        self.taken_usd_micros += amount_usd_micros
        return True

    def settle(self, reservation_id: str, entry: Entry | None) -> bool:
        """Replace a reservation by what it cost, or by nothing; False when there is none, as the second time."""
        if self.reserved.pop(reservation_id, None) is None:
            return False
        if entry is not None:
            self.settled_usd_micros += entry.spent_usd_micros
            self.unwritten.append(entry)
        return True

    def batch(self) -> tuple[Entry, ...]:
        """What to write next; the same until it is `wrote`."""
        self.writing = self.writing or tuple(self.unwritten[:BATCH_MAX])
        return self.writing

    def wrote(self) -> None:
        """The batch is in the ledger."""
        del self.unwritten[: len(self.writing)]
        self.writing = ()

    def ask(
        self, *, now: datetime, need_usd_micros: int = 0, waiting_usd_micros: int = 0, still: bool = True,
        close: bool = False,
    ) -> Ask:  # fmt: skip
        """The next exchange, or again the one whose answer was lost.

        Args:
            need_usd_micros: Worst case of the request that waits.
            waiting_usd_micros: Of those that wait behind it.
            still: Reserve nothing until the answer is here.
            close: The borrower is done with the lease.
        """
        if self.asked is not None:
            return self.asked
        self.seq += 1
        if self.asked_at is None:
            ahead = max(need_usd_micros * FIRST_AHEAD, waiting_usd_micros)
        else:
            # What lasts until the next renewal at the rate since the last exchange, and twice that, for it may grow.
            lasted_s = max(1.0, (now - self.asked_at).total_seconds())
            rate = self.taken_usd_micros * RENEW_AFTER.total_seconds() / lasted_s
            ahead = max(int(2 * rate), waiting_usd_micros)
        self.asked = Ask(
            lease_id=self.lease_id,
            account=self.account,
            also=self.also,
            seq=self.seq,
            used_usd_micros=self.used_usd_micros,
            need_usd_micros=need_usd_micros,
            want_usd_micros=0 if close else need_usd_micros + ahead,
            still=still,
            close=close and self.done,
        )
        return self.asked

    def accept(self, lease: Lease | None, *, now: datetime) -> None:
        """Take the ledger's answer; None: the lease is gone."""
        self.asked = None
        self.asked_at = now
        self.taken_usd_micros = 0
        self.lease = lease
        self.windows = lease.windows if lease else self.windows
        if lease is None:
            self.retired = True
        self.spare_then_usd_micros = max(0, self.spare_usd_micros)

    def due(self, now: datetime) -> bool:
        """Whether it is time to renew, before anybody has to wait."""
        low = self.spare_usd_micros * LOW_PART < self.spare_then_usd_micros
        return self.asked is None and (low or (self.asked_at is not None and now - self.asked_at >= RENEW_AFTER))
