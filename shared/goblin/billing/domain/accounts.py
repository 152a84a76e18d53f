"""Budgets as accounts with limits, and what is lent of them; whole millionths of a dollar throughout."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from enum import StrEnum

from goblin.billing.domain.ledger import LIFETIME, BudgetAction, day_of, lineage, month_of


class Period(StrEnum):
    """How long a limit holds before it starts anew, in UTC."""

    DAY = "day"
    MONTH = "month"
    LIFETIME = "lifetime"


def window_of(period: Period, at: datetime) -> str:
    """The window that an instant lies in: `2026-11-25`, `2026-11` or `lifetime`."""
    match period:
        case Period.DAY:
            return day_of(at)
        case Period.MONTH:
            return month_of(at)
        case Period.LIFETIME:
            return LIFETIME


def windows_of(at: datetime) -> dict[Period, str]:
    """The three windows that an instant lies in."""
    return {period: window_of(period, at) for period in Period}


def resets_at(period: Period, now: datetime) -> datetime | None:
    """When the present window ends; None when it never does."""
    today = now.astimezone(UTC).replace(hour=0, minute=0, second=0, microsecond=0)
    match period:
        case Period.DAY:
            return today + timedelta(days=1)
        case Period.MONTH:
            return (today.replace(day=1) + timedelta(days=32)).replace(day=1)
        case Period.LIFETIME:
            return None


class WhenUnreachable(StrEnum):
    """What may be spent under a budget while nobody can ask the ledger; what is free goes on in any case.

    Neither can overspend: an amount beyond what was lent could not be bounded for all instances together.
    """

    REFUSE = "refuse"
    """Nothing, from when it is noticed, which takes seconds."""
    SPEND_LENT = "spend_lent"
    """What an instance was lent before, for a minute: a freeze made in the meantime is not known."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Limit:
    """The most that may be spent under an account in a window."""

    period: Period
    limit_usd_micros: int
    action: BudgetAction = BudgetAction.ALERT
    """What follows when it is used up."""
    unreachable: WhenUnreachable = WhenUnreachable.REFUSE


@dataclass(frozen=True, kw_only=True, slots=True)
class BudgetUsage:
    """What became of an account's budget in one window."""

    window: str
    spent_usd_micros: int = 0
    """Settled by those who borrowed, as of when they last said so, and what the dead may have spent."""
    allocated_usd_micros: int = 0
    """Lent out: settled and not told yet, reserved, or spare."""
    told_percent: int = 0
    """The highest threshold that was announced."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Account:
    """One document: its limits and the tallies of the present windows. Past windows are in the balances."""

    name: str
    limits: tuple[Limit, ...] = ()
    usages: Mapping[Period, BudgetUsage] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True, slots=True)
class Allocation:
    """A part of the budgets of some accounts, lent to one borrower, who spends from it without asking."""

    allocation_id: str
    account: str
    also: tuple[str, ...] = ()
    windows: Mapping[Period, str]
    """When it was opened; nothing is reserved from it once one of them is over."""
    granted_usd_micros: int = 0
    """All that was ever lent on it."""
    settled_usd_micros: int = 0
    """Of it, what entries say was spent: moved in the commit that writes them."""
    counted_usd_micros: int = 0
    """Of that, what the accounts' tallies know as spent."""
    seq: int = 0
    """Counts the borrower's exchanges, so that one whose answer was lost is not made twice."""
    expires_at: datetime
    expired: bool = False
    """The borrower fell silent, and all of it counts as spent."""

    @property
    def accounts(self) -> tuple[str, ...]:
        """Every account whose budgets it is a part of."""
        return (*lineage(self.account), *self.also)

    @property
    def lost_usd_micros(self) -> int:
        """What an expired lease may have spent without an entry."""
        return max(0, self.granted_usd_micros - self.settled_usd_micros) if self.expired else 0
