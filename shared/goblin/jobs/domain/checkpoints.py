"""A saved state that a job can start again from, and the manifest that says it is whole."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime

MANIFEST = "MANIFEST.json"
FILE_NAME = r"^[A-Za-z0-9][A-Za-z0-9._-]{0,127}\Z"
FILES_MAX = 64
FILE_BYTES_MAX = 5 * 1024**3
"""A single PUT's limit in Cloud Storage."""
STEP_MAX = 99_999_999
"""Steps sort as names of eight digits."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Checkpoint:
    """A pointer to a manifest that was verified."""

    step: int
    attempt: int
    manifest_uri: str
    generation: int
    """The manifest's own: another object under the same name is another checkpoint."""
    dataset_offset: int = 0
    """Bytes of the dataset that the job is done with, so that a resume reads only the rest."""
    size: int = 0
    """Bytes of all its files; 0: not told."""


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
    """One file of a checkpoint, as it was found in the bucket."""

    name: str
    uri: str
    generation: int
    size: int
    crc32c: str
    sha256: str
    """Empty when it was too large to be read: then only the bucket's own checksum is known to be true."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Manifest:
    """What the controller, never the host, writes last: the checkpoint exists once this does."""

    job_id: str
    attempt: int
    step: int
    files: tuple[StoredArtifact, ...]
    previous: Checkpoint | None
    """The checkpoint this one adds to; following it back gives every part of the output. A training's is whole."""
    dataset_offset: int
    """Bytes of the dataset that the job is done with, so that a resume reads only the rest."""
    saved_at: datetime
    loss: float | None = None
    """As the host said it, for keeping the best."""


def jobs_folder(bucket: str, job_id: str) -> str:
    """Where all checkpoints of a job lie."""
    return f"gs://{bucket}/checkpoints/{job_id}"


def folder(bucket: str, job_id: str, step: int, attempt: int) -> str:
    """Where an attempt's files of a step lie; another attempt cannot touch them. Steps sort as names."""
    return f"{jobs_folder(bucket, job_id)}/{step:08d}/a{attempt}"


def upload_folder(bucket: str, job_id: str, step: int, attempt: int, upload_id: str) -> str:
    """Where one try at uploading a step's files lies: a second try never meets the first one's torn files."""
    return f"{folder(bucket, job_id, step, attempt)}/{upload_id}"


def manifest_uri(bucket: str, job_id: str, step: int, attempt: int) -> str:
    """Where the manifest of a step lies."""
    return f"{folder(bucket, job_id, step, attempt)}/{MANIFEST}"
