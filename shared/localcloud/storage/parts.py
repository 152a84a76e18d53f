"""XML multipart uploads: parts in any order, over many connections, published by the last request.

Source: https://cloud.google.com/storage/docs/multipart-uploads, read 2026-11-25.
"""

import asyncio
import base64
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

from localcloud.storage.errors import StorageError, invalid
from localcloud.storage.objects import Objects, check_digests
from localcloud.storage.records import Content, StoredObject
from localcloud.storage.sessions import Plan, Session, Sessions

MULTIPART = "multipart"
PARTS_MAX = 10_000
PART_BYTES_MIN = 5 << 20
"""The fewest bytes of every part but the last."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Part:
    """One part on disk."""

    number: int
    file: str
    etag: str
    """MD5 in hexadecimal, without quotes."""
    size: int
    updated_us: int


class Parts:
    """All XML multipart uploads."""

    def __init__(self, objects: Objects, sessions: Sessions) -> None:
        """Use the session store of resumable uploads."""
        self._objects = objects
        self._sessions = sessions
        self._store = objects.catalog.store
        self._files = objects.files

    def begin(self, bucket: str, name: str, plan: Plan) -> str:
        """Open an upload and return its id."""
        return self._sessions.begin(bucket, name, plan, kind=MULTIPART)

    def find(self, upload_id: str, bucket: str, name: str) -> Session:
        """Return an upload; raises 404 unless it is for this object."""
        session = self._sessions.find(upload_id, kind=MULTIPART)
        if (session.bucket, session.name) != (bucket, name):
            raise StorageError(404, "notFound", "No such upload", xml_code="NoSuchUpload")
        return session

    async def put(
        self, session: Session, number: int, chunks: AsyncIterator[bytes], expected: Mapping[str, str]
    ) -> tuple[str, Content]:
        """Store one part, in place of an earlier one of its number. Returns its etag and content."""
        if not 1 <= number <= PARTS_MAX:
            raise invalid(f"Part number must be an integer between 1 and {PARTS_MAX}, inclusive.")
        incoming = self._files.incoming()
        try:
            async for chunk in chunks:
                await incoming.write(chunk)
            content = await incoming.finish()
            check_digests(content, expected)
            etag = base64.b64decode(content.md5 or "").hex()
            async with self._sessions.lock(session.upload_id):
                self._unfinished(session)
                old = self._store.execute(
                    "SELECT file FROM parts WHERE upload = ? AND number = ?", (session.upload_id, number)
                ).fetchone()
                self._store.execute(
                    "INSERT OR REPLACE INTO parts VALUES (?, ?, ?, ?, ?, ?)",
                    (
                        session.upload_id,
                        number,
                        incoming.path.name,
                        etag,
                        content.size,
                        self._objects.catalog.now_us(),
                    ),
                )
        except BaseException:
            await incoming.discard()
            raise
        if old is not None:
            await self._remove([old["file"]])
        return etag, content

    def list(self, session: Session, *, after: int, limit: int) -> list[Part]:
        """Return parts in order of number, those after `after`."""
        rows = self._store.execute(
            "SELECT number, file, etag, size, updated_us FROM parts WHERE upload = ? AND number > ?"
            " ORDER BY number LIMIT ?",
            (session.upload_id, after, limit),
        )
        return [Part(**dict(row)) for row in rows]

    async def complete(self, session: Session, wanted: Sequence[tuple[int, str]]) -> StoredObject:
        """Publish the object made of the parts in `wanted`: `(number, etag)`, in order."""
        async with self._sessions.lock(session.upload_id):
            session = self._sessions.find(session.upload_id, kind=MULTIPART)
            if session.generation is not None:
                return self._sessions.finished(session)  # A retry of a client that did not get our answer.
            kept = {part.number: part for part in self.list(session, after=0, limit=PARTS_MAX)}
            chosen = _choose(kept, wanted)
            incoming = self._files.incoming()
            paths = [self._files.incoming_path(part.file) for part in chosen]

            def remember(stored: StoredObject) -> None:
                self._store.execute(
                    "UPDATE uploads SET generation = ? WHERE id = ?", (stored.generation, session.upload_id)
                )
                self._store.execute("DELETE FROM parts WHERE upload = ?", (session.upload_id,))

            try:
                content = await asyncio.to_thread(self._files.concatenate, paths, incoming.path)
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
            finally:
                await incoming.discard()
            await self._remove([part.file for part in kept.values()])
            return stored

    async def abort(self, session: Session) -> None:
        """Delete the upload and its parts."""
        async with self._sessions.lock(session.upload_id):
            self._unfinished(session)
            files = [part.file for part in self.list(session, after=0, limit=PARTS_MAX)]
            self._store.execute("DELETE FROM uploads WHERE id = ?", (session.upload_id,))
            await self._remove(files)

    def _unfinished(self, session: Session) -> None:
        if self._sessions.find(session.upload_id, kind=MULTIPART).generation is not None:
            raise StorageError(404, "notFound", "No such upload", xml_code="NoSuchUpload")

    async def _remove(self, files: Sequence[str]) -> None:
        def unlink() -> None:
            for file in files:
                self._files.incoming_path(file).unlink(missing_ok=True)

        await asyncio.to_thread(unlink)


def _choose(kept: Mapping[int, Part], wanted: Sequence[tuple[int, str]]) -> list[Part]:
    """Return the parts to publish, in order; raises 400 as production does."""
    if not wanted:
        raise invalid("You must specify at least one part.", xml_code="MalformedXML")
    numbers = [number for number, _ in wanted]
    if any(later <= earlier for earlier, later in pairwise(numbers)):
        raise invalid("The list of parts was not in ascending order.", xml_code="InvalidPartOrder")
    chosen: list[Part] = []
    for number, etag in wanted:
        part = kept.get(number)
        if part is None or part.etag != etag.strip().strip('"'):
            raise invalid(
                "One or more of the specified parts could not be found or its ETag did not match.",
                xml_code="InvalidPart",
            )
        chosen.append(part)
    if any(part.size < PART_BYTES_MIN for part in chosen[:-1]):
        raise invalid(f"Every part but the last must have at least {PART_BYTES_MIN} bytes.", xml_code="EntityTooSmall")
    return chosen
