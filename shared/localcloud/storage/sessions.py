"""Resumable uploads: a row that describes the upload, and a file with the bytes so far.

All bytes that a client was told are received are on disk, so an upload continues after any crash. A finished
upload is remembered, because the client may have missed the answer. Sessions live a week, as in production.
Source: https://cloud.google.com/storage/docs/performing-resumable-uploads, read 2026-11-25.
"""

import asyncio
import re
from collections import OrderedDict
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass
from typing import Any
from uuid import uuid4
from weakref import WeakValueDictionary

import msgspec

from httpguard import whole_number
from localcloud.storage.errors import StorageError, invalid
from localcloud.storage.files import Hashes, Incoming, hash_file
from localcloud.storage.objects import Objects, check_digests, check_name
from localcloud.storage.preconditions import Preconditions
from localcloud.storage.records import StoredObject

RESUMABLE = "resumable"
CHUNK_MIN = 256 << 10
"""The fewest bytes of every chunk but the last."""
_HASHES_KEPT = 64
_LIFE_US = 7 * 86_400 * 1_000_000

SIZE_MAX = 2**62
_CONTENT_RANGE = re.compile(r"bytes (?:(?P<first>\d{1,18})-(?P<last>\d{1,18}|\*)|\*)/(?P<total>\d{1,18}|\*)")


class Plan(msgspec.Struct, frozen=True, kw_only=True):
    """The description of an upload, given at its start."""

    fields: dict[str, Any]
    preconditions: Preconditions
    expected: dict[str, str] = {}
    """`crc32c` and `md5` in base64, if the client sent them at the start."""
    total: int | None = None
    """Size in bytes, if the client sent it at the start."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Session:
    """One upload that was begun."""

    upload_id: str
    bucket: str
    name: str
    plan: Plan
    generation: int | None
    """The generation that the upload created; None until it is finished."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ContentRange:
    """The position in the object of a request's bytes."""

    first: int | None
    """The offset of the first byte; None for a status query."""
    length: int | None
    """The number of bytes; None when the header does not say: the body then goes to the object's end."""
    total: int | None
    """The size of the whole object; None when the client does not know it yet."""


