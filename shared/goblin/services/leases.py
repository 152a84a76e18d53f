"""What the host of an attempt may ask for, with its token: work, a longer lease, uploads, an end.

The host is not trusted: it proves with the token that it is the current attempt, and everything it says is checked
or only its own loss.
"""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import timedelta

from goblin.domain.checkpoints import Artifact, Checkpoint, manifest_uri
from goblin.domain.compute import Lease
from goblin.domain.jobs import ENDED, Job, State
from goblin.domain.work import Assignment, Grant
from goblin.errors import Conflict, Forbidden, InvalidRequest
from goblin.events import CheckpointSaved
from goblin.policy import jobs as policy
from goblin.policy.jobs import Fact, Transition
from goblin.services import checkpoints
from goblin.services.jobs import JobDeps, act, change, load

TOKEN_PREFIX = "gob-attempt-"  # noqa: S105 - what a token starts with, for whoever finds one in a log
KEY_LIFE = timedelta(hours=1)
SAID_MAX = 500
"""Characters of a host's words that go into a job's history."""


def new_token(job_id: str, attempt: int, secret: str) -> str:
    """A fencing token; its holder reads from it which job it is for."""
    return f"{TOKEN_PREFIX}{secret}.{attempt}.{job_id}"


def is_token(key: str) -> bool:
    """Whether a key is an attempt's: it may infer, and speak for its own job."""
    return key.startswith(TOKEN_PREFIX)


def digest(token: str) -> str:
    """What is kept of a token."""
    return hashlib.sha256(token.encode()).hexdigest()


def authorise(job: Job, token: str) -> Lease:
    """The lease that the token proves.

    Raises:
        Forbidden: It is an older attempt's, or nobody's.
    """
    expected = job.lease.token_sha256 if job.lease else ""
    if not hmac.compare_digest(digest(token), expected) or job.lease is None:
        raise Forbidden(f"the token is not of the current attempt of job {job.job_id}", code="attempt_over")
    return job.lease


def _live(job: Job, transition: Transition | None) -> Transition:
    if transition is None:
        raise Conflict(f"the attempt is over: the job is {job.state}", code="attempt_over")
    return transition


async def claim(job_id: str, token: str, deps: JobDeps) -> Assignment:
    """Begin, or begin again after a restart of the host's own.

    Raises:
        Forbidden: Not the current attempt.
        Conflict: The attempt is over.
    """

    def decide(job: Job) -> Transition:
        now = deps.clock.now()
        lease = replace(authorise(job, token), until=now + timedelta(seconds=policy.LEASE_S))
        reason = "" if job.state is State.RUNNING else f"attempt {job.attempt} begins at step {job.saved_step}"
        return _live(job, policy.apply(job, Fact.CLAIMED, now=now, reason=reason, lease=lease, step=job.saved_step))

    transition = await change(deps, job_id, decide)
    if transition is None:
        raise AssertionError("a claim is decided or refused")
    job = transition.job
    return Assignment(
        job_id=job_id, attempt=job.attempt, kind=job.spec.kind, step=job.saved_step,
        total=job.dataset.items if job.dataset else 0, checkpoint_every=job.spec.checkpoint_every,
        heartbeat_s=policy.HEARTBEAT_S, dataset=await _dataset(job, deps),
        dataset_offset=job.checkpoint.dataset_offset if job.checkpoint else 0,
        model=job.spec.model, parameters=job.spec.parameters,
    )  # fmt: skip


async def inputs(job_id: str, token: str, deps: JobDeps) -> Grant:
    """The dataset again, when the first grant has expired."""
    job = (await load(deps, job_id)).job
    authorise(job, token)
    return await _dataset(job, deps)


async def _dataset(job: Job, deps: JobDeps) -> Grant:
    if job.dataset is None:
        raise Conflict("the job has no dataset")
    return await deps.objects.grant_get(job.dataset.uri, generation=job.dataset.generation)


