"""Of two open jobs with one output the second is refused, whoever asks for it and at whatever time."""

import asyncio
from dataclasses import replace
from typing import Any

import msgspec
import pytest

from goblin.core.events import CheckpointSaved, JobRequested
from goblin.jobs import checkpoints, lifecycle
from goblin.jobs.domain.job import Job, JobOwner, JobState
from goblin.jobs.reconcile import reconcile
from tests.fakes.batch_host import Host, given, output_ids, results
from tests.fakes.jobs import BUCKET, World

OUTPUT = f"gs://{BUCKET}/outputs/one.jsonl"


def wanted(world: World, job_id: str, **changes: Any) -> JobRequested:
    return msgspec.structs.replace(given(world, 3, job_id), output_uri=OUTPUT, **changes)


def states(world: World) -> list[JobState]:
    return [world.job(job_id).state for job_id in ("a", "b")]


async def test_the_second_is_refused_when_it_is_accepted_with_the_first_named() -> None:
    world = World()
    await lifecycle.request(wanted(world, "a"), world.deps)
    world.clock.advance(1)
    await lifecycle.request(wanted(world, "b"), world.deps)
    await reconcile(world.deps)
    assert states(world) == [JobState.STARTING, JobState.REFUSED]
    assert world.job("b").reason == (f"{OUTPUT} is the output of job a, which has not ended; choose another output_uri")
    await Host(world, "a", world.token("a")).run()
    await reconcile(world.deps)
    assert world.job("a").state is JobState.SUCCEEDED


async def test_of_two_at_one_instant_one_is_accepted() -> None:
    world = World()
    for job_id in ("a", "b"):
        await lifecycle.request(wanted(world, job_id), world.deps)
    await asyncio.gather(*(reconcile(world.deps, only=job_id) for job_id in ("a", "b")))
    assert sorted(states(world)) == [JobState.REFUSED, JobState.STARTING]


async def test_another_tenants_job_is_not_named() -> None:
    world = World()
    await lifecycle.submit(wanted(world, "a"), JobOwner(tenant="tenant:ann"), world.deps)
    await lifecycle.submit(wanted(world, "b"), JobOwner(tenant="tenant:bob"), world.deps)
    await reconcile(world.deps, only="a")
    await reconcile(world.deps, only="b")
    assert world.job("b").state is JobState.REFUSED
    assert "job a" not in world.job("b").reason
    assert "of another job" in world.job("b").reason


@pytest.mark.parametrize("settled", [False, True])
@pytest.mark.parametrize("state", [JobState.CANCELLED, JobState.FAILED])
async def test_an_ended_job_leaves_its_output_to_the_next(state: JobState, settled: bool) -> None:
    world = World()
    await lifecycle.request(wanted(world, "a"), world.deps)
    await reconcile(world.deps)
    stored = world.jobs.stored["a"]
    if state is JobState.CANCELLED:
        await lifecycle.cancel("a", world.deps, by="me", tenant=None)
    else:
        ended = replace(stored.job, state=state, ended_at=world.clock.now())
        await world.jobs.replace(ended, stored.version)
    if settled:
        world.compute.running.clear()
        await reconcile(world.deps)
        assert world.jobs.outputs == {}
    await lifecycle.request(wanted(world, "b"), world.deps)
    await reconcile(world.deps, only="b")
    assert states(world) == [state, JobState.STARTING]
    await reconcile(world.deps)
    assert world.jobs.outputs == {OUTPUT: "b"}, "the first gives back only what it holds"


async def test_a_holder_whose_document_was_deleted_holds_nothing() -> None:
    world = World()
    world.jobs.outputs[OUTPUT] = "gone"
    await lifecycle.request(wanted(world, "b"), world.deps)
    await reconcile(world.deps)
    assert world.job("b").state is JobState.STARTING


async def test_a_holder_whose_document_cannot_be_read_may_still_be_open() -> None:
    world = World()
    world.jobs.outputs[OUTPUT] = "odd"
    world.jobs.unreadable["odd"] = None
    await lifecycle.request(wanted(world, "b"), world.deps)
    await reconcile(world.deps, only="b")
    assert world.job("b").state is JobState.REFUSED


async def test_jobs_without_an_output_hold_none() -> None:
    world = World()
    world.compute.kinds = frozenset({"training"})
    for job_id in ("a", "b"):
        await lifecycle.request(JobRequested(job_id=job_id, kind="training"), world.deps)
    await reconcile(world.deps)
    assert states(world) == [JobState.STARTING, JobState.STARTING]
    assert world.jobs.outputs == {}


def counted(job: Job) -> tuple[int, int, int]:
    items = job.items
    assert items is not None
    return items.total, items.completed, items.failed


async def test_a_batch_counts_its_items_across_parts_attempts_and_in_its_events() -> None:
    world = World()
    await lifecycle.request(given(world, 10), world.deps)
    assert world.job().items is None
    await reconcile(world.deps)
    assert counted(world.job()) == (10, 0, 0)

    def bad(start: int, end: int, attempt: int) -> bytes:
        """Every third item has no answer, every fourth an answer that is an error."""
        lines = [msgspec.json.decode(line) for line in results(start, end, attempt).splitlines()]
        for number, line in enumerate(lines, start):
            if number % 3 == 0:
                line |= {"response": None, "error": {"code": "unreachable", "message": "no"}}
            elif number % 4 == 0:
                line["response"]["status_code"] = 500
        return b"".join(msgspec.json.encode(line) + b"\n" for line in lines)

    host = Host(world, "j", world.token(), made=bad)
    await host.step()
    await host.step()
    topic, event = world.bus.waiting[-1]
    assert topic == "checkpoint-saved"
    assert isinstance(event, CheckpointSaved)
    await checkpoints.note(event, world.deps)
    # Of items 0, 1 and 2 the first has failed.
    assert counted(world.job()) == (10, 2, 1)
    await host.run()
    await reconcile(world.deps)
    assert world.job().state is JobState.SUCCEEDED
    # Items 0, 3, 6 and 9, and 4 and 8.
    assert counted(world.job()) == (10, 4, 6)
    assert len(output_ids(world)) == 10
    _, last = world.bus.told[-1]
    assert (last.total, last.completed, last.failed) == (10, 4, 6)
