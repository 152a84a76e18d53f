"""Checkpoints: the host uploads files, the controller verifies them, and only then the checkpoint exists.

The order of writes makes it impossible to choose an incomplete one: files, then the manifest (create-only, by the
controller), then `checkpoint-saved`, then the pointer in the job. A batch checkpoint adds to the one before; a training
checkpoint is complete by itself.
"""

from __future__ import annotations

import hashlib
import logging
import re
from collections.abc import Mapping, Sequence
from contextlib import aclosing
from dataclasses import replace

import msgspec

from goblin.core import decoding
from goblin.core.errors import Broken, Conflict, InvalidReport, InvalidRequest, MalformedEvent, StoreUnavailable
from goblin.core.events import CheckpointSaved
from goblin.core.ports import ObjectFacts, SignedRequest
from goblin.jobs.batch import VerifiedPart, verify_part
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
"""Checkpoints up to this size are read to check their sha256; larger ones are checked by the bucket's crc32c only."""
_UPLOAD_ID = re.compile(r"^[A-Za-z0-9_-]{8,64}\Z")
_NAME = re.compile(FILE_NAME)
STEP_FOLDER = re.compile(r"[0-9]{1,18}")
"""Name of a step's folder. Anything may lie in the bucket beside it."""


async def begin(
    job: Job, step: int, files: Sequence[Artifact], deps: JobDeps
) -> tuple[str, Mapping[str, SignedRequest]]:
    """Sign the uploads of one step's files for the current attempt.

    Args:
        job: A running job, its caller verified as the current attempt.
        step: Step of the new checkpoint, after the last checkpoint's.
        files: The files to upload; each signed request fits these bytes only.
        deps: Signs the requests.

    Returns:
        The id of the upload, which the commit must name, and one signed request for each file name.

    Raises:
        InvalidRequest: The step or a file is not allowed.
        InvalidReport: The files are larger than the host's disk.
        Conflict: The job is not running, or is at this step already.
    """
    _check_step(job, step)
    if not 1 <= len(files) <= FILES_MAX or len({file.name for file in files}) != len(files):
        raise InvalidRequest(f"A checkpoint has 1 to {FILES_MAX} files, each with its own name.", param="files")
    if job.spec.kind == JobKind.BATCH and len(files) != 1:
        raise InvalidRequest("A batch checkpoint has exactly one file.", param="files")
    if (size := sum(file.size for file in files)) > job.spec.disk_gib * 1024**3:
        raise InvalidReport(f"a checkpoint of {size} bytes, from a disk of {job.spec.disk_gib} GiB")
    for file in files:
        if not _NAME.match(file.name) or file.name == MANIFEST:
            raise InvalidRequest(
                f"A checkpoint file cannot be named {file.name!r}. Choose another name.", param="files"
            )
        if not 0 < file.size <= FILE_BYTES_MAX:
            raise InvalidRequest(
                f"File {file.name} must have 1 to {FILE_BYTES_MAX} bytes. Split a larger one.", param="files"
            )
    upload_id = deps.new_secret()
    where = upload_folder(deps.bucket, job.job_id, step, job.attempt, upload_id)
    grants = {
        file.name: await deps.objects.sign_put(f"{where}/{file.name}", size=file.size, crc32c=file.crc32c)
        for file in files
    }
    return upload_id, grants


def _check_step(job: Job, step: int) -> None:
    if job.state is not JobState.RUNNING:
        raise Conflict(f"The job is {job.state}; only a running job can save a checkpoint.")
    if job.spec.kind == JobKind.BATCH and job.dataset is not None and step > job.dataset.items:
        raise InvalidRequest(f"The job has {job.dataset.items} items, so a step cannot be larger.", param="step")
    if step > STEP_MAX:
        raise InvalidRequest(f"A job has at most {STEP_MAX} steps. Save a smaller step.", param="step")
    if step <= job.saved_step:
        raise Conflict(f"The job has saved step {job.saved_step} already. Save a later step.")


