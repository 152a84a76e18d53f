"""What every provider of instances must do, whoever it is; a new `providers/NAME/compute.py` is found by itself.

Each stands in `STANDS` with its other side: a wire-faithful fake over a real socket, or real processes.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

import pytest

from goblin import providers
from goblin.core.errors import Transient
from goblin.core.labels import attempt_label
from goblin.jobs.domain.instances import InstanceState, KnownInventory, RentalOrder, UnknownInventory, gpu_name
from goblin.jobs.domain.job import JobKind
from goblin.jobs.domain.market import Listing
from tests.providers.compute_stands import STANDS, Stand, labels

FIRST, SECOND = attempt_label("job-1", 1), attempt_label("job-1", 11)
ENVIRONMENT = {"GOBLIN_URL": "https://goblin.example", "GOBLIN_ATTEMPT_TOKEN": "attempt-token"}


@pytest.fixture(params=sorted(STANDS))
async def stand(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Stand]:
    async with STANDS[request.param](tmp_path) as stand:
        assert stand.provider.name == request.param
        yield stand


def test_every_adapter_stands_here() -> None:
    assert set(providers.having("compute")) == set(STANDS)


async def order(stand: Stand, label: str = FIRST) -> RentalOrder:
    """For the first that is offered on demand."""
    listing = await stand.provider.offers(stand.wanted)
    assert isinstance(listing, Listing), listing
    offer = next(offer for offer in listing.offers if not offer.spot)
    return RentalOrder(label=label, kind=stand.wanted.kind, environment=dict(ENVIRONMENT), offer=offer, image="agent:1")


async def rented(stand: Stand, *wanted: str) -> dict[str, str]:
    """Their ids, by label."""
    return {label: await stand.provider.rent(await order(stand, label)) for label in wanted}


async def gone(stand: Stand, label: str) -> None:
    """Asked for until it is, as a tick does."""
    for _ in range(5):
        await stand.provider.release(label)
        await stand.settle()
        if label not in await labels(stand.provider):
            return
    raise AssertionError(f"{label} is still there")


async def test_its_kinds_are_jobs_and_its_start_takes_time(stand: Stand) -> None:
    assert stand.provider.kinds
    assert stand.provider.kinds <= set(JobKind)
    assert 0 < stand.provider.start_s_max <= 3600


async def test_offers_are_in_our_words_and_fit_what_was_wanted(stand: Stand) -> None:
    listing = await stand.provider.offers(stand.wanted)
    assert isinstance(listing, Listing)
    assert 0 < len(listing.offers) <= 300
    assert len({(offer.offer_id, offer.spot) for offer in listing.offers}) == len(listing.offers)
    for offer in listing.offers:
        assert offer.provider == stand.provider.name
        assert offer.pool
        assert offer.gpu == gpu_name(offer.gpu)
        assert offer.gpu_count >= stand.wanted.gpu_count
        assert not stand.wanted.gpus or offer.gpu in stand.wanted.gpus
        assert offer.price_usd_micros_per_hour > 0 or not offer.gpu_count
        assert offer.boot_s > 0
        assert offer.reliability is None or 0 < offer.reliability <= 1
        if offer.spot:
            assert offer.on_demand_usd_micros_per_hour is not None
            assert offer.price_usd_micros_per_hour <= offer.on_demand_usd_micros_per_hour


async def test_nothing_is_offered_for_a_job_that_it_cannot_run(stand: Stand) -> None:
    assert await stand.provider.offers(replace(stand.wanted, kind="knitting")) == Listing()


async def test_an_account_that_rents_nothing_is_known_to(stand: Stand) -> None:
    assert await stand.provider.inventory() == KnownInventory(instances=frozenset())


async def test_what_was_rented_is_listed_by_its_label_under_the_id_that_was_given(stand: Stand) -> None:
    ids = await rented(stand, FIRST, SECOND)
    await stand.settle()
    inventory = await stand.provider.inventory()
    assert isinstance(inventory, KnownInventory)
    assert {instance.label: instance.instance_id for instance in inventory.instances} == ids
    assert {instance.provider for instance in inventory.instances} == {stand.provider.name}
    assert {instance.state for instance in inventory.instances} == {InstanceState.RUNNING}
    assert await stand.count() == 2


async def test_an_instance_is_told_its_order_and_no_key_of_ours(stand: Stand, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("RUNPOD_API_KEY", "VASTAI_API_KEY", "GOOGLE_APPLICATION_CREDENTIALS", "OPENAI_API_KEY"):
        monkeypatch.setenv(name, "a-key-of-ours")
    await rented(stand, FIRST)
    await stand.settle()
    told = await stand.told(FIRST)
    assert ENVIRONMENT.items() <= told.items()
    assert not {"a-key-of-ours", "rpa_all", "vast-account"} & set(told.values())


async def test_a_restart_of_ours_finds_what_was_rented_before(stand: Stand) -> None:
    await rented(stand, FIRST)
    await stand.settle()
    assert await labels(stand.again()) == {FIRST}


async def test_a_released_instance_goes_and_the_others_stay(stand: Stand) -> None:
    await rented(stand, FIRST, SECOND)
    await stand.settle()
    await gone(stand, FIRST)
    assert await labels(stand.provider) == {SECOND}
    assert await stand.count() == 1


async def test_releasing_what_is_not_there_is_no_error(stand: Stand) -> None:
    await stand.provider.release(FIRST)
    await rented(stand, FIRST)
    await stand.settle()
    await gone(stand, FIRST)
    await stand.provider.release(FIRST)


async def test_an_instance_can_be_released_before_it_has_started(stand: Stand) -> None:
    await rented(stand, FIRST)
    await gone(stand, FIRST)
    assert await stand.count() == 0


async def test_an_instance_that_ended_by_itself_does_not_read_as_running(stand: Stand) -> None:
    await rented(stand, FIRST)
    await stand.settle()
    await stand.end(FIRST)
    inventory = await stand.provider.inventory()
    assert isinstance(inventory, KnownInventory)
    assert [instance.state for instance in inventory.instances] in ([], [InstanceState.ENDED])
    await gone(stand, FIRST)


async def test_what_is_not_ours_is_neither_listed_nor_touched(stand: Stand) -> None:
    stranger = await stand.stranger()
    await rented(stand, FIRST)
    await stand.settle()
    assert await labels(stand.provider) == {FIRST}
    await stand.provider.release(stranger)
    await gone(stand, FIRST)
    assert await stand.count() == 1


async def test_a_list_that_cannot_be_read_is_unknown_and_ends_nothing(stand: Stand) -> None:
    await rented(stand, FIRST)
    await stand.settle()
    stand.break_lists(times=20)
    inventory = await stand.provider.inventory()
    assert isinstance(inventory, UnknownInventory)
    assert inventory.reason
    assert await stand.count() == 1


async def test_releasing_raises_nothing_but_that_it_is_to_be_asked_again(stand: Stand) -> None:
    await rented(stand, FIRST)
    await stand.settle()
    stand.break_lists(times=20)
    try:
        await stand.provider.release(FIRST)
    except Transient:
        assert await stand.count() == 1
