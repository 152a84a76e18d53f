"""Checkpoints: what a host says is checked against what lies in the bucket, and a lie changes nothing."""

from dataclasses import replace
from typing import Any

import msgspec
import pytest

from goblin.core.errors import Broken, Conflict, Forbidden, InvalidRequest, MalformedEvent, NotFound
from goblin.core.events import CheckpointSaved
from goblin.jobs import checkpoints, lifecycle, worker_api
from goblin.jobs.domain.checkpoints import Manifest, manifest_uri
from goblin.jobs.domain.job import JobState
from goblin.jobs.policy import state_machine
from goblin.jobs.reconcile import reconcile
from tests.fakes.batch_host import Host, announce, given, output_ids, results
from tests.fakes.jobs import BUCKET, World


async def running(count: int = 10) -> tuple[World, Host]:
    """A job whose first attempt has claimed it."""
    world = World()
    await lifecycle.request(given(world, count), world.deps)
    await reconcile(world.deps)
    host = Host(world, "j", world.token())
    await host.step()
    return world, host


async def upload(world: World, host: Host, data: bytes, step: int = 3, **said: Any) -> tuple[str, list[Any]]:
    """Upload bytes for a step; `said` is what the host claims about them, after the upload."""
    files = [announce(data)]
    upload_id, grants = await worker_api.begin_checkpoint("j", host.token, step, files, world.deps)
    assert world.objects.put(grants["part.jsonl"], data) == 200
    return upload_id, [replace(files[0], **said)]


async def test_the_manifest_comes_last_and_the_pointer_after_the_event() -> None:
    world, host = await running()
    world.faults.names.clear()
    await host.checkpoint()
    names = [name for name in world.faults.names if "MANIFEST" in name or "publish" in name]
    assert names == [
        f"create gs://{BUCKET}/checkpoints/j/00000003/a1/MANIFEST.json",
        f"created gs://{BUCKET}/checkpoints/j/00000003/a1/MANIFEST.json",
        "publish checkpoint-saved",
        "published checkpoint-saved",
    ]
    assert world.job().checkpoint is None
    [(_, event)] = world.bus.waiting
    await checkpoints.note(event, world.deps)  # type: ignore[arg-type]
    assert world.job().saved_step == 3


async def test_a_commit_may_be_repeated() -> None:
    world, host = await running()
    data = results(0, 3, 1)
    upload_id, files = await upload(world, host, data)
    first = await worker_api.commit_checkpoint("j", host.token, 3, 0, upload_id, files, world.deps)
    second = await worker_api.commit_checkpoint("j", host.token, 3, 0, upload_id, files, world.deps)
    assert first == second


async def test_a_host_that_was_restarted_passes_by_the_steps_that_are_saved() -> None:
    world, host = await running()
    await host.checkpoint()
    restarted = Host(world, "j", host.token)
    await restarted.step()
    assert restarted.saved == 0, "the event is still on its way"
    await restarted.run()
    await reconcile(world.deps)
    assert world.job().state is JobState.SUCCEEDED
    assert output_ids(world) == [f"item-{n}" for n in range(10)]


def swapped(data: bytes) -> bytes:
    first, second, *rest = data.splitlines(keepends=True)
    return b"".join([second, first, *rest])


GOOD = results(0, 3, 1)


