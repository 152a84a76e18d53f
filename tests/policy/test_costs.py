"""Costs by what a person asks for."""

from datetime import UTC, datetime

import pytest

from goblin.domain.money import Balance
from goblin.policy.costs import By, costs

NOW = datetime(2026, 11, 16, tzinfo=UTC)
SPENT = {
    "total": 100, "openai": 70, "openai/ann": 60, "openai/bob": 10, "vastai": 30, "vastai/job-1": 30,
    "key/ann": 60, "key/bob": 10, "model/m": 70, "job/job-1": 30,
}  # fmt: skip


@pytest.mark.parametrize(
    ("by", "lines", "rest"),
    [
        (By.PROVIDER, [("openai", 70), ("vastai", 30)], 0),
        (By.KEY, [("ann", 60), ("bob", 10)], 30),
        (By.MODEL, [("m", 70)], 30),
        (By.JOB, [("job-1", 30)], 70),
    ],
)
def test_costs_are_split_and_what_has_no_share_is_said(by: By, lines: list[tuple[str, int]], rest: int) -> None:
    balances = [Balance(account=a, window="2026-11", spent_usd_micros=s, entries=1) for a, s in SPENT.items()]
    found = costs(balances, month="2026-11", by=by, now=NOW)
    assert [(line.name, line.spent_usd_micros) for line in found.lines] == lines
    assert (found.total_usd_micros, found.unattributed_usd_micros, found.forecast_usd_micros) == (100, rest, 200)
