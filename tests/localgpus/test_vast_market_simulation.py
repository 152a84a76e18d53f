"""The market left to itself: others come and go, hosts fail, and no GPU is ever let twice."""

from __future__ import annotations

import random
from collections import Counter

import pytest

from localgpus.vast import auction
from localgpus.vast.market_simulation import FLOOR_MAX, FLOOR_MIN, MarketSimulation
from localgpus.vast.state import Contract
from tests.localgpus.vast import Town, machine

DAY_S = 86_400


def stormy(seed: int, **said: float) -> Town:
    town = Town(
        *(machine(number, num_gpus=number) for number in (1, 2, 4)),
        simulation=MarketSimulation(random.Random(seed), **said),
    )
    town.market.state.paid_in = 10_000.0
    return town


def pass_days(town: Town, days: int) -> Counter[str]:
    """Look every ten minutes; how often each label was seen to run."""
    seen: Counter[str] = Counter()
    for _ in range(days * 144):
        town.later(600)
        seen.update(contract.label for contract in town.market.state.contracts.values() if contract.holds)
    return seen


def hold(town: Town, number: int, bid: float, label: str) -> Contract:
    contract = town.rent(number, bid=bid, label=label)
    town.later(60)
    return contract


@pytest.mark.parametrize("seed", range(3))
def test_one_seed_makes_the_same_week_again(seed: int) -> None:
    first, second = stormy(seed), stormy(seed)
    for town in (first, second):
        hold(town, 4, 0.25, "a")
        pass_days(town, 2)
    assert first.market.state.machines == second.market.state.machines
    assert first.market.state.balance == second.market.state.balance


def test_who_bids_little_is_displaced_more_than_who_bids_much() -> None:
    seen: Counter[str] = Counter()
    for seed in range(4):
        town = stormy(seed)
        hold(town, 1, 0.21, "floor")
        hold(town, 2, 0.39, "high")
        seen += pass_days(town, 3)
    assert 0 < seen["floor"] < seen["high"]


def test_no_gpu_is_let_twice_and_prices_stay_within_bounds() -> None:
    town = stormy(5)
    for number in range(3):
        hold(town, 4, 0.3, f"job-{number}")
    whole = town.rent(2, label="in full")
    lost = False
    for _ in range(3 * 24):
        town.later(3600)
        for one in town.market.state.machines.values():
            held = sum(contract.gpus for contract in town.market.on(one) if contract.holds)
            paid = sum(rival.gpus for rival in one.rivals if rival.bid is None)
            assert held + paid <= one.num_gpus
            assert FLOOR_MIN * one.price <= one.floor <= FLOOR_MAX * one.price
            assert auction.free_on_demand(one, town.market.on(one)) >= 0
            # Who pays in full is displaced by nobody but the host.
            assert whole.holds or not town.market.state.machines[2].up or town.market.state.machines[2].reclaimed
            lost = lost or held < sum(contract.gpus for contract in town.market.on(one))
    assert lost


def test_a_pace_brings_the_same_storm_sooner() -> None:
    slow, fast = stormy(1), stormy(1, pace=128.0)
    for town, pace in ((slow, 1), (fast, 128)):
        town.later(0.0)
        town.later(DAY_S / pace + 1.0 / pace)
    floors = [[one.floor for one in town.market.state.machines.values()] for town in (slow, fast)]
    assert floors[0] == floors[1] != [0.2, 0.2, 0.2]
