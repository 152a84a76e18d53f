"""The life of a job: one table of what may follow what, and the few judgements beside it.

    requested → queued ⇄ placing → starting → running → finishing → succeeded
                  ↑         └──────────┴─────────┤
                  └───────────── preempted ──────┘      any → cancelled; refused, failed with a reason

A fact that the table does not have for a state changes nothing: it came late, twice or out of order.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from enum import StrEnum
from typing import Any

from goblin.jobs.domain.checkpoints import Checkpoint
from goblin.jobs.domain.instances import Instance, InstanceState, Inventory, Known, Lease
from goblin.jobs.domain.job import ENDED, LEASED, REASONS_MAX, Job, Reason, State, Stop

LEASE_S = 45.0
"""How long a running attempt may be silent; a worker speaks every `HEARTBEAT_S`."""
HEARTBEAT_S = 10.0
LEAVES_WITHIN = timedelta(seconds=30)
"""Who is outbid at Vast.ai works for 10 to 30 s more."""
DOWNLOAD_BYTES_PER_S_MIN = 5e6
"""Before its first step an attempt fetches its input, which may take so long."""
STALL_S = 30 * 60.0
"""How long an attempt may say that it is alive and get no further, unless its checkpoints are farther apart."""
BACKOFF_S_MAX = 300.0
NO_CAPACITY_S = 15.0
"""After a provider said no; it doubles with each further no."""
ENDED_KEPT = timedelta(days=30)
SLOW_SHARE = 0.4
"""Of the best speed on the same GPU: below it a machine is not worth staying on."""
JUDGED_AFTER = timedelta(minutes=20)
"""Boots and first steps are slow everywhere."""


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
    STOPPED = "stopped"
    """Outbid, or taken back by its host."""
    STALLED = "stalled"
    """It says that it is alive and gets no further, or far slower than others."""
    FAULTY = "faulty"
    """Its GPU loses bits: what it computes is worth nothing."""
    TAKEN = "taken"
    """It was asked to give the job back and did not in time, or what it may cost is used up."""
    BROKEN = "broken"
    """The attempt, or putting its output together, met what no other attempt can mend."""
    WAITED = "waited"
    EXHAUSTED = "exhausted"
    """Another attempt would be in vain, or cannot be paid."""
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
    (State.QUEUED, Fact.EXHAUSTED): _FAILED,
    (State.QUEUED, Fact.CANCELLED): _CANCELLED,
    (State.PLACING, Fact.RENTED): (State.STARTING, ()),
    # Nothing ran, so nothing was lost: it asks for another place a little later.
    (State.PLACING, Fact.NOT_RENTED): (State.QUEUED, (Action.RELEASE,)),
    # The instance can be quicker than the provider's answer about it.
    (State.PLACING, Fact.CLAIMED): (State.RUNNING, ()),
    (State.PLACING, Fact.SILENT): _LOST,
    (State.PLACING, Fact.STOPPED): _LOST,
    (State.PLACING, Fact.TAKEN): _LOST,
    (State.PLACING, Fact.CANCELLED): _CANCELLED,
    (State.STARTING, Fact.CLAIMED): (State.RUNNING, ()),
    (State.STARTING, Fact.SILENT): _LOST,
    (State.STARTING, Fact.GONE): _LOST,
    (State.STARTING, Fact.STOPPED): _LOST,
    (State.STARTING, Fact.TAKEN): _LOST,
    (State.STARTING, Fact.CANCELLED): _CANCELLED,
    (State.RUNNING, Fact.RENTED): (State.RUNNING, ()),
    (State.RUNNING, Fact.CLAIMED): (State.RUNNING, ()),
    (State.RUNNING, Fact.BEAT): (State.RUNNING, ()),
    (State.RUNNING, Fact.SAVED): (State.RUNNING, ()),
    (State.RUNNING, Fact.FINISHED): (State.FINISHING, (Action.COMPOSE, Action.RELEASE)),
    (State.RUNNING, Fact.WITHDRAWN): _LOST,
    (State.RUNNING, Fact.SILENT): _LOST,
    (State.RUNNING, Fact.GONE): _LOST,
    (State.RUNNING, Fact.STOPPED): _LOST,
    (State.RUNNING, Fact.STALLED): _LOST,
    (State.RUNNING, Fact.FAULTY): _LOST,
    (State.RUNNING, Fact.TAKEN): _LOST,
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
    moved = state is not job.state
    if reason or moved:
        line = Reason(at=now, state=state, text=reason or fact.value)
        after = replace(after, reasons=(*job.reasons, line)[-REASONS_MAX:])
    if moved:
        after = replace(after, seq=job.seq + 1)
    if fact is Fact.SETTLED:
        after = replace(after, open=False)
    if fact is Fact.SAVED:
        after = replace(after, failures=0, step=max(after.step, after.saved_step))
    if after.lease is not None and (fact in (Fact.CLAIMED, Fact.SAVED) or after.step > job.step):
        after = replace(after, lease=replace(after.lease, progressed_at=now))
    if moved and state in ENDED:
        after = replace(after, ended_at=now, expires_at=now + ENDED_KEPT, stop=None)
    if moved and state is State.PREEMPTED:
        after = _after_loss(after, now)
    if fact is Fact.NOT_RENTED:
        wait_s = min(BACKOFF_S_MAX, NO_CAPACITY_S * 2.0**job.refusals)
        after = replace(after, refusals=min(job.refusals + 1, 10), not_before=now + timedelta(seconds=wait_s))
    if fact is Fact.CLAIMED:
        after = replace(after, refusals=0)
    return Transition(job=after, actions=actions)


def _after_loss(job: Job, now: datetime) -> Job:
    """Start again at once after progress and after one failure; later failures wait ever longer.

    An attempt that was asked to stop has not failed.
    """
    progressed = job.lease is not None and job.saved_step > job.lease.resumed_step
    wanted = job.stop is not None and not job.stop.leaving
    failures = 0 if progressed else job.failures + (0 if wanted else 1)
    wait_s = 0.0 if failures < 2 else min(BACKOFF_S_MAX, 5.0 * 2 ** (failures - 1))
    stop = job.stop if job.stop and job.stop.ends_job else None
    gpu = job.placement.offer.gpu if job.placement else ""
    speed = job.progress.steps_per_s if job.progress else None
    speeds = {**job.speeds, gpu: max(speed, job.speeds.get(gpu, 0.0))} if gpu and speed else job.speeds
    return replace(
        job, failures=failures, not_before=now + timedelta(seconds=wait_s), step=job.saved_step,
        preemptions=job.preemptions + 1, stop=stop, progress=None, speeds=speeds,
    )  # fmt: skip


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
        return _observe_attempt(job, lease, seen, now)
    if job.state in (State.QUEUED, State.PREEMPTED) and job.stop is not None and job.stop.ends_job:
        return Fact.EXHAUSTED, job.stop.reason
    if job.state is State.PREEMPTED:
        if job.failures > job.spec.retries:
            return Fact.EXHAUSTED, f"{job.failures} attempts in a row made no progress; the last: {job.reason}"
        if job.not_before is None or now >= job.not_before:
            return Fact.WAITED, "waits for a free place"
    gone = lease is None or (seen is not None and lease.label not in seen)
    if job.state in ENDED and job.open and gone and not job.rents and job.announced_seq >= job.seq:
        return Fact.SETTLED, ""
    return None


def _observe_attempt(
    job: Job, lease: Lease, seen: Mapping[str, Instance] | None, now: datetime
) -> tuple[Fact, str] | None:
    where = f"of {lease.provider}"
    found = seen.get(lease.label) if seen is not None else None
    if now >= lease.until:
        return Fact.SILENT, f"attempt {job.attempt} was not heard of in time"
    if job.stop is not None and now >= job.stop.by:
        return Fact.TAKEN, f"taken away: {job.stop.reason}"
    last_words = found is not None and found.state is InstanceState.LEAVING and job.state is State.RUNNING
    if found is not None and found.state in (InstanceState.STOPPED, InstanceState.LEAVING) and not last_words:
        told = f" ({found.detail})" if found.detail else ""
        return Fact.STOPPED, f"instance {found.instance_id} {where} was outbid or taken back{told}"
    if found is not None and found.state is InstanceState.ENDED and job.state is not State.PLACING:
        return Fact.GONE, f"the process of instance {found.instance_id} {where} has ended"
    if found is not None and lease.instance_id is None:
        return Fact.RENTED, f"instance {found.instance_id} {where}"
    if seen is not None and found is None and lease.instance_id is not None:
        return Fact.GONE, f"instance {lease.instance_id} {where} is gone"
    if job.progress is not None and job.progress.gpu_errors:
        return Fact.FAULTY, f"the GPU's memory has {job.progress.gpu_errors} uncorrected errors"
    stall_s = max(STALL_S, 3 * 60.0 * job.spec.checkpoint_minutes)
    if job.step <= lease.resumed_step and job.dataset is not None:
        stall_s += job.dataset.size / DOWNLOAD_BYTES_PER_S_MIN
    if lease.progressed_at is not None and (now - lease.progressed_at).total_seconds() > stall_s:
        return Fact.STALLED, f"attempt {job.attempt} is alive and got no further for {stall_s / 60:.0f} min"
    if (slow := _slowness(job, lease, now)) is not None:
        return Fact.STALLED, slow
    return None


def asked_to_leave(job: Job, inventory: Inventory | None, *, now: datetime) -> Stop | None:
    """What a working attempt is asked, once, whose instance is being taken away; None: it is not."""
    if job.state is not State.RUNNING or job.lease is None or not isinstance(inventory, Known):
        return None
    found = inventory.by_label().get(job.lease.label)
    if found is None or found.state is not InstanceState.LEAVING or (job.stop is not None and job.stop.leaving):
        return None
    reason = f"instance {found.instance_id} of {job.lease.provider} is outbid or taken back ({found.detail})"
    return Stop(reason=reason, by=now + LEAVES_WITHIN, ends_job=job.stop.ends_job if job.stop else False, leaving=True)


def _slowness(job: Job, lease: Lease, now: datetime) -> str | None:
    """Why its machine is too slow to stay on: one of the same GPU did the same work far faster."""
    told, best = job.progress, job.speeds.get(job.placement.offer.gpu) if job.placement else None
    if told is None or best is None or not told.steps_per_s or now - lease.placed_at < JUDGED_AFTER:
        return None
    if told.steps_per_s >= best * SLOW_SHARE:
        return None
    return f"attempt {job.attempt} does {told.steps_per_s:.3g} steps a second where another machine did {best:.3g}"


def is_loss(before: Job, after: Job) -> bool:
    """Whether an attempt was lost between the two, or is known from now on to be lost."""
    leaving = before.stop is not None and before.stop.leaving
    lost = after.state is State.PREEMPTED and before.state is not State.PREEMPTED
    leaves = after.stop is not None and after.stop.leaving
    return not leaving and (lost or leaves)


def wants(job: Job | None, label: str) -> bool:
    """Whether the instance with the label has a live lease; without one it must go."""
    return job is not None and job.state in LEASED and job.lease is not None and job.lease.label == label


def refuses_checkpoint(job: Job, checkpoint: Checkpoint) -> str | None:
    """Why a verified checkpoint does not become the job's; None when it does."""
    if checkpoint.attempt != job.attempt:
        return f"it is of attempt {checkpoint.attempt}, the job is at attempt {job.attempt}"
    if checkpoint.step <= job.saved_step:
        return f"the job is already at step {job.saved_step}"
    if (job.state, Fact.SAVED) not in TABLE:
        return f"the job is {job.state}"
    return None


def note(job: Job, **changes: Any) -> Transition:
    """Write something into a job that changes nothing about where it is in its life."""
    return Transition(job=replace(job, **changes), actions=())


def ask_to_stop(job: Job, stop: Stop, *, now: datetime) -> Transition:
    """Let the current attempt save and give the job back; it learns of it with its next heartbeat."""
    line = Reason(at=now, state=job.state, text=f"asked to stop: {stop.reason}")
    return note(job, stop=stop, updated_at=now, reasons=(*job.reasons, line)[-REASONS_MAX:])