class Sessions:
    """All resumable uploads."""

    def __init__(self, objects: Objects) -> None:
        """Use these objects' catalog and files."""
        self._objects = objects
        self._catalog = objects.catalog
        self._store = objects.catalog.store
        self._files = objects.files
        # Checksums so far, so that the file is not read again for every chunk.
        self._hashes: OrderedDict[str, Hashes] = OrderedDict()
        self._locks: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()

    def begin(self, bucket: str, name: str, plan: Plan, *, kind: str = RESUMABLE) -> str:
        """Open a session and return its id; refuses at once what the final request would refuse."""
        check_name(name)
        with self._catalog.transaction():
            self._catalog.bucket(bucket)
            plan.preconditions.check(self._catalog.find_object(bucket, name))
            upload_id = uuid4().hex + uuid4().hex  # The id is the permission to write.
            self._store.execute(
                "INSERT INTO uploads VALUES (?, ?, ?, ?, ?, ?, NULL)",
                (upload_id, kind, bucket, name, msgspec.json.encode(plan), self._catalog.now_us()),
            )
        return upload_id

    def find(self, upload_id: str, *, kind: str = RESUMABLE) -> Session:
        """Return an upload; raises 404 when it was never begun, was cancelled or is too old."""
        row = self._store.execute(
            "SELECT * FROM uploads WHERE id = ? AND kind = ? AND created_us > ?",
            (upload_id, kind, self._catalog.now_us() - _LIFE_US),
        ).fetchone()
        if row is None:
            raise StorageError(404, "notFound", "No such upload", xml_code="NoSuchUpload")
        return Session(
            upload_id=row["id"],
            bucket=row["bucket"],
            name=row["name"],
            plan=msgspec.json.decode(row["fields"], type=Plan),
            generation=row["generation"],
        )

    def lock(self, upload_id: str) -> asyncio.Lock:
        """Return the lock to hold while changing an upload."""
        return self._locks.setdefault(upload_id, asyncio.Lock())

    def finished(self, session: Session) -> StoredObject:
        """Return the object that a finished upload created; raises 410 when it no longer exists."""
        stored = self._catalog.find_object(session.bucket, session.name, session.generation)
        if stored is None:
            raise StorageError(410, "gone", "The object of this upload no longer exists", xml_code="NoSuchUpload")
        return stored

    async def receive(
        self, upload_id: str, where: ContentRange, chunks: AsyncIterator[bytes], expected: Mapping[str, str]
    ) -> StoredObject | int:
        """Receive a chunk, or answer a status query.

        Args:
            upload_id: The id from `begin`.
            where: The position from `parse_content_range`.
            chunks: The body; bytes received before are skipped.
            expected: Checksums of the whole object, if they came with its last chunk.

        Returns:
            The finished object, or the number of bytes received so far.
        """
        async with self.lock(upload_id):
            session = self.find(upload_id)
            if session.generation is not None:
                async for _ in chunks:
                    pass  # A retry of a request that finished the upload.
                return self.finished(session)
            incoming = await self._open(upload_id)
            total = where.total if where.total is not None else session.plan.total
            if session.plan.total is not None and total != session.plan.total:
                raise invalid(f"The upload was started with a size of {session.plan.total} bytes, not {total}")
            if where.first is not None:
                await self._append(incoming, where, chunks)
                self._remember(upload_id, incoming.hashes)
            if where.first is not None and where.length is None and total is None:
                total = incoming.size  # No length and no total: the body's end is the object's end.
            if total is None or incoming.size < total:
                return incoming.size
            return await self._finish(session, incoming, total, {**session.plan.expected, **expected})

    async def cancel(self, upload_id: str) -> None:
        """Delete an upload and its bytes."""
        async with self.lock(upload_id):
            session = self.find(upload_id)
            await self._drop(session.upload_id)

    def sweep(self) -> set[str]:
        """Delete expired uploads; return the files that unfinished uploads still need."""
        self._store.execute("DELETE FROM uploads WHERE created_us < ?", (self._catalog.now_us() - _LIFE_US,))
        sessions = self._store.execute(
            "SELECT id AS file FROM uploads WHERE kind = ? AND generation IS NULL UNION ALL SELECT file FROM parts",
            (RESUMABLE,),
        )
        return {row["file"] for row in sessions}

    async def _open(self, upload_id: str) -> Incoming:
        path = self._files.incoming_path(upload_id)
        hashes = self._hashes.get(upload_id)
        on_disk = path.stat().st_size if path.exists() else 0
        if hashes is None or hashes.size != on_disk:
            hashes = await asyncio.to_thread(hash_file, path)
        return Incoming(path, hashes)

    async def _append(self, incoming: Incoming, where: ContentRange, chunks: AsyncIterator[bytes]) -> None:
        first = where.first or 0
        if first > incoming.size:
            raise StorageError(
                503,
                "backendError",
                f"The upload offset is {first}, which exceeds the already uploaded size of {incoming.size}",
            )
        is_last = where.total is not None or where.length is None
        if not is_last and where.length is not None and where.length < CHUNK_MIN:
            raise invalid(f"A chunk that is not the last must have at least {CHUNK_MIN} bytes")
        known, room = incoming.size - first, where.length
        try:
            async for chunk in chunks:
                if room is not None:
                    room -= len(chunk)
                    if room < 0:
                        raise invalid("The body is longer than its Content-Range")
                fresh = chunk[known:] if known else chunk
                known = max(0, known - len(chunk))
                if fresh:
                    await incoming.write(fresh)
        finally:
            # Keep the bytes even when the client hangs up: the next request continues from there.
            await incoming.finish()

    async def _finish(
        self, session: Session, incoming: Incoming, total: int, expected: Mapping[str, str]
    ) -> StoredObject:
        content = await incoming.finish()

        def remember(stored: StoredObject) -> None:
            self._store.execute(
                "UPDATE uploads SET generation = ? WHERE id = ?", (stored.generation, session.upload_id)
            )

        try:
            if content.size > total:
                raise invalid(f"{content.size} bytes were uploaded, but the object has {total}")
            check_digests(content, expected)
            stored = await self._objects.put(
                session.bucket,
                session.name,
                incoming.path,
                content,
                fields=session.plan.fields,
                preconditions=session.plan.preconditions,
                storage_class=session.plan.fields.get("storageClass"),
                within=remember,
            )
        except StorageError:
            await self._drop(session.upload_id)
            raise
        self._hashes.pop(session.upload_id, None)
        await incoming.discard()
        return stored

    async def _drop(self, upload_id: str) -> None:
        self._store.execute("DELETE FROM uploads WHERE id = ?", (upload_id,))
        self._hashes.pop(upload_id, None)
        await asyncio.to_thread(self._files.incoming_path(upload_id).unlink, missing_ok=True)

    def _remember(self, upload_id: str, hashes: Hashes) -> None:
        self._hashes[upload_id] = hashes
        self._hashes.move_to_end(upload_id)
        while len(self._hashes) > _HASHES_KEPT:
            self._hashes.popitem(last=False)


def parse_content_range(header: str | None, content_length: str | None) -> ContentRange:
    """Parse `Content-Range`; without one the body is the whole object.

    `bytes 0-*/*` is what `@google-cloud/storage` for Node sends by default: from 0 to wherever the body ends.
    """
    if header is None:
        length = whole_number(content_length or "", SIZE_MAX)
        return ContentRange(first=0, length=length, total=length)
    match = _CONTENT_RANGE.fullmatch(header.strip())
    if match is None:
        raise invalid("Failed to parse Content-Range header.")
    total = None if match["total"] == "*" else int(match["total"])
    if match["first"] is None:
        return ContentRange(first=None, length=None, total=total)
    first = int(match["first"])
    if match["last"] == "*":
        return ContentRange(first=first, length=None, total=total)
    last = int(match["last"])
    if last < first or (total is not None and last >= total):
        raise invalid("Invalid Content-Range header.")
    return ContentRange(first=first, length=last - first + 1, total=total)
