"""Documents in SQLite, in Firestore's order, and old versions that open snapshots still read.

A document's `update_time` is its version: commit times are whole microseconds and strictly increase, also over
restarts, so two versions of a document never have the same time.
"""

from collections import OrderedDict, defaultdict, deque
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from localcloud.firestore import names, times
from localcloud.firestore.protos import Document, Pb
from localcloud.store import Store

SCHEMA = """
CREATE TABLE IF NOT EXISTS databases (id INTEGER PRIMARY KEY, name TEXT NOT NULL UNIQUE);
CREATE TABLE IF NOT EXISTS documents (
    database INTEGER NOT NULL,
    path BLOB NOT NULL,
    parent BLOB NOT NULL,      -- The path of the collection the document is in.
    collection TEXT NOT NULL,  -- That collection's id, over all parents.
    body BLOB NOT NULL,
    PRIMARY KEY (database, path)
);
CREATE TABLE IF NOT EXISTS newest (one INTEGER PRIMARY KEY CHECK (one = 1), commit_us INTEGER NOT NULL);
INSERT OR IGNORE INTO newest VALUES (1, 0);
CREATE INDEX IF NOT EXISTS documents_by_parent ON documents (database, parent, path);
CREATE INDEX IF NOT EXISTS documents_by_collection ON documents (database, collection, path);
"""

CACHED_BYTES_MAX = 32 << 20
"""Serialised size of the parsed documents cached in memory; parsed they take a few times that."""

CHANGES_KEPT = 4096
"""Changes kept for listeners that reconnect. A listener that missed more starts from scratch."""


@dataclass(frozen=True, slots=True)
class Scope:
    """The documents that a query considers before its filters."""

    database: int
    parent: bytes
    """The path that documents must be below; empty is the root."""
    collection: str | None
    """The id of the collections that documents must be in; None is any."""
    all_descendants: bool
    """Whether collections at any depth below the parent count, or only its direct ones."""
    low: bytes = b""
    """The lowest path, inclusive."""
    high: bytes = names.AFTER_DESCENDANTS
    """The highest path, exclusive."""

    def holds(self, path: bytes) -> bool:
        """Return whether a document's path is in this scope."""
        if not (path.startswith(self.parent) and self.low <= path < self.high):
            return False
        below = names.decode(path[len(self.parent) :])
        if not below or (not self.all_descendants and len(below) != 2):
            return False
        return self.collection is None or below[-2] == self.collection


@dataclass(frozen=True, slots=True)
class Change:
    """The effect of a commit on one document."""

    at_us: int
    database: int
    path: bytes


