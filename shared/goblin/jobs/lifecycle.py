"""Jobs from the caller's side: submit, show, list and cancel them."""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace

from goblin.core import events
from goblin.core.errors import (
    Conflict,
    InvalidRequest,
    LeaseHeld,
    NotFound,
    Refused,
    TopicForbidden,
    Transient,
    UnknownTopic,
)
from goblin.core.events import JobRequested, JobStatusChanged
from goblin.core.ports import Bus, Clock, ObjectStore
from goblin.jobs import reservations
from goblin.jobs.domain.job import REASONS_MAX, Job, JobOwner, JobState, Reason, owner_of_event, spec_digest
from goblin.jobs.policy import job_spec, state_machine
from goblin.jobs.policy.job_spec import STATUS_TOPIC
from goblin.jobs.policy.state_machine import FollowUp, Transition, Trigger
from goblin.jobs.ports import AttemptKeys, ComputeProvider, JobStore, MarketHistoryStore, StoredJob, UnreadableJob

log = logging.getLogger(__name__)

WRITES_MAX = 10
"""Tries at one compare-and-set before the caller gets `LeaseHeld`."""


HEARTBEAT_S_MIN = 0.05
SPEC_BYTES_MAX = 64 * 1024
SHOWN_MAX = 128
_JOB_ID = re.compile(events.JOB_ID)


@dataclass(frozen=True, kw_only=True, slots=True)
class JobDeps:
    """Dependencies of every service in `jobs`."""

    jobs: JobStore
    objects: ObjectStore
    bus: Bus
    keys: AttemptKeys
    compute: Mapping[str, ComputeProvider]
    clock: Clock
    bucket: str
    """Name of the bucket of all datasets, outputs and checkpoints."""
    url: str
    """Base URL at which an instance reaches the gateway."""
    limits: Mapping[str, int]
    """Concurrent jobs allowed, by kind."""
    new_secret: Callable[[], str]
    """Returns unguessable text, different at each call."""
    market: MarketHistoryStore
    money: reservations.ReservationDeps
    caps: Mapping[str, int] = field(default_factory=dict)
    """Price cap by provider, in micro-dollars per hour, on top of the job's own cap."""
    image: str = ""
    """Default container image of the agent, for jobs that name none."""
    gpu_models: tuple[str, ...] = ()
    """GPU models that may be asked for, beside those that the markets were known to have."""
    pace: float = 1.0
    """How much faster than real ones the markets take machines away: what must come before that is as much faster."""
    jobs_url: str = ""
    """Base URL at which an instance reaches this controller; empty: the gateway's."""

    def environment(self, token: str) -> dict[str, str]:
        """Return all that an instance is told: where the controller and the gateway are, and its attempt token."""
        apart = {"GOBLIN_JOBS_URL": self.jobs_url} if self.jobs_url not in ("", self.url) else {}
        return {"GOBLIN_URL": self.url, "GOBLIN_ATTEMPT_TOKEN": token, **apart}

    @property
    def heartbeat_s(self) -> float:
        """Interval of an agent's heartbeats, which tell it that its machine is being taken away."""
        return max(HEARTBEAT_S_MIN, state_machine.HEARTBEAT_S / self.pace)

    def refusal(self, spec: JobRequested) -> str | None:
        """Explain why a job could never run here; see `job_spec.refusal`."""
        return job_spec.refusal(spec, bucket=self.bucket, kinds=self.kinds, gpu_models=self.gpu_models)

    @property
    def kinds(self) -> frozenset[str]:
        """Job kinds that the configured providers can run."""
        return frozenset(kind for provider in self.compute.values() for kind in provider.kinds)


async def change(deps: JobDeps, job_id: str, decide: Callable[[Job], Transition | None]) -> Transition | None:
    """Change a job by compare-and-set: load, decide, write; repeat if it was written in between.

    Args:
        deps: Where jobs are stored.
        job_id: The job to change.
        decide: Pure function, may be called several times; None leaves the job as it is.

    Returns:
        The transition as written; None when `decide` returned None.

    Raises:
        NotFound: The job does not exist.
        LeaseHeld: Other processes wrote it at each of `WRITES_MAX` tries.
    """
    for _ in range(WRITES_MAX):
        stored = await load(deps, job_id)
        transition = decide(stored.job)
        if transition is None:
            return None
        if await deps.jobs.replace(transition.job, stored.version) is not None:
            await announce(transition.job, deps)
            return transition
    raise LeaseHeld(f"Job {job_id} is being changed by other processes. Try again in a second.", retry_after_s=1)


