"""Vast.ai, rented over a real socket from a market that behaves as it does: bids, traps, pages, lost answers."""

from __future__ import annotations

import json
import logging
from collections.abc import AsyncIterator, Callable, Iterator
from decimal import Decimal
from typing import Any

import httpx
import pytest

from goblin.adapters import vast_api
from goblin.adapters.compute import vastai
from goblin.adapters.vast_api import Line
from goblin.adapters.vast_rows import parse_offer, parse_state, spellings
from goblin.domain.compute import Instance, InstanceState, Inventory, Known, Order, Unknown
from goblin.domain.market import Listing, Offer, Wanted
from goblin.errors import Broken, Fault, ProviderUnavailable, Refused, Transient
from goblin.job_ports import ComputeProvider
from localgpus.vast import control
from localgpus.vast.faults import Fault as Trouble
from localgpus.vast.state import Rival
from tests.fakes.serving import closed_port, serve
from tests.localgpus.vast import KEY, Town, machine

TOWN = Town()
LABEL = "goblin-j-a1"
WANTED = Wanted(kind="training", gpus=("RTX_4090",), gpu_count=1, gpu_memory_mib_min=24_576, disk_gib=72)
GONE = json.dumps({"success": False, "error": "deprecated_endpoint", "msg": "use v1"})


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        await TOWN.app(scope, receive, send)

    with serve(app) as base:
        yield base


def town(*machines: Any, **said: Any) -> Town:
    global TOWN
    TOWN = Town(*machines, **said)
    return TOWN


class Hourglass:
    """Time that passes only where somebody waits."""

    def __init__(self) -> None:
        self.now = 1000.0
        self.waited: list[float] = []

    def __call__(self) -> float:
        return self.now

    async def sleep(self, seconds: float) -> None:
        self.waited.append(seconds)
        self.now += seconds


@pytest.fixture
def glass() -> Hourglass:
    return Hourglass()


@pytest.fixture
async def connect(url: str, glass: Hourglass) -> AsyncIterator[Callable[..., ComputeProvider]]:
    town()
    line = Line(glass, glass.sleep)
    async with httpx.AsyncClient() as client:

        def make(**said: Any) -> ComputeProvider:
            known = {"api_key": KEY, "namespace": "proj", "client": client, "url": url, "line": line}
            return vastai.connect(**{**known, "monotonic": glass, "now": lambda: TOWN.clock.now, **said})

        yield make


@pytest.fixture
def provider(connect: Callable[..., ComputeProvider]) -> ComputeProvider:
    return connect()


async def offers(provider: ComputeProvider, wanted: Wanted = WANTED) -> tuple[Offer, ...]:
    found = await provider.offers(wanted)
    assert isinstance(found, Listing), found
    return found.offers


async def order(provider: ComputeProvider, *, bid: int | None = 250_000, label: str = LABEL, **said: Any) -> Order:
    """For the first offer; with a bid, of the spot ones."""
    offer = next(offer for offer in await offers(provider) if offer.spot == (bid is not None))
    environment = {"GOBLIN_URL": "http://g", "GOBLIN_ATTEMPT_TOKEN": "token"}
    known = {"kind": "training", "image": "agent:1", "disk_gib": 72, "environment": environment, "offer": offer}
    return Order(label=label, bid_usd_micros_per_hour=bid, **{**known, **said})


def listed(inventory: Inventory) -> dict[str, Instance]:
    assert isinstance(inventory, Known), inventory
    return inventory.by_label()


# Offers.


async def test_an_offer_is_in_our_words_and_units(provider: ComputeProvider) -> None:
    town(machine(7, inet_down=800.0, inet_down_cost=0.01, inet_up_cost=0.02, end_date=TOWN.clock.now + 3600.0))
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
    found = await provider.offers(Wanted(kind="training", gpus=("RTX_4090",), gpu_count=2))
    assert isinstance(found, Listing)
    assert found.markets["RTX_4090"].percentiles[-1] == (0.9, 800_000)


