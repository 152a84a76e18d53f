"""Costs by what a person asks for."""

from datetime import UTC, datetime

import pytest

from goblin.billing.domain.accounts import Allocation, windows_of
from goblin.billing.domain.ledger import Balance
from goblin.billing.policy.cost_report import GroupBy, costs

NOW = datetime(2026, 11, 16, tzinfo=UTC)
SPENT = {
    "total": 100, "openai": 70, "openai/ann": 60, "openai/bob": 10, "vastai": 30, "vastai/job-1": 30,
    "key/ann": 60, "key/bob": 10, "model/m": 70, "job/job-1": 30,
}  # fmt: skip


@pytest.mark.parametrize(
    ("by", "lines", "rest"),
    [
        (GroupBy.PROVIDER, [("openai", 70), ("vastai", 30)], 0),
        (GroupBy.KEY, [("ann", 60), ("bob", 10)], 30),
        (GroupBy.MODEL, [("m", 70)], 30),
        (GroupBy.JOB, [("job-1", 30)], 70),
    ],
)
def test_costs_are_split_and_what_has_no_share_is_said(by: GroupBy, lines: list[tuple[str, int]], rest: int) -> None:
    balances = [Balance(account=a, window="2026-11", spent_usd_micros=s, entries=1) for a, s in SPENT.items()]
    found = costs(balances, month="2026-11", by=by, now=NOW)
    assert [(line.name, line.spent_usd_micros) for line in found.lines] == lines
    assert (found.total_usd_micros, found.unattributed_usd_micros, found.forecast_usd_micros) == (100, rest, 200)


def lent(allocation_id: str, account: str, granted: int, settled: int = 0, *, at: datetime = NOW) -> Allocation:
    return Allocation(
        allocation_id=allocation_id, account=account,
        also=(f"job/{account.partition('/')[2]}",), windows=windows_of(at),
        granted_usd_micros=granted, settled_usd_micros=settled, expires_at=NOW,
    )  # fmt: skip


def test_what_runs_is_told_beside_what_is_spent_and_counts_in_the_forecast() -> None:
    balances = [Balance(account=a, window="2026-11", spent_usd_micros=s, entries=1) for a, s in SPENT.items()]
    allocations = [
        lent("rent:goblin-job-1-a2:1", "vastai/job-1", 50, 10), lent("rent:goblin-job-2-a1:1", "vastai/job-2", 7),
        lent("rent:goblin-job-3-a1:1", "vastai/job-3", 900, at=datetime(2026, 10, 31, tzinfo=UTC)),
        lent("abc", "openai/ann", 500),
    ]  # fmt: skip
    found = costs(balances, month="2026-11", by=GroupBy.JOB, now=NOW, allocations=allocations)
    lines = [(line.name, line.spent_usd_micros, line.running_usd_micros) for line in found.lines]
    assert lines == [("job-1", 30, 40), ("job-2", 0, 7)]
    assert (found.total_usd_micros, found.running_usd_micros) == (100, 47)
    assert found.forecast_usd_micros == 2 * 147
    by_provider = costs(balances, month="2026-11", by=GroupBy.PROVIDER, now=NOW, allocations=allocations)
    assert [(line.name, line.running_usd_micros) for line in by_provider.lines] == [("vastai", 47), ("openai", 0)]
