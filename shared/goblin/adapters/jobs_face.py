"""Jobs on the wire: what callers and hosts post, and what they are told."""

from __future__ import annotations

from typing import Annotated, Any, TypeVar

import msgspec
from msgspec import Meta

from goblin.domain.checkpoints import FILE_BYTES_MAX, FILES_MAX, Artifact, Checkpoint
from goblin.domain.jobs import Job
from goblin.domain.work import Assignment, Grant
from goblin.errors import InvalidRequest
from goblin.events import Sha256

BODY_BYTES_MAX = 256 * 1024

Step = Annotated[int, Meta(ge=0)]
Crc32c = Annotated[str, Meta(pattern=r"^[A-Za-z0-9+/]{6}==\Z")]


class Nothing(msgspec.Struct, frozen=True):
    """A request that says all in its path."""


class Beat(msgspec.Struct, frozen=True):
    """A sign of life."""

    step: Step


class Said(msgspec.Struct, frozen=True):
    """Why an attempt ends."""

    reason: Annotated[str, Meta(max_length=4000)] = ""
    step: Step = 0
    """What was committed last."""


class File(msgspec.Struct, frozen=True):
    """One file of a checkpoint that will be uploaded."""

    name: Annotated[str, Meta(max_length=128)]
    size: Annotated[int, Meta(ge=1, le=FILE_BYTES_MAX)]
    crc32c: Crc32c
    sha256: Sha256

    def artifact(self) -> Artifact:
        """The noun of it."""
        return Artifact(name=self.name, size=self.size, crc32c=self.crc32c, sha256=self.sha256)


Files = Annotated[tuple[File, ...], Meta(min_length=1, max_length=FILES_MAX)]


class Begin(msgspec.Struct, frozen=True):
    """A checkpoint that will be uploaded."""

    step: Annotated[int, Meta(ge=1)]
    files: Files


class Commit(msgspec.Struct, frozen=True):
    """A checkpoint that was uploaded."""

    previous_step: Step
    upload_id: Annotated[str, Meta(max_length=64)]
    files: Files


T = TypeVar("T", bound=msgspec.Struct)


def parse(schema: type[T], body: bytes) -> T:
    """Read a request's body; nothing is an empty object.

    Raises:
        InvalidRequest: With the field.
    """
    try:
        return msgspec.json.decode(body or b"{}", type=schema)
    except msgspec.DecodeError as error:
        raise InvalidRequest(str(error)) from error


def job(shown: Job) -> dict[str, Any]:
    """A job for those who ask about it: no token, no key, not even their digests."""
    spec, lease = shown.spec, shown.lease
    return {
        "object": "job",
        "job_id": shown.job_id,
        "kind": spec.kind,
        "priority": spec.priority,
        "model": spec.model,
        "state": shown.state,
        "reason": shown.reason,
        "step": shown.step,
        "total": shown.dataset.items if shown.dataset else None,
        "attempt": shown.attempt,
        "checkpoint": checkpoint(shown.checkpoint) if shown.checkpoint else None,
        "checkpoint_every": spec.checkpoint_every,
        "dataset_uri": spec.dataset_uri,
        "output_uri": spec.output_uri,
        "parameters": spec.parameters,
        "provider": lease.provider if lease else None,
        "instance_id": lease.instance_id if lease else None,
        "requested_at": shown.requested_at,
        "updated_at": shown.updated_at,
        "ended_at": shown.ended_at,
        "history": [{"at": line.at, "state": line.state, "reason": line.text} for line in shown.reasons],
    }


def checkpoint(saved: Checkpoint) -> dict[str, Any]:
    """A checkpoint, by its manifest."""
    return {
        "step": saved.step,
        "attempt": saved.attempt,
        "manifest_uri": saved.manifest_uri,
        "generation": saved.generation,
    }


def assignment(work: Assignment) -> dict[str, Any]:
    """What an attempt has to do, in the words of its worker."""
    fields: dict[str, Any] = msgspec.to_builtins(work)
    return fields


def grant(given: Grant) -> dict[str, Any]:
    """One signed request."""
    return {"method": given.method, "url": given.url, "headers": dict(given.headers)}
