"""Owners of jobs at work: the key of an attempt, and the end of jobs whose API key is no longer good."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, suppress
from datetime import datetime

from goblin.core.errors import NotFound
from goblin.core.ports import ObjectFacts
from goblin.jobs.domain.job import AskerKey, Job
from goblin.jobs.lifecycle import JobDeps, act, change, load
from goblin.jobs.policy import owners as policy
from goblin.jobs.policy.state_machine import Transition
from goblin.jobs.ports import StoredJob, UnreadableJob

READ_AT_ONCE = 16
Isolated = Callable[[str], AbstractContextManager[None]]


async def input_of(uri: str, job: Job, deps: JobDeps) -> ObjectFacts | None:
    """Find a job's input. None when it does not exist, or another tenant's job wrote it: a caller cannot tell which."""
    facts = await deps.objects.stat(uri)
    writer = policy.writer_of(uri, facts.metadata) if facts is not None else None
    if facts is None or writer is None:
        return facts
    tenant = facts.metadata.get(policy.TENANT)
    if tenant is None:
        with suppress(NotFound, UnreadableJob):
            tenant = (await load(deps, writer)).job.owner.tenant
    return facts if policy.may_read(job.owner, tenant) else None


async def open_key(job: Job, digest: str, until: datetime, deps: JobDeps) -> None:
    """Let an attempt's token ask the gateway for the models of the job's items, for its owner, until then."""
    models = job.dataset.models if job.dataset else None
    await deps.keys.open(digest, name=f"job:{job.job_id}", until=until, asker=job.owner.key_digest, models=models)


async def end_unowned(jobs: Sequence[StoredJob], deps: JobDeps, isolated: Isolated) -> None:
    """End the jobs whose API key was revoked or has expired: a waiting one now, a running one after a last save.

    Reads each key once, however many jobs it asked for. A key that cannot be read ends nothing.

    Args:
        jobs: Open jobs as read.
        deps: Where jobs and keys are stored.
        isolated: Keeps an error with one key or job from the others; called with what is done.
    """
    concerned = [stored.job for stored in jobs if policy.is_bound_to_key(stored.job)]
    found: dict[str, AskerKey | None] = {}
    turns = asyncio.Semaphore(READ_AT_ONCE)

    async def read(digest: str) -> None:
        async with turns:
            with isolated(f"API key {digest[:12]}"):
                found[digest] = await deps.keys.asker(digest)

    await asyncio.gather(*(read(digest) for digest in sorted({job.owner.key_digest for job in concerned})))
    for job in concerned:
        if job.owner.key_digest not in found:
            continue
        reason = policy.why_over(job.owner, found[job.owner.key_digest], now=deps.clock.now())
        if reason is not None:
            with isolated(f"job {job.job_id}"):
                await _end(job.job_id, reason, deps)


async def _end(job_id: str, reason: str, deps: JobDeps) -> None:
    def decide(job: Job) -> Transition | None:
        return policy.end(job, reason, now=deps.clock.now())

    transition = await change(deps, job_id, decide)
    if transition is not None:
        await act(transition, deps)
