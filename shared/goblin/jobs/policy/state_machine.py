"""State machine of a job: the table of its transitions, and the rules that trigger them.

    requested → queued ⇄ placing → starting → running → finishing → succeeded
                  ↑         └──────────┴─────────┤
                  └───────────── preempted ──────┘      any → cancelled; refused, failed with a reason

A trigger that the table does not have for a state changes nothing: it came late, twice or out of order.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from enum import StrEnum
from typing import Any

from goblin.jobs.domain.checkpoints import Checkpoint
from goblin.jobs.domain.instances import AttemptLease, Instance, InstanceState, Inventory, KnownInventory
from goblin.jobs.domain.job import ENDED, LEASED, REASONS_MAX, Job, JobState, Reason, StopRequest

LEASE_S = 45.0
"""Longest silence of a running attempt; an agent sends a heartbeat every `HEARTBEAT_S`."""
HEARTBEAT_S = 10.0
LEAVES_WITHIN = timedelta(seconds=30)
"""An outbid instance at Vast.ai runs for 10 to 30 s more."""
DOWNLOAD_BYTES_PER_S_MIN = 5e6
"""Slowest accepted download: extends the time that an attempt may take to its first step."""
STALL_S = 30 * 60.0
"""Longest time with heartbeats but without progress, unless the interval between checkpoints is longer."""
BACKOFF_S = 5.0
"""Half the pause after the second failed attempt in a row; it doubles with each further failure."""
BACKOFF_S_MAX = 300.0
NO_CAPACITY_S = 15.0
"""Pause after a provider refused a rental; it doubles with each further refusal."""
REFUSALS_MAX = 10
"""No longer pause follows from more of them."""
ENDED_KEPT = timedelta(days=30)
SAID_MAX = 500
"""Characters of an error that are stored in a job's history."""
SLOW_SHARE = 0.4
"""Share of the best speed on the same GPU model; an attempt on a slower machine is ended."""
FAULTS_MAX = 30
"""Runs of reconcile, one a minute, that may meet the same error with a job before it fails."""
FINISHING_MAX = timedelta(hours=6)
"""How long the output may not get written, for whatever reason, before the job fails; its checkpoints stay."""
JUDGED_AFTER = timedelta(minutes=20)
"""Time before the speed is judged: the start and the first steps are slow on every machine."""


class Trigger(StrEnum):
    """A fact that moves a job from state to state."""

    ACCEPTED = "accepted"
    """The input exists and is valid."""
    REJECTED = "rejected"
    PLACED = "placed"
    """A place is free and the next attempt has its lease."""
    RENTED = "rented"
    """The attempt's instance is known to exist."""
    NOT_RENTED = "not rented"
    """No instance was rented: the provider refused, or no budget was reserved."""
    CLAIMED = "claimed"
    """The agent claimed the job with the current token."""
    BEAT = "beat"
    SAVED = "saved"
    """A later checkpoint of this attempt was verified."""
    FINISHED = "finished"
    """All work is done and the last checkpoint is verified."""
    WITHDRAWN = "withdrawn"
    """The agent reports that its instance is being taken away."""
    SILENT = "silent"
    """The attempt lease expired."""
    GONE = "gone"
    """A complete inventory does not list the instance."""
    STOPPED = "stopped"
    """The instance was outbid, or taken back by its host."""
    STALLED = "stalled"
    """The attempt sends heartbeats but makes no progress, or is far slower than others."""
    FAULTY = "faulty"
    """GPU memory has uncorrected errors: its results cannot be used."""
    TAKEN = "taken"
    """The attempt did not give the job back in time after a stop request."""
    BROKEN = "broken"
    """The attempt or the writing of the output met an error that no other attempt can fix."""
    WAITED = "waited"
    EXHAUSTED = "exhausted"
    """No further attempt: too many made no progress, or the budget is used up."""
    COMPOSED = "composed"
    """The output is written."""
    CANCELLED = "cancelled"
    SETTLED = "settled"
    """The job has ended, no instance of it runs, and its cost is settled."""


