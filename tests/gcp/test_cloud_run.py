"""Cloud Run's own client against a fake of its Admin API on a real socket."""

from __future__ import annotations

import importlib
import subprocess
import sys
from collections.abc import AsyncIterator
from dataclasses import replace

import pytest

from goblin.billing.domain.run_service import ZERO, ServiceScaling
from goblin.core.errors import Broken, Conflict, Fault, ProviderUnavailable
from goblin.gcp.cloud_run import KEPT, CloudRun
from tests.fakes.cloud_run import AUTOMATIC, MANUAL, FakeCloudRun
from tests.fakes.serving import closed_port

NAME = "projects/p/locations/us-east4/services/llamacpp"


@pytest.fixture
async def fake() -> AsyncIterator[FakeCloudRun]:
    async with FakeCloudRun() as fake:
        yield fake


@pytest.fixture
def run(fake: FakeCloudRun) -> CloudRun:
    return CloudRun(emulator=fake.url)


@pytest.mark.parametrize(
    ("there", "scaling"),
    [
        ({}, ServiceScaling()),
        ({"minInstanceCount": 1, "maxInstanceCount": 3}, ServiceScaling(instances_min=1, instances_max=3)),
        ({"scalingMode": MANUAL, "manualInstanceCount": 2}, ServiceScaling(instances_exactly=2)),
        ({"scalingMode": MANUAL, "manualInstanceCount": 0}, ZERO),
    ],
)
async def test_a_service_is_turned_off_and_on_as_it_was(
    fake: FakeCloudRun, run: CloudRun, there: dict[str, int], scaling: ServiceScaling
) -> None:
    fake.deploy(NAME, there, team="search")
    before = await run.read(NAME)
    assert (before.scaling, before.kept) == (scaling, None)
    await run.write(replace(before, scaling=ZERO, kept=scaling, frozen_by="f"))
    assert fake.scaling(NAME) == {"scalingMode": MANUAL, "manualInstanceCount": 0}
    assert set(fake.services[NAME]["annotations"]) == {"team", KEPT}
    off = await CloudRun(emulator=fake.url).read(NAME)  # Another process knows what it had.
    assert (off.scaling, off.kept, off.frozen_by) == (ZERO, scaling, "f")
    await run.write(replace(off, scaling=scaling, kept=None, frozen_by=""))
    assert fake.scaling(NAME) == {"scalingMode": AUTOMATIC, **there}
    assert fake.services[NAME]["annotations"] == {"team": "search"}


async def test_an_update_that_takes_a_moment_is_waited_for(fake: FakeCloudRun, run: CloudRun) -> None:
    fake.deploy(NAME)
    fake.slow = True
    await run.write(replace(await run.read(NAME), scaling=ZERO, kept=ServiceScaling(), frozen_by="f"))
    assert fake.updates == 1


async def test_what_changed_since_it_was_read_is_not_written_over(fake: FakeCloudRun, run: CloudRun) -> None:
    fake.deploy(NAME)
    seen = await run.read(NAME)
    fake.deploy(NAME, {"maxInstanceCount": 9})
    with pytest.raises(Conflict):
        await run.write(replace(seen, scaling=ZERO))
    seen = await run.read(NAME)
    fake.meanwhile = lambda: fake.deploy(NAME, {"maxInstanceCount": 5})  # Between the look and the update.
    with pytest.raises(Conflict):
        await run.write(replace(seen, scaling=ZERO))
    assert fake.scaling(NAME) == {"maxInstanceCount": 5}


@pytest.mark.parametrize(("status", "fault"), [(403, Fault.AUTH), (503, Fault.TRANSIENT), (429, Fault.TRANSIENT)])
async def test_a_refusal_says_whose_business_it_is(
    fake: FakeCloudRun, run: CloudRun, status: int, fault: Fault
) -> None:
    fake.deploy(NAME)
    fake.fail = [status]
    with pytest.raises(ProviderUnavailable) as refused:
        await run.read(NAME)
    assert refused.value.fault is fault


async def test_no_service_and_no_cloud_are_errors(run: CloudRun) -> None:
    with pytest.raises(ProviderUnavailable, match="NotFound"):
        await run.read(NAME)
    with pytest.raises(ProviderUnavailable):
        await CloudRun(emulator=closed_port()).read(NAME)


async def test_an_annotation_that_somebody_spoiled_is_for_a_person(fake: FakeCloudRun, run: CloudRun) -> None:
    fake.deploy(NAME, **{KEPT: "{"})
    with pytest.raises(Broken, match=KEPT):
        await run.read(NAME)


def test_its_client_is_imported_by_those_only_who_use_it() -> None:
    module = importlib.import_module("goblin.wiring.billing").__name__
    program = f"import sys, {module}; print('google.cloud.run_v2' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=30)
    assert done.stdout.strip() == "False"
