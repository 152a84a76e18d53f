"""Vast.ai over a real socket: what it offers, what it says is there, what is destroyed; unknown is never empty."""

from __future__ import annotations

import json
from decimal import Decimal
from typing import Any

import pytest

from goblin.core.errors import Transient
from goblin.jobs.domain.instances import InstanceState, KnownInventory, UnknownInventory
from goblin.jobs.domain.market import InstanceRequirements, Listing
from goblin.jobs.ports import ComputeProvider
from goblin.providers.vastai import api as vast_api
from goblin.providers.vastai import compute as vastai
from goblin.providers.vastai.rows import parse_offer, parse_state, spellings
from localgpus.vast import control
from localgpus.vast.faults import Fault as Trouble
from localgpus.vast.state import Rival
from tests.localgpus.vast import machine
from tests.providers.vastai.stage import GONE, LABEL, STAGE, WANTED, Hourglass, listed, offers, order, town
from tests.providers.vastai.stage import connect as connect  # A fixture.
from tests.providers.vastai.stage import glass as glass  # A fixture.
from tests.providers.vastai.stage import provider as provider  # A fixture.
from tests.providers.vastai.stage import url as url  # A fixture.


async def test_an_offer_is_in_our_words_and_units(provider: ComputeProvider) -> None:
    town(machine(7, inet_down=800.0, inet_down_cost=0.01, inet_up_cost=0.02, end_date=STAGE.town.clock.now + 3600.0))
    spot, on_demand = await offers(provider)
    assert (spot.spot, on_demand.spot) == (True, False)
    assert (spot.price_usd_micros_per_hour, spot.on_demand_usd_micros_per_hour) == (200_000, 400_000)
    assert (on_demand.price_usd_micros_per_hour, on_demand.on_demand_usd_micros_per_hour) == (400_000, None)
    assert (spot.pool, spot.machine_id, spot.gpu, spot.gpu_count) == ("vastai/RTX_4090/1", "7", "RTX_4090", 1)
    # The driver tells of 24564 MiB.
    assert spot.gpu_memory_mib == 24_576
    assert spot.storage_usd_micros_per_gib_month == 150_000
    # A GiB is more than a GB.
    assert (spot.download_usd_micros_per_gib, spot.upload_usd_micros_per_gib) == (10_738, 21_475)
    assert spot.download_mib_per_s == pytest.approx(95.4, abs=0.1)
    assert spot.ends_in_s == pytest.approx(3600.0)
    assert (spot.reliability, spot.place) == (0.99, "Utah, US")


async def test_what_others_pay_comes_along_for_as_many_gpus(provider: ComputeProvider) -> None:
    town(machine(num_gpus=2))
    found = await provider.offers(InstanceRequirements(kind="training", gpus=("RTX_4090",), gpu_count=2))
    assert isinstance(found, Listing)
    assert found.markets["RTX_4090"].percentiles[-1] == (0.9, 800_000)


@pytest.mark.parametrize(
    ("wanted", "machines"),
    [
        (WANTED, {"1"}),
        (InstanceRequirements(kind="training"), {"1", "2", "3"}),
        (InstanceRequirements(kind="training", gpus=("RTX_3080_TI", "RTX_3090")), {"2", "3"}),
        (InstanceRequirements(kind="training", gpu_count=2), {"3"}),
        (InstanceRequirements(kind="training", gpu_memory_mib_min=20_000), {"1", "3"}),
        (InstanceRequirements(kind="training", gpu_memory_mib_min=25_000), set()),
        (InstanceRequirements(kind="training", disk_gib=501), set()),
        (InstanceRequirements(kind="cooking"), set()),
    ],
)
async def test_only_what_fits_is_offered(
    provider: ComputeProvider, wanted: InstanceRequirements, machines: set[str]
) -> None:
    town(
        machine(1),
        machine(2, gpu_name="RTX 3080 Ti", gpu_ram=12_288),
        machine(3, gpu_name="RTX 3090", gpu_ram=24_576, num_gpus=2),
        machine(4, verified=False), machine(5, reliability=0.8), machine(6, inet_down=100.0),
        machine(8, cuda_max_good=12.4), machine(9, direct_port_count=0),
    )  # fmt: skip
    assert {offer.machine_id for offer in await offers(provider, wanted)} == machines


async def test_a_machine_that_is_taken_in_full_is_not_offered(provider: ComputeProvider) -> None:
    town(machine(1, rivals=[Rival(gpus=1, bid=None)]), machine(2, rivals=[Rival(gpus=1, bid=0.3)]))
    found = await offers(provider)
    assert [(offer.machine_id, offer.spot, offer.price_usd_micros_per_hour) for offer in found] == [
        ("2", True, 360_000),
        ("2", False, 400_000),
    ]


