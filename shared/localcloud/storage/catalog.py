"""Rows of buckets and object versions; `files` holds the bytes."""

from collections.abc import Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from sqlite3 import Row
from typing import Any

import msgspec

from localcloud.clock import Clock
from localcloud.storage.errors import no_such_bucket, no_such_object
from localcloud.storage.records import Bucket, Content, StoredObject
from localcloud.store import Store

SCHEMA = """
CREATE TABLE IF NOT EXISTS buckets (
    name TEXT PRIMARY KEY, project TEXT NOT NULL, metageneration INTEGER NOT NULL,
    created_us INTEGER NOT NULL, updated_us INTEGER NOT NULL, fields BLOB NOT NULL
) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS objects (
    bucket TEXT NOT NULL REFERENCES buckets(name), name TEXT NOT NULL, generation INTEGER NOT NULL UNIQUE,
    metageneration INTEGER NOT NULL, size INTEGER NOT NULL, crc32c TEXT NOT NULL, md5 TEXT,
    components INTEGER, storage_class TEXT NOT NULL, created_us INTEGER NOT NULL,
    updated_us INTEGER NOT NULL, deleted_us INTEGER, fields BLOB NOT NULL,
    PRIMARY KEY (bucket, name, generation)
) WITHOUT ROWID;
CREATE UNIQUE INDEX IF NOT EXISTS live_objects ON objects (bucket, name) WHERE deleted_us IS NULL;
CREATE TABLE IF NOT EXISTS last_generation (only INTEGER PRIMARY KEY CHECK (only = 1), value INTEGER NOT NULL);
CREATE TABLE IF NOT EXISTS uploads (
    id TEXT PRIMARY KEY, kind TEXT NOT NULL, bucket TEXT NOT NULL, name TEXT NOT NULL,
    fields BLOB NOT NULL, created_us INTEGER NOT NULL, generation INTEGER
) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS parts (
    upload TEXT NOT NULL REFERENCES uploads(id) ON DELETE CASCADE, number INTEGER NOT NULL,
    file TEXT NOT NULL, etag TEXT NOT NULL, size INTEGER NOT NULL, updated_us INTEGER NOT NULL,
    PRIMARY KEY (upload, number)
) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS notifications (
    bucket TEXT NOT NULL REFERENCES buckets(name) ON DELETE CASCADE, id INTEGER NOT NULL,
    fields BLOB NOT NULL, PRIMARY KEY (bucket, id)
) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS outbox (
    id INTEGER PRIMARY KEY AUTOINCREMENT, topic TEXT NOT NULL, data BLOB NOT NULL, attributes BLOB NOT NULL,
    created_us INTEGER NOT NULL
);
"""


