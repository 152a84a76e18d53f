"""Trainings: what their hosts are given, what is believed, what is resumed from, what is kept, and what comes out."""

import hashlib
from dataclasses import replace
from typing import Any

import msgspec
import pytest

from goblin.core.errors import Conflict, Forbidden, InvalidReport, InvalidRequest, LeaseHeld, StoreUnavailable
from goblin.jobs import attempt_logs, lifecycle, training, worker_api
from goblin.jobs.batch import RejectedInput
from goblin.jobs.domain.checkpoints import Manifest, manifest_uri
from goblin.jobs.domain.job import Dataset, JobState, StopRequest
from goblin.jobs.domain.worker import TrainingInputs, WorkerReport
from goblin.jobs.policy import state_machine
from goblin.jobs.reconcile import reconcile
from tests.fakes.jobs import BUCKET, World, crc32c
from tests.fakes.training_host import TrainingHost, files, next_host, placement, spec
from tests.fakes.training_host import training as begin


async def lose(world: World) -> TrainingHost:
    """The attempt falls silent; the next one's host."""
    world.clock.advance(state_machine.LEASE_S + 1)
    return await next_host(world)


def manifests(world: World) -> list[str]:
    """`STEP/ATTEMPT` of each."""
    return sorted(
        uri.split("/checkpoints/j/")[1][:11] for uri in world.objects.objects if uri.endswith("MANIFEST.json")
    )


def objects(world: World) -> list[str]:
    return [uri for uri in world.objects.objects if "/checkpoints/" in uri]


async def test_a_host_is_given_its_input_its_task_and_how_often_to_save() -> None:
    world, host = await begin(parameters=msgspec.Raw(b'{"a": 1}'), model="base", checkpoint_minutes=5)
    work = host.work
    assert work is not None
    [given] = work.inputs.files
    assert (given.name, given.size, given.crc32c, given.sha256) == ("j.txt", 4, crc32c(b"text"), None)
    assert (given.grant.method, given.grant.url) == ("GET", f"gs://{BUCKET}/datasets/j.txt")
    assert (work.step, work.task, work.model, work.parameters, work.checkpoint_s) == (
        0, "t", "base", msgspec.Raw(b'{"a": 1}'), 300,
    )  # fmt: skip
    assert (work.dataset, work.inputs.checkpoint, work.total) == (None, (), None)
    assert await worker_api.inputs("j", host.token, world.deps) == work.inputs


async def test_a_training_needs_no_dataset() -> None:
    _, host = await begin(dataset_uri=None)
    assert host.work is not None
    assert host.work.inputs == TrainingInputs()


async def test_the_token_of_a_training_opens_no_gateway() -> None:
    world, host = await begin()
    for _ in range(5):
        world.clock.advance(30)
        await worker_api.heartbeat("j", host.token, 1, world.deps)
    assert world.keys.keys == {}
    assert "open key" not in world.faults.names


async def test_a_dataset_that_was_replaced_fails_the_job_instead_of_changing_its_meaning() -> None:
    world, host = await begin()
    world.objects.write(f"gs://{BUCKET}/datasets/j.txt", b"other")
    with pytest.raises(Conflict) as refused:
        await host.claim()
    assert refused.value.code == "attempt_over"
    assert (world.job().state, "was replaced" in world.job().reason) == (JobState.FAILED, True)


@pytest.mark.parametrize(
    ("uri", "name"),
    [
        ("gs://b/d/text.txt", "text.txt"),
        ("gs://b/d/my text (1).txt", "my_text__1_.txt"),
        ("gs://b/d/.hidden", "dataset"),
        ("gs://b/d/ü", "dataset"),
        ("gs://b/" + "x" * 300, "x" * 100),
    ],
)
def test_an_inputs_name_is_a_path_nowhere(uri: str, name: str) -> None:
    assert training.input_name(uri) == name


