"""The router compared with published routing rules in a simulated world. The bench does the same on more seeds."""

from __future__ import annotations

import pytest

from tests.bench import routing
from tests.bench._routing_scenarios import SCENARIOS

SEEDS = 3
WORSE_MAX = 1.05


@pytest.mark.parametrize("name", list(SCENARIOS))
def test_ours_is_nowhere_much_slower_than_the_best_of_the_others(name: str) -> None:
    rows = routing.run([name, f"seeds={SEEDS}"])["scenarios"][name]
    assert set(rows) == set(routing.POLICIES)
    assert all(row["success"] == 1.0 for row in rows.values())
    best = min(row["p95_ms"] for policy, row in rows.items() if policy != "ours")
    assert rows["ours"]["p95_ms"] <= WORSE_MAX * best
    assert rows["ours"]["bad_share"] <= min(row["bad_share"] for row in rows.values()) + 0.03


@pytest.mark.parametrize("told", [True, False])
def test_a_cold_newcomer_gets_at_most_two_of_forty_even_if_nobody_says_that_it_sleeps(told: bool) -> None:
    for outcome in routing.measure(SCENARIOS["cold_newcomer"], "ours", 6, told=told):
        assert outcome.asked == 40
        assert outcome.bad <= 2


def test_the_same_quickness_costs_a_fraction_when_the_prices_differ() -> None:
    rows = routing.run(["mixed_prices", f"seeds={SEEDS}"])["scenarios"]["mixed_prices"]
    assert rows["ours"]["cost_usd"] < 0.4 * min(row["cost_usd"] for name, row in rows.items() if name != "ours")


def test_the_same_seed_is_the_same_world() -> None:
    first, second = (routing.run(["slow_one", "seeds=1"]) for _ in range(2))
    assert first == second
