"""Messages between the controller and an agent: assignments with signed requests, worker reports, replies."""

from __future__ import annotations

from dataclasses import dataclass, field

import msgspec

from goblin.core.ports import SignedRequest


@dataclass(frozen=True, kw_only=True, slots=True)
class InputFile:
    """A file that an attempt may read, with the checksums that identify it."""

    name: str
    size: int
    crc32c: str
    """Base64 of the big-endian checksum, as Cloud Storage writes it."""
    sha256: str | None
    """None: the controller has not verified one."""
    grant: SignedRequest
    """Signed request that reads the file. The field has the name of the worker protocol."""


@dataclass(frozen=True, kw_only=True, slots=True)
class TrainingInputs:
    """Files that a training attempt starts from."""

    files: tuple[InputFile, ...] = ()
    """The dataset, if there is one."""
    checkpoint: tuple[InputFile, ...] = ()
    """Files of the checkpoint to resume from; empty: start at step 0."""


@dataclass(frozen=True, kw_only=True, slots=True)
class WorkerReport:
    """What an agent reports of its work; not trusted."""

    total: int | None = None
    """Steps in all."""
    loss: float | None = None
    steps_per_s: float | None = None
    gpu_share: float | None = None
    gpu_errors: int | None = None
    save_s: float | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class HeartbeatReply:
    """Answer to an agent's heartbeat."""

    state: str
    stop: str | None
    """Why the attempt must save and give the job back; None: go on."""
    checkpoint_s: float | None
    """Work between two checkpoints; None: a batch counts items, not time."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Assignment:
    """The work of an attempt."""

    job_id: str
    attempt: int
    kind: str
    step: int
    """Items or steps done by earlier attempts."""
    total: int | None
    checkpoint_every: int
    """Items between two checkpoints of a batch."""
    heartbeat_s: float
    dataset: SignedRequest | None
    """Signed request that reads a batch's dataset; None for a training."""
    dataset_offset: int
    """Offset of the first item that is not done, in bytes."""
    model: str | None
    """Batch: model for items that name none. Training: its meaning is up to the task."""
    parameters: msgspec.Raw
    task: str | None = None
    inputs: TrainingInputs = field(default_factory=TrainingInputs)
    """Inputs of a training; empty for a batch."""
    checkpoint_s: float | None = None
    """Work between two checkpoints of a training."""