async def test_what_an_attempt_says_of_itself_is_kept_and_the_answer_says_how_it_stands() -> None:
    world, host = await begin()
    told = WorkerReport(total=100, loss=2.5, steps_per_s=4.0, gpu_share=0.5, save_s=1.5)
    standing = await worker_api.heartbeat("j", host.token, 7, world.deps, told=told)
    job = world.job()
    assert (standing.state, standing.stop, standing.checkpoint_s) == ("running", None, 900.0)
    assert (job.step, job.told_total, job.total) == (7, 100, 100)
    assert job.progress is not None
    assert (job.progress.loss, job.progress.steps_per_s, job.progress.save_s) == (2.5, 4.0, 1.5)
    await worker_api.heartbeat("j", host.token, 5, world.deps)
    assert (world.job().step, world.job().told_total) == (7, 100), "neither goes back"


async def test_an_attempt_that_is_asked_to_stop_hears_it_with_its_next_heartbeat() -> None:
    world, host = await begin()
    stored = world.jobs.stored["j"]
    stop = StopRequest(reason="the budget is used up", by=world.clock.now())
    await world.jobs.replace(replace(stored.job, stop=stop, placement=placement(losses=100.0)), stored.version)
    standing = await worker_api.heartbeat("j", host.token, 1, world.deps, told=WorkerReport(save_s=1.0))
    assert (standing.stop, standing.checkpoint_s) == ("the budget is used up", 30.0)


async def test_impossible_numbers_change_nothing_but_the_count_of_lies() -> None:
    world, host = await begin()
    before = world.job()
    world.clock.advance(5)
    with pytest.raises(InvalidReport, match="gpu_share 2"):
        await worker_api.heartbeat("j", host.token, 9, world.deps, told=WorkerReport(gpu_share=2.0))
    after = world.job()
    assert (after.invalid_reports, after.reason) == (1, "attempt 1's host lied: gpu_share 2.0")
    assert replace(after, invalid_reports=0, reasons=before.reasons) == before, "nor is its lease any longer"


async def test_a_host_that_lies_three_times_loses_the_job_and_its_machine_its_name() -> None:
    world, host = await begin()
    stored = world.jobs.stored["j"]
    await world.jobs.replace(replace(stored.job, placement=placement()), stored.version)
    for _ in range(3):
        with pytest.raises(InvalidReport):
            await worker_api.heartbeat("j", host.token, 9, world.deps, told=WorkerReport(save_s=-1.0))
    assert (world.job().state, world.job().invalid_reports) == (JobState.PREEMPTED, 3)
    assert "goblin-j-a1" in world.compute.released
    [(machine, reputation)] = world.market.history.machines.items()
    assert (machine, reputation.failures, reputation.last_kind) == ("fake/m7", 1, "lie")
    with pytest.raises(Conflict):
        await worker_api.heartbeat("j", host.token, 9, world.deps, told=WorkerReport(save_s=-1.0))
    assert world.job().invalid_reports == 3


async def test_a_strangers_token_is_no_blame_for_the_host() -> None:
    world, host = await begin()
    stored = world.jobs.stored["j"]
    await world.jobs.replace(replace(stored.job, placement=placement()), stored.version)
    for token in ("gob-attempt-guess.1.j", "gob-attempt-guess.9.j") * 5:
        with pytest.raises(Forbidden):
            await worker_api.heartbeat("j", token, 9, world.deps)
    with pytest.raises(Forbidden):
        await worker_api.heartbeat("j", "sk-whatever", 9, world.deps)
    assert (world.job().invalid_reports, world.job().state) == (3, JobState.RUNNING)
    assert world.market.history.machines == {}
    await worker_api.heartbeat("j", host.token, 1, world.deps)


async def test_a_checkpoint_is_whole_by_itself_and_the_next_attempt_starts_from_it() -> None:
    world, host = await begin()
    await host.save(10, loss=1.5)
    await host.save(20)
    second = await lose(world)
    assert second.work is not None
    assert (second.work.step, second.work.attempt) == (20, 2)
    given = {file.name: file for file in second.work.inputs.checkpoint}
    assert set(given) == {"weights", "momentum"}
    data = files(20)["weights"]
    assert (given["weights"].size, given["weights"].crc32c) == (len(data), crc32c(data))
    assert given["weights"].sha256 == hashlib.sha256(data).hexdigest()
    assert world.objects.objects[given["weights"].grant.url].data == data
    assert await worker_api.inputs("j", second.token, world.deps) == second.work.inputs
    await second.save(30)
    assert world.job().saved_step == 30
    read = msgspec.json.decode(world.objects.objects[manifest_uri(BUCKET, "j", 10, 1)].data, type=Manifest)
    assert (read.previous, read.loss, read.dataset_offset) == (None, 1.5, 0)


