"""Checkpoints: what a host uploads, the controller verifies, and only then exists.

The order is what makes a torn one impossible to choose: files, then the manifest (create-only, by the controller),
then `checkpoint-saved`, then the pointer in the job. A batch's adds to the one before; a training's is whole by itself.
"""

from __future__ import annotations

import hashlib
import logging
import re
from collections.abc import Mapping, Sequence
from contextlib import aclosing
from dataclasses import replace

import msgspec

from goblin.core.errors import Broken, Conflict, InvalidReport, InvalidRequest, MalformedEvent, StoreUnavailable
from goblin.core.events import CheckpointSaved
from goblin.core.ports import ObjectFacts, SignedRequest
from goblin.jobs.batch import verify_part
from goblin.jobs.domain import batch
from goblin.jobs.domain.checkpoints import (
    FILE_BYTES_MAX,
    FILE_NAME,
    FILES_MAX,
    MANIFEST,
    STEP_MAX,
    Artifact,
    Checkpoint,
    Manifest,
    StoredArtifact,
    folder,
    jobs_folder,
    manifest_uri,
    upload_folder,
)
from goblin.jobs.domain.job import Job, JobKind, JobState
from goblin.jobs.lifecycle import JobDeps, change, load
from goblin.jobs.policy import state_machine
from goblin.jobs.policy.state_machine import Transition, Trigger

log = logging.getLogger(__name__)

MANIFEST_BYTES_MAX = 1024 * 1024
READ_BYTES_MAX = 64 * 1024 * 1024
"""Checkpoints up to here are read to check their digests; of larger ones the bucket's own checksums must do."""
_UPLOAD_ID = re.compile(r"^[A-Za-z0-9_-]{8,64}\Z")
_NAME = re.compile(FILE_NAME)


async def begin(
    job: Job, step: int, files: Sequence[Artifact], deps: JobDeps
) -> tuple[str, Mapping[str, SignedRequest]]:
    """Let the current attempt upload the files of one step.

    Args:
        job: Running, its caller known to be the current attempt.
        step: After the last checkpoint's.
        files: What will be uploaded; a grant fits these bytes only.
        deps: Signs.

    Returns:
        The upload's id, to be named at the commit, and one grant a file.

    Raises:
        InvalidRequest: The step or a file cannot be.
        Untrue: It is more than the host's disk could hold.
    """
    _check_step(job, step)
    if not 1 <= len(files) <= FILES_MAX or len({file.name for file in files}) != len(files):
        raise InvalidRequest(f"a checkpoint has 1 to {FILES_MAX} files, each with its own name", param="files")
    if job.spec.kind == JobKind.BATCH and len(files) != 1:
        raise InvalidRequest("a batch checkpoint is one file", param="files")
    if (size := sum(file.size for file in files)) > job.spec.disk_gib * 1024**3:
        raise InvalidReport(f"a checkpoint of {size} bytes, from a disk of {job.spec.disk_gib} GiB")
    for file in files:
        if not _NAME.match(file.name) or file.name == MANIFEST:
            raise InvalidRequest(f"a file cannot be named {file.name!r}", param="files")
        if not 0 < file.size <= FILE_BYTES_MAX:
            raise InvalidRequest(f"{file.name}: a file has 1 to {FILE_BYTES_MAX} bytes", param="files")
    upload_id = deps.new_secret()
    where = upload_folder(deps.bucket, job.job_id, step, job.attempt, upload_id)
    grants = {
        file.name: await deps.objects.sign_put(f"{where}/{file.name}", size=file.size, crc32c=file.crc32c)
        for file in files
    }
    return upload_id, grants


def _check_step(job: Job, step: int) -> None:
    if job.state is not JobState.RUNNING:
        raise Conflict(f"the job is {job.state}")
    if job.spec.kind == JobKind.BATCH and job.dataset is not None and step > job.dataset.items:
        raise InvalidRequest(f"the job has {job.dataset.items} items", param="step")
    if step > STEP_MAX:
        raise InvalidRequest(f"a job has at most {STEP_MAX} steps", param="step")
    if step <= job.saved_step:
        raise Conflict(f"the job is at step {job.saved_step} already")


