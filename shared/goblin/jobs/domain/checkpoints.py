"""Checkpoints, from which a job can resume, and the manifests that prove them complete."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime

MANIFEST = "MANIFEST.json"
FILE_NAME_MAX = 128
FILE_NAME = rf"^[A-Za-z0-9][A-Za-z0-9._-]{{0,{FILE_NAME_MAX - 1}}}\Z"
FILES_MAX = 64
FILE_BYTES_MAX = 5 * 1024**3
"""Limit of a single PUT in Cloud Storage."""
STEP_MAX = 99_999_999
"""Eight digits: steps are padded to them so that their names sort."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Checkpoint:
    """A pointer to a verified manifest."""

    step: int
    attempt: int
    manifest_uri: str
    generation: int
    """Generation of the manifest object: another object under the same name is another checkpoint."""
    dataset_offset: int = 0
    """Bytes of the dataset that are processed, so that a resume reads only the rest."""
    size: int = 0
    """Bytes of all its files; 0: unknown."""
    failed_items: int = 0
    """Batch: items up to here whose result is an error."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Artifact:
    """One file of a checkpoint, as the host announced it."""

    name: str
    size: int
    crc32c: str
    """Base64 of the big-endian checksum, as Cloud Storage writes it."""
    sha256: str


@dataclass(frozen=True, kw_only=True, slots=True)
class StoredArtifact:
    """One file of a checkpoint, as found in the bucket."""

    name: str
    uri: str
    generation: int
    size: int
    crc32c: str
    sha256: str
    """Empty if the checkpoint was too large to be read: then only the bucket's crc32c is verified."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Manifest:
    """The file that makes a checkpoint exist. The controller, never the host, writes it last."""

    job_id: str
    attempt: int
    step: int
    files: tuple[StoredArtifact, ...]
    previous: Checkpoint | None
    """For a batch, the checkpoint that this one adds to; the chain holds every part of the output. Training: None."""
    dataset_offset: int
    """Bytes of the dataset that are processed, so that a resume reads only the rest."""
    saved_at: datetime
    loss: float | None = None
    """Loss as reported by the host; the checkpoint with the lowest one is kept."""
    failed_items: int = 0
    """As of `Checkpoint`."""


def jobs_folder(bucket: str, job_id: str) -> str:
    """Return the folder of all checkpoints of a job."""
    return f"gs://{bucket}/checkpoints/{job_id}"


def folder(bucket: str, job_id: str, step: int, attempt: int) -> str:
    """Return the folder of an attempt's step, which no other attempt can write to. Steps sort as names."""
    return f"{jobs_folder(bucket, job_id)}/{step:08d}/a{attempt}"


def upload_folder(bucket: str, job_id: str, step: int, attempt: int, upload_id: str) -> str:
    """Return the folder of one upload of a step: a second upload never meets the first one's incomplete files."""
    return f"{folder(bucket, job_id, step, attempt)}/{upload_id}"


def manifest_uri(bucket: str, job_id: str, step: int, attempt: int) -> str:
    """Return the path of a step's manifest."""
    return f"{folder(bucket, job_id, step, attempt)}/{MANIFEST}"
