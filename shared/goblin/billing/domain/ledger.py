"""Money as facts: entries of a ledger in whole millionths of a dollar, their accounts and their windows."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from enum import StrEnum

TOTAL = "total"
"""The account above all others."""
ACCOUNT = re.compile(r"[a-z][a-z0-9_]{0,62}(?:/[A-Za-z0-9][A-Za-z0-9._-]{0,127}){0,3}")
"""`total`, a provider's or endpoint's name, or something below one, as in `vastai/job-7`."""
ENTRY_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._:~@+-]{0,511}")
LIFETIME = "lifetime"
"""The one window that never ends."""
WINDOW = re.compile(r"\d{4}-\d{2}(?:-\d{2})?|lifetime")


class EntryKind(StrEnum):
    """What an entry says."""

    RESERVE = "reserve"
    """So much of the budgets of its accounts was lent to an instance or a job."""
    SETTLE = "settle"
    """This was spent."""
    RELEASE = "release"
    """So much of what was lent came back unspent."""
    EXPIRE = "expire"
    """The borrower died with so much; it counts as spent until a bill says otherwise."""
    ADJUST = "adjust"
    """A provider's bill says otherwise than we did; the only kind that may be negative."""
    CREDIT = "credit"
    """This came back."""
    ALERT = "alert"
    """A threshold was crossed, and nothing but this record follows."""
    FREEZE = "freeze"
    """From here on nothing is spent under the account."""
    THAW = "thaw"
    """A person lifted a freeze."""
    SCALE = "scale"
    """A Cloud Run service was turned off because of a freeze, or on again after its thaw."""


ACTIONS = frozenset({EntryKind.ALERT, EntryKind.FREEZE, EntryKind.THAW, EntryKind.SCALE})
"""Kinds that record what was done about money and move none."""
LENDING = frozenset({EntryKind.RESERVE, EntryKind.RELEASE, EntryKind.EXPIRE})
"""Kinds that move money between what is left and what is lent; nothing is spent by them."""


class BudgetAction(StrEnum):
    """What follows when a budget is used up; each but the first holds until a person thaws it."""

    ALERT = "alert"
    """It is written down, and a person is told. The budget refuses by itself until its window ends."""
    FREEZE = "freeze"
    """Nothing more is spent under the account."""
    STOP_JOBS = "stop_jobs"
    """And its spot jobs end after a last checkpoint."""
    SCALE_TO_ZERO = "scale_to_zero"
    """And its Cloud Run services keep no instance."""


@dataclass(frozen=True, kw_only=True, slots=True)
class LedgerEntry:
    """One fact about money; a mistake is corrected by another entry."""

    entry_id: str
    """Chosen by the caller and the document's id, so that a retry writes the same entry."""
    kind: EntryKind
    account: str
    """It counts here and in every account above."""
    also: tuple[str, ...] = ()
    """Further accounts it counts in, which are no branch of the tree of providers: a key's, a job's, a model's."""
    amount_usd_micros: int
    at: datetime
    """Aware UTC; decides the window it counts in."""
    note: str = ""
    """For a person."""
    reaction: BudgetAction | None = None
    """A freeze's: what else follows from it."""
    instance_id: str = ""
    """A rent's settlement: the instance, as its provider calls it, for a bill that knows no label."""
    lifts: tuple[str, ...] = ()
    """A thaw's: the entries whose freezes it lifts. One that its person did not know of stays."""

    def __post_init__(self) -> None:
        if not ENTRY_ID.fullmatch(self.entry_id):
            raise ValueError(f"not an entry's id: {self.entry_id!r}")
        for account in (self.account, *self.also):
            if not ACCOUNT.fullmatch(account):
                raise ValueError(f"not an account: {account!r}")
        if type(self.amount_usd_micros) is not int:
            raise TypeError("an amount is a whole number of millionths of a dollar")
        if self.amount_usd_micros < 0 and self.kind is not EntryKind.ADJUST:
            raise ValueError(f"a {self.kind} cannot be negative")
        if self.kind in ACTIONS and self.amount_usd_micros:
            raise ValueError(f"a {self.kind} moves no money")
        if bool(self.lifts) != (self.kind is EntryKind.THAW):
            raise ValueError("a thaw, and nothing else, names the freezes it lifts")

    @property
    def spent_usd_micros(self) -> int:
        """What it adds to the spending of its accounts."""
        if self.kind in LENDING:
            return 0
        return -self.amount_usd_micros if self.kind is EntryKind.CREDIT else self.amount_usd_micros

    @property
    def accounts(self) -> tuple[str, ...]:
        """Every account it counts in."""
        return (*lineage(self.account), *self.also)


def lineage(account: str) -> tuple[str, ...]:
    """An account and all above it, from `total` down."""
    parts = account.split("/")
    below = tuple("/".join(parts[:n]) for n in range(1, len(parts) + 1))
    return below if account == TOTAL else (TOTAL, *below)


def month_of(at: datetime) -> str:
    """The window of an instant, as `2026-11`: calendar months in UTC."""
    return f"{at.astimezone(UTC):%Y-%m}"


def day_of(at: datetime) -> str:
    """The day of an instant in UTC, as `2026-11-25`."""
    return f"{at.astimezone(UTC):%Y-%m-%d}"


def named(prefix: str, name: str) -> str:
    """The account of something outside the tree of providers, as `key/ann`: what an account cannot hold becomes `-`.

    Keys with the same name share a budget, so that a key can be replaced by another.
    """
    plain = re.sub(r"[^A-Za-z0-9._-]", "-", name)[:128]
    return f"{prefix}/{plain if plain[:1].isalnum() else 'x' + plain[:127]}"


def is_over(window: str, now: datetime) -> bool:
    """Whether a month, or a day, lies wholly in the past."""
    return window != LIFETIME and window < f"{now.astimezone(UTC):%Y-%m-%d}"[: len(window)]


@dataclass(frozen=True, kw_only=True, slots=True)
class Balance:
    """What was spent under an account in a window: the sum of its entries, kept beside them."""

    account: str
    window: str
    spent_usd_micros: int
    entries: int

    def __add__(self, other: Balance) -> Balance:
        """Two parts of one."""
        return replace(
            self,
            spent_usd_micros=self.spent_usd_micros + other.spent_usd_micros,
            entries=self.entries + other.entries,
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class Freeze:
    """Nothing is spent under an account until a person lifts this; an account may have several."""

    entry_id: str
    """The entry that froze it."""
    account: str
    reason: str
    since: datetime
    action: BudgetAction | None = None


INSTANCE_PREFIX = "rent:"
"""How the leases and the entries of rented instances are called."""


def is_instance_settlement(entry: LedgerEntry) -> bool:
    """Whether it says what a rented instance cost."""
    return entry.kind is EntryKind.SETTLE and entry.entry_id.startswith(INSTANCE_PREFIX)


@dataclass(frozen=True, kw_only=True, slots=True)
class Charge:
    """What one rented instance came to on a day, as its provider says."""

    instance_id: str
    label: str = ""
    """Ours, without what marks it as ours on the wire; empty: not told, or not an attempt's."""
    usd_micros: int


@dataclass(frozen=True, kw_only=True, slots=True)
class Bill:
    """A provider's UTC day so far."""

    usd_micros: int
    """All of it, rounded up once."""
    charges: tuple[Charge, ...] | None = None
    """The parts of rented instances, together no more than all of it; None: it tells none of them."""
