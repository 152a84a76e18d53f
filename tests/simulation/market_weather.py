"""Failure rates and budgets of a simulation run."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from goblin.billing.domain.accounts import Limit, Period
from goblin.billing.domain.ledger import BudgetAction
from goblin.core.money import USD_MICROS

RICH = {
    name: (Limit(period=Period.MONTH, limit_usd_micros=10_000 * USD_MICROS),) for name in ("total", "runpod", "vastai")
}


@dataclass(frozen=True)
class Weather:
    """Rates of failures and price changes in a run."""

    promise: bool
    """The world keeps what deadlines are promised on: on demand can be had, and nothing of ours fails."""
    days: float
    jobs: int
    crash: float
    """Chance that a call dies at one of its writes."""
    overlap: float
    """Chance that several calls run at once."""
    trouble_s: float
    """Mean time between troubles."""
    move_s: float = 1800.0
    """Mean time between two moves of a price."""
    deadlines: float = 0.2
    """Share of jobs with one."""
    settle_s: float = 3600.0
    """Between two looks at the bills."""
    hours: float = 1.8
    """Work of a job in the middle."""
    poison_s: float = 0.0
    """Mean time between two poisons, see `poison`; 0: there is none."""


STORM = Weather(promise=False, days=0.7, jobs=14, crash=0.02, overlap=0.08, trouble_s=1500)
FAIR = Weather(promise=True, days=0.5, jobs=8, crash=0.0, overlap=0.0, trouble_s=1e9)
LONG = Weather(
    promise=False, days=16, jobs=60, crash=0.01, overlap=0.03, trouble_s=30_000, move_s=8 * 3600, hours=30,
    deadlines=0.0, settle_s=6 * 3600,
)  # fmt: skip
POISON = Weather(
    promise=False, days=0.3, jobs=10, crash=0.01, overlap=0.05, trouble_s=3000, hours=0.8, poison_s=400
)  # fmt: skip
WEATHERS = (STORM, STORM, LONG, FAIR)


def budgets(rng: random.Random, weather: Weather) -> Mapping[str, Sequence[Limit]]:
    """Plenty, or some of which are soon used up."""
    if weather.promise or rng.random() < 0.4:
        return RICH
    month = Limit(
        period=Period.MONTH, limit_usd_micros=rng.choice([10, 50, 200]) * USD_MICROS,
        action=rng.choice([BudgetAction.ALERT, BudgetAction.FREEZE]),
    )  # fmt: skip
    day = Limit(period=Period.DAY, limit_usd_micros=rng.choice([2, 10, 30]) * USD_MICROS, action=BudgetAction.STOP_JOBS)
    some = {"total": (month,), "vastai": (day,)}
    return {**RICH, **{name: limits for name, limits in some.items() if rng.random() < 0.7}}
