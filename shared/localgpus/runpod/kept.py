"""The market's state on disk: one file, replaced as a whole."""

from __future__ import annotations

import os
from pathlib import Path

import msgspec

from localgpus.runpod.books import Books
from localgpus.runpod.pods import GpuType, Pod


class State(msgspec.Struct, kw_only=True):
    """The whole state of the market."""

    gpus: list[GpuType]
    books: Books
    pods: dict[str, Pod] = {}
    leaving: list[str] = []
    """Machines of deleted pods whose disks are not wiped yet."""


class Kept:
    """The file that holds the last written state."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._written = b""

    def read(self) -> State | None:
        """Read the last written state; None if there is none."""
        if not self._path.exists():
            return None
        self._written = self._path.read_bytes()
        return msgspec.json.decode(self._written, type=State)

    def write(self, state: State) -> None:
        """Write the state to disk. Does nothing if it has not changed."""
        data = msgspec.json.encode(state)
        if data == self._written:
            return
        self._path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        draft = self._path.with_suffix(".draft")
        # Only the owner may read the file: pods' environments hold secrets.
        with os.fdopen(os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "wb") as file:
            file.write(data)
        draft.replace(self._path)
        self._written = data
