"""The replay that `bench spot` measures with: its clock, its bill, its optimum and its readers."""

from __future__ import annotations

import gzip
import json
from itertools import product
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.bench import _spot_rules as rules
from tests.bench import _spot_traces as traces
from tests.bench import spot
from tests.bench._spot_optimum import optimum_h, yields_s
from tests.bench._spot_ours import ours
from tests.bench._spot_pools import run_pools
from tests.bench._spot_simulator import IDLE, ON_DEMAND, SPOT, View, simulate

GAP_S = 600


def view(work_h: float = 2, deadline_h: float = 4, changeover_s: int = 720, ratio: float = 3.0) -> View:
    return View(work_h * 3600, deadline_h * 3600, GAP_S, changeover_s, ratio)


def test_a_launch_is_billed_before_it_works_and_ticks_are_billed_whole() -> None:
    outcome = simulate(rules.on_demand(), [], view())
    # 12 min of changeover and two hours of work are 13.2 ticks.
    assert outcome.on_demand_h == pytest.approx(14 / 6)
    assert outcome.cost_h == pytest.approx(14 / 6)
    assert (outcome.late, outcome.launches) == (False, 1)


def test_a_lost_spot_instance_keeps_its_work_and_pays_the_changeover_again() -> None:
    there = [True] * 6 + [False] * 2 + [True] * 30
    outcome = simulate(lambda one: SPOT if one.there else IDLE, there, view())
    # 48 min are done in the first six ticks; the other 72 take twelve and 8.4 ticks after the two without.
    assert outcome.spot_h == pytest.approx((6 + 9) / 6)
    assert outcome.cost_h == pytest.approx(outcome.spot_h / 3)
    assert outcome.launches == 2


def test_a_late_run_is_late() -> None:
    assert simulate(rules.on_demand(), [], view(deadline_h=13 / 6)).late
    assert not simulate(rules.on_demand(), [], view(deadline_h=14 / 6)).late


@pytest.mark.parametrize(
    ("changeover_s", "worked"),
    [(72, [528, 600]), (600, [0, 600]), (720, [0, 480, 600]), (1440, [0, 0, 360, 600]), (1, [599, 600])],
)
def test_knows_what_each_tick_of_a_launch_yields(changeover_s: int, worked: list[int]) -> None:
    assert yields_s(GAP_S, changeover_s) == worked


def cheapest_by_trying(there: list[bool], ratio: float, work_s: int, changeover_s: int) -> float:
    """The least cost of all ways through a few ticks, in hours of on demand."""
    least = float("inf")
    for way in product((IDLE, SPOT, ON_DEMAND), repeat=len(there)):
        if any(kind == SPOT and not up for kind, up in zip(way, there, strict=True)):
            continue
        steps = iter(way)
        one = View(work_s, len(there) * GAP_S, GAP_S, changeover_s, ratio)
        outcome = simulate(lambda _, steps=steps: next(steps, IDLE), there, one)
        if not outcome.late:
            least = min(least, outcome.cost_h)
    return least


@settings(max_examples=25, deadline=None)
@given(
    st.lists(st.booleans(), min_size=4, max_size=7),
    st.sampled_from([1.5, 3.0, 5.5]),
    st.sampled_from([600, 1200, 1800]),
    st.sampled_from([120, 600, 720]),
)
def test_the_optimum_is_what_trying_everything_finds(
    there: list[bool], ratio: float, work_s: int, changeover_s: int
) -> None:
    found = optimum_h(
        np.array([there]),
        [ratio],
        gap_s=GAP_S,
        changeover_s=changeover_s,
        work_s=work_s,
        deadline_s=len(there) * GAP_S,
    )
    assert found[0] == pytest.approx(cheapest_by_trying(there, ratio, work_s, changeover_s), abs=1e-5)


def test_nothing_beats_the_optimum_and_ours_beats_greedy_on_made_up_traces() -> None:
    windows = [window for number, window in enumerate(traces.windows(traces.synthesize(3, count=4))) if number % 4 == 0]
    costs: dict[str, list[float]] = {name: [] for name in (*spot.RULES, "optimum")}
    for window in windows:
        for name, make in spot.RULES.items():
            one = View(12 * 3600, 16 * 3600, window.gap_s, 720, window.ratio)
            costs[name].append(simulate(make(window, one), window.available, one).cost_h)
        least = optimum_h(
            np.array([window.available]),
            [window.ratio],
            gap_s=window.gap_s,
            changeover_s=720,
            work_s=12 * 3600,
            deadline_s=16 * 3600,
        )
        costs["optimum"].append(float(least[0]))
    for name, one in costs.items():
        assert all(cost >= best - 1e-5 for cost, best in zip(one, costs["optimum"], strict=True)), name
    assert sum(costs["ours"]) < sum(costs["greedy"])


def test_several_pools_cost_no_more_than_the_mean_of_each_alone_and_are_in_time() -> None:
    windows = list(traces.windows(traces.synthesize(5, count=3)))[:: traces.WINDOWS]
    facts = {"work_s": 12 * 3600.0, "deadline_s": 16 * 3600.0, "changeover_s": 720.0}
    alone = [run_pools([window], **facts) for window in windows]
    together = run_pools(windows, **facts)
    assert not together.late
    assert together.cost_h <= sum(one.cost_h for one in alone) / len(alone)
    for window, one in zip(windows, alone, strict=True):
        plain = View(12 * 3600, 16 * 3600, window.gap_s, 720, window.ratio)
        assert simulate(ours(plain)[0], window.available, plain).cost_h == pytest.approx(one.cost_h)


def test_reads_recordings_and_refuses_a_folder_without_any(tmp_path: Path) -> None:
    folder = tmp_path / "gcp-probe-2025-10-03"
    folder.mkdir()
    facts = {"gap_seconds": 600, "on_demand_price": 10.0, "spot_price": 2.0}
    recorded = {"metadata": facts, "available": [0, 3, 16] * 300}
    with gzip.open(folder / "zone_h100.json.gz", "wt") as file:
        json.dump(recorded, file)
    (trace,) = traces.read(tmp_path)
    assert (trace.name, trace.family, trace.ratio) == ("gcp-probe-2025-10-03/zone_h100", "h100 2025", 5.0)
    assert trace.available[:3] == (False, True, True)
    cut = list(traces.windows([trace]))
    assert len(cut) == 8
    assert {len(window.available) for window in cut} == {554}
    assert cut[0].available == trace.available[:554]
    assert cut[7].available == trace.available[-554:]
    with pytest.raises(SystemExit, match="no recordings"):
        spot.load(spot.parse(["--traces", str(tmp_path / "nowhere")]))


def test_made_up_traces_are_the_same_for_a_seed_and_say_so() -> None:
    assert traces.synthesize(1, count=2) == traces.synthesize(1, count=2)
    assert traces.synthesize(1, count=2) != traces.synthesize(2, count=2)
    made, source = spot.load(spot.parse(["--synthetic", "--seed", "4"]))
    assert source == "synthetic, seed 4"
    assert all(0.05 < sum(one.available) / len(one.available) < 0.99 for one in made)