async def heartbeat(job_id: str, token: str, step: int, deps: JobDeps) -> Job:
    """Prolong the lease.

    Raises:
        Forbidden: Not the current attempt.
        Conflict: The attempt is over: stop.
    """
    renewed = False

    def decide(job: Job) -> Transition:
        nonlocal renewed
        now = deps.clock.now()
        lease = authorise(job, token)
        renewed = lease.key_until is None or lease.key_until - now < KEY_LIFE / 2
        lease = replace(
            lease, until=now + timedelta(seconds=policy.LEASE_S),
            key_until=now + KEY_LIFE if renewed else lease.key_until,
        )  # fmt: skip
        total = job.dataset.items if job.dataset else step
        told = min(max(job.step, step), total)
        return _live(job, policy.apply(job, Fact.BEAT, now=now, lease=lease, step=told))

    transition = await change(deps, job_id, decide)
    if transition is None:
        raise AssertionError("a heartbeat is decided or refused")
    job = transition.job
    if renewed and job.lease and job.lease.key_until:
        await deps.keys.open(job.lease.token_sha256, name=f"job:{job_id}", until=job.lease.key_until)
    return job


async def begin_checkpoint(
    job_id: str, token: str, step: int, files: Sequence[Artifact], deps: JobDeps
) -> tuple[str, Mapping[str, Grant]]:
    """Grants for the files of a step; see `checkpoints.begin`."""
    job = (await load(deps, job_id)).job
    authorise(job, token)
    return await checkpoints.begin(job, step, files, deps)


async def commit_checkpoint(
    job_id: str, token: str, step: int, previous_step: int, upload_id: str, files: Sequence[Artifact], deps: JobDeps
) -> Checkpoint:
    """Verify and publish a step; see `checkpoints.commit`."""
    job = (await load(deps, job_id)).job
    authorise(job, token)
    return await checkpoints.commit(job, step, previous_step, upload_id, files, deps)


async def finish(job_id: str, token: str, deps: JobDeps) -> Job:
    """All items are checkpointed. Repeating it is no error.

    Raises:
        Forbidden: Not the current attempt.
        Conflict: The attempt is over, or not everything is checkpointed.
    """
    job = (await load(deps, job_id)).job
    authorise(job, token)
    if job.state in (State.FINISHING, State.SUCCEEDED):
        return job
    total = job.dataset.items if job.dataset else 0
    await _catch_up(job, total, deps)

    def decide(job: Job) -> Transition:
        authorise(job, token)
        if job.saved_step < total:
            raise Conflict(f"step {total} is not checkpointed; the last one is {job.saved_step}")
        reason = f"all {total} items are done"
        return _live(job, policy.apply(job, Fact.FINISHED, now=deps.clock.now(), reason=reason))

    transition = await change(deps, job_id, decide)
    return transition.job if transition else job


async def _catch_up(job: Job, step: int, deps: JobDeps) -> None:
    """Take the checkpoint that the attempt says it saved last: the event about it may still be on its way.

    The manifest is there or it is not: what a host says about it proves nothing and is not needed to.
    """
    uri = manifest_uri(deps.bucket, job.job_id, step, job.attempt)
    if job.saved_step < step and await deps.objects.stat(uri) is not None:
        event = CheckpointSaved(job_id=job.job_id, attempt=job.attempt, step=step, manifest_uri=uri)
        await checkpoints.note(event, deps)


async def withdraw(job_id: str, token: str, said: str, deps: JobDeps, *, step: int = 0) -> Job:
    """The host is being taken away: the job goes on elsewhere at once. Repeating it is no error.

    Args:
        job_id: Whose attempt.
        token: The attempt's.
        said: Why, in the host's words.
        deps: Everything.
        step: What the host committed last, for the next attempt to start from.
    """
    job = (await load(deps, job_id)).job
    authorise(job, token)
    await _catch_up(job, step, deps)
    return await _end(job_id, token, Fact.WITHDRAWN, said or "the host was taken away", deps)


async def fail(job_id: str, token: str, said: str, deps: JobDeps) -> Job:
    """The attempt met what no other attempt can mend. Repeating it is no error."""
    if not said:
        raise InvalidRequest("a failure says why", param="reason")
    return await _end(job_id, token, Fact.BROKEN, said, deps)


async def _end(job_id: str, token: str, fact: Fact, said: str, deps: JobDeps) -> Job:
    ended: list[Job] = []

    def decide(job: Job) -> Transition | None:
        authorise(job, token)
        if job.state is State.PREEMPTED or job.state in ENDED:
            ended.append(job)
            return None
        return _live(job, policy.apply(job, fact, now=deps.clock.now(), reason=said[:SAID_MAX]))

    transition = await change(deps, job_id, decide)
    if transition is None:
        return ended[-1]
    await act(transition, deps)
    return transition.job