@pytest.mark.parametrize("said", [{"size": 1}, {"crc32c": "AAAAAA=="}, {"sha256": "0" * 64}, {"name": "other"}])
async def test_a_torn_or_forged_file_is_refused_and_written_down(said: dict[str, Any]) -> None:
    world, host = await begin()
    upload_id, announced = await host.upload(10)
    with pytest.raises(InvalidReport):
        await host.commit(10, upload_id, announced, **said)
    assert (manifests(world), world.job().invalid_reports, world.bus.waiting) == ([], 1, [])
    assert "lied" in world.job().reason


async def test_a_checkpoint_larger_than_the_hosts_disk_is_refused_and_written_down() -> None:
    world, host = await begin(disk_gib=1)
    _, announced = await host.upload(10)
    huge = [replace(one, size=600 * 1024**2) for one in announced]
    with pytest.raises(InvalidReport, match="from a disk of 1 GiB"):
        await worker_api.begin_checkpoint("j", host.token, 20, huge, world.deps)
    assert world.job().invalid_reports == 1


async def test_a_digest_that_nobody_could_check_is_not_passed_on(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("goblin.jobs.checkpoints.READ_BYTES_MAX", 10)
    world, host = await begin()
    upload_id, announced = await host.upload(10)
    await host.commit(10, upload_id, announced, sha256="0" * 64)
    second = await lose(world)
    assert second.work is not None
    assert [(file.name, file.sha256) for file in second.work.inputs.checkpoint] == [
        ("weights", None),
        ("momentum", None),
    ]


@pytest.mark.parametrize("torn", [1, 2, 3, 4])
async def test_a_torn_checkpoint_is_passed_over_for_the_newest_that_verifies(torn: int) -> None:
    world, host = await begin()
    for step in (10, 20, 30):
        await host.save(step)
    damaged = [uri for uri in objects(world) if uri.endswith("weights")][::-1][:torn]
    for uri in damaged:
        world.objects.write(uri, b"torn")
    second = await lose(world)
    expected = max(0, 30 - 10 * torn)
    assert second.work is not None
    assert second.work.step == expected
    assert {file.sha256 for file in second.work.inputs.checkpoint} == {
        hashlib.sha256(data).hexdigest() for data in (files(expected).values() if expected else ())
    }
    assert (world.job().saved_step, world.job().step) == (expected, expected)
    assert world.job().reason == f"checkpoint 30 is torn; attempt 2 begins at step {expected}"
    await second.save(expected + 5)
    assert world.job().saved_step == expected + 5, "and it goes on from there"


async def test_a_manifest_that_is_gone_is_a_torn_checkpoint() -> None:
    world, host = await begin()
    await host.save(10)
    saved = await host.save(20)
    del world.objects.objects[saved.manifest_uri]
    second = await lose(world)
    assert second.work is not None
    assert second.work.step == 10


async def test_a_checkpoint_that_arrives_while_another_is_looked_at_is_not_lost() -> None:
    world, host = await begin()
    await host.save(10)
    saved = await host.save(20, heard=False)
    listing = world.objects.stat

    async def meanwhile(uri: str) -> Any:
        world.objects.stat = listing  # type: ignore[method-assign]
        stored = world.jobs.stored["j"]
        await world.jobs.replace(replace(stored.job, checkpoint=saved), stored.version)
        return await listing(uri)

    world.objects.stat = meanwhile  # type: ignore[method-assign]
    with pytest.raises(LeaseHeld):
        await host.claim()
    assert (await host.claim()).step == 20


async def test_only_the_last_three_and_the_best_are_kept() -> None:
    world, host = await begin()
    losses = {10: 3.0, 20: 1.0, 30: 2.0, 40: 2.5, 50: 2.6, 60: 2.7, 70: 2.8}
    for step, loss in losses.items():
        await host.save(step, loss=loss)
    assert manifests(world) == ["00000020/a1", "00000050/a1", "00000060/a1", "00000070/a1"]
    assert len(objects(world)) == 4 * 3, "no file without a manifest"


async def test_what_the_job_points_to_is_kept_however_old() -> None:
    world, host = await begin()
    await host.save(10)
    for step in (20, 30, 40, 50, 60):
        await host.save(step, heard=False)
    assert world.job().saved_step == 10
    assert manifests(world) == ["00000010/a1", "00000040/a1", "00000050/a1", "00000060/a1"]
    second = await lose(world)
    assert second.work is not None
    assert second.work.step == 60, "the newest whose event was lost"


async def test_files_that_were_never_committed_go_when_later_steps_are_saved() -> None:
    world, host = await begin()
    await host.upload(5)
    for step in (10, 20, 30, 40):
        await host.save(step)
    assert not [uri for uri in objects(world) if "/00000005/" in uri]
    await host.upload(50)
    await host.save(45)
    assert [uri for uri in objects(world) if "/00000050/" in uri], "what is on its way is left alone"


async def test_a_store_that_is_away_keeps_old_checkpoints_and_takes_new_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    world, host = await begin()
    for step in (10, 20, 30):
        await host.save(step)

    async def away(_: object) -> None:
        raise StoreUnavailable("away")

    with monkeypatch.context() as patch:
        patch.setattr(world.objects, "delete", away)
        await host.save(40)
    assert len(manifests(world)) == 4
    await host.save(50)
    assert manifests(world) == ["00000030/a1", "00000040/a1", "00000050/a1"]


async def test_a_training_is_done_when_its_last_checkpoint_is_verified_and_its_files_are_the_output() -> None:
    world, host = await begin()
    await worker_api.heartbeat("j", host.token, 30, world.deps, told=WorkerReport(total=40))
    await host.save(40, heard=False)
    await worker_api.finish("j", host.token, world.deps, step=40)
    await worker_api.finish("j", host.token, world.deps, step=40)
    await reconcile(world.deps)
    job = world.job()
    assert (job.state, job.step, job.saved_step) == (JobState.SUCCEEDED, 40, 40)
    for name, data in files(40).items():
        assert world.objects.objects[f"gs://{BUCKET}/outputs/j/{name}"].data == data


@pytest.mark.parametrize("saved", [False, True])
async def test_a_training_is_not_done_by_saying_so(saved: bool) -> None:
    world, host = await begin()
    if saved:
        await host.save(10)
    for step in (50,) if saved else (0, 50):
        with pytest.raises(Conflict, match="not checkpointed"):
            await worker_api.finish("j", host.token, world.deps, step=step)
    assert world.job().state is JobState.RUNNING


async def test_a_training_may_end_before_it_said_it_would() -> None:
    world, host = await begin()
    await worker_api.heartbeat("j", host.token, 10, world.deps, told=WorkerReport(total=40))
    await host.save(20)
    await worker_api.finish("j", host.token, world.deps, step=20)
    assert (world.job().state, world.job().total, world.job().step) == (JobState.FINISHING, 20, 20)


async def test_without_an_output_the_checkpoint_is_the_result() -> None:
    world, host = await begin(output_uri=None)
    await host.save(40)
    await worker_api.finish("j", host.token, world.deps, step=40)
    await reconcile(world.deps)
    assert world.job().state is JobState.SUCCEEDED
    assert not [uri for uri in world.objects.objects if "/outputs/" in uri]


async def test_an_output_is_written_once_and_never_over_somebody_elses() -> None:
    world, host = await begin()
    await host.save(40)
    job = world.job()
    manifest = msgspec.json.decode(world.objects.objects[manifest_uri(BUCKET, "j", 40, 1)].data, type=Manifest)
    assert await training.write_output(job, manifest, world.deps) is None
    assert await training.write_output(job, manifest, world.deps) is None, "a crash in between repeats it"
    world.objects.write(f"gs://{BUCKET}/outputs/j/weights", b"precious")
    refused = await training.write_output(job, manifest, world.deps)
    assert isinstance(refused, RejectedInput)
    assert world.objects.objects[f"gs://{BUCKET}/outputs/j/weights"].data == b"precious"


@pytest.mark.parametrize(
    ("size", "changes", "there", "expected"),
    [
        (4, {}, None, "dataset"),
        (None, {"dataset_uri": None}, None, "none"),
        (None, {}, None, "does not exist; upload the dataset first"),
        (0, {}, None, "has 0 bytes"),
        (4, {}, "outputs/j/weights", "never overwritten"),
        (4, {}, "outputs/jj/weights", "dataset"),
        (4, {"output_uri": None}, "outputs/j/weights", "dataset"),
    ],
)
async def test_inputs_are_looked_at_before_anything_is_rented(
    size: int | None, changes: dict[str, Any], there: str | None, expected: str
) -> None:
    world = World()
    world.compute.kinds = frozenset({"training"})
    wanted = spec(**changes)
    job = await lifecycle.request(wanted, world.deps)
    if size is not None:
        world.objects.write(f"gs://{BUCKET}/datasets/j.txt", b"x" * size)
    if there:
        world.objects.write(f"gs://{BUCKET}/{there}", b"x")
    found = await training.check_inputs(job, world.deps)
    match found:
        case Dataset():
            assert (expected, found.size, found.items) == ("dataset", 4, 0)
        case RejectedInput():
            assert expected in found.reason
        case None:
            assert expected == "none"


async def test_an_input_must_fit_the_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    world = World()
    job = await lifecycle.request(spec(disk_gib=1), world.deps)
    facts = world.objects.write(f"gs://{BUCKET}/datasets/j.txt", b"x")

    async def large(_: str) -> object:
        return replace(facts, size=2 * 1024**3)

    monkeypatch.setattr(world.objects, "stat", large)
    found = await training.check_inputs(job, world.deps)
    assert isinstance(found, RejectedInput)
    assert "with 1 GiB of disk" in found.reason


async def test_pieces_of_a_log_are_granted_to_the_attempt_and_read_by_people() -> None:
    world, host = await begin()
    for number, text in enumerate([b"one\n", b"\x1b[2Jtwo\n"]):
        grant = await worker_api.log_piece(
            "j", host.token, number, size=len(text), crc32c=crc32c(text), deps=world.deps
        )
        assert grant.url == f"gs://{BUCKET}/logs/j/a1/{number:06d}"
        assert world.objects.put(grant, text) == 200
        assert world.objects.put(grant, text) == 412
    found = await attempt_logs.read("j", None, world.deps, tenant=None)
    assert (found.attempt, found.text, found.whole) == (1, "one\ntwo\n", True)


@pytest.mark.parametrize(("number", "size"), [(0, 256 * 1024 + 1), (100, 8 * 1024 + 1), (10_000, 1), (0, 0)])
async def test_a_piece_of_a_log_that_is_too_much_is_not_granted(number: int, size: int) -> None:
    world, host = await begin()
    with pytest.raises(InvalidRequest):
        await worker_api.log_piece("j", host.token, number, size=size, crc32c="AAAAAA==", deps=world.deps)


async def test_of_a_long_log_the_end_is_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(attempt_logs, "SHOWN_BYTES_MAX", 50)
    world, _ = await begin()
    for number in range(30):
        world.objects.write(f"gs://{BUCKET}/logs/j/a1/{number:06d}", b"line %02d\n" % number)
    world.objects.write(f"gs://{BUCKET}/logs/j/a2/000000", b"another attempt\n")
    found = await attempt_logs.read("j", 1, world.deps, tenant=None)
    assert found.text.endswith("line 28\nline 29\n")
    assert (len(found.text), found.whole) == (50, False)
    second = await lose(world)
    assert second.work is not None
    assert (await attempt_logs.read("j", None, world.deps, tenant=None)).text == "another attempt\n"


async def test_who_is_no_longer_at_work_writes_no_log() -> None:
    world, host = await begin()
    await worker_api.withdraw("j", host.token, "", world.deps)
    with pytest.raises(Conflict) as refused:
        await worker_api.log_piece("j", host.token, 0, size=1, crc32c="AAAAAA==", deps=world.deps)
    assert refused.value.code == "attempt_over"