async def commit(
    job: Job, step: int, previous_step: int, upload_id: str, files: Sequence[Artifact], deps: JobDeps,
    *, loss: float | None = None,
) -> Checkpoint:  # fmt: skip
    """Verify the uploaded files, write the manifest and publish `checkpoint-saved`. A saved step is never changed.

    Args:
        job: A running job, its caller verified as the current attempt.
        step: The step that the job reaches with these files.
        previous_step: For a batch, the step that the files add to: the attempt's last commit, or the one it resumed
            from; 0 for the start.
        upload_id: From `begin`.
        files: The files as announced to `begin`.
        deps: Reads, writes and publishes.
        loss: Loss as reported by the host; the checkpoint with the lowest loss is kept.

    Raises:
        InvalidRequest: The upload or the step is not allowed.
        Conflict: The attempt is over, or a later step is saved.
        InvalidReport: The files are not what was announced.
    """
    uri = manifest_uri(deps.bucket, job.job_id, step, job.attempt)
    if not _UPLOAD_ID.match(upload_id) or not all(_NAME.match(file.name) for file in files):
        raise InvalidRequest("There is no such upload. Begin a new one.", param="upload_id")
    where = upload_folder(deps.bucket, job.job_id, step, job.attempt, upload_id)
    made = await read_manifest(uri, deps)
    if made is None:
        _check_step(job, step)
        previous = await _previous(job, previous_step, deps) if job.spec.kind == JobKind.BATCH else None
        found = [await _verify(f"{where}/{file.name}", file, deps) for file in files]
        stored, read = await _verify_content(job, found, previous, step, deps)
        manifest = Manifest(
            job_id=job.job_id, attempt=job.attempt, step=step, files=tuple(stored), previous=previous,
            dataset_offset=read.dataset_offset, saved_at=deps.clock.now(), loss=loss, failed_items=read.failed_items,
        )  # fmt: skip
        await deps.objects.create(uri, msgspec.json.encode(manifest), content_type="application/json")
        made = await read_manifest(uri, deps)
    if made is None:
        raise StoreUnavailable(f"{uri} was written and cannot be read back. Try again.")
    # The manifest may be of another upload: a restarted host saves the same step again, and the first save stays.
    manifest, facts = made
    event = CheckpointSaved(
        job_id=job.job_id, attempt=job.attempt, step=step, manifest_uri=uri, manifest_generation=facts.generation
    )
    await deps.bus.publish("checkpoint-saved", event)
    return _checkpoint(manifest, facts)


async def _previous(job: Job, step: int, deps: JobDeps) -> Checkpoint | None:
    """Find the checkpoint that a step adds to. Only the controller writes manifests, so an attempt cannot forge one."""
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
        raise InvalidReport(f"{file.name} differs from what was announced: {facts.size} bytes, crc32c {facts.crc32c}")
    return StoredArtifact(
        name=file.name, uri=uri, generation=facts.generation, size=facts.size, crc32c=facts.crc32c, sha256=file.sha256
    )


async def _verify_content(
    job: Job, stored: Sequence[StoredArtifact], previous: Checkpoint | None, step: int, deps: JobDeps
) -> tuple[Sequence[StoredArtifact], VerifiedPart]:
    """Read the files once; return them as verified, and for a batch what they bring the job to."""
    if job.spec.kind != JobKind.BATCH:
        return await _verify_digests(stored, deps), VerifiedPart(dataset_offset=0, failed_items=0)
    if len(stored) != 1:
        raise InvalidRequest("A batch checkpoint has exactly one file.", param="files")
    part = stored[0]
    facts = ObjectFacts(uri=part.uri, generation=part.generation, size=part.size, crc32c=part.crc32c)
    try:
        return stored, await verify_part(job, facts, part.sha256, previous, step, deps)
    except Conflict as error:
        raise InvalidReport(error.message) from error


async def _verify_digests(stored: Sequence[StoredArtifact], deps: JobDeps) -> Sequence[StoredArtifact]:
    """Check the sha256 of each file; clear it for files that are too large to be read."""
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
    """Read a manifest and the facts of its object; None when it does not exist.

    Raises:
        Broken: The object is not a manifest.
    """
    facts = await deps.objects.stat(uri)
    if facts is None:
        return None
    if facts.size > MANIFEST_BYTES_MAX:
        raise Broken(f"{uri} is not a manifest: it has {facts.size} bytes.")
    async with aclosing(deps.objects.read(uri, generation=facts.generation)) as chunks:
        data = b"".join([chunk async for chunk in chunks])
    return decoding.decode(data, Manifest, lambda why: Broken(f"{uri} is not a manifest: {why}.")), facts