@pytest.mark.parametrize(
    ("wanted", "machines"),
    [
        (WANTED, {"1"}),
        (Wanted(kind="training"), {"1", "2", "3"}),
        (Wanted(kind="training", gpus=("RTX_3080_TI", "RTX_3090")), {"2", "3"}),
        (Wanted(kind="training", gpu_count=2), {"3"}),
        (Wanted(kind="training", gpu_memory_mib_min=20_000), {"1", "3"}),
        (Wanted(kind="training", gpu_memory_mib_min=25_000), set()),
        (Wanted(kind="training", disk_gib=501), set()),
        (Wanted(kind="cooking"), set()),
    ],
)
async def test_only_what_fits_is_offered(provider: ComputeProvider, wanted: Wanted, machines: set[str]) -> None:
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
    TOWN.market.state.machines[1].floor = 0.3
    assert await offers(provider) == first
    glass.now += 61.0
    assert (await offers(provider))[0].price_usd_micros_per_hour == 300_000


async def test_a_quota_that_is_used_up_is_not_asked_again_before_it_is_filled(provider: ComputeProvider) -> None:
    town(limits=True)
    TOWN.limits.searches_per_day = 0
    found = await provider.offers(WANTED)
    assert isinstance(found, Unknown)
    TOWN.limits.searches_per_day = 10
    assert isinstance(await provider.offers(WANTED), Unknown)
    TOWN.clock.now += 86_400.0
    assert await offers(provider)


@pytest.mark.parametrize("trouble", [{"status": 503}, {"status": 429, "body": "slow"}, {"status": 200, "body": "{}"}])
async def test_a_search_that_fails_is_unknown(provider: ComputeProvider, trouble: dict[str, Any]) -> None:
    TOWN.faults.add(Trouble(call="search", **trouble))
    assert isinstance(await provider.offers(WANTED), Unknown)


async def test_offers_do_without_what_others_pay(provider: ComputeProvider) -> None:
    TOWN.faults.add(Trouble(call="metrics", status=500))
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


# Renting.


async def test_an_instance_is_given_its_order_and_nothing_else(provider: ComputeProvider) -> None:
    number = await provider.rent(await order(provider))
    (contract,) = TOWN.market.state.contracts.values()
    assert number == str(contract.id)
    assert (contract.label, contract.bid, contract.disk, contract.image) == (f"{LABEL}@proj", 0.25, 72, "agent:1")
    assert contract.env == {"GOBLIN_URL": "http://g", "GOBLIN_ATTEMPT_TOKEN": "token"}
    assert (contract.runtype, contract.args, contract.onstart) == ("args", [], None)
    seen = listed(await provider.inventory())[LABEL]
    assert (seen.instance_id, seen.state, seen.spot, seen.machine_id) == (number, InstanceState.STARTING, True, "1")


async def test_on_demand_has_no_bid(provider: ComputeProvider) -> None:
    await provider.rent(await order(provider, bid=None))
    (contract,) = TOWN.market.state.contracts.values()
    assert contract.bid is None
    assert listed(await provider.inventory())[LABEL].spot is False


@pytest.mark.parametrize("worded", [True, False])
async def test_what_a_low_bid_leaves_is_destroyed_before_it_is_refused(
    provider: ComputeProvider, monkeypatch: pytest.MonkeyPatch, worded: bool
) -> None:
    asked = await order(provider, bid=199_999)
    if not worded:
        body = json.dumps({"success": False, "error": "bid_too_low", "msg": "Bid must be more"})
        TOWN.faults.add(Trouble(call="create", status=400, body=body))
        TOWN.market.park(TOWN.rent(bid=0.2, label=f"{LABEL}@proj"))
    with pytest.raises(ProviderUnavailable) as refused:
        await provider.rent(asked)
    assert refused.value.fault is Fault.CAPACITY
    assert not TOWN.market.state.contracts


async def test_what_a_low_bid_leaves_and_nobody_can_destroy_is_not_called_nothing(provider: ComputeProvider) -> None:
    asked = await order(provider, bid=199_999)
    TOWN.faults.add(Trouble(call="destroy", status=503))
    with pytest.raises(Transient) as unclear:
        await provider.rent(asked)
    assert not isinstance(unclear.value, ProviderUnavailable)
    assert listed(await provider.inventory())[LABEL].state is InstanceState.STOPPED


