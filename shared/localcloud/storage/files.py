"""Object bytes on disk: one file per generation, written to a temporary file and linked into place.

    incoming/<random>           being received; removed at start unless a resumable upload or a part needs it
    objects/<xx>/<generation>   complete, never changed again; removed at start unless a row names it

A version becomes visible when its row commits, after its file is in place. A process killed at any moment
leaves at most a file that no row names. There is no fsync: like the rows, bytes survive a crash of the process,
not of the machine.
"""

import asyncio
import base64
import hashlib
import os
from collections.abc import AsyncIterator, Iterable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import IO
from uuid import uuid4

import google_crc32c

from localcloud.storage.records import Content

CHUNK = 1 << 20
"""Bytes per read, write or hash. Each upload holds two chunks in memory, each download one."""


class Hashes:
    """A running CRC32C and MD5 of the same bytes."""

    def __init__(self, *, md5: bool = True) -> None:
        """Start empty. `md5=False` skips MD5, which is slow and which composed objects do not have."""
        self.size = 0
        self._crc32c = google_crc32c.Checksum()
        self._md5 = hashlib.md5(usedforsecurity=False) if md5 else None

    def update(self, chunk: bytes) -> None:
        """Add the next bytes."""
        self._crc32c.update(chunk)
        if self._md5 is not None:
            self._md5.update(chunk)
        self.size += len(chunk)

    def content(self) -> Content:
        """Return size and checksums of the bytes so far."""
        return Content(
            size=self.size,
            crc32c=base64.b64encode(self._crc32c.digest()).decode(),
            md5=base64.b64encode(self._md5.digest()).decode() if self._md5 is not None else None,
        )


class Incoming:
    """A file that is being received: a thread hashes and writes one chunk while the next arrives."""

    def __init__(self, path: Path, hashes: Hashes | None = None) -> None:
        """Append to `path`; `hashes` already covers its bytes so far."""
        self.path = path
        self.hashes = hashes or Hashes()
        self.size = self.hashes.size
        """Bytes received so far, written or about to be."""
        self._chunks: list[bytes] = []
        self._held = 0
        self._writing: asyncio.Future[None] | None = None

    async def write(self, chunk: bytes) -> None:
        """Add bytes; waits only when the disk is slower than the sender."""
        self._chunks.append(chunk)
        self._held += len(chunk)
        self.size += len(chunk)
        if self._held >= CHUNK:
            await self._hand_over()

    async def finish(self) -> Content:
        """Write the buffered bytes and return what the file holds."""
        await self._hand_over()
        await self._settle()
        return self.hashes.content()

    async def discard(self) -> None:
        """Remove the file, even after a failed write."""
        with suppress(OSError):
            await self._settle()
        await asyncio.to_thread(self.path.unlink, missing_ok=True)

    async def _hand_over(self) -> None:
        await self._settle()
        chunks, self._chunks, self._held = self._chunks, [], 0
        self._writing = asyncio.ensure_future(asyncio.to_thread(self._append, chunks))

    async def _settle(self) -> None:
        if self._writing is not None:
            writing, self._writing = self._writing, None
            await writing

    def _append(self, chunks: Sequence[bytes]) -> None:
        data = b"".join(chunks)
        with _opened(self.path, os.O_APPEND) as file:
            file.write(data)
        self.hashes.update(data)


class Files:
    """The folder of data files."""

    def __init__(self, folder: Path) -> None:
        """Use or create the folder."""
        self._objects = folder / "objects"
        self._incoming = folder / "incoming"
        for path in (self._objects, self._incoming):
            path.mkdir(parents=True, exist_ok=True, mode=0o700)

    def incoming(self) -> Incoming:
        """Create a new file to receive into."""
        return Incoming(self.incoming_path(uuid4().hex))

    async def received(self, chunks: AsyncIterator[bytes]) -> Incoming:
        """Receive all chunks into a new file; nothing is left of it after an error."""
        incoming = self.incoming()
        try:
            async for chunk in chunks:
                await incoming.write(chunk)
        except BaseException:
            await incoming.discard()
            raise
        return incoming

    def incoming_path(self, file: str) -> Path:
        """Return the path of a file that is being received; `file` is a random name made here."""
        return self._incoming / file

    def path(self, generation: int) -> Path:
        """Return the path of a generation's bytes."""
        return self._objects / f"{generation & 0xFF:02x}" / str(generation)

    def adopt(self, source: Path, generation: int) -> None:
        """Link the bytes at `source` to the generation's path.

        The first name stays, so that an upload whose row never commits can still be resumed.
        """
        target = self.path(generation)
        target.parent.mkdir(exist_ok=True, mode=0o700)
        os.link(source, target)

    def remove(self, generations: Iterable[int]) -> None:
        """Remove data files; readers that have one open can finish."""
        for generation in generations:
            self.path(generation).unlink(missing_ok=True)

    def sweep(self, *, generations: set[int], incoming: set[str]) -> int:
        """Remove what a killed process left behind. Call it before anything is served.

        Args:
            generations: The generations that rows name.
            incoming: The files that unfinished uploads still need.

        Returns:
            How many files were removed.
        """
        swept = 0
        for path in self._objects.glob("*/*"):
            if not path.name.isdigit() or int(path.name) not in generations:
                path.unlink()
                swept += 1
        for path in self._incoming.iterdir():
            if path.name not in incoming:
                path.unlink()
                swept += 1
        return swept

    def concatenate(self, sources: Sequence[Path], target: Path) -> Content:
        """Write all of `sources`, in order, to a new file, without an MD5. It blocks: call it in a thread."""
        hashes = Hashes(md5=False)
        with _opened(target, os.O_TRUNC) as out:
            for source in sources:
                with source.open("rb", buffering=0) as file:
                    while chunk := file.read(CHUNK):
                        out.write(chunk)
                        hashes.update(chunk)
        return hashes.content()


def _opened(path: Path, flag: int) -> IO[bytes]:
    """Open a file to write to, created for its owner only."""
    return os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | flag, 0o600), "wb", buffering=0)


def hash_file(path: Path) -> Hashes:
    """Hash a file. It blocks: call it in a thread."""
    hashes = Hashes()
    if path.exists():
        with path.open("rb", buffering=0) as file:
            while chunk := file.read(CHUNK):
                hashes.update(chunk)
    return hashes


async def read(path: Path, start: int, length: int) -> AsyncIterator[bytes]:
    """Yield `length` bytes from `start`, in chunks; removing the file meanwhile does not stop it.

    Raises:
        EOFError: The file is shorter than its row says.
    """
    file = await asyncio.to_thread(path.open, "rb", 0)
    try:
        left = length
        offset = start
        while left:
            chunk = await asyncio.to_thread(os.pread, file.fileno(), min(CHUNK, left), offset)
            if not chunk:
                raise EOFError(f"{path} ends at byte {offset}, {left} bytes early.")
            yield chunk
            left -= len(chunk)
            offset += len(chunk)
    finally:
        file.close()
