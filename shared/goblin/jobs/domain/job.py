"""A job with all its attempts: one document, changed only by compare-and-set."""

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
"""Lines in a job's history; the oldest are dropped."""


class JobState(StrEnum):
    """State of a job; `policy.state_machine` has the transitions between them."""

    REQUESTED = "requested"
    """Stored; its dataset has not been checked."""
    QUEUED = "queued"
    """Accepted; waits for a free place and an offer."""
    PLACING = "placing"
    """The attempt lease is written and the instance is being rented."""
    STARTING = "starting"
    """The instance exists; its agent has not sent a request yet."""
    RUNNING = "running"
    PREEMPTED = "preempted"
    """The attempt is over, the job is not; it is queued again after a pause."""
    FINISHING = "finishing"
    """All work is done and checkpointed; the output is being written."""
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    CANCELLED = "cancelled"
    REFUSED = "refused"
    """The job could never run; its reason says why."""


ENDED = frozenset({JobState.SUCCEEDED, JobState.FAILED, JobState.CANCELLED, JobState.REFUSED})
LEASED = frozenset({JobState.PLACING, JobState.STARTING, JobState.RUNNING})
"""States in which one attempt holds the job's lease."""


class JobKind(StrEnum):
    """Kind of work; each kind has its own limit of concurrent jobs."""

    TRAINING = "training"
    BATCH = "batch"
    INFERENCE = "inference"


class JobPriority(StrEnum):
    """Order of jobs within a kind."""

    HIGH = "high"
    DEFAULT = "default"
    LOW = "low"


@dataclass(frozen=True, kw_only=True, slots=True)
class Reason:
    """One line of a job's history, for a person."""

    at: datetime
    state: JobState
    text: str


OPERATOR = "operator"
"""Owner of jobs that no tenant asked for; also of those stored before jobs had owners."""

TENANT = "tenant:"
"""Prefix of an owner that is a tenant, as the gateway writes it."""


@dataclass(frozen=True, kw_only=True, slots=True)
class JobOwner:
    """The party that asked for a job: it sees the job, pays for it, and limits what the job may ask of models."""

    tenant: str = OPERATOR
    """The API key's owner (its tenant, or the key itself), `tenant:NAME` as an event named it, or `OPERATOR`."""
    key_digest: str = ""
    """SHA-256 of the API key; empty: the job came as an event."""
    key_name: str = ""
    models: tuple[str, ...] | None = None
    """Models that the key might use when it asked, as `core.model_names` reads them. None: all."""
    sees_all: bool = False
    """Whether the key had the scope `operate`, so that its jobs may read what other tenants' jobs wrote."""

    @property
    def tenant_name(self) -> str | None:
        """The tenant's name, for people; None: a key without a tenant, or the operator."""
        return self.tenant.removeprefix(TENANT) if self.tenant.startswith(TENANT) else None


@dataclass(frozen=True, kw_only=True, slots=True)
class AskerKey:
    """What has become of an API key that asked for jobs."""

    disabled: bool
    expires_at: datetime | None
    runs_jobs: bool
    """Whether it has the scope to run jobs."""


def owner_of_event(spec: JobRequested) -> JobOwner:
    """Return the owner of a job from the topic: the tenant that its publisher names, else the operator."""
    return JobOwner(tenant=f"{TENANT}{spec.tenant}") if spec.tenant is not None else JobOwner()


@dataclass(frozen=True, kw_only=True, slots=True)
class Dataset:
    """The dataset at the time the job was accepted; a later object under the same name is not read."""

    uri: str
    generation: int
    size: int
    items: int
    models: tuple[str, ...] | None = None
    """Models that the items of a batch name, sorted. None: not a batch, or accepted before they were noted."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Progress:
    """Last worker report of the current attempt. It comes from an untrusted host: shown, never relied upon."""

    at: datetime
    step: int
    loss: float | None = None
    steps_per_s: float | None = None
    gpu_share: float | None = None
    """Share of time that the GPU was busy, 0 to 1."""
    gpu_errors: int | None = None
    """Uncorrected errors of GPU memory since the attempt began."""
    save_s: float | None = None
    """How long the last checkpoint interrupted the work."""


@dataclass(frozen=True, kw_only=True, slots=True)
class InstanceReservation:
    """Budget reserved in the ledger for an attempt's instance, until its end is known and its cost is settled."""

    label: str
    """Label of the attempt; the ledger's allocation is named by it."""
    provider: str
    spot: bool
    price_usd_micros_per_hour: int
    """Full hourly price: bid or on-demand price, storage, and the traffic of saves."""
    start_usd_micros: int
    """Cost of the traffic at the start."""
    since: datetime
    until: datetime
    """The reserved budget pays until then; the instance must not exist longer."""
    reserved_usd_micros: int
    """Budget reserved; 0: this is only a plan, and nothing may be rented on it."""
    seq: int = 0
    """Number of the last exchange with the ledger."""
    shortest_s: int = 0
    """Shortest first slice that is worth a start."""
    part: int = 1
    """Number of its UTC day, from 1: each day is reserved and settled separately, as it is billed."""
    instance_id: str | None = None
    """The provider's id of the instance, once known: finds its charge in a bill that has no labels."""
    ended_at: datetime | None = None
    """When its instance was first known to be gone, or the next day's part took over; then it can be settled."""
    payer: str = ""
    """Account of the API key that asked for the job, which pays beside the job's own; empty: no key asked."""


