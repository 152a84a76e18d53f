"""The process dies between any two writes of any handler; what is delivered again brings the job to its end."""

from collections.abc import Awaitable, Callable

import pytest

from goblin.core.errors import GoblinError
from goblin.jobs import checkpoints, lifecycle, worker_api
from goblin.jobs.domain.job import ENDED, JobState
from goblin.jobs.reconcile import reconcile
from tests.fakes.batch_host import Host, announce, given, output_ids, results, spec
from tests.fakes.jobs import Crash, World

Handler = Callable[[World], Awaitable[object]]


async def requested(world: World) -> None:
    given(world, 7)


async def placed(world: World) -> None:
    await lifecycle.request(given(world, 7), world.deps)
    await reconcile(world.deps)


async def claimed(world: World) -> None:
    await placed(world)
    await Host(world, "j", world.token()).step()


async def committed(world: World) -> None:
    await claimed(world)
    host = Host(world, "j", world.token())
    await host.step()
    await host.step()


async def worked(world: World) -> None:
    await claimed(world)
    host = Host(world, "j", world.token())
    while host.saved != 7:
        await host.step()


async def finished(world: World) -> None:
    await worked(world)
    await worker_api.finish("j", world.token(), world.deps)


async def cancelled(world: World) -> None:
    await claimed(world)
    await lifecycle.cancel("j", world.deps, by="me", tenant=None)


async def gone(world: World) -> None:
    await committed(world)
    world.compute.running.clear()


async def on_request(world: World) -> None:
    await lifecycle.request(spec(), world.deps)
    await reconcile(world.deps, only="j")


async def on_checkpoint_saved(world: World) -> None:
    for _, event in list(world.bus.waiting):
        await checkpoints.note(event, world.deps)  # type: ignore[arg-type]


async def on_commit(world: World) -> None:
    data = results(0, 3, 1)
    files = [announce(data)]
    upload_id, grants = await worker_api.begin_checkpoint("j", world.token(attempt=1), 3, files, world.deps)
    world.objects.put(grants["part.jsonl"], data)
    await worker_api.commit_checkpoint("j", world.token(attempt=1), 3, 0, upload_id, files, world.deps)


HANDLERS: dict[str, tuple[Handler, Handler]] = {
    "request": (requested, on_request),
    "claim": (placed, lambda world: worker_api.claim("j", world.token(attempt=1), world.deps)),
    "heartbeat": (claimed, lambda world: worker_api.heartbeat("j", world.token(attempt=1), 2, world.deps)),
    "commit": (claimed, on_commit),
    "checkpoint saved": (committed, on_checkpoint_saved),
    "finish": (worked, lambda world: worker_api.finish("j", world.token(attempt=1), world.deps)),
    "withdraw": (committed, lambda world: worker_api.withdraw("j", world.token(attempt=1), "x", world.deps)),
    "fail": (committed, lambda world: worker_api.fail("j", world.token(attempt=1), "x", world.deps)),
    "cancel": (committed, lambda world: lifecycle.cancel("j", world.deps, by="me", tenant=None)),
    "reconcile composes": (finished, lambda world: reconcile(world.deps)),
    "reconcile preempts": (gone, lambda world: reconcile(world.deps)),
    "reconcile settles": (cancelled, lambda world: reconcile(world.deps)),
}


async def points(name: str) -> int:
    """How many points the handler passes when nothing happens to it."""
    world = World()
    before, handler = HANDLERS[name]
    await before(world)
    world.faults.passed = 0
    await handler(world)
    return world.faults.passed


@pytest.mark.parametrize("name", sorted(HANDLERS))
async def test_a_crash_at_any_write_changes_nothing_about_the_end(name: str) -> None:
    before, handler = HANDLERS[name]
    crashes = await points(name)
    assert crashes > 0
    for crash_at in range(1, crashes + 1):
        world = World()
        await before(world)
        world.faults.passed, world.faults.crash_at = 0, crash_at
        with pytest.raises(Crash):
            await handler(world)
        await again(handler, world)
        await calm(world)
        check(world, name, crash_at)


async def again(handler: Handler, world: World) -> None:
    """The delivery that follows a crash. It may be refused: the world has moved on."""
    try:
        await handler(world)
    except (GoblinError, KeyError):
        return


async def calm(world: World) -> None:
    """Everything that comes by itself: ticks, deliveries, hosts at work."""
    hosts: dict[str, Host] = {}
    for _ in range(60):
        await reconcile(world.deps)
        while world.bus.waiting:
            await checkpoints.note(world.bus.waiting.pop(0)[1], world.deps)  # type: ignore[arg-type]
        for label, order in list(world.compute.running.items()):
            token = order.environment["GOBLIN_ATTEMPT_TOKEN"]
            host = hosts.setdefault(label, Host(world, "j", token))
            try:
                await host.step()
            except GoblinError:
                hosts[label] = Host(world, "j", token)
        world.clock.advance(20)
        if "j" in world.jobs.stored and not world.job().open:
            return


def check(world: World, name: str, crash_at: int) -> None:
    where = f"{name}, point {crash_at}: {world.faults.names[-1]}"
    if "j" not in world.jobs.stored:
        assert name == "request", where
        return
    job = world.job()
    assert job.state in ENDED, where
    assert not job.open, where
    assert not world.compute.running, where
    assert len(world.compute.rented) == len(set(world.compute.rented)), where
    wanted = {"fail": JobState.FAILED, "cancel": JobState.CANCELLED, "reconcile settles": JobState.CANCELLED}
    assert job.state is wanted.get(name, JobState.SUCCEEDED), where
    if job.state is JobState.SUCCEEDED:
        assert output_ids(world) == [f"item-{n}" for n in range(7)], where
    steps = [version.saved_step for version in world.jobs.history["j"]]
    assert steps == sorted(steps), where
