"""Asking for jobs, and reconcile bringing them on, over everything in memory."""

import asyncio
import json
from dataclasses import replace
from typing import Any, NoReturn

import msgspec
import pytest

from goblin.core.errors import (
    Conflict,
    GoblinError,
    InvalidRequest,
    LeaseHeld,
    NotFound,
    StoreRefused,
    StoreUnavailable,
)
from goblin.jobs import checkpoints, lifecycle, worker_api
from goblin.jobs.domain.job import JobOwner, JobState
from goblin.jobs.policy import state_machine
from goblin.jobs.reconcile import reconcile
from tests.fakes.batch_host import Host, given, item, output_ids, spec
from tests.fakes.jobs import BUCKET, MemoryObjects, World


async def test_a_job_goes_all_the_way() -> None:
    world = World()
    await lifecycle.request(given(world, 10), world.deps)
    await reconcile(world.deps, only="j")
    assert world.job().state is JobState.STARTING
    await Host(world, "j", world.token()).run()
    assert world.job().state is JobState.FINISHING
    await reconcile(world.deps)
    done = world.job()
    assert (done.state, done.step, done.attempt) == (JobState.SUCCEEDED, 10, 1)
    assert output_ids(world) == [f"item-{n}" for n in range(10)]
    await reconcile(world.deps)
    assert not world.job().open
    assert not world.compute.running
    assert not world.keys.keys, "its key for inference is shut out"


async def test_the_same_request_twice_is_one_job() -> None:
    world = World()
    first = await lifecycle.request(given(world), world.deps)
    await reconcile(world.deps, only="j")
    second = await lifecycle.request(spec(), world.deps)
    await reconcile(world.deps, only="j")
    assert second.requested_at == first.requested_at
    assert len(world.compute.rented) == 1


async def test_defaults_said_and_unsaid_are_the_same_request() -> None:
    world = World()
    await lifecycle.request(given(world), world.deps)
    await lifecycle.request(spec(priority="default", parameters=msgspec.Raw(b" { }")), world.deps)
    assert len(world.jobs.stored) == 1


async def test_another_request_with_the_same_id_is_refused() -> None:
    world = World()
    await lifecycle.request(given(world), world.deps)
    with pytest.raises(Conflict, match="another specification"):
        await lifecycle.request(spec(checkpoint_every=99), world.deps)


async def test_what_could_never_run_is_written_as_refused_for_an_event_and_answered_to_a_caller() -> None:
    world = World()
    job = await lifecycle.request(spec(kind="dance"), world.deps)
    assert job.state is JobState.REFUSED
    await reconcile(world.deps)
    assert not world.job().open
    with pytest.raises(InvalidRequest, match="dance"):
        await lifecycle.submit(spec("other", kind="dance"), JobOwner(), world.deps)
    assert "other" not in world.jobs.stored


async def test_a_huge_specification_is_refused() -> None:
    with pytest.raises(InvalidRequest, match="at most"):
        await lifecycle.request(spec(parameters=msgspec.Raw(b'{"x": "' + b"y" * 70_000 + b'"}')), World().deps)


def broken_dataset(*lines: str) -> bytes:
    return "\n".join(lines).encode()


GOOD = '{"custom_id": "a", "method": "POST", "url": "/v1/embeddings", "body": {}}'


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (None, "does not exist"),
        (b"", "has no items"),
        (b"\n \n\n", "has no items"),
        (broken_dataset(GOOD, "{"), "line 2"),
        (broken_dataset(GOOD, "", GOOD), "line 3: custom_id 'a' is on line 1"),
        (broken_dataset(GOOD.replace("POST", "GET")), "line 1: method"),
        (broken_dataset(GOOD.replace("/v1/embeddings", "/jobs")), "line 1: url"),
        (broken_dataset(GOOD.replace("{}", '{"stream": true}')), "line 1: a batch cannot stream"),
        (broken_dataset(GOOD.replace("{}", "[]")), "line 1"),
        (broken_dataset(GOOD, "x" * (1024 * 1024 + 1)), "line 2: over"),
        (b"\xff\xfe", "line 1"),
    ],
)
async def test_a_dataset_that_cannot_be_run_refuses_the_job_with_its_line(data: bytes | None, words: str) -> None:
    world = World()
    wanted = spec()
    if data is not None:
        world.objects.write(str(wanted.dataset_uri), data)
    await lifecycle.request(wanted, world.deps)
    await reconcile(world.deps)
    assert world.job().state is JobState.REFUSED
    assert words in world.job().reason
    assert not world.compute.rented


