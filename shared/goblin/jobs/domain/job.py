"""A job over all its attempts: one document, changed only by compare-and-set."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from enum import StrEnum

import msgspec

from goblin.core.events import JobRequested
from goblin.jobs.domain.checkpoints import Checkpoint
from goblin.jobs.domain.instances import AttemptLease
from goblin.jobs.domain.market import NoPlacement, Placement

REASONS_MAX = 30
"""The oldest are dropped."""


class JobState(StrEnum):
    """Where a job is in its life; `policy.jobs` has the ways between them."""

    REQUESTED = "requested"
    """Written down; its dataset has not been looked at."""
    QUEUED = "queued"
    """It can run and waits for a free place."""
    PLACING = "placing"
    """A lease is written and an instance is being asked for."""
    STARTING = "starting"
    """The instance exists and has not spoken yet."""
    RUNNING = "running"
    PREEMPTED = "preempted"
    """The attempt is over, the job is not; it waits a moment."""
    FINISHING = "finishing"
    """All work is done and checkpointed; the output is being put together."""
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    CANCELLED = "cancelled"
    REFUSED = "refused"
    """It could never have run; the reason says why."""


ENDED = frozenset({JobState.SUCCEEDED, JobState.FAILED, JobState.CANCELLED, JobState.REFUSED})
LEASED = frozenset({JobState.PLACING, JobState.STARTING, JobState.RUNNING})
"""Somebody may be at work, and somebody else may not."""


class JobKind(StrEnum):
    """What sort of work; each has its own limit of concurrent jobs."""

    TRAINING = "training"
    BATCH = "batch"
    INFERENCE = "inference"


class JobPriority(StrEnum):
    """Who goes first within a kind."""

    HIGH = "high"
    DEFAULT = "default"
    LOW = "low"


@dataclass(frozen=True, kw_only=True, slots=True)
class Reason:
    """One line of a job's history, for a person."""

    at: datetime
    state: JobState
    text: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Dataset:
    """The dataset as it was when the job was accepted; another object under its name is not read."""

    uri: str
    generation: int
    size: int
    items: int


@dataclass(frozen=True, kw_only=True, slots=True)
class Progress:
    """What the current attempt said last of itself. A host's words: shown, and never relied upon."""

    at: datetime
    step: int
    loss: float | None = None
    steps_per_s: float | None = None
    gpu_share: float | None = None
    """Of the time that the GPU was busy."""
    gpu_errors: int | None = None
    """Of its memory, uncorrected, since the attempt began."""
    save_s: float | None = None
    """How long the last checkpoint held the work up."""


@dataclass(frozen=True, kw_only=True, slots=True)
class InstanceReservation:
    """What an attempt's instance may cost, put aside in the ledger, until its end is known and its cost written."""

    label: str
    """Of the attempt; the ledger's lease is named by it."""
    provider: str
    spot: bool
    price_usd_micros_per_hour: int
    """All in: bid or price, storage, and the traffic of saves."""
    start_usd_micros: int
    """Traffic of the start."""
    since: datetime
    until: datetime
    """What is put aside pays until then; beyond it the instance must not live."""
    reserved_usd_micros: int
    """0: it is a plan, and nothing may be rented on it."""
    seq: int = 0
    """Of the last exchange with the ledger."""
    shortest_s: int = 0
    """Of a first slice: what is shorter is not worth a start."""
    part: int = 1
    """Counts the UTC days that it goes over: each day's is put aside and settled for itself, as it is billed."""
    instance_id: str | None = None
    """As its provider calls it, once that is known: its bill is found by it where the bill tells no label."""
    ended_at: datetime | None = None
    """When its instance was first known to be gone, or the next day's part took over; from then on it is settled."""


@dataclass(frozen=True, kw_only=True, slots=True)
class StopRequest:
    """The current attempt is asked to save, upload and give the job back."""

    reason: str
    by: datetime
    """Then it is taken away."""
    ends_job: bool = False
    """The job fails then: its budget is used up."""
    leaving: bool = False
    """Its instance is being taken away whatever we wish: a loss like any other, which is counted by now."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Job:
    """A requested piece of work, over all its attempts."""

    job_id: str
    spec: JobRequested
    spec_sha256: str
    """Tells a repeated request from another one with the same id."""
    state: JobState
    requested_at: datetime
    updated_at: datetime
    reasons: tuple[Reason, ...] = ()
    """Newest last."""
    attempt: int = 0
    lease: AttemptLease | None = None
    """The current or the last attempt's."""
    dataset: Dataset | None = None
    step: int = 0
    """Items done as last told, which may be ahead of the checkpoint."""
    checkpoint: Checkpoint | None = None
    failures: int = 0
    """Attempts in a row that ended without a new checkpoint."""
    refusals: int = 0
    """How often in a row a provider had nothing after all."""
    not_before: datetime | None = None
    """It waits until then before it is placed again."""
    ended_at: datetime | None = None
    open: bool = True
    """False once it has ended and its last instance is known to be gone: nothing is left to do."""
    expires_at: datetime | None = None
    """When the store may forget an ended job."""
    told_total: int | None = None
    """Training: steps in all, as its task said; a batch's are its dataset's items."""
    progress: Progress | None = None
    placement: Placement | None = None
    """What the current or the last attempt was placed on, and what else there was."""
    no_placement: NoPlacement | None = None
    """Why it waits: nothing that could be had would do."""
    speeds: Mapping[str, float] = field(default_factory=dict)
    """Steps a second by GPU: the best that an earlier attempt reached, to know a slow machine by."""
    preemptions: int = 0
    """Attempts that ended before the work did, for whatever reason."""
    reservations: tuple[InstanceReservation, ...] = ()
    """Of the attempts whose cost is not settled; the current one's is among them."""
    spent_usd_micros: int = 0
    """Settled, over all attempts."""
    stop: StopRequest | None = None
    seq: int = 0
    """Counts changes of state and new attempts: each is announced on `job-status-changed`."""
    announced_seq: int = 0
    """Up to here it is known to be out."""
    invalid_reports: int = 0
    """What its hosts said or uploaded that was not so."""

    @property
    def saved_step(self) -> int:
        """Items that no later attempt does again."""
        return self.checkpoint.step if self.checkpoint else 0

    @property
    def total(self) -> int | None:
        """Steps or items in all; None: nobody knows yet."""
        return self.dataset.items if self.dataset and self.spec.kind == JobKind.BATCH else self.told_total

    @property
    def reason(self) -> str:
        """Why it is where it is."""
        return self.reasons[-1].text if self.reasons else ""


def spec_digest(spec: JobRequested) -> str:
    """One digest for one meaning: defaults count as said, the order of parameters does not matter."""
    return hashlib.sha256(msgspec.json.encode(spec, order="sorted")).hexdigest()
