"""The market on disk: one file, replaced whole."""

from __future__ import annotations

import os
from pathlib import Path

import msgspec

from localgpus.runpod.books import Books
from localgpus.runpod.pods import GpuType, Pod


class State(msgspec.Struct, kw_only=True):
    """All that there is to know."""

    gpus: list[GpuType]
    books: Books
    pods: dict[str, Pod] = {}
    leaving: list[str] = []
    """Machines of pods that are gone, until their disks are wiped."""


class Kept:
    """A file that holds the state as it was written last."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._written = b""

    def read(self) -> State | None:
        """What was written last; None: nothing ever was."""
        if not self._path.exists():
            return None
        self._written = self._path.read_bytes()
        return msgspec.json.decode(self._written, type=State)

    def write(self, state: State) -> None:
        """Returns once it is there; the same again costs nothing."""
        data = msgspec.json.encode(state)
        if data == self._written:
            return
        self._path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        draft = self._path.with_suffix(".draft")
        # Environments are secrets.
        with os.fdopen(os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "wb") as file:
            file.write(data)
        draft.replace(self._path)
        self._written = data