async def test_an_output_that_exists_refuses_the_job() -> None:
    world = World()
    wanted = given(world)
    world.objects.write(str(wanted.output_uri), b"precious")
    await lifecycle.request(wanted, world.deps)
    await reconcile(world.deps)
    assert world.job().state is JobState.REFUSED
    assert "never overwritten" in world.job().reason


async def test_cancelling_fences_the_attempt_off_and_ends_its_instance() -> None:
    world = World()
    await lifecycle.request(given(world), world.deps)
    await reconcile(world.deps)
    host = Host(world, "j", world.token())
    await host.step()
    await lifecycle.cancel("j", world.deps, by="me", tenant=None)
    assert not world.compute.running
    with pytest.raises(Conflict, match="over"):
        await worker_api.heartbeat("j", host.token, 0, world.deps)
    assert (await lifecycle.cancel("j", world.deps, by="me", tenant=None)).state is JobState.CANCELLED, "twice is once"
    await reconcile(world.deps)
    assert not world.job().open


@pytest.mark.parametrize(
    ("changes", "param"),
    [
        ({"output_uri": f"gs://{BUCKET}/" + "é" * 600}, "output_uri"),
        ({"dataset_uri": f"gs://{BUCKET}/in/.."}, "dataset_uri"),
        ({"kind": "dance"}, None),
    ],
)
async def test_a_name_that_no_object_can_have_is_refused_at_submit_with_the_field(
    changes: dict[str, Any], param: str | None
) -> None:
    world = World()
    with pytest.raises(InvalidRequest) as refused:
        await lifecycle.submit(spec(**changes), JobOwner(), world.deps)
    assert refused.value.param == param
    assert world.jobs.stored == {}


async def finishing(world: World) -> None:
    await lifecycle.request(given(world), world.deps)
    await reconcile(world.deps)
    await Host(world, "j", world.token()).run()
    assert world.job().state is JobState.FINISHING


async def test_a_job_whose_output_is_being_written_can_be_cancelled() -> None:
    world = World()
    await finishing(world)
    assert (await lifecycle.cancel("j", world.deps, by="me", tenant=None)).state is JobState.CANCELLED
    await reconcile(world.deps)
    assert (world.job().state, world.job().open) == (JobState.CANCELLED, False)


class Away(MemoryObjects):
    """A bucket that fails at one method."""

    def __init__(self, objects: MemoryObjects, error: GoblinError, *methods: str) -> None:
        super().__init__()
        self.objects = objects.objects

        async def fail(*_: object, **__: object) -> NoReturn:
            raise error

        for name in methods:
            setattr(self, name, fail)


@pytest.mark.parametrize("minutes", [0, 30, 300])
async def test_an_output_that_cannot_be_written_for_a_while_is_written_later(minutes: int) -> None:
    world = World()
    await finishing(world)
    away = replace(world.deps, objects=Away(world.objects, StoreUnavailable("503: not now"), "compose"))
    for _ in range(minutes):
        await reconcile(away)
        world.clock.advance(60)
    await reconcile(world.deps)
    assert world.job().state is JobState.SUCCEEDED


async def test_an_output_that_can_never_be_written_ends_the_job_with_the_reason() -> None:
    world = World()
    await finishing(world)
    away = replace(world.deps, objects=Away(world.objects, StoreUnavailable("403: no grant"), "compose"))
    runs = 0
    while world.job().state is JobState.FINISHING:
        await reconcile(away)
        world.clock.advance(60)
        runs += 1
        assert runs < 400
    assert world.job().state is JobState.FAILED
    assert world.job().reason == "the output could not be written in 6 hours: 403: no grant"
    assert world.job().checkpoint is not None


async def test_an_output_that_the_bucket_refuses_for_good_ends_the_job_at_once() -> None:
    world = World()
    await finishing(world)
    await reconcile(replace(world.deps, objects=Away(world.objects, StoreRefused("400: Invalid name"), "compose")))
    assert (world.job().state, world.job().reason) == (JobState.FAILED, "400: Invalid name")


@pytest.mark.parametrize("kind", ["batch", "training"])
async def test_an_input_that_the_bucket_refuses_for_good_refuses_the_job(kind: str) -> None:
    world = World()
    world.compute.kinds = frozenset({"batch", "training"})
    await lifecycle.request(msgspec.structs.replace(given(world), kind=kind), world.deps)
    refused = Away(world.objects, StoreRefused("400: Invalid name"), "stat", "list_from")
    await reconcile(replace(world.deps, objects=refused))
    assert (world.job().state, world.job().reason) == (JobState.REFUSED, "400: Invalid name")


