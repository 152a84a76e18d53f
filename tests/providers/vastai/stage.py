"""What the tests of Vast.ai share: a market over a real socket, and a provider that rents there."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any

import httpx
import pytest

from goblin.jobs.domain.instances import Instance, Inventory, KnownInventory, RentalOrder
from goblin.jobs.domain.market import InstanceRequirements, Listing, Offer
from goblin.jobs.ports import ComputeProvider
from goblin.providers.vastai import compute as vastai
from goblin.providers.vastai.api import RequestLine
from tests.fakes.serving import serve
from tests.localgpus.vast import KEY, Town

LABEL = "goblin-j-a1"
WANTED = InstanceRequirements(kind="training", gpus=("RTX_4090",), gpu_count=1, gpu_memory_mib_min=24_576, disk_gib=72)
GONE = json.dumps({"success": False, "error": "deprecated_endpoint", "msg": "use v1"})


class Stage:
    """What is served now; each test puts up its own."""

    town = Town()


STAGE = Stage()


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        await STAGE.town.app(scope, receive, send)

    with serve(app) as base:
        yield base


def town(*machines: Any, **said: Any) -> Town:
    """Put up another market."""
    STAGE.town = Town(*machines, **said)
    return STAGE.town


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
    line = RequestLine(glass, glass.sleep)
    async with httpx.AsyncClient() as client:

        def make(**said: Any) -> ComputeProvider:
            known = {"api_key": KEY, "namespace": "proj", "client": client, "url": url, "line": line}
            return vastai.connect(**{**known, "monotonic": glass, "now": lambda: STAGE.town.clock.now, **said})

        yield make


@pytest.fixture
def provider(connect: Callable[..., ComputeProvider]) -> ComputeProvider:
    return connect()


async def offers(provider: ComputeProvider, wanted: InstanceRequirements = WANTED) -> tuple[Offer, ...]:
    found = await provider.offers(wanted)
    assert isinstance(found, Listing), found
    return found.offers


async def order(
    provider: ComputeProvider, *, bid: int | None = 250_000, label: str = LABEL, **said: Any
) -> RentalOrder:
    """For the first offer; with a bid, of the spot ones."""
    offer = next(offer for offer in await offers(provider) if offer.spot == (bid is not None))
    environment = {"GOBLIN_URL": "http://g", "GOBLIN_ATTEMPT_TOKEN": "token"}
    known = {"kind": "training", "image": "agent:1", "disk_gib": 72, "environment": environment, "offer": offer}
    return RentalOrder(label=label, bid_usd_micros_per_hour=bid, **{**known, **said})


def listed(inventory: Inventory) -> dict[str, Instance]:
    assert isinstance(inventory, KnownInventory), inventory
    return inventory.by_label()