@pytest.mark.parametrize(
    ("data", "step", "words"),
    [
        (results(0, 2, 1), 3, "ends at item 2, expected 3"),
        (results(0, 4, 1), 3, "ends at item 4, expected 3"),
        (results(1, 4, 1), 3, "custom_id is 'item-1', expected 'item-0'"),
        (swapped(GOOD), 3, "custom_id is 'item-1', expected 'item-0'"),
        (results(0, 2, 1) + results(1, 2, 1), 3, "custom_id is 'item-1', expected 'item-2'"),
        (GOOD.rstrip(b"\n"), 3, "does not end with a newline"),
        (GOOD.replace(b'"error": null', b'"error": {"code": "x", "message": "y"}'), 3, "either a response or an error"),
        (GOOD.replace(b'"status_code": 200', b'"status_code": 7'), 3, "result line 1"),
        (b"{}\n" * 3, 3, "result line 1"),
        (b"x" * (4 * 1024 * 1024 + 1) + b"\n", 3, "over"),
        (results(0, 12, 1), 10, "more results than the dataset has items"),
    ],
)
async def test_a_part_that_is_not_the_results_of_these_items_is_refused(data: bytes, step: int, words: str) -> None:
    world, host = await running()
    world.objects.chunk = 1 << 20 if len(data) > 1 << 20 else 300
    upload_id, files = await upload(world, host, data, step)
    with pytest.raises(Conflict, match=words):
        await worker_api.commit_checkpoint("j", host.token, step, 0, upload_id, files, world.deps)
    assert await world.objects.stat(manifest_uri(BUCKET, "j", step, 1)) is None
    assert not world.bus.waiting


@pytest.mark.parametrize("said", [{"size": 1}, {"crc32c": "AAAAAA=="}, {"sha256": "0" * 64}, {"name": "other.jsonl"}])
async def test_a_host_that_lies_about_its_upload_is_refused(said: dict[str, Any]) -> None:
    world, host = await running()
    upload_id, files = await upload(world, host, GOOD, **said)
    with pytest.raises(Conflict):
        await worker_api.commit_checkpoint("j", host.token, 3, 0, upload_id, files, world.deps)
    assert await world.objects.stat(manifest_uri(BUCKET, "j", 3, 1)) is None


async def test_nothing_uploaded_is_nothing_to_commit() -> None:
    world, host = await running()
    files = [announce(GOOD)]
    upload_id, _ = await worker_api.begin_checkpoint("j", host.token, 3, files, world.deps)
    with pytest.raises(Conflict, match="was not uploaded"):
        await worker_api.commit_checkpoint("j", host.token, 3, 0, upload_id, files, world.deps)


async def test_a_step_that_adds_to_an_invented_checkpoint_is_refused() -> None:
    world, host = await running()
    data = results(6, 9, 1)
    upload_id, files = await upload(world, host, data, 9)
    with pytest.raises(Conflict, match="no checkpoint of step 6"):
        await worker_api.commit_checkpoint("j", host.token, 9, 6, upload_id, files, world.deps)


@pytest.mark.parametrize(
    ("names", "step", "error"),
    [
        (["MANIFEST.json"], 3, InvalidRequest),
        (["../../x"], 3, InvalidRequest),
        (["a/b"], 3, InvalidRequest),
        ([], 3, InvalidRequest),
        (["a", "b"], 3, InvalidRequest),
        (["part.jsonl"], 11, InvalidRequest),
    ],
)
async def test_no_grant_is_given_for_what_cannot_be(names: list[str], step: int, error: type[Exception]) -> None:
    world, host = await running()
    files = [announce(GOOD, name) for name in names]
    with pytest.raises(error):
        await worker_api.begin_checkpoint("j", host.token, step, files, world.deps)


async def test_upload_ids_cannot_lead_elsewhere() -> None:
    world, host = await running()
    for upload_id in ("../../a2/secret", "", "a/b", "x" * 65):
        with pytest.raises(InvalidRequest):
            await worker_api.commit_checkpoint("j", host.token, 3, 0, upload_id, [announce(GOOD)], world.deps)


async def test_what_a_host_says_at_the_end_carries_no_token_into_the_jobs_history() -> None:
    world, host = await running()
    signed = "https://storage.googleapis.com/b/o?X-Goog-Signature=0123456789abcdef"
    await worker_api.fail("j", host.token, f"{'x' * 460} {host.token} at {signed}", world.deps)
    said = " ".join(line.text for line in world.job().reasons)
    assert "xxx" in said
    assert host.token[:20] not in said
    assert "0123456789abcdef" not in said