async def load(deps: JobDeps, job_id: str) -> StoredJob:
    """Read a job with its version.

    Raises:
        NotFound: The job does not exist.
    """
    # Text that cannot be a job id is not looked up: a store has its own rules for names.
    stored = await deps.jobs.get(job_id) if _JOB_ID.match(job_id) else None
    if stored is None:
        raise _no_such_job(job_id)
    return stored


def _no_such_job(job_id: str) -> NotFound:
    return NotFound(f'There is no job {job_id[:SHOWN_MAX]!r}. List the jobs with "goblin jobs list".', param="job_id")


async def submit(spec: JobRequested, owner: JobOwner, deps: JobDeps) -> Job:
    """Create a job for a caller who waits for the answer: a job that could never run is refused and not stored.

    Raises:
        InvalidRequest: The job could never run, its specification is too large, or it names a tenant.
        Conflict: As for `request`.
    """
    if spec.tenant is not None:
        raise InvalidRequest("A job belongs to the tenant of its API key. Leave out `tenant`.", param="tenant")
    if (reason := deps.refusal(spec)) is not None:
        # A reason that concerns one field begins with its name.
        field = reason.partition(" ")[0]
        raise InvalidRequest(reason, param=field if field in spec.__struct_fields__ else None)
    return await request(spec, deps, owner=owner)


async def request(spec: JobRequested, deps: JobDeps, *, owner: JobOwner | None = None) -> Job:
    """Create a job. Idempotent by `job_id`; a job that could never run is stored as refused, with the reason.

    Args:
        spec: The specification.
        deps: Where jobs are stored.
        owner: The owner; None: as the specification, which is an event then, says.

    Raises:
        Conflict: The id belongs to a job with another specification, or to a job of another tenant.
        InvalidRequest: The specification is too large to be stored.
    """
    if len(events.encode(spec)) > SPEC_BYTES_MAX:
        raise InvalidRequest(f"A job specification has at most {SPEC_BYTES_MAX} bytes. Put data into the bucket.")
    now = deps.clock.now()
    job = Job(
        job_id=spec.job_id, spec=spec, spec_sha256=spec_digest(spec),
        state=JobState.REQUESTED, requested_at=now, updated_at=now, owner=owner or owner_of_event(spec),
    )  # fmt: skip
    if (reason := deps.refusal(spec)) is not None:
        refused = state_machine.apply(job, Trigger.REJECTED, now=now, reason=reason)
        job = refused.job if refused else job
    if await deps.jobs.create(job) is not None:
        await announce(job, deps)
        return job
    # The same words whatever that job is like: they tell another tenant nothing of it.
    taken = Conflict(f"Job id {spec.job_id!r} is taken. Choose another job_id.", param="job_id")
    try:
        known = (await load(deps, spec.job_id)).job
    except UnreadableJob:
        if owner is None:
            raise
        raise taken from None
    if known.owner.tenant != job.owner.tenant:
        raise taken
    if known.spec_sha256 != job.spec_sha256:
        raise Conflict(f"Job {spec.job_id!r} exists with another specification. Choose another job_id.", param="job_id")
    return known


async def show(job_id: str, deps: JobDeps, *, tenant: str | None) -> Job:
    """Read a job.

    Args:
        job_id: The job.
        deps: Where jobs are stored.
        tenant: The owner that asks, as in `JobOwner`; None: the operator, who sees every job.

    Raises:
        NotFound: The job does not exist, or is another tenant's: a caller cannot tell which.
        UnreadableJob: Its document cannot be read; only the operator learns of it.
    """
    try:
        job = (await load(deps, job_id)).job
    except UnreadableJob:
        if tenant is None:
            raise
        raise _no_such_job(job_id) from None  # Whose it is cannot be read either.
    if tenant is not None and job.owner.tenant != tenant:
        raise _no_such_job(job_id)
    return job


async def recent(limit: int, deps: JobDeps, *, tenant: str | None) -> Sequence[Job]:
    """List the newest jobs of a tenant, the newest first; None: of all."""
    return await deps.jobs.list_recent(limit, tenant=tenant)


