"""The log of an attempt: its host uploads it in pieces; callers who may see the job read it."""

from __future__ import annotations

import asyncio
from contextlib import aclosing
from dataclasses import dataclass

from goblin.core.errors import InvalidRequest, NotFound
from goblin.core.ports import SignedRequest
from goblin.jobs.lifecycle import JobDeps, show
from goblin.jobs.policy.worker_reports import SHOWN_BYTES_MAX, piece_bytes_max, readable

READ_AT_ONCE = 8
PIECES_SHOWN_MAX = 200


@dataclass(frozen=True, kw_only=True, slots=True)
class AttemptLog:
    """The end of an attempt's log."""

    attempt: int
    text: str
    """Newest last."""
    whole: bool
    """Whether `text` is the whole log; False: earlier text is left out."""


def folder(bucket: str, job_id: str, attempt: int) -> str:
    """Return the folder of an attempt's log pieces; their names sort in the order of their numbers."""
    return f"gs://{bucket}/logs/{job_id}/a{attempt}/"


async def sign_piece(job_id: str, attempt: int, number: int, *, size: int, crc32c: str, deps: JobDeps) -> SignedRequest:
    """Sign the upload of one log piece; each piece can be written once.

    Raises:
        InvalidRequest: The piece number does not exist, or the piece is larger than this number allows.
    """
    most = piece_bytes_max(number)
    if not 0 < size <= most:
        raise InvalidRequest(
            f"Log piece {number} may have 1 to {most} bytes. Send a smaller piece, or none.", param="size"
        )
    uri = f"{folder(deps.bucket, job_id, attempt)}{number:06d}"
    return await deps.objects.sign_put(uri, size=size, crc32c=crc32c)


async def read(job_id: str, attempt: int | None, deps: JobDeps, *, tenant: str | None) -> AttemptLog:
    """Read the end of an attempt's log.

    Args:
        job_id: The job.
        attempt: Number of the attempt, from 1; None: the last one.
        deps: Where the job and the pieces are stored.
        tenant: The owner that asks, as in `JobOwner`; None: the operator, who sees every job.

    Raises:
        NotFound: The job or the attempt does not exist, or the job is another tenant's.
    """
    job = await show(job_id, deps, tenant=tenant)
    if attempt is not None and not 1 <= attempt <= job.attempt:
        raise NotFound(f"Job {job_id} has {job.attempt} attempts. Name one of them, counted from 1.", param="attempt")
    attempt = job.attempt if attempt is None else attempt
    where = folder(deps.bucket, job_id, attempt)
    pieces = list(await deps.objects.list_from(where, where))
    found: list[bytes] = []
    size = 0
    while pieces and size < SHOWN_BYTES_MAX and len(found) < PIECES_SHOWN_MAX:
        newest, pieces = pieces[-READ_AT_ONCE:], pieces[:-READ_AT_ONCE]
        for data in reversed(await asyncio.gather(*(_read(uri, deps) for uri in newest))):
            found.append(data)
            size += len(data)
    data = b"".join(reversed(found))
    whole = not pieces and len(data) <= SHOWN_BYTES_MAX
    return AttemptLog(attempt=attempt, text=readable(data[-SHOWN_BYTES_MAX:]), whole=whole)


async def _read(uri: str, deps: JobDeps) -> bytes:
    facts = await deps.objects.stat(uri)
    if facts is None or facts.size > piece_bytes_max(0):
        return b""
    async with aclosing(deps.objects.read(uri, generation=facts.generation)) as chunks:
        return b"".join([chunk async for chunk in chunks])