async def test_an_old_attempts_token_opens_nothing() -> None:
    world, zombie = await running()
    await zombie.checkpoint()
    world.clock.advance(state_machine.LEASE_S + 1)
    await reconcile(world.deps)
    assert world.job().attempt == 2
    deps = world.deps
    calls = [
        worker_api.claim("j", zombie.token, deps),
        worker_api.inputs("j", zombie.token, deps),
        worker_api.heartbeat("j", zombie.token, 9, deps),
        worker_api.begin_checkpoint("j", zombie.token, 6, [announce(GOOD)], deps),
        worker_api.commit_checkpoint("j", zombie.token, 6, 3, "secret-0009", [announce(GOOD)], deps),
        worker_api.finish("j", zombie.token, deps),
        worker_api.withdraw("j", zombie.token, "", deps),
        worker_api.fail("j", zombie.token, "revenge", deps),
    ]
    before = world.job()
    for call in calls:
        with pytest.raises(Forbidden):
            await call
    after = world.job()
    assert after.invalid_reports == 3, "it is written down, and not for ever"
    assert {line.text for line in after.reasons if line not in before.reasons} == {
        "a token that is not the current attempt's was refused"
    }
    assert replace(after, invalid_reports=0, reasons=before.reasons) == before


async def test_a_checkpoint_whose_event_was_lost_is_found_before_the_next_attempt() -> None:
    world, host = await running()
    await host.checkpoint()
    await host.checkpoint()
    world.bus.waiting.clear()
    world.clock.advance(state_machine.LEASE_S + 1)
    await reconcile(world.deps)
    assert (world.job().attempt, world.job().saved_step, world.job().failures) == (2, 6, 0)


async def test_a_torn_checkpoint_is_passed_over_for_the_one_before() -> None:
    world, host = await running()
    await host.checkpoint()
    await host.checkpoint()
    world.bus.waiting.clear()
    [torn] = [uri for uri in world.objects.objects if "00000006" in uri and uri.endswith("part.jsonl")]
    world.objects.write(torn, b"torn")
    world.clock.advance(state_machine.LEASE_S + 1)
    await reconcile(world.deps)
    assert (world.job().attempt, world.job().saved_step) == (2, 3)


async def test_a_checkpoint_of_an_attempt_that_was_fenced_off_is_not_taken() -> None:
    world, zombie = await running()
    await zombie.checkpoint()
    await zombie.checkpoint()
    (_, first), (_, second) = world.bus.waiting
    await checkpoints.note(first, world.deps)  # type: ignore[arg-type]
    # Its last manifest cannot be found when the next attempt is placed, and turns up later.
    uri = manifest_uri(BUCKET, "j", 6, 1)
    manifest = world.objects.objects.pop(uri)
    world.clock.advance(state_machine.LEASE_S + 1)
    await reconcile(world.deps)
    world.objects.objects[uri] = manifest
    await checkpoints.note(second, world.deps)  # type: ignore[arg-type]
    assert (world.job().attempt, world.job().saved_step) == (2, 3)


async def test_a_checkpoint_told_while_nobody_is_at_work_saves_the_next_attempt_the_work() -> None:
    world, host = await running()
    await host.checkpoint()
    [(_, event)] = world.bus.waiting
    await worker_api.withdraw("j", host.token, "taken away", world.deps)
    await checkpoints.note(event, world.deps)  # type: ignore[arg-type]
    await reconcile(world.deps)
    work = await worker_api.claim("j", world.token(), world.deps)
    assert (work.attempt, work.step) == (2, 3)


async def test_a_host_that_is_taken_away_hands_its_last_checkpoint_over_before_the_event_about_it() -> None:
    world, host = await running()
    await host.checkpoint()
    await worker_api.withdraw("j", host.token, "taken away", world.deps, step=3)
    await reconcile(world.deps)
    work = await worker_api.claim("j", world.token(), world.deps)
    assert (work.attempt, work.step) == (2, 3)


async def test_a_host_that_invents_a_checkpoint_hands_nothing_over() -> None:
    world, host = await running()
    await worker_api.withdraw("j", host.token, "taken away", world.deps, step=9)
    assert (world.job().state, world.job().checkpoint) == (JobState.PREEMPTED, None)


async def test_events_out_of_order_never_move_the_pointer_back() -> None:
    world, host = await running()
    await host.checkpoint()
    await host.checkpoint()
    (_, older), (_, newer) = world.bus.waiting
    for event in (newer, older, newer):
        await checkpoints.note(event, world.deps)  # type: ignore[arg-type]
    assert world.job().saved_step == 6


