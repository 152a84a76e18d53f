"""Changes of objects: each checks preconditions, links bytes, and commits rows and events together."""

import asyncio
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from localcloud.storage.catalog import Catalog
from localcloud.storage.errors import bad_digest, conflict, forbidden, invalid
from localcloud.storage.files import Files, Incoming
from localcloud.storage.notifications import Event, Notifications
from localcloud.storage.preconditions import Preconditions
from localcloud.storage.records import WRITABLE_OBJECT_FIELDS, Bucket, Content, Fields, StoredObject

NAME_BYTES_MAX = 1024
METADATA_BYTES_MAX = 8192
SOURCES_MAX = 32


class Objects:
    """All operations that create, change and delete objects."""

    def __init__(self, catalog: Catalog, files: Files, notifications: Notifications) -> None:
        """Use a catalog, its files and notifications."""
        self.catalog = catalog
        self.files = files
        self._notifications = notifications

    async def put(
        self,
        bucket: str,
        name: str,
        source: Path,
        content: Content,
        *,
        fields: Fields,
        preconditions: Preconditions,
        storage_class: str | None = None,
        within: Callable[[StoredObject], None] | None = None,
    ) -> StoredObject:
        """Make the bytes at `source` the live version; on an error nothing changes.

        Args:
            bucket: The target bucket.
            name: Any UTF-8 name that `check_name` accepts.
            source: A complete file on the store's own disk; it stays.
            content: Size and checksums of `source`.
            fields: The writable fields; others are dropped.
            preconditions: Conditions on the version that is live now.
            storage_class: The storage class. None takes the bucket's.
            within: Writes further rows in the transaction of the object's.
        """
        check_name(name)
        catalog = self.catalog
        generation = 0
        try:
            with catalog.transaction():
                home = catalog.bucket(bucket)
                current = catalog.find_object(bucket, name)
                preconditions.check(current)
                generation = catalog.next_generation()
                stored = StoredObject(
                    bucket=bucket,
                    name=name,
                    generation=generation,
                    metageneration=1,
                    content=content,
                    storage_class=storage_class or home.storage_class,
                    created_us=generation,
                    updated_us=generation,
                    deleted_us=None,
                    fields=writable(fields),
                )
                gone = self._retire(home, current, replaced_by=generation) if current else []
                catalog.insert_object(stored)
                self._notifications.record(Event.FINALIZE, stored, overwrote=current.generation if current else None)
                if within is not None:
                    within(stored)
                # The bytes are in place before the row commits; after a crash in between the next start removes them.
                self.files.adopt(source, generation)
        except BaseException:
            self.files.remove([generation])
            raise
        await self._forget(gone)
        return stored

    async def receive(
        self,
        bucket: str,
        name: str,
        incoming: Incoming,
        *,
        fields: Fields,
        preconditions: Preconditions,
        expected: Mapping[str, str],
    ) -> StoredObject:
        """Finish an upload that came in one request; the received file is removed in any case.

        Args:
            bucket: The target bucket.
            name: The object's name.
            incoming: The received file, complete.
            fields: As for `put`; `storageClass` is used too.
            preconditions: As for `put`.
            expected: `crc32c` and `md5` that the client sent, in base64.
        """
        try:
            content = await incoming.finish()
            check_digests(content, expected)
            return await self.put(
                bucket,
                name,
                incoming.path,
                content,
                fields=fields,
                preconditions=preconditions,
                storage_class=fields.get("storageClass"),
            )
        finally:
            await incoming.discard()

    async def delete(self, bucket: str, name: str, *, generation: int | None, preconditions: Preconditions) -> None:
        """Delete the live version, or one generation for good.

        Without a generation, a bucket with versioning keeps the live version as noncurrent.
        """
        with self.catalog.transaction():
            home = self.catalog.bucket(bucket)
            stored = self.catalog.object(bucket, name, generation)
            preconditions.check(stored)
            gone = self._retire(home, stored) if generation is None else self._drop(stored)
        await self._forget(gone)

    def patch(
        self,
        bucket: str,
        name: str,
        changes: Mapping[str, Any],
        *,
        generation: int | None,
        preconditions: Preconditions,
        whole: bool = False,
    ) -> StoredObject:
        """Change fields; null removes one. `whole` replaces all of them instead."""
        catalog = self.catalog
        wanted = {key: value for key, value in changes.items() if key in WRITABLE_OBJECT_FIELDS}
        with catalog.transaction():
            stored = catalog.object(bucket, name, generation)
            preconditions.check(stored)
            fields = writable(merge({} if whole else stored.fields, wanted))
            changed = replace(
                stored, fields=fields, metageneration=stored.metageneration + 1, updated_us=catalog.now_us()
            )
            catalog.update_object(changed)
            self._notifications.record(Event.METADATA_UPDATE, changed)
        return changed

    async def copy(
        self,
        source: StoredObject,
        bucket: str,
        name: str,
        *,
        fields: Fields,
        preconditions: Preconditions,
    ) -> StoredObject:
        """Link the same bytes to a second object; its fields are the source's unless `fields` has any."""
        # There is no `await` between the caller's read of the source and the link, so its file still exists.
        return await self.put(
            bucket,
            name,
            self.files.path(source.generation),
            source.content,
            fields=writable(fields) or source.fields,
            preconditions=preconditions,
            storage_class=fields.get("storageClass") or source.storage_class,
        )

    async def move(self, source: StoredObject, name: str, *, preconditions: Preconditions) -> StoredObject:
        """Rename within the bucket: the new object and the end of the old one commit together."""
        gone: list[int] = []

        def retire(stored: StoredObject) -> None:
            gone.extend(self._retire(self.catalog.bucket(stored.bucket), source))

        stored = await self.put(
            source.bucket,
            name,
            self.files.path(source.generation),
            source.content,
            fields=source.fields,
            preconditions=preconditions,
            storage_class=source.storage_class,
            within=retire,
        )
        await self._forget(gone)
        return stored

    async def compose(
        self,
        bucket: str,
        name: str,
        sources: Iterable[StoredObject],
        *,
        fields: Fields,
        preconditions: Preconditions,
    ) -> StoredObject:
        """Concatenate objects of one bucket into a new one, which has no MD5."""
        parts = list(sources)
        if not parts:
            raise invalid("You must provide at least one source component.")
        if len(parts) > SOURCES_MAX:
            raise invalid(
                f"The number of source components provided ({len(parts)}) exceeds the maximum ({SOURCES_MAX})"
            )
        incoming = self.files.incoming()
        paths = [self.files.path(part.generation) for part in parts]
        try:
            content = await asyncio.to_thread(self.files.concatenate, paths, incoming.path)
            components = sum(part.content.components or 1 for part in parts)
            return await self.put(
                bucket,
                name,
                incoming.path,
                replace(content, components=components),
                fields=fields,
                preconditions=preconditions,
                storage_class=fields.get("storageClass"),
            )
        except FileNotFoundError as error:
            raise conflict("A source was deleted while it was read", xml_code="OperationAborted") from error
        finally:
            await incoming.discard()

    def _retire(self, home: Bucket, stored: StoredObject, *, replaced_by: int | None = None) -> list[int]:
        """Make the live version noncurrent or delete it; returns the generations whose bytes may be removed."""
        if not home.keeps_versions:
            return self._drop(stored, replaced_by=replaced_by)
        archived = replace(stored, deleted_us=self.catalog.now_us())
        self.catalog.update_object(archived)
        self._notifications.record(Event.ARCHIVE, archived, overwritten_by=replaced_by)
        return []

    def _drop(self, stored: StoredObject, *, replaced_by: int | None = None) -> list[int]:
        if stored.fields.get("temporaryHold") or stored.fields.get("eventBasedHold"):
            raise forbidden(f"Object '{stored.bucket}/{stored.name}' is under active hold")
        self.catalog.delete_object(stored)
        self._notifications.record(Event.DELETE, stored, overwritten_by=replaced_by)
        return [stored.generation]

    async def _forget(self, generations: list[int]) -> None:
        """Remove the bytes of deleted versions, in a thread: removing gigabytes takes a while."""
        self._notifications.wake()
        if generations:
            await asyncio.to_thread(self.files.remove, generations)


