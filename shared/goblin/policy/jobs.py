"""The life of a job: one table of what may follow what, and the few judgements beside it.

    requested → queued → placing → starting → running → finishing → succeeded
                  ↑         └──────────┴─────────┤
                  └───────────── preempted ──────┘      any → cancelled; refused, failed with a reason

A fact that the table does not have for a state changes nothing: it came late, twice or out of order.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from enum import StrEnum
from typing import Any

from goblin.domain.checkpoints import Checkpoint
from goblin.domain.compute import Inventory, Known
from goblin.domain.jobs import ENDED, LEASED, REASONS_MAX, Job, Kind, Priority, Reason, State
from goblin.events import JobRequested

LEASE_S = 45.0
"""How long a running attempt may be silent; a worker speaks every `HEARTBEAT_S`."""
HEARTBEAT_S = 10.0
FAILURES_MAX = 5
"""Attempts in a row without a new checkpoint before a person must look."""
BACKOFF_S_MAX = 300.0
ENDED_KEPT = timedelta(days=30)
RESERVED_PREFIXES = ("checkpoints/", "models/")
"""What the controller alone writes in its bucket; no job's output goes there."""


class Fact(StrEnum):
    """Something that has happened."""

    ACCEPTED = "accepted"
    """The dataset is there and every line of it can be run."""
    REJECTED = "rejected"
    PLACED = "placed"
    """There is a free place, and a lease for the next attempt."""
    RENTED = "rented"
    """The attempt's instance was seen to exist."""
    NOT_RENTED = "not rented"
    """The provider said no: there is none."""
    CLAIMED = "claimed"
    """The instance speaks, with the current token."""
    BEAT = "beat"
    SAVED = "saved"
    """A later checkpoint of this attempt was verified."""
    FINISHED = "finished"
    """Everything is done, and the last checkpoint verified."""
    WITHDRAWN = "withdrawn"
    """The instance is being taken away and says so."""
    SILENT = "silent"
    """The lease ran out."""
    GONE = "gone"
    """A whole inventory does not have the instance."""
    BROKEN = "broken"
    """The attempt, or putting its output together, met what no other attempt can mend."""
    WAITED = "waited"
    EXHAUSTED = "exhausted"
    COMPOSED = "composed"
    """The output lies where it was asked for."""
    CANCELLED = "cancelled"
    SETTLED = "settled"
    """It has ended and nothing of it runs."""


class Action(StrEnum):
    """What to do about it at once; `reconcile` finds out again what was not done."""

    CHECK = "check the dataset"
    RENT = "rent the instance"
    RELEASE = "release the instance"
    COMPOSE = "put the output together"


Step = tuple[State, tuple[Action, ...]]

_LOST: Step = (State.PREEMPTED, (Action.RELEASE,))
_CANCELLED: Step = (State.CANCELLED, (Action.RELEASE,))
_FAILED: Step = (State.FAILED, (Action.RELEASE,))

