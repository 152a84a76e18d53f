"""The log file of a child process: bounded while the child runs, and without control characters."""

from __future__ import annotations

import os
import threading
from contextlib import suppress
from pathlib import Path
from typing import IO

from httpguard.lines import Escaper

BYTES_MAX = 16 << 20
"""Largest log file. A full one becomes `NAME.log.1`, in place of the one before it."""
_PIECE = 64 * 1024
_END_S_MAX = 1.0
"""How long the end of a child's output is awaited after the child: a process that it left behind may hold the pipe."""


class ChildLog:
    """One log file, which the child's successive processes write through pipes."""

    def __init__(self, path: Path, *, bytes_max: int = BYTES_MAX) -> None:
        self.path = path
        self._bytes_max = bytes_max
        self._lock = threading.Lock()
        """Held for each write: what an earlier process left behind may still write beside the new one."""
        self._reader: threading.Thread | None = None

    def open(self) -> int:
        """Return a file descriptor for a new process's output; the caller closes it once the process has started.

        A thread copies what is written to it, and ends when every process has closed it.
        """
        self.path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        self._opened().close()  # The path is in error messages, so the file exists from the start.
        reading, writing = os.pipe()
        self._reader = threading.Thread(target=self._copy, args=(reading,), name=self.path.name, daemon=True)
        self._reader.start()
        return writing

    def settle(self) -> None:
        """Wait until all that an ended process wrote is in the file."""
        if self._reader is not None:
            self._reader.join(_END_S_MAX)

    def tail(self, lines: int) -> str:
        """Return the last lines, for an error message."""
        try:
            with self.path.open("rb") as file:
                file.seek(max(0, file.seek(0, os.SEEK_END) - 8192))
                return "\n".join(file.read().decode(errors="replace").split("\n")[-lines - 1 :]).strip("\n")
        except OSError:
            return ""

    def _copy(self, reading: int) -> None:
        escaper = Escaper()
        with os.fdopen(reading, "rb", buffering=0) as output:
            while piece := output.read(_PIECE):
                self._write(escaper.feed(piece))
            self._write(escaper.feed(b"", last=True))

    def _write(self, data: bytes) -> None:
        for start in range(0, len(data), self._bytes_max):
            with self._lock, suppress(OSError):
                # Suppressed: a full disk loses this piece. The child must not wait for room, which would stop it too.
                self._append(data[start : start + self._bytes_max])

    def _append(self, piece: bytes) -> None:
        with self._opened() as file:
            if file.tell() + len(piece) <= self._bytes_max:
                file.write(piece)
                return
        self.path.replace(self.path.with_name(f"{self.path.name}.1"))
        with self._opened() as file:
            file.write(piece)

    def _opened(self) -> IO[bytes]:
        # Not through a link, which another user could have put into a folder that was open to all.
        flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW
        file = os.fdopen(os.open(self.path, flags, 0o600), "ab", buffering=0)
        file.seek(0, os.SEEK_END)
        return file