async def commit(
    job: Job, step: int, previous_step: int, upload_id: str, files: Sequence[Artifact], deps: JobDeps,
    *, loss: float | None = None,
) -> Checkpoint:  # fmt: skip
    """Verify what lies in the bucket, write the manifest, tell the world. A step that is saved already stays as it is.

    Args:
        job: Running, its caller known to be the current attempt.
        step: What the files bring the job to.
        previous_step: What a batch's add to: the attempt's last commit, or what it resumed from; 0 for the start.
        upload_id: From `begin`.
        files: As announced there.
        deps: Reads, writes and publishes.
        loss: As the host says, for keeping the best.

    Raises:
        Conflict: The attempt is over, or there is a later step.
        Untrue: The files are not what was announced.
    """
    uri = manifest_uri(deps.bucket, job.job_id, step, job.attempt)
    if not _UPLOAD_ID.match(upload_id) or not all(_NAME.match(file.name) for file in files):
        raise InvalidRequest("no such upload", param="upload_id")
    where = upload_folder(deps.bucket, job.job_id, step, job.attempt, upload_id)
    made = await read_manifest(uri, deps)
    if made is None:
        _check_step(job, step)
        previous = await _previous(job, previous_step, deps) if job.spec.kind == JobKind.BATCH else None
        found = [await _verify(f"{where}/{file.name}", file, deps) for file in files]
        stored, offset = await _verify_content(job, found, previous, step, deps)
        manifest = Manifest(
            job_id=job.job_id, attempt=job.attempt, step=step, files=tuple(stored), previous=previous,
            dataset_offset=offset, saved_at=deps.clock.now(), loss=loss,
        )  # fmt: skip
        await deps.objects.create(uri, msgspec.json.encode(manifest), content_type="application/json")
        made = await read_manifest(uri, deps)
    if made is None:
        raise StoreUnavailable(f"{uri} was written and is not there")
    # Perhaps of another upload: a host that was restarted comes by the same step again, and what is saved is saved.
    manifest, facts = made
    event = CheckpointSaved(
        job_id=job.job_id, attempt=job.attempt, step=step, manifest_uri=uri, manifest_generation=facts.generation
    )
    await deps.bus.publish("checkpoint-saved", event)
    return _checkpoint(manifest, facts)


async def _previous(job: Job, step: int, deps: JobDeps) -> Checkpoint | None:
    """The checkpoint that a step adds to. Only the controller writes manifests, so an attempt cannot invent one."""
    if step == job.saved_step:
        return job.checkpoint
    made = await read_manifest(manifest_uri(deps.bucket, job.job_id, step, job.attempt), deps)
    if made is None:
        raise InvalidReport(f"there is no checkpoint of step {step} to add to")
    return _checkpoint(*made)


async def _verify(uri: str, file: Artifact, deps: JobDeps) -> StoredArtifact:
    facts = await deps.objects.stat(uri)
    if facts is None:
        raise InvalidReport(f"{file.name} was not uploaded")
    if (facts.size, facts.crc32c) != (file.size, file.crc32c):
        raise InvalidReport(f"{file.name} is not what was announced: {facts.size} bytes, crc32c {facts.crc32c}")
    return StoredArtifact(
        name=file.name, uri=uri, generation=facts.generation, size=facts.size, crc32c=facts.crc32c, sha256=file.sha256
    )


async def _verify_content(
    job: Job, stored: Sequence[StoredArtifact], previous: Checkpoint | None, step: int, deps: JobDeps
) -> tuple[Sequence[StoredArtifact], int]:
    """Read the files once; what is known of them then, and the offset of the dataset that they bring the job to."""
    if job.spec.kind != JobKind.BATCH:
        return await _verify_digests(stored, deps), 0
    if len(stored) != 1:
        raise InvalidRequest("a batch checkpoint is one file", param="files")
    part = stored[0]
    facts = ObjectFacts(uri=part.uri, generation=part.generation, size=part.size, crc32c=part.crc32c)
    try:
        return stored, await verify_part(job, facts, part.sha256, previous, step, deps)
    except Conflict as error:
        raise InvalidReport(error.message) from error


async def _verify_digests(stored: Sequence[StoredArtifact], deps: JobDeps) -> Sequence[StoredArtifact]:
    """The files with the digests that are known to be theirs."""
    if sum(file.size for file in stored) > READ_BYTES_MAX:
        return [replace(file, sha256="") for file in stored]
    for file in stored:
        digest = hashlib.sha256()
        async with aclosing(deps.objects.read(file.uri, generation=file.generation)) as chunks:
            async for chunk in chunks:
                digest.update(chunk)
        if digest.hexdigest() != file.sha256:
            raise InvalidReport(f"{file.name} does not have the announced sha256")
    return stored


async def read_manifest(uri: str, deps: JobDeps) -> tuple[Manifest, ObjectFacts] | None:
    """A manifest and where it lies; None when there is none.

    Raises:
        Broken: Something else lies there.
    """
    facts = await deps.objects.stat(uri)
    if facts is None:
        return None
    if facts.size > MANIFEST_BYTES_MAX:
        raise Broken(f"{uri} is no manifest: {facts.size} bytes")
    async with aclosing(deps.objects.read(uri, generation=facts.generation)) as chunks:
        data = b"".join([chunk async for chunk in chunks])
    try:
        return msgspec.json.decode(data, type=Manifest), facts
    except msgspec.DecodeError as error:
        raise Broken(f"{uri} is no manifest: {error}") from error


