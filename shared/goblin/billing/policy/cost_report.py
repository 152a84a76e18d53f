"""Cost reports: a month's spending by provider, model, job or key, with a forecast for its end."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum

from goblin.billing.domain.accounts import Allocation, Period
from goblin.billing.domain.ledger import INSTANCE_PREFIX, TOTAL, Balance
from goblin.billing.policy.settlement import forecast


class GroupBy(StrEnum):
    """What costs are split by."""

    PROVIDER = "provider"
    MODEL = "model"
    JOB = "job"
    KEY = "key"


@dataclass(frozen=True, kw_only=True, slots=True)
class CostLine:
    """One share of the costs."""

    name: str
    spent_usd_micros: int
    entries: int
    running_usd_micros: int = 0
    """Reserved for instances whose cost is not in the ledger yet: the most that it can be so far."""


@dataclass(frozen=True, kw_only=True, slots=True)
class CostReport:
    """The costs of one month."""

    month: str
    by: GroupBy
    lines: tuple[CostLine, ...]
    """The most expensive first."""
    total_usd_micros: int
    unattributed_usd_micros: int
    """The part of the total that no line covers: corrections by a bill have no model, instances have no key."""
    forecast_usd_micros: int
    """Spending at the end of the month, at the average rate so far, with running instances counted as spent."""
    running_usd_micros: int = 0
    """Reserved for instances whose cost is not in the ledger yet."""


def costs(
    balances: Sequence[Balance], *, month: str, by: GroupBy, now: datetime, allocations: Sequence[Allocation] = ()
) -> CostReport:
    """Build the cost report of a month.

    Args:
        balances: The month's balances.
        month: For example `2026-11`.
        by: What to split by.
        now: Aware UTC.
        allocations: All allocations. Those of instances that were opened in the month count as running.
    """
    running: dict[str, int] = {}
    for allocation in allocations:
        if allocation.allocation_id.startswith(INSTANCE_PREFIX) and allocation.windows[Period.MONTH] == month:
            left = max(0, allocation.granted_usd_micros - allocation.settled_usd_micros)
            running |= {account: running.get(account, 0) + left for account in allocation.accounts}
    spent = {balance.account: balance for balance in balances}
    lines = []
    for account in spent.keys() | running.keys():
        if name := _name(account, by):
            balance = spent.get(account)
            lines.append(
                CostLine(
                    name=name,
                    spent_usd_micros=balance.spent_usd_micros if balance else 0,
                    entries=balance.entries if balance else 0,
                    running_usd_micros=running.get(account, 0),
                )
            )
    total = spent[TOTAL].spent_usd_micros if TOTAL in spent else 0
    runs = running.get(TOTAL, 0)
    return CostReport(
        month=month,
        by=by,
        lines=tuple(sorted(lines, key=lambda line: (-line.spent_usd_micros - line.running_usd_micros, line.name))),
        total_usd_micros=total,
        unattributed_usd_micros=total - sum(line.spent_usd_micros for line in lines),
        forecast_usd_micros=forecast(total + runs, month, now),
        running_usd_micros=runs,
    )


def _name(account: str, by: GroupBy) -> str:
    """Return an account's name in a report split by `by`; empty: the account is of another sort."""
    first, _, rest = account.partition("/")
    if by is not GroupBy.PROVIDER:
        return rest if first == by else ""
    others = {kind.value for kind in GroupBy} - {GroupBy.PROVIDER}
    return first if not rest and first != TOTAL and first not in others else ""
