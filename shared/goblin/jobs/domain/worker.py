"""What a host is given: requests that need no key, and what to do; and what it says of its work."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from goblin.core.ports import SignedRequest


@dataclass(frozen=True, kw_only=True, slots=True)
class InputFile:
    """A file that an attempt may read, and what proves that it is the right one."""

    name: str
    size: int
    crc32c: str
    """Base64 of the big-endian checksum, as the bucket says it."""
    sha256: str | None
    """None: nobody who can be trusted has computed it."""
    grant: SignedRequest
    """Named as the worker protocol names it."""


@dataclass(frozen=True, kw_only=True, slots=True)
class TrainingInputs:
    """What a training starts from."""

    files: tuple[InputFile, ...] = ()
    """The dataset, where there is one."""
    checkpoint: tuple[InputFile, ...] = ()
    """To resume from; none: from the start."""


@dataclass(frozen=True, kw_only=True, slots=True)
class WorkerReport:
    """What an attempt says of its work; a host's words."""

    total: int | None = None
    """Steps in all."""
    loss: float | None = None
    steps_per_s: float | None = None
    gpu_share: float | None = None
    gpu_errors: int | None = None
    save_s: float | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class HeartbeatReply:
    """What an attempt is told when it says that it is alive."""

    state: str
    stop: str | None
    """Why it is to save and give the job back; None: it may go on."""
    checkpoint_s: float | None
    """Work between two checkpoints; None: it counts items, not time."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Assignment:
    """What an attempt has to do."""

    job_id: str
    attempt: int
    kind: str
    step: int
    """Items or steps done by earlier attempts."""
    total: int | None
    checkpoint_every: int
    """Items."""
    heartbeat_s: float
    dataset: SignedRequest | None
    """A batch's."""
    dataset_offset: int
    """Where the first item that is not done begins."""
    model: str | None
    """For items that name none; what it means to a training is its task's affair."""
    parameters: Mapping[str, object]
    task: str | None = None
    inputs: TrainingInputs = field(default_factory=TrainingInputs)
    """A training's."""
    checkpoint_s: float | None = None
    """Work between two checkpoints of a training."""
