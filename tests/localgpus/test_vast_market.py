"""The market of Vast.ai in time: boots, bids, preemptions as they were measured, hosts that fail, and bills."""

from __future__ import annotations

from pathlib import Path

import pytest

from localgpus.vast import auction, billing, control
from localgpus.vast.market import instance_name
from localgpus.vast.renting import No
from localgpus.vast.state import Contract, Rival
from tests.localgpus.vast import START, Town, machine


def states(contract: Contract) -> tuple[str | None, str]:
    return contract.actual, contract.intended


def cost(town: Town, contract: Contract) -> float:
    return sum(meter.amount for meter in town.market.state.meters if meter.contract_id == contract.id)


def test_an_instance_boots_as_fast_as_its_host_pulls() -> None:
    town = Town(machine(inet_down=800.0))
    contract = town.rent(args=["train"], env={"JOB": "42", "-p 80:80": "1"})
    assert states(contract) == (None, "running")
    town.later(1.0)
    assert contract.actual == "created"
    town.later(1.0)
    assert contract.actual == "loading"
    town.later(19.9)
    assert contract.actual == "loading"
    town.later(0.2)
    assert contract.actual == "running"
    started = town.machines.started[instance_name(contract)]
    assert started.args == ("train",)
    assert started.env == {"JOB": "42", "CONTAINER_ID": str(contract.id), "VAST_CONTAINERLABEL": f"C.{contract.id}"}


def test_a_pace_shortens_boots_and_not_hours() -> None:
    town = Town(machine(), pace=10.0)
    contract = town.rent()
    town.later(1.2)
    assert contract.actual == "running"
    town.later(3600.0)
    assert cost(town, contract) == pytest.approx(0.40 + 10 * 0.15 / 720, rel=1e-3)


def test_a_bid_that_is_too_low_is_refused_and_leaves_a_stopped_contract_that_costs() -> None:
    town = Town()
    with pytest.raises(No) as refused:
        town.rent(bid=0.19)
    (contract,) = town.market.state.contracts.values()
    assert refused.value.body["new_contract"] == contract.id
    assert states(contract) == ("exited", "stopped")
    town.later(3600.0)
    assert cost(town, contract) == pytest.approx(10 * 0.15 / 720)
    assert not town.machines.started


def test_an_outbid_instance_stops_as_it_was_measured() -> None:
    town = Town()
    contract = town.running(bid=0.25)
    control.outbid(town.market, "a")
    assert states(contract) == ("running", "running")
    town.later(1.3)
    assert states(contract) == ("running", "running")
    town.later(0.2)
    assert states(contract) == ("running", "stopped")
    assert town.machines.running(instance_name(contract))
    town.later(8.4)
    assert contract.actual == "running"
    town.later(20.2)
    assert states(contract) == ("exited", "stopped")
    assert not town.machines.running(instance_name(contract))
    assert contract.status_msg.startswith("success")


def test_an_outbid_instance_pays_for_its_disk_and_not_for_gpus() -> None:
    town = Town()
    contract = town.running(bid=0.25)
    control.outbid(town.market, "a")
    town.later(30.0)
    before = cost(town, contract)
    town.later(7200.0)
    assert cost(town, contract) - before == pytest.approx(2 * 10 * 0.15 / 720)


def test_a_bid_that_wins_again_runs_again_on_its_own_disk() -> None:
    town = Town()
    contract = town.running(bid=0.25)
    control.outbid(town.market, "a", for_s=600.0)
    town.later(60.0)
    assert contract.actual == "exited"
    town.later(540.0)
    assert contract.actual == "exited"
    town.later(5.0)
    assert states(contract) == ("running", "running")
    assert town.machines.running(instance_name(contract))


def test_a_raised_bid_takes_the_gpus_back() -> None:
    town = Town()
    contract = town.running(bid=0.25)
    control.outbid(town.market, "a")
    town.later(60.0)
    contract.bid = 0.35
    town.market.settle_machine(town.market.state.machines[1], town.clock())
    town.later(5.0)
    assert contract.actual == "running"


def test_who_pays_in_full_outranks_every_bid() -> None:
    town = Town()
    bidder = town.running(bid=30.0)
    town.rent(label="b")
    town.later(35.0)
    assert states(bidder) == ("exited", "stopped")


@pytest.mark.parametrize(
    ("gpus", "rivals", "least"),
    [
        (1, [], 0.20),
        (2, [], 0.40),
        (1, [Rival(gpus=3, bid=0.30)], 0.20),
        (1, [Rival(gpus=4, bid=0.30)], 0.36),
        (2, [Rival(gpus=3, bid=0.30)], 0.72),
        (4, [Rival(gpus=2, bid=0.30), Rival(gpus=2, bid=0.25)], 1.44),
        (2, [Rival(gpus=2, bid=0.30), Rival(gpus=2, bid=0.25)], 0.60),
        (2, [Rival(gpus=2, bid=None), Rival(gpus=2, bid=0.25)], 0.60),
        (3, [Rival(gpus=2, bid=None)], None),
    ],
)
def test_the_least_bid_is_what_wins(gpus: int, rivals: list[Rival], least: float | None) -> None:
    town = Town(machine(num_gpus=4, rivals=rivals))
    assert auction.least_bid(town.market.state.machines[1], [], gpus) == least
    if least is not None:
        contract = town.rent(gpus=gpus, bid=least)
        assert contract.holds


