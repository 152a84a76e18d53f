"""Budgets as accounts with limits, and the allocations made from them; all amounts in whole micro-dollars."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from enum import StrEnum

from goblin.billing.domain.ledger import LIFETIME, BudgetAction, day_of, lineage, month_of


class Period(StrEnum):
    """Length of the window that a limit counts in, in UTC."""

    DAY = "day"
    MONTH = "month"
    LIFETIME = "lifetime"


def window_of(period: Period, at: datetime) -> str:
    """Return the window that an instant lies in: `2026-11-25`, `2026-11` or `lifetime`."""
    match period:
        case Period.DAY:
            return day_of(at)
        case Period.MONTH:
            return month_of(at)
        case Period.LIFETIME:
            return LIFETIME


def windows_of(at: datetime) -> dict[Period, str]:
    """Return the three windows that an instant lies in."""
    return {period: window_of(period, at) for period in Period}


def resets_at(period: Period, now: datetime) -> datetime | None:
    """Return the instant at which the current window ends; None when it never ends."""
    today = now.astimezone(UTC).replace(hour=0, minute=0, second=0, microsecond=0)
    match period:
        case Period.DAY:
            return today + timedelta(days=1)
        case Period.MONTH:
            return (today.replace(day=1) + timedelta(days=32)).replace(day=1)
        case Period.LIFETIME:
            return None


class WhenUnreachable(StrEnum):
    """What may be spent under a budget while the ledger cannot be reached. Free requests go on in any case.

    Neither choice can overspend: nothing beyond the allocations is spent, as it could not be bounded for all processes
    together.
    """

    REFUSE = "refuse"
    """Nothing is spent, once the outage is noticed, which takes seconds."""
    SPEND_LENT = "spend_lent"
    """A process may spend what was allocated to it before, until the allocation expires: three minutes after the last
    exchange. It does not see a freeze of that time."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Limit:
    """The most that may be spent under an account in a window."""

    period: Period
    limit_usd_micros: int
    action: BudgetAction = BudgetAction.ALERT
    """The action that follows when it is used up."""
    unreachable: WhenUnreachable = WhenUnreachable.REFUSE
    variable: str = field(default="", compare=False)
    """Environment variable that declares it; empty: it was set."""


@dataclass(frozen=True, kw_only=True, slots=True)
class BudgetUsage:
    """What became of an account's budget in one window."""

    window: str
    spent_usd_micros: int = 0
    """Settled by holders as of their last exchange, and all of expired allocations."""
    allocated_usd_micros: int = 0
    """In allocations: settled but not reported yet, reserved, or spare."""
    told_percent: int = 0
    """The highest threshold that was announced, in percent."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Account:
    """An account's limits and its usage in the current windows; one document. Past windows are in the balances."""

    name: str
    limits: tuple[Limit, ...] = ()
    usages: Mapping[Period, BudgetUsage] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True, slots=True)
class Allocation:
    """A part of the budgets of some accounts, granted to one holder to spend without asking the ledger."""

    allocation_id: str
    account: str
    also: tuple[str, ...] = ()
    windows: Mapping[Period, str]
    """The windows in which it was opened. Nothing is reserved from it once one of them is over."""
    granted_usd_micros: int = 0
    """All that was ever granted on it and not given back."""
    settled_usd_micros: int = 0
    """The part of it that entries say was spent, updated in the commit that writes them."""
    counted_usd_micros: int = 0
    """The part of that which the accounts' usage counts as spent."""
    seq: int = 0
    """Counts the holder's exchanges, so that an exchange whose answer was lost is not made twice."""
    expires_at: datetime
    expired: bool = False
    """Whether it ended without word from its holder. Then all of it counts as spent."""

    @property
    def accounts(self) -> tuple[str, ...]:
        """Every account whose budgets it is a part of."""
        return (*lineage(self.account), *self.also)

    @property
    def lost_usd_micros(self) -> int:
        """The most that an expired allocation may have spent without an entry."""
        return max(0, self.granted_usd_micros - self.settled_usd_micros) if self.expired else 0