class Documents:
    """All documents of all databases. Use it from one event loop, never across an `await`."""

    def __init__(self, path: Path | None, clock: Callable[[], datetime]) -> None:
        self._store = Store(path, SCHEMA)
        self._clock = clock
        self._databases: dict[str, int] = {}
        self._cache = _Cache()
        self._snapshots: dict[int, int] = defaultdict(int)
        self._replaced: dict[tuple[int, bytes], list[tuple[int, Pb | None]]] = defaultdict(list)
        self._listeners: list[Callable[[list[Change]], None]] = []
        self.last_us: int = self._store.execute("SELECT commit_us FROM newest").fetchone()[0]
        """The newest commit's time; a read now sees exactly the commits up to it."""
        self.changes: deque[Change] = deque(maxlen=CHANGES_KEPT)
        """The newest changes, oldest first."""
        self.changes_since_us = self.now_us()
        """The instant after which every change is in `changes`."""

    def now_us(self) -> int:
        """Return the present time, never before the last commit's."""
        return max(times.from_datetime(self._clock()), self.last_us)

    def next_us(self) -> int:
        """Return a time for a commit, after all others."""
        return max(times.from_datetime(self._clock()), self.last_us + 1)

    def database(self, name: str) -> int:
        """Return the number of a database, creating it on first use."""
        if (known := self._databases.get(name)) is not None:
            return known
        names.check_database(name)
        self._store.execute("INSERT OR IGNORE INTO databases (name) VALUES (?)", (name,))
        row = self._store.execute("SELECT id FROM databases WHERE name = ?", (name,)).fetchone()
        self._databases[name] = row[0]
        return self._databases[name]

    def database_names(self) -> dict[int, str]:
        """Return the names of all databases by number."""
        return {row[0]: row[1] for row in self._store.execute("SELECT id, name FROM databases")}

    # Reading. Returned documents are shared: copy one before changing it.

    def get(self, database: int, path: bytes, at_us: int | None = None) -> Pb | None:
        """Return a document as it is, or as it was at the time of an open snapshot."""
        if at_us is not None and self._replaced:
            for replaced_us, document in self._replaced.get((database, path), ()):
                if replaced_us > at_us:
                    return document
        if (cached := self._cache.get((database, path))) is not None:
            return cached
        row = self._store.execute(
            "SELECT body FROM documents WHERE database = ? AND path = ?", (database, path)
        ).fetchone()
        if row is None:
            return None
        document = Document.FromString(row[0])
        self._cache.put((database, path), document, len(row[0]))
        return document

    def scan(self, scope: Scope, at_us: int | None = None) -> Iterator[tuple[bytes, Pb]]:
        """Yield every document in a scope with its path, in path order."""
        if at_us is None or not self._replaced:
            yield from self._scan_current(scope)
            return
        found = dict(self._scan_current(scope))
        for database, path in self._replaced:
            if database == scope.database and scope.holds(path):
                document = self.get(database, path, at_us)
                if document is None:
                    found.pop(path, None)
                else:
                    found[path] = document
        yield from sorted(found.items(), key=lambda item: item[0])

    def _scan_current(self, scope: Scope) -> Iterator[tuple[bytes, Pb]]:
        low = max(scope.low, scope.parent)
        high = min(scope.high, scope.parent + names.AFTER_DESCENDANTS)
        where: str = "database = ? AND path >= ? AND path < ?"
        parameters: list[object] = [scope.database, low, high]
        if scope.collection is not None and not scope.all_descendants:
            where += " AND parent = ?"
            parameters.append(scope.parent + names.encode((scope.collection,)))
        elif scope.collection is not None:
            where += " AND collection = ?"
            parameters.append(scope.collection)
        # An index yields the paths; bodies are read only when they are not cached.
        rows = self._store.execute(
            f"SELECT path FROM documents WHERE {where} ORDER BY path",  # noqa: S608 - from the constants above
            tuple(parameters),
        )
        for (path,) in rows:
            if scope.collection is None and not scope.holds(path):
                continue
            if (document := self.get(scope.database, path)) is not None:
                yield path, document

    def children(self, database: int, parent: bytes, after: bytes = b"") -> Iterator[bytes]:
        """Yield distinct child paths that are, or lead to, a document, in order, those after the child `after`."""
        after = after + names.AFTER_DESCENDANTS if after else parent
        while True:
            row = self._store.execute(
                "SELECT path FROM documents WHERE database = ? AND path > ? AND path < ? ORDER BY path LIMIT 1",
                (database, after, parent + names.AFTER_DESCENDANTS),
            ).fetchone()
            if row is None:
                return
            child = parent + names.encode(names.decode(row[0][len(parent) :])[:1])
            yield child
            after = child + names.AFTER_DESCENDANTS

    # Writing.

    def write(self, database: int, changed: Mapping[bytes, Pb | None], at_us: int) -> None:
        """Store all documents of a commit together; None deletes. `at_us` comes from `next_us`."""
        if self._snapshots:
            for path in changed:
                self._replaced[database, path].append((at_us, self.get(database, path)))
        bodies = {path: document and document.SerializeToString() for path, document in changed.items()}
        with self._store.transaction():
            for path, body in bodies.items():
                self._write_one(database, path, body)
            self._store.execute("UPDATE newest SET commit_us = ?", (at_us,))
        self.last_us = at_us
        for path, document in changed.items():
            if document is None:
                self._cache.drop((database, path))
            else:
                self._cache.put((database, path), document, len(bodies[path] or b""))
        changes = [Change(at_us, database, path) for path in changed]
        self._remember(changes)
        for listener in self._listeners:
            listener(changes)

    def _write_one(self, database: int, path: bytes, body: bytes | None) -> None:
        if body is None:
            self._store.execute("DELETE FROM documents WHERE database = ? AND path = ?", (database, path))
            return
        segments = names.decode(path)
        self._store.execute(
            "INSERT INTO documents VALUES (?, ?, ?, ?, ?)"
            " ON CONFLICT (database, path) DO UPDATE SET body = excluded.body",
            (database, path, names.encode(segments[:-1]), segments[-2], body),
        )

    def _remember(self, changes: list[Change]) -> None:
        for change in changes:
            if len(self.changes) == self.changes.maxlen:
                self.changes_since_us = self.changes[0].at_us
            self.changes.append(change)

    # Listeners.

    def listen(self, listener: Callable[[list[Change]], None]) -> Callable[[], None]:
        """Call `listener` after each commit. Returns a function that stops it."""
        self._listeners.append(listener)
        return lambda: self._listeners.remove(listener)

    def open_snapshot(self) -> int:
        """Keep the present state readable as of the returned time, until `close_snapshot`."""
        at_us = self.last_us
        self._snapshots[at_us] += 1
        return at_us

    def close_snapshot(self, at_us: int) -> None:
        """Drop the versions that no open snapshot can read any more."""
        self._snapshots[at_us] -= 1
        if not self._snapshots[at_us]:
            del self._snapshots[at_us]
        oldest = min(self._snapshots, default=None)
        if oldest is None:
            self._replaced.clear()
            return
        for key, versions in list(self._replaced.items()):
            kept = [version for version in versions if version[0] > oldest]
            if kept:
                self._replaced[key] = kept
            else:
                del self._replaced[key]

    @property
    def versions_kept(self) -> int:
        """How many replaced versions open snapshots still hold."""
        return sum(map(len, self._replaced.values()))

    def close(self) -> None:
        """Close the file."""
        self._store.close()


class _Cache:
    """An LRU cache of parsed documents, bounded by their serialised bytes."""

    def __init__(self) -> None:
        self._documents: OrderedDict[tuple[int, bytes], tuple[Pb, int]] = OrderedDict()
        self._bytes = 0

    def get(self, key: tuple[int, bytes]) -> Pb | None:
        found = self._documents.get(key)
        if found is None:
            return None
        self._documents.move_to_end(key)
        return found[0]

    def put(self, key: tuple[int, bytes], document: Pb, size: int) -> None:
        self.drop(key)
        self._documents[key] = (document, size)
        self._bytes += size
        while self._bytes > CACHED_BYTES_MAX:
            _, (_, dropped) = self._documents.popitem(last=False)
            self._bytes -= dropped

    def drop(self, key: tuple[int, bytes]) -> None:
        if (found := self._documents.pop(key, None)) is not None:
            self._bytes -= found[1]