def test_an_offer_is_rented_once() -> None:
    town = Town(machine(num_gpus=2))
    ask = town.market.asks(town.market.state.machines[1])[1]
    town.rent()
    with pytest.raises(No) as refused:
        town.rent(gpus=2)
    assert refused.value.status == 410
    assert ask not in town.market.asks(town.market.state.machines[1]).values()


def test_a_program_that_ends_leaves_an_instance_that_still_costs() -> None:
    town = Town()
    contract = town.running()
    town.machines.end(instance_name(contract), 0)
    town.later(1.0)
    assert states(contract) == ("exited", "running")
    before = cost(town, contract)
    town.later(3600.0)
    assert cost(town, contract) - before == pytest.approx(0.40 + 10 * 0.15 / 720)


def test_a_host_that_dies_takes_its_instances_along() -> None:
    town = Town()
    contract = town.running(bid=0.25)
    control.switch(town.market, 1, up=False)
    assert contract.actual == "offline"
    assert not town.machines.running(instance_name(contract))
    with pytest.raises(No):
        town.rent()
    control.switch(town.market, 1, up=True)
    town.later(5.0)
    assert contract.actual == "running"


def test_a_host_that_takes_his_machine_back_does_not_start_it_again() -> None:
    town = Town()
    contract = town.running(bid=0.25)
    control.reclaim(town.market, 1)
    town.later(3600.0)
    assert states(contract) == ("exited", "stopped")
    assert not town.market.resume(contract)


def test_a_contract_ends_with_its_hosts() -> None:
    town = Town(machine(end_date=START + 100.0))
    contract = town.running()
    town.later(88.0)
    assert states(contract) == ("exited", "stopped")
    town.later(48 * 3600.0)
    assert not town.market.state.contracts


def test_an_image_that_cannot_be_pulled_never_runs_and_says_so() -> None:
    town = Town(machine(pull_error="manifest unknown"))
    contract = town.rent()
    town.later(3600.0)
    assert states(contract) == ("created", "running")
    assert contract.status_msg == "manifest unknown"
    assert cost(town, contract) == pytest.approx(10 * 0.15 / 720)


def test_a_halted_instance_is_asked_first_and_starts_when_it_is_wanted() -> None:
    town = Town()
    contract = town.running()
    town.market.halt(contract)
    assert instance_name(contract) in town.machines.stopping
    town.later(2.0)
    assert states(contract) == ("stopped", "stopped")
    assert town.market.resume(contract)
    town.later(5.0)
    assert states(contract) == ("running", "running")


def test_traffic_is_charged_by_volume() -> None:
    town = Town(machine(inet_down_cost=0.02, inet_up_cost=0.03))
    contract = town.running()
    control.traffic(town.market, "a", down_gb=10.0, up_gb=5.0)
    (meter,) = town.market.state.meters
    # Two GB were the image.
    assert (meter.bwd, meter.bwu) == (pytest.approx(0.24), pytest.approx(0.15))
    assert cost(town, contract) == meter.amount


def test_each_day_has_its_own_charges() -> None:
    town = Town()
    town.running()
    town.later(2 * 86_400.0)
    days = [meter.day for meter in town.market.state.meters]
    assert len(days) == 3
    assert all(day % 86_400 == 0 for day in days)
    assert sum(meter.gpu for meter in town.market.state.meters) == pytest.approx(48 * 0.40)


def test_charges_of_long_ago_are_forgotten_and_stay_paid() -> None:
    town = Town()
    town.market.state.paid_in = 10_000.0
    contract = town.running()
    town.market.destroy(contract)
    balance = town.market.state.balance
    town.later(billing.KEPT_S + 2 * 86_400.0)
    assert not town.market.state.meters
    assert town.market.state.balance == pytest.approx(balance)


def test_without_money_nothing_runs() -> None:
    town = Town()
    town.market.state.paid_in = 0.4
    contract = town.running()
    town.later(3700.0)
    town.later(3.0)
    assert states(contract) == ("stopped", "stopped")
    with pytest.raises(No) as refused:
        town.rent()
    assert refused.value.body["error"] == "insufficient_credit"


def test_a_destroyed_instance_is_gone_with_its_disk() -> None:
    town = Town()
    contract = town.running()
    town.market.destroy(contract)
    assert not town.market.state.contracts
    assert instance_name(contract) not in town.machines.started


def test_a_market_that_is_opened_again_knows_its_contracts_and_that_their_processes_are_gone(tmp_path: Path) -> None:
    town = Town(folder=tmp_path)
    town.running(bid=0.25, label="a")
    town.market.save()
    again = Town(folder=tmp_path, now=town.clock.now + 86_400.0)
    (contract,) = again.market.state.contracts.values()
    assert (contract.label, *states(contract)) == ("a", "exited", "running")
    again.later(0.0)
    assert again.market.state.balance == pytest.approx(town.market.state.balance, abs=1e-3)