TABLE: Mapping[tuple[State, Fact], Step] = {
    (State.REQUESTED, Fact.ACCEPTED): (State.QUEUED, ()),
    (State.REQUESTED, Fact.REJECTED): (State.REFUSED, ()),
    (State.REQUESTED, Fact.CANCELLED): (State.CANCELLED, ()),
    (State.QUEUED, Fact.PLACED): (State.PLACING, (Action.RENT,)),
    (State.QUEUED, Fact.SAVED): (State.QUEUED, ()),
    (State.QUEUED, Fact.CANCELLED): _CANCELLED,
    (State.PLACING, Fact.RENTED): (State.STARTING, ()),
    (State.PLACING, Fact.NOT_RENTED): _LOST,
    # The instance can be quicker than the provider's answer about it.
    (State.PLACING, Fact.CLAIMED): (State.RUNNING, ()),
    (State.PLACING, Fact.SILENT): _LOST,
    (State.PLACING, Fact.CANCELLED): _CANCELLED,
    (State.STARTING, Fact.CLAIMED): (State.RUNNING, ()),
    (State.STARTING, Fact.SILENT): _LOST,
    (State.STARTING, Fact.GONE): _LOST,
    (State.STARTING, Fact.CANCELLED): _CANCELLED,
    (State.RUNNING, Fact.RENTED): (State.RUNNING, ()),
    (State.RUNNING, Fact.CLAIMED): (State.RUNNING, ()),
    (State.RUNNING, Fact.BEAT): (State.RUNNING, ()),
    (State.RUNNING, Fact.SAVED): (State.RUNNING, ()),
    (State.RUNNING, Fact.FINISHED): (State.FINISHING, (Action.COMPOSE, Action.RELEASE)),
    (State.RUNNING, Fact.WITHDRAWN): _LOST,
    (State.RUNNING, Fact.SILENT): _LOST,
    (State.RUNNING, Fact.GONE): _LOST,
    (State.RUNNING, Fact.BROKEN): _FAILED,
    (State.RUNNING, Fact.CANCELLED): _CANCELLED,
    # Saved while the attempt was at work, told after it had ended.
    (State.PREEMPTED, Fact.SAVED): (State.PREEMPTED, ()),
    (State.PREEMPTED, Fact.WAITED): (State.QUEUED, ()),
    (State.PREEMPTED, Fact.EXHAUSTED): _FAILED,
    (State.PREEMPTED, Fact.CANCELLED): _CANCELLED,
    # Too late to cancel: only the output is being put together.
    (State.FINISHING, Fact.COMPOSED): (State.SUCCEEDED, (Action.RELEASE,)),
    (State.FINISHING, Fact.BROKEN): _FAILED,
    (State.SUCCEEDED, Fact.SETTLED): (State.SUCCEEDED, ()),
    (State.FAILED, Fact.SETTLED): (State.FAILED, ()),
    (State.CANCELLED, Fact.SETTLED): (State.CANCELLED, ()),
    (State.REFUSED, Fact.SETTLED): (State.REFUSED, ()),
}


@dataclass(frozen=True, kw_only=True, slots=True)
class Transition:
    """A job as it is after a fact, and what to do once that is written."""

    job: Job
    actions: tuple[Action, ...]


def apply(job: Job, fact: Fact, *, now: datetime, reason: str = "", **changes: Any) -> Transition | None:
    """Let a fact happen to a job.

    Args:
        job: As it was read.
        fact: What happened.
        now: Aware UTC.
        reason: For the job's history; a change of state has one.
        changes: Fields that the fact brings along.

    Returns:
        None when the fact changes nothing in this state.
    """
    following = TABLE.get((job.state, fact))
    if following is None:
        return None
    state, actions = following
    after = replace(job, state=state, updated_at=now, **changes)
    if reason or state is not job.state:
        line = Reason(at=now, state=state, text=reason or fact.value)
        after = replace(after, reasons=(*job.reasons, line)[-REASONS_MAX:])
    if fact is Fact.SETTLED:
        after = replace(after, open=False)
    if fact is Fact.SAVED:
        after = replace(after, failures=0, step=max(after.step, after.saved_step))
    if state is not job.state and state in ENDED:
        # An attempt may have left an instance; without one nothing is left to settle.
        after = replace(after, ended_at=now, expires_at=now + ENDED_KEPT, open=job.lease is not None)
    if state is State.PREEMPTED and job.state is not State.PREEMPTED:
        after = _after_loss(after, now)
    return Transition(job=after, actions=actions)


def _after_loss(job: Job, now: datetime) -> Job:
    """Start again at once after progress and after one failure; later failures wait ever longer."""
    progressed = job.lease is not None and job.saved_step > job.lease.resumed_step
    failures = 0 if progressed else job.failures + 1
    wait_s = 0.0 if failures < 2 else min(BACKOFF_S_MAX, 5.0 * 2 ** (failures - 1))
    return replace(job, failures=failures, not_before=now + timedelta(seconds=wait_s), step=job.saved_step)


