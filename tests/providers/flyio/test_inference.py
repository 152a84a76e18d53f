"""An app on Fly: looked at through the Machines API, which wakes nothing."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from goblin.core.endpoints import Endpoint
from goblin.gateway.domain.endpoint_health import Finding, Probe, Warmth
from goblin.wiring import endpoints
from tests.fakes.flyio import FakeFly, machine
from tests.fakes.serving import serve

FAKE = FakeFly()


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    with serve(FAKE.app) as base:
        yield base


@pytest.fixture
def fake() -> FakeFly:
    FAKE.__dict__.update(FakeFly().__dict__)
    return FAKE


async def look(url: str, token: str | None = "FlyV1 t", **more: Any) -> Probe:
    options = {"app": "chat", "api": f"{url}/machines/v1", **more}
    endpoint = Endpoint(name="fly", provider="flyio", url=url, account_key=token, options=options)
    async with httpx.AsyncClient() as client:
        return await endpoints.connect(endpoint, client)[1].probe()


@pytest.mark.parametrize(
    ("machines", "finding", "warmth"),
    [
        ([machine("started")], Finding.OK, Warmth.WARM),
        ([machine("stopped"), machine("started")], Finding.OK, Warmth.WARM),
        ([machine("started", passing=False)], Finding.FAILED, Warmth.UNKNOWN),
        ([machine("stopped"), machine("suspended")], Finding.OK, Warmth.ASLEEP),
        ([machine("starting"), machine("stopped")], Finding.OK, Warmth.STARTING),
        ([machine("failed")], Finding.FAILED, Warmth.UNKNOWN),
        ([machine("destroyed")], Finding.FAILED, Warmth.UNKNOWN),
        ([], Finding.FAILED, Warmth.UNKNOWN),
    ],
)
async def test_states_of_machines(
    fake: FakeFly, url: str, machines: list[dict[str, Any]], finding: Finding, warmth: Warmth
) -> None:
    fake.machines = machines
    probe = await look(url)
    assert (probe.finding, probe.warmth) == (finding, warmth)
    assert probe.models == (("tiny",) if warmth is Warmth.WARM else None)
    assert fake.woken == 0


async def test_without_a_token_the_app_itself_is_asked(fake: FakeFly, url: str) -> None:
    probe = await look(url, token=None)
    assert (probe.finding, probe.warmth, probe.models) == (Finding.OK, Warmth.WARM, ("tiny",))
    assert fake.woken == 1


async def test_a_wrong_token_and_an_api_that_is_away_say_nothing_about_the_app(fake: FakeFly, url: str) -> None:
    wrong = [await look(url, token="wrong"), await look(url, app="another")]
    fake.api_status = 429
    wrong.append(await look(url))
    assert {probe.finding for probe in wrong} == {Finding.UNCLEAR}
    assert "FlyV1" not in "".join(probe.reason for probe in wrong)
