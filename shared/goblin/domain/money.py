"""Money as facts: entries of a ledger in whole millionths of a dollar, their accounts and their windows."""

from __future__ import annotations

import re
from dataclasses import dataclass
from datetime import UTC, datetime
from decimal import ROUND_CEILING, Decimal
from enum import StrEnum

TOTAL = "total"
"""The account above all others."""
ACCOUNT = re.compile(r"[a-z][a-z0-9_]{0,62}(?:/[A-Za-z0-9][A-Za-z0-9._-]{0,127}){0,3}")
"""`total`, a provider's or endpoint's name, or something below one, as in `vastai/job-7`."""
ENTRY_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._:~@+-]{0,511}")
WINDOW = re.compile(r"\d{4}-\d{2}(?:-\d{2})?")
USD_MICROS = 1_000_000


class EntryKind(StrEnum):
    """What an entry says."""

    SETTLE = "settle"
    """This was spent."""
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


ACTIONS = frozenset({EntryKind.ALERT, EntryKind.FREEZE, EntryKind.THAW})
"""Kinds that record what was done about money and move none."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Entry:
    """One fact about money; a mistake is corrected by another entry."""

    entry_id: str
    """Chosen by the caller and the document's id, so that a retry writes the same entry."""
    kind: EntryKind
    account: str
    """It counts here and in every account above."""
    amount_usd_micros: int
    at: datetime
    """Aware UTC; decides the window it counts in."""
    note: str = ""
    """For a person."""
    lifts: tuple[str, ...] = ()
    """A thaw's: the entries whose freezes it lifts. One that its person did not know of stays."""

    def __post_init__(self) -> None:
        if not ENTRY_ID.fullmatch(self.entry_id):
            raise ValueError(f"not an entry's id: {self.entry_id!r}")
        if not ACCOUNT.fullmatch(self.account):
            raise ValueError(f"not an account: {self.account!r}")
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
        return -self.amount_usd_micros if self.kind is EntryKind.CREDIT else self.amount_usd_micros


def lineage(account: str) -> tuple[str, ...]:
    """An account and all above it, from `total` down."""
    parts = account.split("/")
    below = tuple("/".join(parts[:n]) for n in range(1, len(parts) + 1))
    return below if account == TOTAL else (TOTAL, *below)


def month_of(at: datetime) -> str:
    """The window of an instant, as `2026-11`: calendar months in UTC."""
    return f"{at.astimezone(UTC):%Y-%m}"


def is_over(window: str, now: datetime) -> bool:
    """Whether a month, or a day, lies wholly in the past."""
    return window < f"{now.astimezone(UTC):%Y-%m-%d}"[: len(window)]


@dataclass(frozen=True, kw_only=True, slots=True)
class Balance:
    """What was spent under an account in a window: the sum of its entries, kept beside them."""

    account: str
    window: str
    spent_usd_micros: int
    entries: int


@dataclass(frozen=True, kw_only=True, slots=True)
class Freeze:
    """Nothing is spent under an account until a person lifts this; an account may have several."""

    entry_id: str
    """The entry that froze it."""
    account: str
    reason: str
    since: datetime


def to_micros(amount: Decimal) -> int:
    """Whole millionths, rounded up: spending is never understated."""
    return int((amount * USD_MICROS).to_integral_value(ROUND_CEILING))


def show_usd(micros: int) -> str:
    """For a person, exact: `$12.50`, `-$0.000001`."""
    dollars, rest = divmod(abs(micros), USD_MICROS)
    digits = f"{rest:06d}"
    return f"{'-' if micros < 0 else ''}${dollars:,}.{digits[:2]}{digits[2:].rstrip('0')}"
