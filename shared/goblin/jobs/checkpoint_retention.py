"""Checkpoints of a training job: choose the one to resume from, and delete old ones."""

from __future__ import annotations

import logging
import re
from collections.abc import Sequence

from goblin.core.errors import Broken, StoreRefused, StoreUnavailable
from goblin.core.events import CheckpointSaved
from goblin.jobs import checkpoints
from goblin.jobs.domain.checkpoints import MANIFEST, Checkpoint, Manifest, jobs_folder
from goblin.jobs.domain.job import Job
from goblin.jobs.lifecycle import JobDeps
from goblin.jobs.policy.checkpoint_retention import Saved, choose_kept

log = logging.getLogger(__name__)

DELETED_MAX = 500
"""Objects deleted in one run; the next checkpoint's run deletes the rest."""
LOOKED_AT_MAX = 50
"""Manifests read in one run, the newest first."""
_MANIFEST = re.compile(rf"/(?P<step>[0-9]{{8}})/a(?P<attempt>[1-9][0-9]{{0,17}})/{re.escape(MANIFEST)}\Z")


async def resume_from(job: Job, deps: JobDeps) -> tuple[Checkpoint, Manifest] | None:
    """Find the checkpoint that a training attempt starts from, and verify its files again; None: start at step 0.

    This is the job's checkpoint or, if that one no longer verifies, the newest earlier one that does.
    """
    if job.checkpoint is None:
        return None
    known = job.checkpoint
    event = CheckpointSaved(
        job_id=job.job_id, attempt=known.attempt, step=known.step, manifest_uri=known.manifest_uri,
        manifest_generation=known.generation,
    )  # fmt: skip
    events = [event, *(older for older in _events(job, await _uris(job, deps)) if older.step < known.step)]
    for candidate in events[:LOOKED_AT_MAX]:
        try:
            checkpoint = await checkpoints.reverify(candidate, deps)
            made = await checkpoints.read_manifest(checkpoint.manifest_uri, deps)
        except Broken as error:
            log.warning(
                "Job %s: checkpoint %s does not verify and is skipped: %s", job.job_id, candidate.manifest_uri, error
            )
            continue
        if made is not None:
            return checkpoint, made[0]
    return None


async def prune(job: Job, step: int, deps: JobDeps) -> None:
    """Delete checkpoints that no resume needs. Never raises: the next checkpoint's run deletes what is left.

    Args:
        job: The job as read before its newest checkpoint was committed.
        step: Step of that checkpoint. Later ones stay: they belong to a fenced attempt, or are being uploaded.
        deps: The object store.
    """
    try:
        await _prune(job, step, deps)
    except (StoreUnavailable, StoreRefused, Broken) as error:
        log.warning(
            "Job %s: old checkpoints could not be deleted, the next checkpoint tries again: %s", job.job_id, error
        )


async def _prune(job: Job, step: int, deps: JobDeps) -> None:
    uris = [uri for uri in await _uris(job, deps) if _step(job, uri, deps) <= step]
    found = {}
    for event in _events(job, uris)[:LOOKED_AT_MAX]:
        if (made := await checkpoints.read_manifest(event.manifest_uri, deps)) is not None:
            found[event.manifest_uri] = made[0]
    saved = [Saved(uri=uri, step=one.step, attempt=one.attempt, loss=one.loss) for uri, one in found.items()]
    kept = choose_kept(saved, in_use=_in_use(job))
    if not kept:
        return
    needed = set(kept).union(file.uri for uri in kept for file in found[uri].files)
    old = [uri for uri in uris if uri not in needed]
    # Manifests first: without its manifest a checkpoint does not exist, even if some of its files remain.
    for uri in sorted(old, key=lambda one: (not one.endswith(f"/{MANIFEST}"), one))[:DELETED_MAX]:
        if (facts := await deps.objects.stat(uri)) is not None:
            await deps.objects.delete(facts)


def _in_use(job: Job) -> set[str]:
    """Return the manifest that the job points to. Its attempt started there, or has finished reading an older one."""
    return {job.checkpoint.manifest_uri} if job.checkpoint else set()


async def _uris(job: Job, deps: JobDeps) -> Sequence[str]:
    where = f"{jobs_folder(deps.bucket, job.job_id)}/"
    return await deps.objects.list_from(where, where)


def _events(job: Job, uris: Sequence[str]) -> list[CheckpointSaved]:
    """Return one event for each manifest, the newest first."""
    found = [(match, uri) for uri in uris if (match := _MANIFEST.search(uri))]
    events = [
        CheckpointSaved(job_id=job.job_id, attempt=int(match["attempt"]), step=int(match["step"]), manifest_uri=uri)
        for match, uri in found
    ]
    return sorted(events, key=lambda event: (event.step, event.attempt), reverse=True)


def _step(job: Job, uri: str, deps: JobDeps) -> int:
    name = uri.removeprefix(f"{jobs_folder(deps.bucket, job.job_id)}/").partition("/")[0]
    return int(name) if checkpoints.STEP_FOLDER.fullmatch(name) else 0
