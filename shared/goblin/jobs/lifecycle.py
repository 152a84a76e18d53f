"""Jobs as those who ask for them see them: request, show, list, cancel."""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace

from goblin.core import events
from goblin.core.errors import Conflict, InvalidRequest, LeaseHeld, NotFound, Refused, Transient, UnknownTopic
from goblin.core.events import JobRequested, JobStatusChanged
from goblin.core.ports import Bus, Clock, ObjectStore
from goblin.jobs import reservations
from goblin.jobs.domain.job import Job, JobState, spec_digest
from goblin.jobs.policy import job_spec, state_machine
from goblin.jobs.policy.job_spec import STATUS_TOPIC
from goblin.jobs.policy.state_machine import FollowUp, Transition, Trigger
from goblin.jobs.ports import AttemptKeys, ComputeProvider, JobStore, MarketHistoryStore, StoredJob

log = logging.getLogger(__name__)

WRITES_MAX = 10
"""Tries at one compare-and-set before the caller is told to come back."""


SPEC_BYTES_MAX = 64 * 1024
SHOWN_MAX = 128
_JOB_ID = re.compile(events.JOB_ID)


@dataclass(frozen=True, kw_only=True, slots=True)
class JobDeps:
    """What every service of jobs works with."""

    jobs: JobStore
    objects: ObjectStore
    bus: Bus
    keys: AttemptKeys
    compute: Mapping[str, ComputeProvider]
    clock: Clock
    bucket: str
    """The one bucket of datasets, outputs and checkpoints."""
    url: str
    """Where an instance reaches this controller and the gateway."""
    limits: Mapping[str, int]
    """Concurrent jobs by kind."""
    new_secret: Callable[[], str]
    """Unguessable text, another one each time."""
    market: MarketHistoryStore
    money: reservations.ReservationDeps
    caps: Mapping[str, int] = field(default_factory=dict)
    """Micro-dollars an hour that may be paid at a provider, whatever a job allows."""
    image: str = ""
    """The agent's, for jobs that name none."""

    @property
    def kinds(self) -> frozenset[str]:
        """What the configured providers can run."""
        return frozenset(kind for provider in self.compute.values() for kind in provider.kinds)


async def change(deps: JobDeps, job_id: str, decide: Callable[[Job], Transition | None]) -> Transition | None:
    """Load, decide, write if nobody else wrote meanwhile; again if somebody did.

    Args:
        deps: Where jobs are kept.
        job_id: Which one.
        decide: Pure, may be called several times; None leaves the job as it is.

    Raises:
        NotFound: There is no such job.
        LeaseHeld: Others kept writing it.
    """
    for _ in range(WRITES_MAX):
        stored = await load(deps, job_id)
        transition = decide(stored.job)
        if transition is None:
            return None
        if await deps.jobs.replace(transition.job, stored.version) is not None:
            await announce(transition.job, deps)
            return transition
    raise LeaseHeld(f"job {job_id} is being changed by others", retry_after_s=1)


async def load(deps: JobDeps, job_id: str) -> StoredJob:
    """The job now.

    Raises:
        NotFound: There is no such job.
    """
    # What cannot be an id is not looked up: a store has its own idea of names.
    stored = await deps.jobs.get(job_id) if _JOB_ID.match(job_id) else None
    if stored is None:
        raise NotFound(f"no job {job_id[:SHOWN_MAX]!r}", param="job_id")
    return stored


async def submit(spec: JobRequested, deps: JobDeps) -> Job:
    """Like `request`, for a caller who is there to be told: what could never run is not written down.

    Raises:
        InvalidRequest: It could never run.
        Conflict: As `request`.
    """
    if (reason := job_spec.refusal(spec, bucket=deps.bucket, kinds=deps.kinds)) is not None:
        raise InvalidRequest(reason)
    return await request(spec, deps)