class Catalog:
    """The tables of buckets and objects. Callers make decisions, inside `transaction`."""

    def __init__(self, path: Path, *, clock: Clock) -> None:
        """Open the file; generations continue after the last one used."""
        self.store = Store(path, SCHEMA)
        self._clock = clock
        row = self.store.execute("SELECT value FROM last_generation").fetchone()
        self._last_generation: int = row["value"] if row else 0

    def transaction(self) -> AbstractContextManager[None]:
        """Commit all statements inside or none; never `await` inside."""
        return self.store.transaction()

    def now_us(self) -> int:
        """Return microseconds since 1970."""
        return int(self._clock().timestamp() * 1_000_000)

    def next_generation(self) -> int:
        """Return a new generation, never used before, even if the clock stood still or went back."""
        self._last_generation = max(self.now_us(), self._last_generation + 1)
        self.store.execute(
            "INSERT INTO last_generation VALUES (1, ?) ON CONFLICT (only) DO UPDATE SET value = excluded.value",
            (self._last_generation,),
        )
        return self._last_generation

    def find_bucket(self, name: str) -> Bucket | None:
        """Return a bucket, or None."""
        row = self.store.execute("SELECT * FROM buckets WHERE name = ?", (name,)).fetchone()
        return _bucket(row) if row else None

    def bucket(self, name: str) -> Bucket:
        """Return a bucket; raises 404 when there is none."""
        found = self.find_bucket(name)
        if found is None:
            raise no_such_bucket()
        return found

    def buckets(self, project: str, *, prefix: str, after: str, limit: int) -> list[Bucket]:
        """Return a project's buckets by name, those after `after`."""
        rows = self.store.execute(
            "SELECT * FROM buckets WHERE project = ? AND name > ? AND substr(name, 1, ?) = ? ORDER BY name LIMIT ?",
            (project, after, len(prefix), prefix, limit),
        )
        return [_bucket(row) for row in rows]

    def save_bucket(self, bucket: Bucket) -> None:
        """Insert or replace a bucket."""
        self.store.execute(
            "INSERT INTO buckets VALUES (?, ?, ?, ?, ?, ?) ON CONFLICT (name) DO UPDATE SET"
            " metageneration = excluded.metageneration, updated_us = excluded.updated_us, fields = excluded.fields",
            (
                bucket.name,
                bucket.project,
                bucket.metageneration,
                bucket.created_us,
                bucket.updated_us,
                msgspec.json.encode(bucket.fields),
            ),
        )

    def delete_bucket(self, name: str) -> None:
        """Delete a bucket; its objects must be deleted before."""
        self.store.execute("DELETE FROM uploads WHERE bucket = ?", (name,))
        self.store.execute("DELETE FROM buckets WHERE name = ?", (name,))

    def is_empty(self, bucket: str) -> bool:
        """Return whether the bucket has no version of any object."""
        return self.store.execute("SELECT 1 FROM objects WHERE bucket = ? LIMIT 1", (bucket,)).fetchone() is None

    def find_object(self, bucket: str, name: str, generation: int | None = None) -> StoredObject | None:
        """Return the live version, or the one with this generation; None when there is none."""
        if generation is None:
            row = self.store.execute(
                "SELECT * FROM objects WHERE bucket = ? AND name = ? AND deleted_us IS NULL", (bucket, name)
            ).fetchone()
        else:
            row = self.store.execute(
                "SELECT * FROM objects WHERE bucket = ? AND name = ? AND generation = ?",
                (bucket, name, generation),
            ).fetchone()
        return _object(row) if row else None

    def object(self, bucket: str, name: str, generation: int | None = None) -> StoredObject:
        """Return a version like `find_object`; raises 404 when the bucket or the version does not exist."""
        self.bucket(bucket)
        found = self.find_object(bucket, name, generation)
        if found is None:
            raise no_such_object(bucket, name)
        return found

    def objects_from(
        self, bucket: str, *, name: str, generation: int, end: str | None, versions: bool, limit: int
    ) -> Iterator[StoredObject]:
        """Yield versions in order of name (as UTF-8) and generation, from `(name, generation)` on.

        Args:
            bucket: The bucket's name.
            name: The first name to include.
            generation: The first generation of exactly that name to include.
            end: The first name to exclude; None for no end.
            versions: Whether to include noncurrent versions.
            limit: The most rows.
        """
        conditions = ["bucket = ?", "(name, generation) >= (?, ?)"]
        values: list[object] = [bucket, name, generation]
        if end is not None:
            conditions.append("name < ?")
            values.append(end)
        if not versions:
            conditions.append("deleted_us IS NULL")
        rows = self.store.execute(
            f"SELECT * FROM objects WHERE {' AND '.join(conditions)} ORDER BY name, generation LIMIT ?",  # noqa: S608
            (*values, limit),
        )
        return (_object(row) for row in rows)

    def insert_object(self, stored: StoredObject) -> None:
        """Add a version; the name must have no live one."""
        content = stored.content
        self.store.execute(
            "INSERT INTO objects VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
            (
                stored.bucket,
                stored.name,
                stored.generation,
                stored.metageneration,
                content.size,
                content.crc32c,
                content.md5,
                content.components,
                stored.storage_class,
                stored.created_us,
                stored.updated_us,
                stored.deleted_us,
                msgspec.json.encode(stored.fields),
            ),
        )

    def update_object(self, stored: StoredObject) -> None:
        """Store the changeable fields of a version."""
        self.store.execute(
            "UPDATE objects SET metageneration = ?, updated_us = ?, deleted_us = ?, fields = ?"
            " WHERE bucket = ? AND name = ? AND generation = ?",
            (
                stored.metageneration,
                stored.updated_us,
                stored.deleted_us,
                msgspec.json.encode(stored.fields),
                stored.bucket,
                stored.name,
                stored.generation,
            ),
        )

    def delete_object(self, stored: StoredObject) -> None:
        """Delete one version."""
        self.store.execute(
            "DELETE FROM objects WHERE bucket = ? AND name = ? AND generation = ?",
            (stored.bucket, stored.name, stored.generation),
        )

    def generations(self) -> set[int]:
        """Return the generations of all versions, whose data files must stay."""
        return {row["generation"] for row in self.store.execute("SELECT generation FROM objects")}

    def close(self) -> None:
        """Close the file."""
        self.store.close()


def _bucket(row: Row) -> Bucket:
    return Bucket(
        name=row["name"],
        project=row["project"],
        metageneration=row["metageneration"],
        created_us=row["created_us"],
        updated_us=row["updated_us"],
        fields=_fields(row),
    )


def _object(row: Row) -> StoredObject:
    return StoredObject(
        bucket=row["bucket"],
        name=row["name"],
        generation=row["generation"],
        metageneration=row["metageneration"],
        content=Content(size=row["size"], crc32c=row["crc32c"], md5=row["md5"], components=row["components"]),
        storage_class=row["storage_class"],
        created_us=row["created_us"],
        updated_us=row["updated_us"],
        deleted_us=row["deleted_us"],
        fields=_fields(row),
    )


def _fields(row: Row) -> dict[str, Any]:
    fields: dict[str, Any] = msgspec.json.decode(row["fields"])
    return fields