class FollowUp(StrEnum):
    """Action to take right after a transition is written; reconcile repeats what was not done."""

    CHECK = "check the dataset"
    RENT = "rent the instance"
    RELEASE = "release the instance"
    COMPOSE = "put the output together"


Step = tuple[JobState, tuple[FollowUp, ...]]

_LOST: Step = (JobState.PREEMPTED, (FollowUp.RELEASE,))
_CANCELLED: Step = (JobState.CANCELLED, (FollowUp.RELEASE,))
_FAILED: Step = (JobState.FAILED, (FollowUp.RELEASE,))

TABLE: Mapping[tuple[JobState, Trigger], Step] = {
    (JobState.REQUESTED, Trigger.ACCEPTED): (JobState.QUEUED, ()),
    (JobState.REQUESTED, Trigger.REJECTED): (JobState.REFUSED, ()),
    (JobState.REQUESTED, Trigger.CANCELLED): (JobState.CANCELLED, ()),
    (JobState.QUEUED, Trigger.PLACED): (JobState.PLACING, (FollowUp.RENT,)),
    (JobState.QUEUED, Trigger.SAVED): (JobState.QUEUED, ()),
    (JobState.QUEUED, Trigger.EXHAUSTED): _FAILED,
    (JobState.QUEUED, Trigger.CANCELLED): _CANCELLED,
    (JobState.PLACING, Trigger.RENTED): (JobState.STARTING, ()),
    # Nothing ran, so nothing was lost: the job is placed again after a pause.
    (JobState.PLACING, Trigger.NOT_RENTED): (JobState.QUEUED, (FollowUp.RELEASE,)),
    # The agent may claim the job before the provider answers the rental request.
    (JobState.PLACING, Trigger.CLAIMED): (JobState.RUNNING, ()),
    (JobState.PLACING, Trigger.SILENT): _LOST,
    (JobState.PLACING, Trigger.STOPPED): _LOST,
    (JobState.PLACING, Trigger.TAKEN): _LOST,
    (JobState.PLACING, Trigger.CANCELLED): _CANCELLED,
    (JobState.STARTING, Trigger.CLAIMED): (JobState.RUNNING, ()),
    (JobState.STARTING, Trigger.SILENT): _LOST,
    (JobState.STARTING, Trigger.GONE): _LOST,
    (JobState.STARTING, Trigger.STOPPED): _LOST,
    (JobState.STARTING, Trigger.TAKEN): _LOST,
    (JobState.STARTING, Trigger.CANCELLED): _CANCELLED,
    (JobState.RUNNING, Trigger.RENTED): (JobState.RUNNING, ()),
    (JobState.RUNNING, Trigger.CLAIMED): (JobState.RUNNING, ()),
    (JobState.RUNNING, Trigger.BEAT): (JobState.RUNNING, ()),
    (JobState.RUNNING, Trigger.SAVED): (JobState.RUNNING, ()),
    (JobState.RUNNING, Trigger.FINISHED): (JobState.FINISHING, (FollowUp.COMPOSE, FollowUp.RELEASE)),
    (JobState.RUNNING, Trigger.WITHDRAWN): _LOST,
    (JobState.RUNNING, Trigger.SILENT): _LOST,
    (JobState.RUNNING, Trigger.GONE): _LOST,
    (JobState.RUNNING, Trigger.STOPPED): _LOST,
    (JobState.RUNNING, Trigger.STALLED): _LOST,
    (JobState.RUNNING, Trigger.FAULTY): _LOST,
    (JobState.RUNNING, Trigger.TAKEN): _LOST,
    (JobState.RUNNING, Trigger.BROKEN): _FAILED,
    (JobState.RUNNING, Trigger.CANCELLED): _CANCELLED,
    # Saved while the attempt ran; its event arrived after the attempt had ended.
    (JobState.PREEMPTED, Trigger.SAVED): (JobState.PREEMPTED, ()),
    (JobState.PREEMPTED, Trigger.WAITED): (JobState.QUEUED, ()),
    (JobState.PREEMPTED, Trigger.EXHAUSTED): _FAILED,
    (JobState.PREEMPTED, Trigger.CANCELLED): _CANCELLED,
    (JobState.FINISHING, Trigger.CANCELLED): _CANCELLED,
    (JobState.FINISHING, Trigger.COMPOSED): (JobState.SUCCEEDED, (FollowUp.RELEASE,)),
    (JobState.FINISHING, Trigger.BROKEN): _FAILED,
    (JobState.SUCCEEDED, Trigger.SETTLED): (JobState.SUCCEEDED, ()),
    (JobState.FAILED, Trigger.SETTLED): (JobState.FAILED, ()),
    (JobState.CANCELLED, Trigger.SETTLED): (JobState.CANCELLED, ()),
    (JobState.REFUSED, Trigger.SETTLED): (JobState.REFUSED, ()),
}


