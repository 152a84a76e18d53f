"""Spending as a person asks for it: by what, and what it comes to by the end of the month."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum

from goblin.domain.money import TOTAL, Balance
from goblin.policy.settling import forecast


class By(StrEnum):
    """What costs are split by."""

    PROVIDER = "provider"
    MODEL = "model"
    JOB = "job"
    KEY = "key"


@dataclass(frozen=True, kw_only=True, slots=True)
class Line:
    """One share of the costs."""

    name: str
    spent_usd_micros: int
    entries: int


@dataclass(frozen=True, kw_only=True, slots=True)
class Costs:
    """A month."""

    month: str
    by: By
    lines: tuple[Line, ...]
    """The dearest first."""
    total_usd_micros: int
    unattributed_usd_micros: int
    """Of the total, what has no such thing: corrections by a bill have no model, machines have no key."""
    forecast_usd_micros: int
    """At the end of the month, at the average rate of the month so far."""


def costs(balances: Sequence[Balance], *, month: str, by: By, now: datetime) -> Costs:
    """Split a month's balances."""
    lines = []
    for balance in balances:
        first, _, rest = balance.account.partition("/")
        others = {kind.value for kind in By} - {By.PROVIDER}
        if by is By.PROVIDER:
            name = first if not rest and first != TOTAL and first not in others else ""
        else:
            name = rest if first == by else ""
        if name:
            lines.append(Line(name=name, spent_usd_micros=balance.spent_usd_micros, entries=balance.entries))
    total = sum(balance.spent_usd_micros for balance in balances if balance.account == TOTAL)
    return Costs(
        month=month,
        by=by,
        lines=tuple(sorted(lines, key=lambda line: (-line.spent_usd_micros, line.name))),
        total_usd_micros=total,
        unattributed_usd_micros=total - sum(line.spent_usd_micros for line in lines),
        forecast_usd_micros=forecast(total, month, now),
    )