async def test_one_search_of_each_kind_serves_a_minute(provider: ComputeProvider, glass: Hourglass) -> None:
    first = await offers(provider)
    STAGE.town.market.state.machines[1].floor = 0.3
    assert await offers(provider) == first
    glass.now += 61.0
    assert (await offers(provider))[0].price_usd_micros_per_hour == 300_000


async def test_a_quota_that_is_used_up_is_not_asked_again_before_it_is_filled(provider: ComputeProvider) -> None:
    town(limits=True)
    STAGE.town.limits.searches_per_day = 0
    found = await provider.offers(WANTED)
    assert isinstance(found, UnknownInventory)
    STAGE.town.limits.searches_per_day = 10
    assert isinstance(await provider.offers(WANTED), UnknownInventory)
    STAGE.town.clock.now += 86_400.0
    assert await offers(provider)


@pytest.mark.parametrize("trouble", [{"status": 503}, {"status": 429, "body": "slow"}, {"status": 200, "body": "{}"}])
async def test_a_search_that_fails_is_unknown(provider: ComputeProvider, trouble: dict[str, Any]) -> None:
    STAGE.town.faults.add(Trouble(call="search", **trouble))
    assert isinstance(await provider.offers(WANTED), UnknownInventory)


async def test_offers_do_without_what_others_pay(provider: ComputeProvider) -> None:
    STAGE.town.faults.add(Trouble(call="metrics", status=500))
    found = await provider.offers(WANTED)
    assert isinstance(found, Listing)
    assert found.offers
    assert found.markets == {}


@pytest.mark.parametrize(
    "wrong",
    [
        {"min_bid": None}, {"min_bid": 0}, {"min_bid": -1}, {"min_bid": 0.5}, {"min_bid": "cheap"}, {"min_bid": 1e9},
        {"id": None}, {"gpu_ram": 0}, {"gpu_ram": 1e300}, {"num_gpus": 0}, {"rented": True}, {"rentable": False},
        {"storage_cost": -1}, {"inet_down_cost": 1e30},
    ],
)  # fmt: skip
def test_an_offer_that_makes_no_sense_is_none(wrong: dict[str, Any]) -> None:
    row = {"id": 1, "machine_id": 2, "gpu_name": "RTX 4090", "num_gpus": 1, "gpu_ram": 24_564.0, "dph_base": 0.4,
           "min_bid": 0.2}  # fmt: skip
    assert parse_offer(row, spot=True) is not None
    assert parse_offer({**row, **wrong}, spot=True) is None


def test_gpus_are_called_many_things() -> None:
    assert {"RTX 3080 Ti"} <= spellings("RTX_3080_TI")
    assert {"Tesla T4", "T4"} <= spellings("T4")


async def test_a_look_that_came_too_soon_is_taken_once_more_in_its_turn(
    provider: ComputeProvider, glass: Hourglass
) -> None:
    await provider.rent(await order(provider))
    before = glass.now
    STAGE.town.faults.add(Trouble(call="list", status=429, body="API requests too frequent: endpoint threshold=1.0"))
    assert isinstance(await provider.inventory(), KnownInventory)
    assert glass.now - before >= vast_api.INTERVALS_S["list"]


@pytest.mark.parametrize(
    "trouble",
    [
        {"status": 410, "body": GONE},
        {"status": 429, "body": "API requests too frequent: endpoint threshold=1.0", "times": 2},
        {"status": 429, "body": '{"detail": "slow"}', "times": 2},
        {"status": 502, "body": "<html>Bad gateway</html>"},
        {"status": 200, "body": "<html></html>"},
        {"status": 200, "body": "[]"},
        {"status": 200, "body": '{"success": false, "msg": "oops", "instances": []}'},
        {"status": 200, "body": '{"success": true, "instances": null}'},
        {"status": 200, "body": '{"success": true}'},
        {"status": 200, "body": '{"success": true, "instances": [{"id": "x"}]}'},
        {"status": 301, "headers": {"location": "/elsewhere"}},
    ],
)
async def test_a_list_that_cannot_be_had_is_unknown_and_never_empty(
    provider: ComputeProvider, trouble: dict[str, Any]
) -> None:
    await provider.rent(await order(provider))
    STAGE.town.faults.add(Trouble(call="list", **trouble))
    assert isinstance(await provider.inventory(), UnknownInventory)
    assert set(listed(await provider.inventory())) == {LABEL}