@dataclass(frozen=True, kw_only=True, slots=True)
class Transition:
    """A job after a trigger, and what to do once it is written."""

    job: Job
    actions: tuple[FollowUp, ...]


def apply(job: Job, trigger: Trigger, *, now: datetime, reason: str = "", **changes: Any) -> Transition | None:
    """Apply a trigger to a job.

    Args:
        job: The job as read.
        trigger: What happened.
        now: Aware UTC.
        reason: Line for the job's history; a change of state without one uses the trigger's name.
        changes: Further fields of the job to set.

    Returns:
        The transition; None when the trigger changes nothing in this state.
    """
    following = TABLE.get((job.state, trigger))
    if following is None:
        return None
    state, actions = following
    after = replace(job, state=state, updated_at=now, **changes)
    moved = state is not job.state
    if reason or moved:
        line = Reason(at=now, state=state, text=reason or trigger.value)
        after = replace(after, reasons=(*job.reasons, line)[-REASONS_MAX:])
    if moved:
        after = replace(after, seq=job.seq + 1)
    if trigger is Trigger.SETTLED:
        after = replace(after, open=False)
    if trigger is Trigger.SAVED:
        after = replace(after, failures=0, step=max(after.step, after.saved_step))
    if after.lease is not None and (trigger in (Trigger.CLAIMED, Trigger.SAVED) or after.step > job.step):
        after = replace(after, lease=replace(after.lease, progressed_at=now))
    if moved and state in ENDED:
        after = replace(after, ended_at=now, expires_at=now + ENDED_KEPT, stop=None)
    if moved and state is JobState.PREEMPTED:
        after = _after_loss(after, now)
    if trigger is Trigger.NOT_RENTED:
        wait_s = min(BACKOFF_S_MAX, NO_CAPACITY_S * 2.0**job.refusals)
        after = replace(after, refusals=min(job.refusals + 1, REFUSALS_MAX), not_before=now + timedelta(seconds=wait_s))
    if trigger is Trigger.CLAIMED:
        after = replace(after, refusals=0)
    return Transition(job=after, actions=actions)


def _after_loss(job: Job, now: datetime) -> Job:
    """Set the pause after a lost attempt: none after progress or one failure, then longer with each failure.

    An attempt that was asked to stop has not failed.
    """
    progressed = job.lease is not None and job.saved_step > job.lease.resumed_step
    wanted = job.stop is not None and not job.stop.leaving
    failures = 0 if progressed else job.failures + (0 if wanted else 1)
    wait_s = 0.0 if failures < 2 else min(BACKOFF_S_MAX, BACKOFF_S * 2 ** (failures - 1))
    stop = job.stop if job.stop and job.stop.ends_job else None
    gpu = job.placement.offer.gpu if job.placement else ""
    speed = job.progress.steps_per_s if job.progress else None
    speeds = {**job.speeds, gpu: max(speed, job.speeds.get(gpu, 0.0))} if gpu and speed else job.speeds
    return replace(
        job, failures=failures, not_before=now + timedelta(seconds=wait_s), step=job.saved_step,
        preemptions=job.preemptions + 1, stop=stop, progress=None, speeds=speeds,
    )  # fmt: skip