async def test_what_has_ended_cannot_be_cancelled() -> None:
    world = World()
    await lifecycle.request(spec(kind="dance"), world.deps)
    with pytest.raises(Conflict, match="too late"):
        await lifecycle.cancel("j", world.deps, by="me", tenant=None)
    with pytest.raises(NotFound):
        await lifecycle.cancel("nobody", world.deps, by="me", tenant=None)


async def test_on_unknown_nothing_is_launched_and_nothing_destroyed() -> None:
    world = World()
    await lifecycle.request(given(world), world.deps)
    world.compute.unknown = "410"
    report = await reconcile(world.deps)
    assert world.job().state is JobState.QUEUED
    assert report.errors == ("fake: 410",)
    world.compute.unknown = ""
    await reconcile(world.deps)
    host = Host(world, "j", world.token())
    await host.step()
    world.compute.unknown = "read as empty"
    for _ in range(5):
        await reconcile(world.deps)
    assert (world.job().state, world.job().attempt) == (JobState.RUNNING, 1)
    assert world.compute.released == []


async def test_a_silent_worker_is_preempted_and_the_job_goes_on_from_its_checkpoint() -> None:
    world = World()
    await lifecycle.request(given(world, 10), world.deps)
    await reconcile(world.deps)
    first = Host(world, "j", world.token())
    await first.step()
    await first.step()
    await deliver(world)
    world.clock.advance(state_machine.LEASE_S + 1)
    await reconcile(world.deps)
    assert (world.job().attempt, world.job().saved_step) == (2, 3)
    assert list(world.compute.running) == ["goblin-j-a2"]
    second = Host(world, "j", world.token())
    await second.run()
    await reconcile(world.deps)
    assert output_ids(world) == [f"item-{n}" for n in range(10)]


async def deliver(world: World) -> None:
    while world.bus.waiting:
        _, event = world.bus.waiting.pop(0)
        await checkpoints.note(event, world.deps)  # type: ignore[arg-type]


async def test_a_heartbeat_keeps_the_lease() -> None:
    world = World()
    await lifecycle.request(given(world), world.deps)
    await reconcile(world.deps)
    host = Host(world, "j", world.token())
    await host.step()
    for _ in range(20):
        world.clock.advance(state_machine.HEARTBEAT_S)
        await worker_api.heartbeat("j", host.token, 2, world.deps)
        await reconcile(world.deps)
    assert (world.job().state, world.job().attempt, world.job().step) == (JobState.RUNNING, 1, 2)