@dataclass(frozen=True, kw_only=True, slots=True)
class StopRequest:
    """A request to the current attempt to save, upload and give the job back."""

    reason: str
    by: datetime
    """When the instance is released, whether or not the attempt has stopped."""
    ends_job: bool = False
    """Whether the job fails then, because its budget is used up."""
    leaving: bool = False
    """Whether the provider takes the instance away: a loss like any other, already counted."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ItemCounts:
    """Items of a batch, as OpenAI's batches count them."""

    total: int
    completed: int
    """Saved, with an answer."""
    failed: int
    """Saved, with an error."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Job:
    """A requested piece of work, with all its attempts."""

    job_id: str
    spec: JobRequested
    spec_sha256: str
    """Hash of `spec`: tells a repeated request from a different one with the same id."""
    state: JobState
    requested_at: datetime
    updated_at: datetime
    owner: JobOwner = JobOwner()
    reasons: tuple[Reason, ...] = ()
    """History, newest last."""
    attempt: int = 0
    lease: AttemptLease | None = None
    """Lease of the current or the last attempt."""
    dataset: Dataset | None = None
    step: int = 0
    """Items or steps done as last reported; may be ahead of the checkpoint."""
    checkpoint: Checkpoint | None = None
    failures: int = 0
    """Attempts in a row that ended without a new checkpoint."""
    refusals: int = 0
    """Rentals in a row that a provider refused."""
    not_before: datetime | None = None
    """The job is not placed again before then."""
    ended_at: datetime | None = None
    open: bool = True
    """Whether reconcile has anything left to do; False once the job has ended and its last instance is gone."""
    expires_at: datetime | None = None
    """When the store may delete an ended job."""
    told_total: int | None = None
    """Steps in all of a training, as its agent reported; a batch's total is its dataset's items."""
    progress: Progress | None = None
    placement: Placement | None = None
    """Placement of the current or the last attempt, with the other candidates."""
    no_placement: NoPlacement | None = None
    """Why the job waits: no offer was suitable."""
    speeds: Mapping[str, float] = field(default_factory=dict)
    """Best steps per second of earlier attempts, by GPU model: detects a slow machine."""
    preemptions: int = 0
    """Attempts that ended before the work was done, for any reason."""
    reservations: tuple[InstanceReservation, ...] = ()
    """Reservations of attempts whose cost is not settled, the current one included."""
    spent_usd_micros: int = 0
    """Settled cost of all attempts."""
    stop: StopRequest | None = None
    seq: int = 0
    """Counts changes of state; each is published on `job-status-changed`."""
    announced_seq: int = 0
    """Highest `seq` that is known to be published."""
    invalid_reports: int = 0
    """Invalid reports and uploads of its hosts, and refused tokens."""
    fault: str = ""
    """Error that reconcile met with this job in its last run, by step and kind; empty: none."""
    faults: int = 0
    """Runs in a row that met it; see `policy.state_machine.FAULTS_MAX`."""

    @property
    def saved_step(self) -> int:
        """Step of the checkpoint: no later attempt repeats the work before it."""
        return self.checkpoint.step if self.checkpoint else 0

    @property
    def total(self) -> int | None:
        """Steps or items in all; None: not known yet."""
        return self.dataset.items if self.dataset and self.spec.kind == JobKind.BATCH else self.told_total

    @property
    def items(self) -> ItemCounts | None:
        """Items of a batch, as far as they are saved; None: not a batch, or its dataset has not been checked."""
        if self.spec.kind != JobKind.BATCH or self.dataset is None:
            return None
        failed = self.checkpoint.failed_items if self.checkpoint else 0
        return ItemCounts(total=self.dataset.items, completed=self.saved_step - failed, failed=failed)

    @property
    def reason(self) -> str:
        """The newest line of the history."""
        return self.reasons[-1].text if self.reasons else ""


def spec_digest(spec: JobRequested) -> str:
    """Hash a specification: defaults count as given; neither order nor white space of the parameters matters.

    The tenant is left out: it is the owner's, and jobs stored before there was one must keep their hash.
    """
    fields = {name: getattr(spec, name) for name in spec.__struct_fields__ if name != "tenant"}
    fields["parameters"] = msgspec.Raw(msgspec.json.encode(msgspec.json.decode(spec.parameters), order="sorted"))
    return hashlib.sha256(msgspec.json.encode(fields, order="sorted")).hexdigest()