def observe(job: Job, inventory: Inventory | None, *, now: datetime) -> tuple[Trigger, str] | None:
    """Derive from a job and its provider's inventory what has happened, with the reason; None: nothing.

    Args:
        job: The job as read before the inventory was listed, so an instance that it names must be listed.
        inventory: Inventory of its provider; None if the provider is no longer configured, which counts as unknown.
        now: Aware UTC.
    """
    seen = inventory.by_label() if isinstance(inventory, KnownInventory) else None
    lease = job.lease
    if job.state in LEASED and lease is not None:
        return _observe_attempt(job, lease, seen, now)
    if job.state in (JobState.QUEUED, JobState.PREEMPTED) and job.stop is not None and job.stop.ends_job:
        return Trigger.EXHAUSTED, job.stop.reason
    if job.state is JobState.PREEMPTED:
        if job.failures > job.spec.retries:
            return Trigger.EXHAUSTED, f"{job.failures} attempts in a row made no progress; the last: {job.reason}"
        if job.not_before is None or now >= job.not_before:
            return Trigger.WAITED, "waits for a free place"
    gone = lease is None or (seen is not None and lease.label not in seen)
    if job.state in ENDED and job.open and gone and not job.reservations and job.announced_seq >= job.seq:
        return Trigger.SETTLED, ""
    return None


def _observe_attempt(
    job: Job, lease: AttemptLease, seen: Mapping[str, Instance] | None, now: datetime
) -> tuple[Trigger, str] | None:
    where = f"of {lease.provider}"
    found = seen.get(lease.label) if seen is not None else None
    if now >= lease.until:
        return Trigger.SILENT, f"attempt {job.attempt} sent no heartbeat in time"
    if job.stop is not None and now >= job.stop.by:
        return Trigger.TAKEN, f"taken away: {job.stop.reason}"
    last_words = found is not None and found.state is InstanceState.LEAVING and job.state is JobState.RUNNING
    if found is not None and found.state in (InstanceState.STOPPED, InstanceState.LEAVING) and not last_words:
        told = f" ({found.detail})" if found.detail else ""
        return Trigger.STOPPED, f"instance {found.instance_id} {where} was outbid or taken back{told}"
    if found is not None and found.state is InstanceState.ENDED and job.state is not JobState.PLACING:
        return Trigger.GONE, f"the process of instance {found.instance_id} {where} has ended"
    if found is not None and lease.instance_id is None:
        return Trigger.RENTED, f"instance {found.instance_id} {where}"
    if seen is not None and found is None and lease.instance_id is not None:
        return Trigger.GONE, f"instance {lease.instance_id} {where} is gone"
    if job.progress is not None and job.progress.gpu_errors:
        return Trigger.FAULTY, f"the GPU's memory has {job.progress.gpu_errors} uncorrected errors"
    stall_s = max(STALL_S, 3 * 60.0 * job.spec.checkpoint_minutes)
    if job.step <= lease.resumed_step and job.dataset is not None:
        stall_s += job.dataset.size / DOWNLOAD_BYTES_PER_S_MIN
    if lease.progressed_at is not None and (now - lease.progressed_at).total_seconds() > stall_s:
        return (
            Trigger.STALLED,
            f"attempt {job.attempt} sends heartbeats but made no progress for {stall_s / 60:.0f} min",
        )
    if (slow := _slowness(job, lease, now)) is not None:
        return Trigger.STALLED, slow
    return None


def asked_to_leave(job: Job, inventory: Inventory | None, *, now: datetime) -> StopRequest | None:
    """Build the stop request for an attempt whose instance is being taken away, once; None: it is not."""
    if job.state is not JobState.RUNNING or job.lease is None or not isinstance(inventory, KnownInventory):
        return None
    found = inventory.by_label().get(job.lease.label)
    if found is None or found.state is not InstanceState.LEAVING or (job.stop is not None and job.stop.leaving):
        return None
    reason = f"instance {found.instance_id} of {job.lease.provider} is outbid or taken back ({found.detail})"
    return StopRequest(
        reason=reason, by=now + LEAVES_WITHIN, ends_job=job.stop.ends_job if job.stop else False, leaving=True
    )


