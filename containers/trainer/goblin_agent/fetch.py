"""Downloads from the bucket in parallel ranges, resumed where they broke off. A file appears only once verified."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import httpx

from goblin_agent.digests import NAME, differs
from goblin_worker.controller import File, Grant
from goblin_worker.retries import EXPIRED, LOST, Tries, said

RANGE_BYTES = 8 * 1024 * 1024
PARALLEL = 8
"""Ranges at once: a single connection does not fill the machine's bandwidth."""
TIMEOUT = httpx.Timeout(60.0, connect=15.0)

Renew = Callable[[], Awaitable[Grant]]
"""Gets a new signed request for the same file, because signed requests expire."""


class Unreadable(Exception):
    """The file cannot be read from the bucket, or is not the expected one."""


@dataclass
class Source:
    """A file that is downloaded. All its ranges share its current signed request."""

    http: httpx.AsyncClient
    file: File
    renew: Renew
    grant: Grant = field(init=False)
    _renewing: asyncio.Lock = field(default_factory=asyncio.Lock)

    def __post_init__(self) -> None:
        self.grant = self.file.grant

    async def refresh(self, expired: Grant) -> None:
        """Get a new signed request, once for all ranges that found the old one expired."""
        async with self._renewing:
            if self.grant is expired:
                self.grant = await self.renew()


def tidy(folder: Path, files: Sequence[File]) -> None:
    """Delete everything but these files and parts of them: an earlier process may have had other work."""
    expected = {name for file in files for name in (file.name, f".{file.name}.part", f".{file.name}.ranges")}
    for entry in folder.iterdir():
        if entry.name not in expected:
            entry.unlink()


async def fetch(http: httpx.AsyncClient, file: File, folder: Path, renew: Renew) -> Path:
    """Download a file into the folder and verify it. Does nothing if it is there and verifies.

    Args:
        http: Client for the bucket.
        file: The file, with its expected size and checksums.
        folder: Where the file is stored under its name. Parts from an interrupted call are reused.
        renew: Gets a new signed request.

    Raises:
        Unreadable: The bucket refuses or does not answer, or the download fails verification twice.
    """
    if not NAME.match(file.name):
        raise Unreadable(f"an input file cannot be named {file.name!r}")
    path, part = folder / file.name, folder / f".{file.name}.part"
    if await asyncio.to_thread(_is_here, path, file):
        return path
    why = None
    for _ in range(2):
        await _ranges(Source(http, file, renew), part)
        why = await asyncio.to_thread(differs, part, file)
        if why is None:
            _journal(part).unlink(missing_ok=True)
            part.replace(path)
            return path
        part.unlink()
        _journal(part).unlink(missing_ok=True)
    raise Unreadable(f"the file in the bucket is not the expected one: {why}")


def _is_here(path: Path, file: File) -> bool:
    """Return whether the file is there and verifies. Delete a different file of its name."""
    if not path.exists():
        return False
    if differs(path, file) is None:
        return True
    path.unlink()
    return False


def _journal(part: Path) -> Path:
    return part.with_suffix(".ranges")


async def _ranges(source: Source, part: Path) -> None:
    """Download the ranges that the journal does not list as done."""
    file = source.file
    done = _begin(part, file)
    waiting = [start for start in range(0, file.size, RANGE_BYTES) if start not in done]
    target = os.open(part, os.O_WRONLY)
    try:
        with _journal(part).open("a") as journal:

            async def work() -> None:
                while waiting:
                    start = waiting.pop(0)
                    await _range(source, target, start, min(start + RANGE_BYTES, file.size))
                    await asyncio.to_thread(os.fsync, target)
                    journal.write(f"{start}\n")
                    journal.flush()

            workers = [asyncio.create_task(work()) for _ in range(min(PARALLEL, len(waiting)))]
            try:
                await asyncio.gather(*workers)
            finally:
                for worker in workers:
                    worker.cancel()
                await asyncio.gather(*workers, return_exceptions=True)
    finally:
        os.close(target)


def _begin(part: Path, file: File) -> set[int]:
    """Create the partial file at its full size. Returns the ranges that an earlier call has written."""
    key = f"{file.size} {file.crc32c} {RANGE_BYTES}\n"
    done = _read_journal(_journal(part), key) if part.exists() else set()
    if not done:
        _journal(part).write_text(key)
    part.touch(mode=0o600)
    os.truncate(part, file.size)
    return done


def _read_journal(path: Path, key: str) -> set[int]:
    """Read the ranges that were written, if they belong to the same file. A torn last line is ignored."""
    if not path.exists():
        return set()
    text = path.read_text()
    if not text.startswith(key):
        return set()
    return {int(line) for line in text.removeprefix(key).splitlines(keepends=True) if line.endswith("\n")}


async def _range(source: Source, target: int, start: int, end: int) -> None:
    """Write the bytes from `start` up to `end`, resuming where a connection broke."""
    tries = Tries()
    while start < end:
        grant = source.grant
        got, failed = await _piece(source, target, start, end)
        start += got
        if got:
            tries.progressed()
        elif not await tries.failed(failed):
            raise Unreadable(f"cannot read {source.file.name} at byte {start}: {said(failed)}")
        elif isinstance(failed, httpx.Response) and failed.status_code in EXPIRED:
            await source.refresh(grant)


async def _piece(source: Source, target: int, start: int, end: int) -> tuple[int, httpx.Response | Exception]:
    """Read a range once. Returns the number of bytes that arrived, and what came if none did."""
    headers = {**source.grant.headers, "range": f"bytes={start}-{end - 1}", "accept-encoding": "identity"}
    at = start
    try:
        async with source.http.stream("GET", source.grant.url, headers=headers, timeout=TIMEOUT) as answer:
            if answer.status_code != 206:
                await answer.aread()
                return 0, answer
            async for chunk in answer.aiter_raw():
                # Never write more than was asked for, whatever the server sends.
                chunk = chunk[: end - at]
                os.pwrite(target, chunk, at)
                at += len(chunk)
    except LOST as error:
        return at - start, error
    return at - start, httpx.RemoteProtocolError("the answer was empty")