def observe(job: Job, inventory: Inventory | None, *, now: datetime) -> tuple[Fact, str] | None:
    """What a look at a job and its provider's inventory says has happened, with the reason.

    Args:
        job: As it was read before the inventory was listed: an instance that it names was there to be seen.
        inventory: Its provider's; None when the provider is no longer configured, which is like unknown.
        now: Aware UTC.
    """
    seen = inventory.by_label() if isinstance(inventory, Known) else None
    lease = job.lease
    if job.state in LEASED and lease is not None:
        if now >= lease.until:
            return Fact.SILENT, f"attempt {job.attempt} was not heard of in time"
        if seen is not None and lease.label in seen and lease.instance_id is None:
            return Fact.RENTED, f"instance {seen[lease.label].instance_id} of {lease.provider}"
        if seen is not None and lease.label not in seen and lease.instance_id is not None:
            return Fact.GONE, f"instance {lease.instance_id} of {lease.provider} is gone"
    if job.state is State.PREEMPTED:
        if job.failures >= FAILURES_MAX:
            return Fact.EXHAUSTED, f"{job.failures} attempts in a row made no progress; the last: {job.reason}"
        if job.not_before is None or now >= job.not_before:
            return Fact.WAITED, "waits for a free place"
    if job.state in ENDED and job.open and (lease is None or (seen is not None and lease.label not in seen)):
        return Fact.SETTLED, ""
    return None


def wants(job: Job | None, label: str) -> bool:
    """Whether the instance with the label has a live lease; without one it must go."""
    return job is not None and job.state in LEASED and job.lease is not None and job.lease.label == label


def choose_next(jobs: Collection[Job], limits: Mapping[str, int]) -> Sequence[Job]:
    """The queued jobs that have a free place now, first come first within a priority.

    Args:
        jobs: All open jobs.
        limits: Concurrent jobs by kind; a kind without a limit runs none.
    """
    taken = Counter(job.spec.kind for job in jobs if job.state in LEASED)
    order = list(Priority)
    queued = sorted(
        (job for job in jobs if job.state is State.QUEUED),
        key=lambda job: (order.index(Priority(job.spec.priority)), job.requested_at, job.job_id),
    )
    chosen = []
    for job in queued:
        if taken[job.spec.kind] < limits.get(job.spec.kind, 0):
            taken[job.spec.kind] += 1
            chosen.append(job)
    return chosen


def refusal(spec: JobRequested, *, bucket: str) -> str | None:
    """Why a job could never run as it is specified; None when it could.

    Args:
        spec: As requested.
        bucket: The one bucket that jobs read from and write to: a caller must not reach others through us.
    """
    if spec.kind not in set(Kind):
        return f"kind {spec.kind!r} is none of {', '.join(Kind)}"
    if spec.priority not in set(Priority):
        return f"priority {spec.priority!r} is none of {', '.join(Priority)}"
    if spec.kind != Kind.BATCH:
        return f"no provider here can run kind {spec.kind!r}"
    if spec.dataset_uri is None or spec.output_uri is None:
        return "a batch job needs dataset_uri and output_uri"
    for field, uri in (("dataset_uri", spec.dataset_uri), ("output_uri", spec.output_uri)):
        where, _, name = uri.removeprefix("gs://").partition("/")
        if where != bucket:
            return f"{field} must lie in gs://{bucket}/"
        if name.endswith("/"):
            return f"{field} names a folder"
        if field == "output_uri" and name.startswith(RESERVED_PREFIXES):
            return f"output_uri must not lie below {' or '.join(RESERVED_PREFIXES)}"
    return None


def refuses_checkpoint(job: Job, checkpoint: Checkpoint) -> str | None:
    """Why a verified checkpoint does not become the job's; None when it does."""
    if checkpoint.attempt != job.attempt:
        return f"it is of attempt {checkpoint.attempt}, the job is at attempt {job.attempt}"
    if checkpoint.step <= job.saved_step:
        return f"the job is already at step {job.saved_step}"
    if (job.state, Fact.SAVED) not in TABLE:
        return f"the job is {job.state}"
    return None
