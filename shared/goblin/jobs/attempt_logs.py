"""The log of an attempt: uploaded by its host in pieces, read by whoever may see the job."""

from __future__ import annotations

import asyncio
from contextlib import aclosing
from dataclasses import dataclass

from goblin.core.errors import InvalidRequest, NotFound
from goblin.core.ports import SignedRequest
from goblin.jobs.lifecycle import JobDeps, load
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
    """False: there is more before it."""


def folder(bucket: str, job_id: str, attempt: int) -> str:
    """Where the pieces of an attempt's log lie; they sort as names."""
    return f"gs://{bucket}/logs/{job_id}/a{attempt}/"


async def sign_piece(job_id: str, attempt: int, number: int, *, size: int, crc32c: str, deps: JobDeps) -> SignedRequest:
    """Let the attempt upload one piece, once.

    Raises:
        InvalidRequest: There is no such piece, or it is larger than this one may be.
    """
    most = piece_bytes_max(number)
    if not 0 < size <= most:
        raise InvalidRequest(f"piece {number} of a log may have 1 to {most} bytes", param="size")
    uri = f"{folder(deps.bucket, job_id, attempt)}{number:06d}"
    return await deps.objects.sign_put(uri, size=size, crc32c=crc32c)


async def read(job_id: str, attempt: int | None, deps: JobDeps) -> AttemptLog:
    """The end of an attempt's log; None: of the last one.

    Raises:
        NotFound: There is no such job or attempt.
    """
    job = (await load(deps, job_id)).job
    if attempt is not None and not 1 <= attempt <= job.attempt:
        raise NotFound(f"job {job_id} has {job.attempt} attempts", param="attempt")
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