def _slowness(job: Job, lease: AttemptLease, now: datetime) -> str | None:
    """Explain why a machine is too slow: one with the same GPU model did the same work far faster. None: it is not."""
    told, best = job.progress, job.speeds.get(job.placement.offer.gpu) if job.placement else None
    if told is None or best is None or not told.steps_per_s or now - lease.placed_at < JUDGED_AFTER:
        return None
    if told.steps_per_s >= best * SLOW_SHARE:
        return None
    return f"attempt {job.attempt} does {told.steps_per_s:.3g} steps a second where another machine did {best:.3g}"


def is_loss(before: Job, after: Job) -> bool:
    """Check whether between the two an attempt was lost, or became known to be leaving. Each loss counts once."""
    leaving = before.stop is not None and before.stop.leaving
    lost = after.state is JobState.PREEMPTED and before.state is not JobState.PREEMPTED
    leaves = after.stop is not None and after.stop.leaving
    return not leaving and (lost or leaves)


def has_live_lease(job: Job | None, label: str) -> bool:
    """Check whether the instance with the label has a live lease; without one it is released."""
    return job is not None and job.state in LEASED and job.lease is not None and job.lease.label == label


def refuses_checkpoint(job: Job, checkpoint: Checkpoint) -> str | None:
    """Explain why a verified checkpoint does not become the job's; None if it does."""
    if checkpoint.attempt != job.attempt:
        return f"it is of attempt {checkpoint.attempt}, the job is at attempt {job.attempt}"
    if checkpoint.step <= job.saved_step:
        return f"the job is already at step {job.saved_step}"
    if (job.state, Trigger.SAVED) not in TABLE:
        return f"the job is {job.state}"
    return None


def unwritten(job: Job, said: str, *, now: datetime) -> str | None:
    """Explain why a finishing job ends without its output, after a try failed that may be repeated; None: try again."""
    began = next((line.at for line in job.reasons if line.state is JobState.FINISHING), job.updated_at)
    if now - began < FINISHING_MAX:
        return None
    hours = FINISHING_MAX.total_seconds() / 3600
    return f"the output could not be written in {hours:.0f} hours: {said[:SAID_MAX]}"


def note(job: Job, **changes: Any) -> Transition:
    """Change fields of a job without changing its state."""
    return Transition(job=replace(job, **changes), actions=())


_GIVES_UP: Mapping[JobState, Trigger] = {
    JobState.REQUESTED: Trigger.REJECTED,
    JobState.QUEUED: Trigger.EXHAUSTED,
    # First its instance ends; the next run that meets the error ends the job.
    JobState.PLACING: Trigger.TAKEN,
    JobState.STARTING: Trigger.TAKEN,
    JobState.RUNNING: Trigger.BROKEN,
    JobState.PREEMPTED: Trigger.EXHAUSTED,
    JobState.FINISHING: Trigger.BROKEN,
}
"""What ends a job with which reconcile meets the same error again and again."""


def faulted(job: Job, fault: str, said: str, *, now: datetime) -> Transition | None:
    """Count a run of reconcile that met an error with a job; after `FAULTS_MAX` with the same the job fails.

    Args:
        job: The job as read.
        fault: The error by step and kind, which is the same each time that it is the same error.
        said: The error's words, for a person.
        now: Aware UTC.

    Returns:
        What to write; None when the job has ended already: only a person can mend what is left to do for it.
    """
    faults = job.faults + 1 if job.fault == fault else 1
    if faults < FAULTS_MAX:
        return note(job, fault=fault, faults=faults)
    reason = f"{faults} runs of reconcile in a row met the same error: {said[:SAID_MAX]}"
    trigger = _GIVES_UP.get(job.state)
    return None if trigger is None else apply(job, trigger, now=now, reason=reason, fault=fault, faults=faults)


def sound(job: Job) -> Transition | None:
    """Forget the error of earlier runs, once a run met none; None: there is none to forget."""
    return note(job, fault="", faults=0) if job.fault else None


def ask_to_stop(job: Job, stop: StopRequest, *, now: datetime) -> Transition:
    """Ask the current attempt to save and give the job back; it learns of it with its next heartbeat reply."""
    line = Reason(at=now, state=job.state, text=f"asked to stop: {stop.reason}")
    return note(job, stop=stop, updated_at=now, reasons=(*job.reasons, line)[-REASONS_MAX:])
