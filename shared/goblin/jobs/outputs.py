"""Holders of outputs: of two open jobs with one output, the second is refused before anything is rented for it."""

from __future__ import annotations

from goblin.core.errors import NotFound
from goblin.jobs.domain.job import ENDED, Job
from goblin.jobs.lifecycle import JobDeps, load
from goblin.jobs.ports import UnreadableJob


async def hold(job: Job, deps: JobDeps) -> str | None:
    """Let a job hold its output from its acceptance on; return why it cannot, None if it can. Safe to repeat."""
    uri = job.spec.output_uri
    if uri is None:
        return None
    holder = await deps.jobs.hold_output(uri, job.job_id)
    if holder == job.job_id:
        return None
    other: Job | None = None
    try:
        other = (await load(deps, holder)).job
        ended = other.state in ENDED
    except NotFound:
        ended = True
    except UnreadableJob:
        ended = False
    if ended and await deps.jobs.hold_output(uri, job.job_id, instead_of=holder) == job.job_id:
        return None
    # Another tenant's job is not named.
    named = holder if not ended and other is not None and other.owner.tenant == job.owner.tenant else ""
    who = f"job {named}" if named else "another job"
    return f"{uri} is the output of {who}, which has not ended; choose another output_uri"


async def release(job: Job, deps: JobDeps) -> None:
    """Give a job's output back at its end. Safe to repeat."""
    if job.spec.output_uri is not None:
        await deps.jobs.release_output(job.spec.output_uri, job.job_id)