async def test_a_bid_that_came_to_be_on_demand_is_destroyed(provider: ComputeProvider) -> None:
    asked = await order(provider)
    rent = TOWN.rent

    def silently(*_: Any, **__: Any) -> dict[str, Any]:
        contract = rent(label=f"{LABEL}@proj")
        return {"success": True, "new_contract": contract.id}

    TOWN.faults.add(Trouble(call="create", status=200, body=json.dumps(silently())))
    with pytest.raises(ProviderUnavailable, match="on demand"):
        await provider.rent(asked)
    assert not TOWN.market.state.contracts


async def test_a_label_that_was_not_kept_is_no_instance_to_lose(provider: ComputeProvider) -> None:
    asked = await order(provider)
    contract = TOWN.rent(bid=0.25, label="goblin-j")
    TOWN.faults.add(Trouble(call="create", body=json.dumps({"success": True, "new_contract": contract.id}), status=200))
    with pytest.raises(Refused, match="label"):
        await provider.rent(asked)
    assert not TOWN.market.state.contracts


async def test_an_offer_that_is_gone_is_refused_and_not_offered_again(provider: ComputeProvider) -> None:
    town(machine(1), machine(2))
    asked = await order(provider)
    TOWN.market.state.machines[1].asks.clear()
    with pytest.raises(ProviderUnavailable) as refused:
        await provider.rent(asked)
    assert refused.value.fault is Fault.CAPACITY
    assert {offer.machine_id for offer in await offers(provider)} == {"2"}


async def test_a_machine_that_was_rented_is_not_offered_again_from_memory(provider: ComputeProvider) -> None:
    town(machine(1), machine(2))
    await provider.rent(await order(provider))
    assert {offer.machine_id for offer in await offers(provider)} == {"2"}


LOST = [
    {"status": 504, "body": "<html>late</html>"},
    {"status": 200, "body": "<html>ok</html>"},
    {"status": 200, "body": '{"success": true}'},
    {"status": 500, "body": '{"success": false, "error": "oops"}'},
]


@pytest.mark.parametrize("trouble", LOST)
async def test_an_instance_whose_answer_was_lost_is_found_by_its_label(
    provider: ComputeProvider, trouble: dict[str, Any]
) -> None:
    asked = await order(provider)
    TOWN.faults.add(Trouble(call="create", after=True, **trouble))
    number = await provider.rent(asked)
    assert [str(one) for one in TOWN.market.state.contracts] == [number]


@pytest.mark.parametrize("trouble", LOST)
async def test_an_answer_that_was_lost_and_no_instance_is_unclear(
    provider: ComputeProvider, trouble: dict[str, Any]
) -> None:
    asked = await order(provider)
    TOWN.faults.add(Trouble(call="create", **trouble))
    with pytest.raises(Transient) as unclear:
        await provider.rent(asked)
    assert not isinstance(unclear.value, ProviderUnavailable)


async def test_a_lost_answer_and_a_lost_list_are_unclear(provider: ComputeProvider) -> None:
    asked = await order(provider)
    TOWN.faults.add(Trouble(call="create", status=504, after=True))
    TOWN.faults.add(Trouble(call="list", status=410, body=GONE))
    with pytest.raises(Transient) as unclear:
        await provider.rent(asked)
    assert not isinstance(unclear.value, ProviderUnavailable)
    assert set(listed(await provider.inventory())) == {LABEL}


async def test_somebody_who_is_quicker_leaves_nothing_parked(provider: ComputeProvider) -> None:
    asked = await order(provider)
    contract = TOWN.rent(bid=0.25, label=f"{LABEL}@proj")
    TOWN.market.park(contract)
    TOWN.faults.add(Trouble(call="create", body=json.dumps({"success": True, "new_contract": contract.id}), status=200))
    with pytest.raises(ProviderUnavailable) as refused:
        await provider.rent(asked)
    assert refused.value.fault is Fault.CAPACITY
    assert not TOWN.market.state.contracts