def _checkpoint(manifest: Manifest, facts: ObjectFacts) -> Checkpoint:
    return Checkpoint(
        step=manifest.step, attempt=manifest.attempt, manifest_uri=facts.uri, generation=facts.generation,
        dataset_offset=manifest.dataset_offset, size=sum(file.size for file in manifest.files),
        failed_items=manifest.failed_items,
    )  # fmt: skip


async def note(event: CheckpointSaved, deps: JobDeps) -> Job:
    """Move a job's checkpoint forward to a verified manifest. Late and repeated events change nothing.

    Raises:
        MalformedEvent: The event names a manifest outside the folder of its job, step and attempt.
        Broken: The manifest or one of its files is missing or not the one that was saved.
        NotFound: The job does not exist.
    """
    job = (await load(deps, event.job_id)).job
    if event.manifest_uri != manifest_uri(deps.bucket, event.job_id, event.step, event.attempt):
        raise MalformedEvent(f"{event.manifest_uri} is not the path of the manifest of step {event.step}.")
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
        log.info("Job %s: checkpoint %d is not used: %s", event.job_id, event.step, "; ".join(told))
        return (await load(deps, event.job_id)).job
    return transition.job


async def reverify(event: CheckpointSaved, deps: JobDeps) -> Checkpoint:
    """Verify that a saved checkpoint's manifest and files are still the ones that were saved.

    Raises:
        Broken: The manifest or one of its files is missing or was replaced.
    """
    made = await read_manifest(event.manifest_uri, deps)
    if made is None:
        raise Broken(f"The manifest {event.manifest_uri} does not exist.")
    manifest, facts = made
    if event.manifest_generation not in (None, facts.generation):
        raise Broken(f"The manifest {event.manifest_uri} was replaced since it was saved.")
    if (manifest.job_id, manifest.attempt, manifest.step) != (event.job_id, event.attempt, event.step):
        raise Broken(f"{event.manifest_uri} is the manifest of another job, attempt or step.")
    await _verify_stored(manifest, deps)
    return _checkpoint(manifest, facts)


async def _verify_stored(manifest: Manifest, deps: JobDeps) -> None:
    for file in manifest.files:
        found = await deps.objects.stat(file.uri)
        if found is None or (found.generation, found.size, found.crc32c) != (file.generation, file.size, file.crc32c):
            raise Broken(f"{file.uri} is missing or differs from its manifest.")


async def newer(job: Job, deps: JobDeps) -> Checkpoint | None:
    """Find the newest checkpoint of the last attempt that verifies and is later than the job's; None: there is none.

    Its event may be late or lost, for example when the controller was killed right after it wrote the manifest.
    """
    prefix, start = f"{jobs_folder(deps.bucket, job.job_id)}/", folder(deps.bucket, job.job_id, job.saved_step + 1, 0)
    ending = f"/a{job.attempt}/{MANIFEST}"
    for uri in reversed(await deps.objects.list_from(prefix, start)):
        step = uri.removeprefix(prefix).partition("/")[0]
        if not uri.endswith(ending) or not STEP_FOLDER.fullmatch(step):
            continue
        event = CheckpointSaved(job_id=job.job_id, attempt=job.attempt, step=int(step), manifest_uri=uri)
        try:
            return await reverify(event, deps)
        except Broken as error:
            log.warning("Job %s: checkpoint %s does not verify and is skipped: %s", job.job_id, uri, error)
    return None


async def chain(checkpoint: Checkpoint, deps: JobDeps) -> list[Manifest]:
    """Read every manifest up to a checkpoint, the oldest first.

    Raises:
        Broken: A manifest is missing, or was replaced since it was verified.
    """
    manifests: list[Manifest] = []
    link: Checkpoint | None = checkpoint
    while link is not None:
        made = await read_manifest(link.manifest_uri, deps)
        if made is None or made[1].generation != link.generation:
            raise Broken(f"The manifest {link.manifest_uri} is missing or was replaced.")
        manifests.append(made[0])
        link = made[0].previous
        if len(manifests) > batch.ITEMS_MAX:
            raise Broken(f"The chain of manifests before {checkpoint.manifest_uri} has no beginning.")
    return manifests[::-1]
