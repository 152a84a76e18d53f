"""Routing compared: ours against published rules, in a simulated world on a virtual clock, over several seeds.

Waiting is the time to the first token as the caller sees it, failed attempts included. Everybody faces the same
requests, may try three endpoints, and shares one engine; ours also wakes and hedges, as it does in production.
`./goblin bench routing [SCENARIO …] [seeds=N] [hedge=off] [told=off]`.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from goblin.gateway.domain.catalog import Strategy
from tests.bench._routing_ours import Ours
from tests.bench._routing_rules import RULES
from tests.bench._routing_scenarios import SCENARIOS, Scenario
from tests.bench._routing_world import Outcome, Router, World
from tests.bench._show import text_table

SEEDS = 12
POLICIES = ("ours", *RULES)


def run(words: list[str]) -> dict[str, Any]:
    said = dict(word.split("=", 1) for word in words if "=" in word)
    names = [word for word in words if "=" not in word] or list(SCENARIOS)
    seeds = int(said.get("seeds", SEEDS))
    switches = {"hedge": said.get("hedge") != "off", "told": said.get("told") != "off"}
    return {
        "scenarios": {
            name: {policy: figures(measure(SCENARIOS[name], policy, seeds, **switches)) for policy in POLICIES}
            for name in names
        }
    }


def measure(scenario: Scenario, policy: str, seeds: int, **switches: bool) -> list[Outcome]:
    """One outcome per seed."""
    outcomes = []
    for seed in range(seeds):
        truths, requests = scenario.build(seed)
        world = World(truths, requests, scenario.bad)
        router: Router
        if policy == "ours":
            router = Ours(world, truths, seed, strategy=Strategy.LOWEST_LATENCY, **switches)
        else:
            router = RULES[policy](world, seed)
        outcomes.append(world.run(router))
    return outcomes


def figures(outcomes: list[Outcome]) -> dict[str, float]:
    """All seeds as one; a request that failed counts with the time it took to fail."""
    waits = sorted(wait for outcome in outcomes for wait in outcome.waits_ms)
    asked = sum(outcome.asked for outcome in outcomes)
    bad_of = sum(outcome.bad_of for outcome in outcomes)
    return {
        "p50_ms": round(quantile(waits, 0.50), 1),
        "p95_ms": round(quantile(waits, 0.95), 1),
        "p99_ms": round(quantile(waits, 0.99), 1),
        "success": round(sum(outcome.answered for outcome in outcomes) / asked, 5),
        "cost_usd": round(sum(outcome.cost_usd for outcome in outcomes) / len(outcomes), 6),
        "bad_share": round(sum(outcome.bad for outcome in outcomes) / bad_of, 4) if bad_of else 0.0,
    }


def quantile(ordered: list[float], share: float) -> float:
    return ordered[min(int(share * len(ordered)), len(ordered) - 1)]


def table(result: dict[str, Any]) -> str:
    parts = []
    for name, policies in result["scenarios"].items():
        rows = [
            (
                policy,
                f"{row['p50_ms']:.0f}",
                f"{row['p95_ms']:.0f}",
                f"{row['p99_ms']:.0f}",
                f"{row['success']:.2%}",
                f"{row['cost_usd']:.4f}",
                f"{row['bad_share']:.1%}",
            )
            for policy, row in policies.items()
        ]
        columns = ("policy", "p50 ms", "p95 ms", "p99 ms", "success", "cost $", "bad share")
        parts.append(text_table(f"{name}: {SCENARIOS[name].about}", columns, rows))
    return "\n\n".join(parts)


def plot(result: dict[str, Any], path: Path) -> None:
    """p50, p95 and p99 per policy, one picture per scenario, on a logarithmic scale."""
    import matplotlib as mpl

    mpl.use("Agg")
    import matplotlib.pyplot as plt

    scenarios = result["scenarios"]
    figure, axes = plt.subplots(len(scenarios), 1, figsize=(8, 2.4 * len(scenarios)), squeeze=False)
    for (name, policies), axis in zip(scenarios.items(), axes[:, 0], strict=True):
        for place, row in enumerate(policies.values()):
            axis.plot([row["p50_ms"], row["p99_ms"]], [place, place], color="0.7", zorder=1)
            for key, colour in (("p50_ms", "tab:green"), ("p95_ms", "tab:orange"), ("p99_ms", "tab:red")):
                axis.scatter(row[key], place, color=colour, zorder=2, label=key[:3] if place == 0 else None)
        axis.set_yticks(range(len(policies)), list(policies))
        axis.set_xscale("log")
        axis.invert_yaxis()
        axis.set_title(name, loc="left", fontsize=10)
    axes[0, 0].legend(loc="lower right", fontsize=8)
    axes[-1, 0].set_xlabel("time to the first token, ms")
    figure.tight_layout()
    figure.savefig(path, dpi=150)
    plt.close(figure)