async def cancel(job_id: str, deps: JobDeps, *, by: str, tenant: str | None) -> Job:
    """Cancel a job and fence its attempt at once. A second cancel changes nothing.

    Args:
        job_id: The job.
        deps: Where jobs are stored.
        by: Name of the caller, for the job's history.
        tenant: As for `show`.

    Raises:
        NotFound: As for `show`.
        Conflict: The job has ended in another way.
    """
    await show(job_id, deps, tenant=tenant)
    transition = await change(
        deps, job_id,
        lambda job: state_machine.apply(job, Trigger.CANCELLED, now=deps.clock.now(), reason=f"cancelled by {by}"),
    )  # fmt: skip
    if transition is None:
        job = await show(job_id, deps, tenant=tenant)
        if job.state is not JobState.CANCELLED:
            raise Conflict(f"Job {job_id} is {job.state}: it is too late to cancel it.")
        return job
    await act(transition, deps)
    return transition.job


async def announce(job: Job, deps: JobDeps) -> None:
    """Publish a job's new state, at least once. Never raises: the next reconcile publishes what failed here.

    Args:
        job: The job as written.
        deps: Publishes the event, and notes in the job that it was published.
    """
    seq = job.seq
    if job.announced_seq >= seq:
        return
    items = job.items
    event = JobStatusChanged(
        job_id=job.job_id, kind=job.spec.kind, state=job.state, reason=job.reason, at=job.updated_at, seq=seq,
        attempt=job.attempt, step=job.step, total=job.total, spent_usd_micros=job.spent_usd_micros,
        output_uri=job.spec.output_uri if job.state is JobState.SUCCEEDED else None,
        completed=items.completed if items else None, failed=items.failed if items else None,
    )  # fmt: skip
    try:
        await deps.bus.publish(STATUS_TOPIC, event)
        refused = ""
        if job.spec.callback_topic is not None:
            refused = await _call_back(job.spec.callback_topic, event, deps)
        await _note_announced(job.job_id, seq, deps, refused=refused)
    except (Transient, NotFound) as error:
        log.warning(
            "Job %s: its state %s could not be published, the next reconcile tries again: %s",
            job.job_id,
            job.state,
            error,
        )


async def _call_back(topic: str, event: JobStatusChanged, deps: JobDeps) -> str:
    """Publish to the caller's own topic; return why it was refused, empty when it was not.

    A topic that does not exist, or that is not ours to publish to, is the caller's to mend: the status topic has the
    event, and a retry would not help.
    """
    try:
        await deps.bus.publish(topic, event)
    except UnknownTopic as error:
        log.warning("Job %s: its callback topic was not told: %s", event.job_id, error.message)
        missing = "may not be published to" if isinstance(error, TopicForbidden) else "does not exist"
        return f"the callback topic {topic} {missing}"
    return ""


async def _note_announced(job_id: str, seq: int, deps: JobDeps, *, refused: str = "") -> None:
    """Note in the job that its state is out, and, once, that its callback topic could not be told."""
    for _ in range(WRITES_MAX):
        stored = await load(deps, job_id)
        job = stored.job
        if job.announced_seq >= seq:
            return
        if refused and all(line.text != refused for line in job.reasons):
            line = Reason(at=deps.clock.now(), state=job.state, text=refused)
            # Before the newest line, which says why the job is where it is.
            job = replace(job, reasons=(*job.reasons[:-1], line, *job.reasons[-1:])[-REASONS_MAX:])
        if await deps.jobs.replace(replace(job, announced_seq=seq), stored.version) is not None:
            return


async def act(transition: Transition, deps: JobDeps) -> None:
    """Release the instance if the transition asks for it. The next reconcile repeats what fails here."""
    if FollowUp.RELEASE in transition.actions:
        await release(transition.job, deps)


async def release(job: Job, deps: JobDeps) -> None:
    """Close the key of the last attempt and ask its provider to end its instance."""
    lease = job.lease
    if lease is None:
        return
    try:
        await deps.keys.close(lease.token_sha256)
        if provider := deps.compute.get(lease.provider):
            await provider.release(lease.label)
    except (Transient, Refused) as error:
        log.warning(
            "Job %s: instance %s could not be released, the next reconcile tries again: %s",
            job.job_id,
            lease.label,
            error,
        )