async def test_no_money_and_a_wrong_key_refuse_every_order(connect: Callable[..., ComputeProvider]) -> None:
    provider = connect()
    asked = await order(provider)
    TOWN.market.state.paid_in = 0.0
    with pytest.raises(Refused, match="money"):
        await provider.rent(asked)
    with pytest.raises(Refused, match="auth"):
        await connect(api_key="wrong").rent(asked)
    assert not TOWN.market.state.contracts


@pytest.mark.parametrize("said", [{"image": ""}, {"bid": None}, {"environment": {"A": "x" * 40_000}}])
async def test_orders_that_cannot_be_meant_are_never_sent(provider: ComputeProvider, said: dict[str, Any]) -> None:
    spot = (await order(provider)).offer
    asked = await order(provider, **{**said, "offer": spot})
    TOWN.faults.add(Trouble(call="create", status=418))
    with pytest.raises(Refused):
        await provider.rent(asked)
    assert TOWN.faults.take("create", after=False)


async def test_who_cannot_be_reached_has_rented_nothing(connect: Callable[..., ComputeProvider]) -> None:
    asked = await order(connect())
    nowhere = connect(url=closed_port())
    with pytest.raises(ProviderUnavailable):
        await nowhere.rent(asked)
    assert isinstance(await nowhere.inventory(), Unknown)
    with pytest.raises(Transient):
        await nowhere.release(LABEL)


# The inventory.


async def test_a_look_that_came_too_soon_is_taken_once_more_in_its_turn(
    provider: ComputeProvider, glass: Hourglass
) -> None:
    await provider.rent(await order(provider))
    before = glass.now
    TOWN.faults.add(Trouble(call="list", status=429, body="API requests too frequent: endpoint threshold=1.0"))
    assert isinstance(await provider.inventory(), Known)
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
    TOWN.faults.add(Trouble(call="list", **trouble))
    assert isinstance(await provider.inventory(), Unknown)
    assert set(listed(await provider.inventory())) == {LABEL}


async def test_half_a_list_is_unknown(provider: ComputeProvider) -> None:
    town(machine(num_gpus=64, floor=0.01))
    for number in range(1, 31):
        TOWN.rent(bid=0.02, label=f"goblin-j-a{number}@proj")
    assert len(listed(await provider.inventory())) == 30
    page = json.dumps({"success": True, "instances": [], "next_token": "5550001"})
    TOWN.faults.add(Trouble(call="list", status=200, body=page, times=3))
    assert isinstance(await provider.inventory(), Unknown)


async def test_only_attempts_of_our_own_deployment_are_ours(provider: ComputeProvider) -> None:
    town(machine(num_gpus=8))
    for label in ("chat", "goblin-j-a1", "goblin-j-a1@other", "goblin-chat@proj", "x@proj", "", "goblin-k-a2@proj"):
        TOWN.rent(label=label)
    assert set(listed(await provider.inventory())) == {"goblin-k-a2"}
    await provider.release("goblin-j-a1")
    assert len(TOWN.market.state.contracts) == 7


async def test_an_outbid_instance_is_stopped_before_its_container_knows(provider: ComputeProvider) -> None:
    await provider.rent(await order(provider))
    TOWN.later(12.0)
    assert listed(await provider.inventory())[LABEL].state is InstanceState.RUNNING
    control.outbid(TOWN.market, LABEL)
    TOWN.later(2.0)
    assert next(iter(TOWN.market.state.contracts.values())).actual == "running"
    assert listed(await provider.inventory())[LABEL].state is InstanceState.STOPPED
    TOWN.later(60.0)
    assert listed(await provider.inventory())[LABEL].state is InstanceState.STOPPED