async def test_half_a_list_is_unknown(provider: ComputeProvider) -> None:
    town(machine(num_gpus=64, floor=0.01))
    for number in range(1, 31):
        STAGE.town.rent(bid=0.02, label=f"goblin-j-a{number}@proj")
    assert len(listed(await provider.inventory())) == 30
    page = json.dumps({"success": True, "instances": [], "next_token": "5550001"})
    STAGE.town.faults.add(Trouble(call="list", status=200, body=page, times=3))
    assert isinstance(await provider.inventory(), UnknownInventory)


async def test_only_attempts_of_our_own_deployment_are_ours(provider: ComputeProvider) -> None:
    town(machine(num_gpus=8))
    for label in ("chat", "goblin-j-a1", "goblin-j-a1@other", "goblin-chat@proj", "x@proj", "", "goblin-k-a2@proj"):
        STAGE.town.rent(label=label)
    assert set(listed(await provider.inventory())) == {"goblin-k-a2"}
    await provider.release("goblin-j-a1")
    assert len(STAGE.town.market.state.contracts) == 7


async def test_an_outbid_instance_leaves_before_it_is_stopped(provider: ComputeProvider) -> None:
    await provider.rent(await order(provider))
    STAGE.town.later(12.0)
    assert listed(await provider.inventory())[LABEL].state is InstanceState.RUNNING
    control.outbid(STAGE.town.market, LABEL)
    STAGE.town.later(2.0)
    assert next(iter(STAGE.town.market.state.contracts.values())).actual == "running"
    assert listed(await provider.inventory())[LABEL].state is InstanceState.LEAVING
    STAGE.town.later(60.0)
    assert listed(await provider.inventory())[LABEL].state is InstanceState.STOPPED


@pytest.mark.parametrize(
    ("actual", "intended", "message", "state"),
    [
        (None, "running", None, InstanceState.STARTING),
        ("loading", "running", "Pulling", InstanceState.STARTING),
        ("created", "running", "Error: OCI runtime create failed: no", InstanceState.ENDED),
        ("loading", "running", "manifest for agent:9 not found", InstanceState.ENDED),
        ("running", "running", "success", InstanceState.RUNNING),
        ("running", "stopped", "success", InstanceState.LEAVING),
        ("loading", "stopped", "success", InstanceState.STOPPED),
        ("exited", "running", "success", InstanceState.ENDED),
        ("exited", "stopped", "success", InstanceState.STOPPED),
        ("offline", "running", None, InstanceState.UNCLEAR),
        ("frozen", "running", None, InstanceState.UNCLEAR),
        ("unknown", None, None, InstanceState.UNCLEAR),
    ],
)
def test_states(actual: str | None, intended: str | None, message: str | None, state: InstanceState) -> None:
    row = vastai.InstanceRow(id=1, actual_status=actual, intended_status=intended, status_msg=message)
    assert parse_state(row) is state


async def test_what_an_instance_costs_is_told_with_its_disk(provider: ComputeProvider) -> None:
    await provider.rent(await order(provider))
    price = listed(await provider.inventory())[LABEL].price_usd_micros_per_hour
    assert price == 250_000 + int(Decimal(72) * 150_000 / 720)


async def test_every_instance_with_the_label_is_destroyed(provider: ComputeProvider) -> None:
    town(machine(num_gpus=4))
    for label in (LABEL, LABEL, "goblin-j-a11"):
        STAGE.town.rent(label=f"{label}@proj")
    await provider.release(LABEL)
    assert set(listed(await provider.inventory())) == {"goblin-j-a11"}
    await provider.release(LABEL)


async def test_one_that_cannot_be_destroyed_does_not_save_the_others(provider: ComputeProvider) -> None:
    town(machine(num_gpus=4))
    for _ in range(2):
        STAGE.town.rent(label=f"{LABEL}@proj")
    STAGE.town.faults.add(Trouble(call="destroy", status=500))
    with pytest.raises(Transient):
        await provider.release(LABEL)
    assert len(STAGE.town.market.state.contracts) == 1
    await provider.release(LABEL)
    assert not STAGE.town.market.state.contracts


async def test_one_that_is_gone_already_is_gone(provider: ComputeProvider) -> None:
    contract = STAGE.town.rent(label=f"{LABEL}@proj")
    STAGE.town.faults.add(Trouble(call="destroy", status=404, body='{"success": false, "error": "no_such_instance"}'))
    await provider.release(LABEL)
    assert contract.id in STAGE.town.market.state.contracts


async def test_a_list_that_is_unknown_is_no_reason_to_think_it_released(provider: ComputeProvider) -> None:
    STAGE.town.rent(label=f"{LABEL}@proj")
    STAGE.town.faults.add(Trouble(call="list", status=410, body=GONE))
    with pytest.raises(Transient):
        await provider.release(LABEL)