def check_name(name: str) -> None:
    """Raise 400 for an object name that production refuses; slashes, spaces and `..` inside are allowed."""
    size = len(name.encode())
    if not 0 < size <= NAME_BYTES_MAX:
        raise invalid(f"The object name must have 1 to {NAME_BYTES_MAX} bytes of UTF-8, not {size}")
    if name in {".", ".."} or "\r" in name or "\n" in name or name.startswith(".well-known/acme-challenge/"):
        raise invalid("Invalid object name")


def check_digests(content: Content, expected: Mapping[str, str]) -> None:
    """Raise 400 if the bytes do not have the checksums that the client sent."""
    crc32c = expected.get("crc32c")
    if crc32c is not None and crc32c != content.crc32c:
        raise bad_digest(f'Provided CRC32C "{crc32c}" doesn\'t match calculated CRC32C "{content.crc32c}".')
    md5 = expected.get("md5")
    if md5 is not None and md5 != content.md5:
        raise bad_digest(f'Provided MD5 hash "{md5}" doesn\'t match calculated MD5 hash "{content.md5}".')


def merge(old: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """Apply an RFC 7396 merge patch: null removes, objects merge, anything else replaces."""
    merged = dict(old)
    for key, value in changes.items():
        before = merged.get(key)
        if value is None:
            merged.pop(key, None)
        elif isinstance(value, Mapping):
            merged[key] = merge(before if isinstance(before, Mapping) else {}, value)
        else:
            merged[key] = value
    return merged


def writable(fields: Mapping[str, Any]) -> dict[str, Any]:
    """Return the fields that a client may set, without nulls and within production's limits."""
    kept = {key: value for key, value in fields.items() if key in WRITABLE_OBJECT_FIELDS and value is not None}
    metadata = kept.get("metadata", {})
    if not isinstance(metadata, Mapping):
        raise invalid("metadata must be an object")
    texts = {str(key): value for key, value in metadata.items() if value is not None}
    if not all(isinstance(value, str) for value in texts.values()):
        raise invalid("metadata values must be strings")
    if sum(len(key.encode()) + len(value.encode()) for key, value in texts.items()) > METADATA_BYTES_MAX:
        raise invalid(f"Custom metadata exceeds {METADATA_BYTES_MAX} bytes")
    kept.pop("metadata", None)
    return {**kept, "metadata": texts} if texts else kept