@pytest.mark.parametrize(
    ("actual", "intended", "message", "state"),
    [
        (None, "running", None, InstanceState.STARTING),
        ("loading", "running", "Pulling", InstanceState.STARTING),
        ("created", "running", "Error: OCI runtime create failed: no", InstanceState.ENDED),
        ("loading", "running", "manifest for agent:9 not found", InstanceState.ENDED),
        ("running", "running", "success", InstanceState.RUNNING),
        ("running", "stopped", "success", InstanceState.STOPPED),
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


# Releasing.


async def test_every_instance_with_the_label_is_destroyed(provider: ComputeProvider) -> None:
    town(machine(num_gpus=4))
    for label in (LABEL, LABEL, "goblin-j-a11"):
        TOWN.rent(label=f"{label}@proj")
    await provider.release(LABEL)
    assert set(listed(await provider.inventory())) == {"goblin-j-a11"}
    await provider.release(LABEL)


async def test_one_that_cannot_be_destroyed_does_not_save_the_others(provider: ComputeProvider) -> None:
    town(machine(num_gpus=4))
    for _ in range(2):
        TOWN.rent(label=f"{LABEL}@proj")
    TOWN.faults.add(Trouble(call="destroy", status=500))
    with pytest.raises(Transient):
        await provider.release(LABEL)
    assert len(TOWN.market.state.contracts) == 1
    await provider.release(LABEL)
    assert not TOWN.market.state.contracts


async def test_one_that_is_gone_already_is_gone(provider: ComputeProvider) -> None:
    contract = TOWN.rent(label=f"{LABEL}@proj")
    TOWN.faults.add(Trouble(call="destroy", status=404, body='{"success": false, "error": "no_such_instance"}'))
    await provider.release(LABEL)
    assert contract.id in TOWN.market.state.contracts


async def test_a_list_that_is_unknown_is_no_reason_to_think_it_released(provider: ComputeProvider) -> None:
    TOWN.rent(label=f"{LABEL}@proj")
    TOWN.faults.add(Trouble(call="list", status=410, body=GONE))
    with pytest.raises(Transient):
        await provider.release(LABEL)


# How often, and with what.


async def test_nobody_is_asked_too_often(provider: ComputeProvider, glass: Hourglass) -> None:
    town(machine(num_gpus=8), limits=True)
    TOWN.limits._clock = glass
    for number in range(1, 4):
        await provider.rent(await order(provider, label=f"goblin-j-a{number}"))
        glass.now += 61.0
    for number in range(1, 4):
        await provider.release(f"goblin-j-a{number}")
        assert isinstance(await provider.inventory(), Known)
    assert glass.waited
    assert max(glass.waited) <= 3.0


async def test_who_would_wait_too_long_is_told_so(glass: Hourglass) -> None:
    line = Line(glass, _at_once)
    for _ in range(5):
        await line.turn("create")
    with pytest.raises(ProviderUnavailable) as refused:
        await line.turn("create")
    assert refused.value.fault is Fault.RATE
    assert refused.value.retry_after_s == pytest.approx(22.5)


async def test_a_refusal_for_haste_makes_everybody_wait(glass: Hourglass) -> None:
    line = Line(glass, glass.sleep)
    line.refused("create", None)
    await line.turn("create")
    line.refused("list", 15.0)
    await line.turn("list")
    assert glass.waited == [12.0, 15.0]


async def test_eleven_searches_take_a_minute(glass: Hourglass) -> None:
    line = Line(glass, glass.sleep)
    for _ in range(10):
        await line.turn("search")
    glass.now += 45.0
    await line.turn("search")
    assert glass.waited == [15.0]


def test_all_in_this_process_with_one_key_stand_in_one_line() -> None:
    assert vast_api.line_of("https://v", "a") is vast_api.line_of("https://v", "a")
    assert vast_api.line_of("https://v", "a") is not vast_api.line_of("https://v", "b")


async def test_the_key_is_in_no_address_error_or_log(
    connect: Callable[..., ComputeProvider], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    provider = connect(api_key="s3cret-key")
    found = await provider.inventory()
    assert isinstance(found, Unknown)
    with pytest.raises(Transient) as failed:
        await provider.release(LABEL)
    said = caplog.text + found.reason + str(failed.value)
    assert "404" in said
    assert "s3cret-key" not in said


def test_a_namespace_is_needed(connect: Callable[..., ComputeProvider]) -> None:
    for namespace in ("", "a@b"):
        with pytest.raises(Broken):
            connect(namespace=namespace)


async def _at_once(_: float) -> None:
    return