async def test_a_heartbeat_prolongs_the_key_before_it_expires() -> None:
    world = World()
    await lifecycle.request(given(world), world.deps)
    await reconcile(world.deps)
    host = Host(world, "j", world.token())
    await host.step()
    for _ in range(12 * 60 // 10):
        world.clock.advance(60)
        await worker_api.heartbeat("j", host.token, 0, world.deps)
        [(_, until)] = world.keys.keys.values()
        assert until > world.clock.now()


async def test_an_instance_without_a_live_lease_is_destroyed_within_two_ticks() -> None:
    world = World()
    await lifecycle.request(given(world), world.deps)
    await reconcile(world.deps)
    order = world.compute.running["goblin-j-a1"]
    for stray in ("goblin-j-a0", "goblin-nobody-a7", "goblin-what"):
        world.compute.running[stray] = replace(order, label=stray)
    await reconcile(world.deps)
    await reconcile(world.deps)
    assert list(world.compute.running) == ["goblin-j-a1"]


async def test_an_instance_that_appears_after_its_job_was_cancelled_is_destroyed() -> None:
    """The provider was slow: the lease was written, the answer lost, the job cancelled and settled."""
    world = World()
    await lifecycle.request(given(world), world.deps)
    world.compute.silent = True
    await reconcile(world.deps)
    late = world.compute.running.pop("goblin-j-a1")
    await lifecycle.cancel("j", world.deps, by="me", tenant=None)
    await reconcile(world.deps)
    assert not world.job().open
    world.compute.running["goblin-j-a1"] = late
    await reconcile(world.deps)
    assert world.compute.running == {}


async def test_an_answer_that_was_lost_is_found_in_the_inventory_and_not_rented_again() -> None:
    world = World()
    await lifecycle.request(given(world), world.deps)
    world.compute.silent = True
    await reconcile(world.deps)
    await reconcile(world.deps)
    assert (world.job().state, world.job().attempt) == (JobState.STARTING, 1)
    assert world.compute.rented == ["goblin-j-a1"]


async def test_an_instance_quicker_than_the_providers_answer_is_at_work() -> None:
    world = World()
    await lifecycle.request(given(world), world.deps)
    world.compute.silent = True
    await reconcile(world.deps)
    await worker_api.claim("j", world.token(), world.deps)
    await reconcile(world.deps)
    lease = world.job().lease
    assert world.job().state is JobState.RUNNING
    assert lease is not None
    assert lease.instance_id == "i-goblin-j-a1"


async def test_no_capacity_waits_ever_longer_and_fails_nothing() -> None:
    world = World()
    await lifecycle.request(given(world), world.deps)
    world.compute.full = True
    for _ in range(60):
        await reconcile(world.deps)
        world.clock.advance(60)
    job = world.job()
    assert job.state is JobState.QUEUED
    assert "no capacity" in job.reason
    assert (job.failures, job.preemptions) == (0, 0)
    assert 10 <= job.attempt <= 20, "an hour of a full provider is no reason to ask each minute"
    world.compute.full = False
    world.clock.advance(state_machine.BACKOFF_S_MAX)
    await reconcile(world.deps)
    assert world.job().state is JobState.STARTING


async def test_places_are_limited_by_kind() -> None:
    world = World(limit=1)
    for name in ("one", "two"):
        await lifecycle.request(given(world, 3, name), world.deps)
        world.clock.advance(1)
    await reconcile(world.deps)
    assert [world.job(name).state for name in ("one", "two")] == [JobState.STARTING, JobState.QUEUED]
    await Host(world, "one", world.token("one")).run()
    await reconcile(world.deps)
    assert [world.job(name).state for name in ("one", "two")] == [JobState.SUCCEEDED, JobState.STARTING]


async def test_two_reconciles_at_once_rent_one_instance() -> None:
    world = World()
    await lifecycle.request(given(world), world.deps)
    await asyncio.gather(*(reconcile(world.deps) for _ in range(5)))
    assert world.compute.rented == ["goblin-j-a1"]


async def test_one_jobs_trouble_does_not_keep_the_others_waiting() -> None:
    world = World()
    await lifecycle.request(given(world, 3, "bad"), world.deps)
    world.clock.advance(1)
    await lifecycle.request(given(world, 3, "good"), world.deps)
    stat = world.objects.stat

    async def flaky(uri: str) -> Any:
        if "bad" in uri:
            raise StoreUnavailable("the bucket hiccups")
        return await stat(uri)

    world.objects.stat = flaky  # type: ignore[method-assign]
    report = await reconcile(world.deps)
    assert world.job("good").state is JobState.STARTING
    assert world.job("bad").state is JobState.REQUESTED
    assert report.errors == ("job bad: the bucket hiccups",)


async def test_a_change_is_decided_again_when_somebody_else_wrote() -> None:
    world = World()
    await lifecycle.request(given(world), world.deps)
    await reconcile(world.deps)
    token, writes = world.token(), 0

    def somebody_writes() -> None:
        nonlocal writes
        writes += 1
        if writes <= 3:
            world.jobs.touch("j")

    world.jobs.before_replace = somebody_writes
    await worker_api.claim("j", token, world.deps)
    assert world.job().state is JobState.RUNNING
    world.jobs.before_replace = lambda: world.jobs.touch("j")
    with pytest.raises(LeaseHeld):
        await worker_api.heartbeat("j", token, 0, world.deps)


async def test_a_store_that_is_down_is_an_error_and_not_an_empty_list() -> None:
    world = World()
    world.jobs.down = True
    with pytest.raises(StoreUnavailable):
        await reconcile(world.deps)


async def test_a_batch_may_have_every_kind_of_request() -> None:
    world = World()
    wanted = spec()
    rows = [item(0), item(1, url="/v1/completions"), item(2, url="/v1/embeddings")]
    data = "\r\n".join(json.dumps(row) for row in rows).encode()
    world.objects.write(f"gs://{BUCKET}/datasets/j.jsonl", data)
    await lifecycle.request(wanted, world.deps)
    await reconcile(world.deps)
    dataset = world.job().dataset
    assert dataset is not None
    assert dataset.items == 3