async def saved(world: World, host: Host) -> CheckpointSaved:
    await host.checkpoint()
    [(_, event)] = world.bus.waiting
    assert isinstance(event, CheckpointSaved)
    return event


async def test_a_manifest_elsewhere_is_malformed() -> None:
    world, host = await running()
    event = await saved(world, host)
    forged = msgspec.structs.replace(event, manifest_uri=f"gs://{BUCKET}/outputs/MANIFEST.json")
    with pytest.raises(MalformedEvent):
        await checkpoints.note(forged, world.deps)


@pytest.mark.parametrize("what", ["part gone", "part replaced", "manifest gone", "manifest replaced", "no manifest"])
async def test_a_torn_checkpoint_is_never_chosen(what: str) -> None:
    world, host = await running()
    event = await saved(world, host)
    manifest = msgspec.json.decode(world.objects.objects[event.manifest_uri].data, type=Manifest)
    part = manifest.files[0].uri
    match what:
        case "part gone":
            del world.objects.objects[part]
        case "part replaced":
            world.objects.write(part, results(0, 3, 99))
        case "manifest gone":
            del world.objects.objects[event.manifest_uri]
        case "manifest replaced":
            world.objects.write(event.manifest_uri, msgspec.json.encode(manifest))
        case "no manifest":
            world.objects.write(event.manifest_uri, b"\x00garbage")
            event = msgspec.structs.replace(event, manifest_generation=None)
    with pytest.raises(Broken):
        await checkpoints.note(event, world.deps)
    assert world.job().checkpoint is None


async def test_an_event_about_nobodys_job_is_an_error() -> None:
    world, host = await running()
    event = msgspec.structs.replace(await saved(world, host), job_id="other")
    with pytest.raises(NotFound):
        await checkpoints.note(event, world.deps)


async def test_finishing_before_everything_is_checkpointed_is_refused() -> None:
    world, host = await running()
    await host.checkpoint()
    with pytest.raises(Conflict, match="not checkpointed"):
        await worker_api.finish("j", host.token, world.deps)
    assert world.job().state is JobState.RUNNING


async def test_a_repeated_finish_is_no_error() -> None:
    world, host = await running(3)
    await host.run()
    await worker_api.finish("j", host.token, world.deps)
    await reconcile(world.deps)
    assert (await worker_api.finish("j", host.token, world.deps)).state is JobState.SUCCEEDED


async def test_many_parts_are_joined_in_order_and_what_joined_them_is_gone() -> None:
    world = World()
    wanted = msgspec.structs.replace(given(world, 1100), checkpoint_every=1)
    await lifecycle.request(wanted, world.deps)
    await reconcile(world.deps)
    await Host(world, "j", world.token()).run()
    await reconcile(world.deps)
    assert world.job().state is JobState.SUCCEEDED
    ids = [
        msgspec.json.decode(line)["custom_id"]
        for line in world.objects.objects[str(wanted.output_uri)].data.splitlines()
    ]
    assert ids == [f"item-{n}" for n in range(1100)]
    assert not [uri for uri in world.objects.objects if "/compose/" in uri]


async def test_somebody_elses_object_at_the_output_fails_the_job_and_stays() -> None:
    world, host = await running(3)
    await host.run()
    world.objects.write(f"gs://{BUCKET}/outputs/j.jsonl", b"precious")
    await reconcile(world.deps)
    assert world.job().state is JobState.FAILED
    assert world.objects.objects[f"gs://{BUCKET}/outputs/j.jsonl"].data == b"precious"


async def test_a_part_replaced_after_it_was_verified_fails_the_job_instead_of_its_output() -> None:
    world, host = await running(3)
    await host.run()
    [part] = [uri for uri in world.objects.objects if uri.endswith("part.jsonl")]
    world.objects.write(part, results(0, 3, 99))
    await reconcile(world.deps)
    assert world.job().state is JobState.FAILED
    assert "replaced" in world.job().reason