def _checkpoint(manifest: Manifest, facts: ObjectFacts) -> Checkpoint:
    return Checkpoint(
        step=manifest.step, attempt=manifest.attempt, manifest_uri=facts.uri, generation=facts.generation,
        dataset_offset=manifest.dataset_offset, size=sum(file.size for file in manifest.files),
    )  # fmt: skip


async def note(event: CheckpointSaved, deps: JobDeps) -> Job:
    """Move a job's checkpoint forward to a manifest that verifies; late and repeated events change nothing.

    Raises:
        MalformedEvent: The manifest is not where the controller writes this one.
        Broken: It, or a file of it, is not there or not whole.
        NotFound: There is no such job.
    """
    job = (await load(deps, event.job_id)).job
    if event.manifest_uri != manifest_uri(deps.bucket, event.job_id, event.step, event.attempt):
        raise MalformedEvent(f"{event.manifest_uri} is not where step {event.step}'s manifest lies")
    if event.attempt == job.attempt and event.step <= job.saved_step:
        return job
    checkpoint = await reverify(event, deps)
    told: list[str] = []

    def forward(job: Job) -> Transition | None:
        told.clear()
        if (refusal := state_machine.refuses_checkpoint(job, checkpoint)) is not None:
            told.append(refusal)
            return None
        return state_machine.apply(job, Trigger.SAVED, now=deps.clock.now(), checkpoint=checkpoint)

    transition = await change(deps, event.job_id, forward)
    if transition is None:
        log.info("job %s: checkpoint %d is not taken: %s", event.job_id, event.step, "; ".join(told))
        return (await load(deps, event.job_id)).job
    return transition.job


async def reverify(event: CheckpointSaved, deps: JobDeps) -> Checkpoint:
    made = await read_manifest(event.manifest_uri, deps)
    if made is None:
        raise Broken(f"there is no {event.manifest_uri}")
    manifest, facts = made
    if event.manifest_generation not in (None, facts.generation):
        raise Broken(f"{event.manifest_uri} is another one than was saved")
    if (manifest.job_id, manifest.attempt, manifest.step) != (event.job_id, event.attempt, event.step):
        raise Broken(f"{event.manifest_uri} is the manifest of something else")
    await _verify_stored(manifest, deps)
    return _checkpoint(manifest, facts)


async def _verify_stored(manifest: Manifest, deps: JobDeps) -> None:
    for file in manifest.files:
        found = await deps.objects.stat(file.uri)
        if found is None or (found.generation, found.size, found.crc32c) != (file.generation, file.size, file.crc32c):
            raise Broken(f"{file.uri} is not what its manifest says")


async def newer(job: Job, deps: JobDeps) -> Checkpoint | None:
    """The newest checkpoint of the last attempt that verifies and that the job does not know of yet.

    The event about it may be late or lost, as when everything was killed right after the manifest was written.
    """
    prefix, start = f"{jobs_folder(deps.bucket, job.job_id)}/", folder(deps.bucket, job.job_id, job.saved_step + 1, 0)
    ending = f"/a{job.attempt}/{MANIFEST}"
    for uri in reversed(await deps.objects.list_from(prefix, start)):
        step = uri.removeprefix(prefix).partition("/")[0]
        if not uri.endswith(ending) or not step.isdigit():
            continue
        event = CheckpointSaved(job_id=job.job_id, attempt=job.attempt, step=int(step), manifest_uri=uri)
        try:
            return await reverify(event, deps)
        except Broken as error:
            log.warning("job %s: %s is passed over: %s", job.job_id, uri, error)
    return None


async def chain(checkpoint: Checkpoint, deps: JobDeps) -> list[Manifest]:
    """Every manifest up to a checkpoint, the first one first.

    Raises:
        Broken: A link is missing, or another one than was verified.
    """
    manifests: list[Manifest] = []
    link: Checkpoint | None = checkpoint
    while link is not None:
        made = await read_manifest(link.manifest_uri, deps)
        if made is None or made[1].generation != link.generation:
            raise Broken(f"{link.manifest_uri} is gone or was replaced")
        manifests.append(made[0])
        link = made[0].previous
        if len(manifests) > batch.ITEMS_MAX:
            raise Broken(f"{checkpoint.manifest_uri} has no beginning")
    return manifests[::-1]