async def request(spec: JobRequested, deps: JobDeps) -> Job:
    """Write a job down once, however often it is asked for; a job that could never run is written as refused.

    Raises:
        Conflict: The id belongs to a job with another specification.
        InvalidRequest: It is too large to be kept.
    """
    if len(events.encode(spec)) > SPEC_BYTES_MAX:
        raise InvalidRequest(f"a specification has at most {SPEC_BYTES_MAX} bytes; data belongs in the bucket")
    now = deps.clock.now()
    job = Job(
        job_id=spec.job_id, spec=spec, spec_sha256=spec_digest(spec),
        state=JobState.REQUESTED, requested_at=now, updated_at=now,
    )  # fmt: skip
    if (reason := job_spec.refusal(spec, bucket=deps.bucket, kinds=deps.kinds)) is not None:
        refused = state_machine.apply(job, Trigger.REJECTED, now=now, reason=reason)
        job = refused.job if refused else job
    if await deps.jobs.create(job) is not None:
        await announce(job, deps)
        return job
    known = (await load(deps, spec.job_id)).job
    if known.spec_sha256 != job.spec_sha256:
        raise Conflict(f"job {spec.job_id!r} exists with another specification; choose another job_id", param="job_id")
    return known


async def show(job_id: str, deps: JobDeps) -> Job:
    """One job.

    Raises:
        NotFound: There is no such job.
    """
    return (await load(deps, job_id)).job


async def recent(limit: int, deps: JobDeps) -> Sequence[Job]:
    """The newest jobs first."""
    return await deps.jobs.list_recent(limit)


async def cancel(job_id: str, deps: JobDeps, *, by: str) -> Job:
    """End a job; its attempt is fenced off at once. A second cancel changes nothing.

    Raises:
        NotFound: There is no such job.
        Conflict: It is finishing, or has ended otherwise.
    """
    transition = await change(
        deps, job_id,
        lambda job: state_machine.apply(job, Trigger.CANCELLED, now=deps.clock.now(), reason=f"cancelled by {by}"),
    )  # fmt: skip
    if transition is None:
        job = await show(job_id, deps)
        if job.state is not JobState.CANCELLED:
            raise Conflict(f"job {job_id} is {job.state}: too late to cancel")
        return job
    await act(transition, deps)
    return transition.job


async def announce(job: Job, deps: JobDeps) -> None:
    """Tell apps of a job's new state, at least once; what fails here is told by the next reconcile. Never raises.

    Args:
        job: As it was written.
        deps: Publishes, and notes that it is out.
    """
    seq = job.seq
    if job.announced_seq >= seq:
        return
    event = JobStatusChanged(
        job_id=job.job_id, kind=job.spec.kind, state=job.state, reason=job.reason, at=job.updated_at, seq=seq,
        attempt=job.attempt, step=job.step, total=job.total, spent_usd_micros=job.spent_usd_micros,
        output_uri=job.spec.output_uri if job.state is JobState.SUCCEEDED else None,
    )  # fmt: skip
    try:
        await deps.bus.publish(STATUS_TOPIC, event)
        if job.spec.callback_topic is not None:
            await _call_back(job.spec.callback_topic, event, deps)
        await _note_announced(job.job_id, seq, deps)
    except (Transient, NotFound) as error:
        log.warning("job %s: its state %s is not announced yet: %s", job.job_id, job.state, error)


async def _call_back(topic: str, event: JobStatusChanged, deps: JobDeps) -> None:
    try:
        await deps.bus.publish(topic, event)
    except UnknownTopic:
        # The caller's own mistake: the announcement to everybody is out, and waiting mends nothing.
        log.warning("job %s: there is no topic %s to call back", event.job_id, topic)


async def _note_announced(job_id: str, seq: int, deps: JobDeps) -> None:
    for _ in range(WRITES_MAX):
        stored = await load(deps, job_id)
        if stored.job.announced_seq >= seq:
            return
        if await deps.jobs.replace(replace(stored.job, announced_seq=seq), stored.version) is not None:
            return


async def act(transition: Transition, deps: JobDeps) -> None:
    """End what the transition leaves behind. What fails here is found again by the next reconcile."""
    if FollowUp.RELEASE in transition.actions:
        await release(transition.job, deps)


async def release(job: Job, deps: JobDeps) -> None:
    """Shut the last attempt's key out and ask for its instance's end."""
    lease = job.lease
    if lease is None:
        return
    try:
        await deps.keys.close(lease.token_sha256)
        if provider := deps.compute.get(lease.provider):
            await provider.release(lease.label)
    except (Transient, Refused) as error:
        log.warning("job %s: %s is not released yet: %s", job.job_id, lease.label, error)
