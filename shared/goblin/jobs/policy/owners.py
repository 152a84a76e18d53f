"""A job goes on only while the API key that asked for it is good, and reads only what is its tenant's."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime

from goblin.jobs.domain.job import LEASED, OPERATOR, AskerKey, Job, JobOwner, JobState, StopRequest
from goblin.jobs.policy import state_machine
from goblin.jobs.policy.placement import STOP_WITHIN
from goblin.jobs.policy.state_machine import Transition, Trigger

OWNER = "goblin-job"
"""Metadata key of an output: the id of the job that wrote it."""
TENANT = "goblin-tenant"
"""Metadata key of an output: the owner of that job, because the output outlives the job's document."""
WRITTEN_BY_JOBS = ("checkpoints/", "logs/")
"""Prefixes below which the next part of a name is the id of the job that wrote the object."""


def writer_of(uri: str, metadata: Mapping[str, str]) -> str | None:
    """Return the id of the job that wrote an object; None: a person uploaded it."""
    name = uri.removeprefix("gs://").partition("/")[2]
    if name.startswith(WRITTEN_BY_JOBS):
        return name.split("/")[1]
    return metadata.get(OWNER)


def may_read(reader: JobOwner, writer: str | None) -> bool:
    """Return whether a job may read what another job wrote.

    Args:
        reader: Owner of the job that reads.
        writer: `JobOwner.tenant` of the job that wrote; None: not known any more.
    """
    return reader.sees_all or reader.tenant in (OPERATOR, writer)


def is_bound_to_key(job: Job) -> bool:
    """Return whether the job would end with its API key: one asked for it, and work or its end is still ahead."""
    waiting = job.state in (JobState.REQUESTED, JobState.QUEUED, JobState.PREEMPTED)
    return bool(job.owner.key_digest) and (waiting or job.state in LEASED)


def why_over(owner: JobOwner, key: AskerKey | None, *, now: datetime) -> str | None:
    """Explain why the jobs of an API key end; None: it is good.

    Args:
        owner: Who asked.
        key: The key as it is now; None: it is deleted, as the store does with expired ones.
        now: Aware UTC.
    """
    name = f"the API key {owner.key_name!r}, which asked for the job,"
    if key is None:
        return f"{name} has expired or was deleted"
    if key.disabled:
        return f"{name} was revoked"
    if key.expires_at is not None and key.expires_at <= now:
        return f"{name} has expired"
    return None if key.runs_jobs else f"{name} may run no jobs any more"


def end(job: Job, reason: str, *, now: datetime) -> Transition | None:
    """End a job for a reason of its owner; None: its work is over, or it was asked to stop for good already.

    A waiting job ends now. A running one is asked to save and stop, and ends then: its checkpoint is kept.
    """
    if job.state in LEASED:
        if job.stop is not None and job.stop.ends_job:
            return None
        by = now + STOP_WITHIN if job.stop is None else min(job.stop.by, now + STOP_WITHIN)
        leaving = job.stop.leaving if job.stop else False
        stop = StopRequest(reason=reason, by=by, ends_job=True, leaving=leaving)
        return state_machine.ask_to_stop(job, stop, now=now)
    trigger = Trigger.REJECTED if job.state is JobState.REQUESTED else Trigger.EXHAUSTED
    return state_machine.apply(job, trigger, now=now, reason=reason)
