"""Ledger entries in whole micro-dollars, their accounts and their windows."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from enum import StrEnum

TOTAL = "total"
"""The account above all others."""
ACCOUNT = re.compile(r"[a-z][a-z0-9_]{0,62}(?:/[A-Za-z0-9][A-Za-z0-9._-]{0,127}){0,3}")
"""`total`, a provider's or endpoint's name, or an account below one, for example `vastai/job-7`."""
ENTRY_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._:~@+-]{0,511}")
LIFETIME = "lifetime"
"""The one window that never ends."""
WINDOW = re.compile(r"\d{4}-\d{2}(?:-\d{2})?|lifetime")


class EntryKind(StrEnum):
    """What an entry says."""

    RESERVE = "reserve"
    """This amount of the budgets of its accounts was allocated to a process or a rented instance."""
    SETTLE = "settle"
    """This amount was spent."""
    RELEASE = "release"
    """This amount of an allocation came back unspent."""
    EXPIRE = "expire"
    """The allocation expired with this amount unaccounted for. It counts as spent until a bill says otherwise."""
    ADJUST = "adjust"
    """A correction, as a provider's bill differs from our entries. The only kind that may be negative."""
    CREDIT = "credit"
    """This amount was refunded."""
    ALERT = "alert"
    """A threshold was passed; nothing but this record follows."""
    FREEZE = "freeze"
    """From now on nothing is spent under the account."""
    THAW = "thaw"
    """A person lifted a freeze."""
    SCALE = "scale"
    """A Cloud Run service was scaled to zero because of a freeze, or scaled back after its thaw."""


ACTIONS = frozenset({EntryKind.ALERT, EntryKind.FREEZE, EntryKind.THAW, EntryKind.SCALE})
"""Kinds that record an action and move no money."""
LENDING = frozenset({EntryKind.RESERVE, EntryKind.RELEASE, EntryKind.EXPIRE})
"""Kinds that move money between what is left and what is allocated. They spend nothing."""


class BudgetAction(StrEnum):
    """The action when a budget is used up. Each but the first holds until a person thaws the account."""

    ALERT = "alert"
    """Record it and alert a person. The budget refuses by itself until its window ends."""
    FREEZE = "freeze"
    """Spend nothing more under the account."""
    STOP_JOBS = "stop_jobs"
    """Freeze, and end the account's spot jobs after a last checkpoint."""
    SCALE_TO_ZERO = "scale_to_zero"
    """Freeze, and scale the account's Cloud Run services to zero."""


@dataclass(frozen=True, kw_only=True, slots=True)
class LedgerEntry:
    """One fact about money. A mistake is corrected by another entry."""

    entry_id: str
    """Chosen by the caller. It is the document's id, so that a retry writes the same entry."""
    kind: EntryKind
    account: str
    """The account it counts in, as in every account above."""
    also: tuple[str, ...] = ()
    """Further accounts it counts in that are outside the tree of providers: a key's, a job's, a model's."""
    amount_usd_micros: int
    at: datetime
    """Aware UTC; decides the windows it counts in."""
    note: str = ""
    """Text for a person."""
    reaction: BudgetAction | None = None
    """For a freeze: the action of its budget."""
    instance_id: str = ""
    """For the settlement of an instance: the provider's id of it, to match bills that have no labels."""
    lifts: tuple[str, ...] = ()
    """For a thaw: the entries whose freezes it lifts. A freeze that the person did not know of stays."""

    def __post_init__(self) -> None:
        if not ENTRY_ID.fullmatch(self.entry_id):
            raise ValueError(f"Malformed entry id: {self.entry_id!r}.")
        for account in (self.account, *self.also):
            if not ACCOUNT.fullmatch(account):
                raise ValueError(f"Malformed account: {account!r}.")
        if type(self.amount_usd_micros) is not int:
            raise TypeError("The amount must be a whole number of micro-dollars.")
        if self.amount_usd_micros < 0 and self.kind is not EntryKind.ADJUST:
            raise ValueError(f"The amount of an entry of kind {self.kind} must not be negative.")
        if self.kind in ACTIONS and self.amount_usd_micros:
            raise ValueError(f"The amount of an entry of kind {self.kind} must be 0.")
        if bool(self.lifts) != (self.kind is EntryKind.THAW):
            raise ValueError("An entry of kind thaw, and no other, must name the freezes it lifts.")

    @property
    def spent_usd_micros(self) -> int:
        """The amount that it adds to the spending of its accounts."""
        if self.kind in LENDING:
            return 0
        return -self.amount_usd_micros if self.kind is EntryKind.CREDIT else self.amount_usd_micros

    @property
    def accounts(self) -> tuple[str, ...]:
        """Every account that it counts in."""
        return (*lineage(self.account), *self.also)


def lineage(account: str) -> tuple[str, ...]:
    """Return an account and all accounts above it, from `total` down."""
    parts = account.split("/")
    below = tuple("/".join(parts[:n]) for n in range(1, len(parts) + 1))
    return below if account == TOTAL else (TOTAL, *below)


def month_of(at: datetime) -> str:
    """Return the calendar month of an instant in UTC, for example `2026-11`."""
    return f"{at.astimezone(UTC):%Y-%m}"


def day_of(at: datetime) -> str:
    """Return the day of an instant in UTC, for example `2026-11-25`."""
    return f"{at.astimezone(UTC):%Y-%m-%d}"


def named(prefix: str, name: str) -> str:
    """Return an account outside the tree of providers, for example `key/ann`. Other characters become `-`.

    Keys with the same name share a budget, so that a key can be replaced by another.
    """
    plain = re.sub(r"[^A-Za-z0-9._-]", "-", name)[:128]
    return f"{prefix}/{plain if plain[:1].isalnum() else 'x' + plain[:127]}"


def is_over(window: str, now: datetime) -> bool:
    """Tell whether a month or day is entirely in the past."""
    return window != LIFETIME and window < f"{now.astimezone(UTC):%Y-%m-%d}"[: len(window)]


@dataclass(frozen=True, kw_only=True, slots=True)
class Balance:
    """The amount spent under an account in a window: the sum of its entries, kept beside them."""

    account: str
    window: str
    spent_usd_micros: int
    entries: int

    def __add__(self, other: Balance) -> Balance:
        """Add two parts of one balance."""
        return replace(
            self,
            spent_usd_micros=self.spent_usd_micros + other.spent_usd_micros,
            entries=self.entries + other.entries,
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class Freeze:
    """A stop of all spending under an account until a person lifts it. An account may have several."""

    entry_id: str
    """The entry that froze it."""
    account: str
    reason: str
    since: datetime
    action: BudgetAction | None = None


INSTANCE_PREFIX = "rent:"
"""Prefix of the ids of rented instances' allocations and entries."""


def is_instance_settlement(entry: LedgerEntry) -> bool:
    """Tell whether an entry says what a rented instance cost."""
    return entry.kind is EntryKind.SETTLE and entry.entry_id.startswith(INSTANCE_PREFIX)


@dataclass(frozen=True, kw_only=True, slots=True)
class Charge:
    """The cost of one rented instance on a day, as its provider says."""

    instance_id: str
    label: str = ""
    """Our label, without the marks that it has at the provider. Empty: not in the bill, or not an attempt's label."""
    usd_micros: int


@dataclass(frozen=True, kw_only=True, slots=True)
class Bill:
    """A provider's bill for a UTC day so far."""

    usd_micros: int
    """The whole amount, rounded up once."""
    charges: tuple[Charge, ...] | None = None
    """The charges for rented instances, together no more than `usd_micros`. None: the bill does not list them."""
