"""SQLite for all services: one file, one writer, durable against `kill -9` at any moment.

Write-ahead logging with `synchronous=NORMAL` keeps every committed transaction when the process dies. Only a power
cut can lose the last ones, and even then the file is not corrupted.
"""

import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path


class Store:
    """One SQLite file, used from one event loop; statements take microseconds and run on it directly."""

    def __init__(self, path: Path | None, schema: str) -> None:
        """Open or create the file.

        Args:
            path: Where the state lives; None keeps it in memory, for tests.
            schema: `CREATE … IF NOT EXISTS` statements.
        """
        if path is not None:
            path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            # Readable by its owner only. SQLite gives new side files the mode of the file itself.
            path.touch(mode=0o600)
            for file in (path, *(path.with_name(f"{path.name}-{side}") for side in ("wal", "shm"))):
                with suppress(FileNotFoundError):
                    file.chmod(0o600)
        self._db = sqlite3.connect(
            path or ":memory:", isolation_level=None, check_same_thread=False, cached_statements=256
        )
        self._db.row_factory = sqlite3.Row
        for pragma in ("journal_mode=WAL", "synchronous=NORMAL", "foreign_keys=ON", "busy_timeout=5000"):
            self._db.execute(f"PRAGMA {pragma}")
        self._db.executescript(schema)
        self._depth = 0

    def execute(self, sql: str, parameters: tuple[object, ...] = ()) -> sqlite3.Cursor:
        """Run one statement. Outside of `transaction` it commits at once."""
        return self._db.execute(sql, parameters)

    def executemany(self, sql: str, rows: list[tuple[object, ...]]) -> sqlite3.Cursor:
        """Run one statement for each row."""
        return self._db.executemany(sql, rows)

    @contextmanager
    def transaction(self) -> Iterator[None]:
        """Commit all statements inside together, or none. Never `await` inside: other handlers would join in."""
        if self._depth:
            yield  # The outer transaction commits or rolls back.
            return
        self._db.execute("BEGIN IMMEDIATE")
        self._depth += 1
        try:
            yield
        except BaseException:
            self._db.execute("ROLLBACK")
            raise
        else:
            self._db.execute("COMMIT")
        finally:
            self._depth -= 1

    def close(self) -> None:
        """Checkpoint and close the file."""
        self._db.close()
