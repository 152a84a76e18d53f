"""Renting from Vast.ai over a real socket: bids, traps, lost answers, haste, and what must not be told."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from typing import Any

import pytest

from goblin.core.errors import Broken, Fault, ProviderUnavailable, Refused, Transient
from goblin.jobs.domain.instances import InstanceState, KnownInventory, UnknownInventory
from goblin.jobs.ports import ComputeProvider
from goblin.providers.vastai import api as vast_api
from goblin.providers.vastai.api import RequestLine
from localgpus.vast.faults import Fault as Trouble
from tests.fakes.serving import closed_port
from tests.localgpus.vast import machine
from tests.providers.vastai.stage import GONE, LABEL, STAGE, Hourglass, listed, offers, order, town
from tests.providers.vastai.stage import connect as connect  # A fixture.
from tests.providers.vastai.stage import glass as glass  # A fixture.
from tests.providers.vastai.stage import provider as provider  # A fixture.
from tests.providers.vastai.stage import url as url  # A fixture.


async def test_an_instance_is_given_its_order_and_nothing_else(provider: ComputeProvider) -> None:
    number = await provider.rent(await order(provider))
    (contract,) = STAGE.town.market.state.contracts.values()
    assert number == str(contract.id)
    assert (contract.label, contract.bid, contract.disk, contract.image) == (f"{LABEL}@proj", 0.25, 72, "agent:1")
    assert contract.env == {"GOBLIN_URL": "http://g", "GOBLIN_ATTEMPT_TOKEN": "token"}
    assert (contract.runtype, contract.args, contract.onstart) == ("args", [], None)
    seen = listed(await provider.inventory())[LABEL]
    assert (seen.instance_id, seen.state, seen.spot, seen.machine_id) == (number, InstanceState.STARTING, True, "1")


async def test_on_demand_has_no_bid(provider: ComputeProvider) -> None:
    await provider.rent(await order(provider, bid=None))
    (contract,) = STAGE.town.market.state.contracts.values()
    assert contract.bid is None
    assert listed(await provider.inventory())[LABEL].spot is False


@pytest.mark.parametrize("worded", [True, False])
async def test_what_a_low_bid_leaves_is_destroyed_before_it_is_refused(
    provider: ComputeProvider, monkeypatch: pytest.MonkeyPatch, worded: bool
) -> None:
    asked = await order(provider, bid=199_999)
    if not worded:
        body = json.dumps({"success": False, "error": "bid_too_low", "msg": "Bid must be more"})
        STAGE.town.faults.add(Trouble(call="create", status=400, body=body))
        STAGE.town.market.park(STAGE.town.rent(bid=0.2, label=f"{LABEL}@proj"))
    with pytest.raises(ProviderUnavailable) as refused:
        await provider.rent(asked)
    assert refused.value.fault is Fault.CAPACITY
    assert not STAGE.town.market.state.contracts


async def test_what_a_low_bid_leaves_and_nobody_can_destroy_is_not_called_nothing(provider: ComputeProvider) -> None:
    asked = await order(provider, bid=199_999)
    STAGE.town.faults.add(Trouble(call="destroy", status=503))
    with pytest.raises(Transient) as unclear:
        await provider.rent(asked)
    assert not isinstance(unclear.value, ProviderUnavailable)
    assert listed(await provider.inventory())[LABEL].state is InstanceState.STOPPED


async def test_a_bid_that_came_to_be_on_demand_is_destroyed(provider: ComputeProvider) -> None:
    asked = await order(provider)
    rent = STAGE.town.rent

    def silently(*_: Any, **__: Any) -> dict[str, Any]:
        contract = rent(label=f"{LABEL}@proj")
        return {"success": True, "new_contract": contract.id}

    STAGE.town.faults.add(Trouble(call="create", status=200, body=json.dumps(silently())))
    with pytest.raises(ProviderUnavailable, match="on demand"):
        await provider.rent(asked)
    assert not STAGE.town.market.state.contracts


async def test_a_label_that_was_not_kept_is_no_instance_to_lose(provider: ComputeProvider) -> None:
    asked = await order(provider)
    contract = STAGE.town.rent(bid=0.25, label="goblin-j")
    STAGE.town.faults.add(
        Trouble(call="create", body=json.dumps({"success": True, "new_contract": contract.id}), status=200)
    )
    with pytest.raises(Refused, match="label"):
        await provider.rent(asked)
    assert not STAGE.town.market.state.contracts


async def test_an_offer_that_is_gone_is_refused_and_not_offered_again(provider: ComputeProvider) -> None:
    town(machine(1), machine(2))
    asked = await order(provider)
    STAGE.town.market.state.machines[1].asks.clear()
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
    STAGE.town.faults.add(Trouble(call="create", after=True, **trouble))
    number = await provider.rent(asked)
    assert [str(one) for one in STAGE.town.market.state.contracts] == [number]


@pytest.mark.parametrize("trouble", LOST)
async def test_an_answer_that_was_lost_and_no_instance_is_unclear(
    provider: ComputeProvider, trouble: dict[str, Any]
) -> None:
    asked = await order(provider)
    STAGE.town.faults.add(Trouble(call="create", **trouble))
    with pytest.raises(Transient) as unclear:
        await provider.rent(asked)
    assert not isinstance(unclear.value, ProviderUnavailable)


async def test_a_lost_answer_and_a_lost_list_are_unclear(provider: ComputeProvider) -> None:
    asked = await order(provider)
    STAGE.town.faults.add(Trouble(call="create", status=504, after=True))
    STAGE.town.faults.add(Trouble(call="list", status=410, body=GONE))
    with pytest.raises(Transient) as unclear:
        await provider.rent(asked)
    assert not isinstance(unclear.value, ProviderUnavailable)
    assert set(listed(await provider.inventory())) == {LABEL}


async def test_somebody_who_is_quicker_leaves_nothing_parked(provider: ComputeProvider) -> None:
    asked = await order(provider)
    contract = STAGE.town.rent(bid=0.25, label=f"{LABEL}@proj")
    STAGE.town.market.park(contract)
    STAGE.town.faults.add(
        Trouble(call="create", body=json.dumps({"success": True, "new_contract": contract.id}), status=200)
    )
    with pytest.raises(ProviderUnavailable) as refused:
        await provider.rent(asked)
    assert refused.value.fault is Fault.CAPACITY
    assert not STAGE.town.market.state.contracts


async def test_no_money_and_a_wrong_key_refuse_every_order(connect: Callable[..., ComputeProvider]) -> None:
    provider = connect()
    asked = await order(provider)
    STAGE.town.market.state.paid_in = 0.0
    with pytest.raises(Refused, match="money"):
        await provider.rent(asked)
    with pytest.raises(Refused, match="auth"):
        await connect(api_key="wrong").rent(asked)
    assert not STAGE.town.market.state.contracts


@pytest.mark.parametrize("said", [{"image": ""}, {"bid": None}, {"environment": {"A": "x" * 40_000}}])
async def test_orders_that_cannot_be_meant_are_never_sent(provider: ComputeProvider, said: dict[str, Any]) -> None:
    spot = (await order(provider)).offer
    asked = await order(provider, **{**said, "offer": spot})
    STAGE.town.faults.add(Trouble(call="create", status=418))
    with pytest.raises(Refused):
        await provider.rent(asked)
    assert STAGE.town.faults.take("create", after=False)


async def test_who_cannot_be_reached_has_rented_nothing(connect: Callable[..., ComputeProvider]) -> None:
    asked = await order(connect())
    nowhere = connect(url=closed_port())
    with pytest.raises(ProviderUnavailable):
        await nowhere.rent(asked)
    assert isinstance(await nowhere.inventory(), UnknownInventory)
    with pytest.raises(Transient):
        await nowhere.release(LABEL)


async def test_nobody_is_asked_too_often(provider: ComputeProvider, glass: Hourglass) -> None:
    town(machine(num_gpus=8), limits=True)
    STAGE.town.limits._clock = glass
    for number in range(1, 4):
        await provider.rent(await order(provider, label=f"goblin-j-a{number}"))
        glass.now += 61.0
    for number in range(1, 4):
        await provider.release(f"goblin-j-a{number}")
        assert isinstance(await provider.inventory(), KnownInventory)
    assert glass.waited
    assert max(glass.waited) <= 3.0


async def test_who_would_wait_too_long_is_told_so(glass: Hourglass) -> None:
    line = RequestLine(glass, _at_once)
    for _ in range(5):
        await line.turn("create")
    with pytest.raises(ProviderUnavailable) as refused:
        await line.turn("create")
    assert refused.value.fault is Fault.RATE
    assert refused.value.retry_after_s == pytest.approx(22.5)


async def test_a_refusal_for_haste_makes_everybody_wait(glass: Hourglass) -> None:
    line = RequestLine(glass, glass.sleep)
    line.refused("create", None)
    await line.turn("create")
    line.refused("list", 15.0)
    await line.turn("list")
    assert glass.waited == [12.0, 15.0]


async def test_eleven_searches_take_a_minute(glass: Hourglass) -> None:
    line = RequestLine(glass, glass.sleep)
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
    assert isinstance(found, UnknownInventory)
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
