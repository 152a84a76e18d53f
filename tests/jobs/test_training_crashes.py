"""A training's whole life, cut off between any two of its writes; what comes by itself brings it to its end."""

from contextlib import suppress

import msgspec
import pytest

from goblin.core.errors import GoblinError
from goblin.jobs import checkpoints, lifecycle, worker_api
from goblin.jobs.domain.checkpoints import Manifest
from goblin.jobs.domain.job import JobState
from goblin.jobs.policy import state_machine
from goblin.jobs.reconcile import reconcile
from tests.fakes.jobs import BUCKET, Crash, World
from tests.fakes.training_host import TrainingHost, spec

LAST = 60


async def deliver(world: World) -> None:
    while world.bus.waiting:
        _, event = world.bus.waiting[0]
        await checkpoints.note(event, world.deps)  # type: ignore[arg-type]
        world.bus.waiting.pop(0)


async def go_on(world: World, host: TrainingHost, until: int) -> None:
    """Claim, save every ten steps, and finish at the last one."""
    work = await host.claim()
    for step in range(work.step + 10, until + 1, 10):
        upload_id, announced = await host.upload(step)
        await host.commit(step, upload_id, announced, loss=float(step % 7))
        await deliver(world)
    if until == LAST:
        await worker_api.finish("j", host.token, world.deps, step=LAST)


async def life(world: World) -> None:
    """Five checkpoints, a host that dies, a checkpoint that rots, another host, the end."""
    world.compute.kinds = frozenset({"training"})
    world.objects.write(f"gs://{BUCKET}/datasets/j.txt", b"text")
    await lifecycle.request(spec(), world.deps)
    await reconcile(world.deps)
    await go_on(world, TrainingHost(world, world.token()), 50)
    [rotten] = [uri for uri in world.objects.objects if "/00000050/" in uri and uri.endswith("weights")]
    world.objects.write(rotten, b"rust")
    world.clock.advance(state_machine.LEASE_S + 1)
    await reconcile(world.deps)
    await go_on(world, TrainingHost(world, world.token()), LAST)
    await reconcile(world.deps)


async def calm(world: World) -> None:
    """Ticks, deliveries, and hosts that start again."""
    for _ in range(20):
        world.clock.advance(state_machine.LEASE_S + 20)
        await reconcile(world.deps)
        with suppress(GoblinError):
            await deliver(world)
        for order in list(world.compute.running.values()):
            with suppress(GoblinError):
                await go_on(world, TrainingHost(world, order.environment["GOBLIN_ATTEMPT_TOKEN"]), LAST)
        if world.job().state is JobState.SUCCEEDED and not world.job().open:
            return


def broken(world: World) -> list[str]:
    """Files that a manifest names and that are not there."""
    found = []
    for uri, stored in world.objects.objects.items():
        if uri.endswith("MANIFEST.json"):
            manifest = msgspec.json.decode(stored.data, type=Manifest)
            found += [file.uri for file in manifest.files if file.uri not in world.objects.objects]
    return found


async def test_without_a_crash_it_comes_to_its_end() -> None:
    world = World()
    await life(world)
    await calm(world)
    check(world)
    assert "checkpoint 50 is torn; attempt 2 begins at step 40" in [line.text for line in world.job().reasons]


def check(world: World) -> None:
    job = world.job()
    assert (job.state, job.saved_step) == (JobState.SUCCEEDED, LAST), [line.text for line in job.reasons]
    assert broken(world) == []
    assert job.checkpoint is not None
    for name in ("weights", "momentum"):
        made = world.objects.objects[f"gs://{BUCKET}/outputs/j/{name}"].data.decode()
        assert made.startswith(f"{name} {LAST}")
    assert sum(uri.endswith("MANIFEST.json") for uri in world.objects.objects) <= 5
    assert world.keys.keys == {}


async def points() -> int:
    world = World()
    await life(world)
    return world.faults.passed


async def test_a_crash_at_any_write_changes_nothing_about_the_end() -> None:
    total = await points()
    assert total > 80
    for crash_at in range(1, total + 1):
        world = World()
        world.faults.crash_at = crash_at
        with pytest.raises(Crash) as crashed:
            await life(world)
        if not world.jobs.stored:
            await lifecycle.request(spec(), world.deps)
        await calm(world)
        try:
            check(world)
        except AssertionError as error:
            raise AssertionError(f"after a crash at {crash_at}, {crashed.value}") from error
