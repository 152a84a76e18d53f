"""What a file is: its size and checksums, and whether it is what somebody said."""

from __future__ import annotations

import hashlib
import re
from pathlib import Path
from typing import Any

from goblin_worker.controller import File
from goblin_worker.crc32c import crc32c, text

NAME = re.compile(r"^[A-Za-z0-9][A-Za-z0-9._-]{0,127}\Z")
"""What a file of a checkpoint or an input may be called; it is a path nowhere."""
CHUNK = 1024 * 1024


def describe(path: Path) -> dict[str, Any]:
    """A file as it is announced to the controller; read whole."""
    checksum, digest, size = 0, hashlib.sha256(), 0
    with path.open("rb") as file:
        while chunk := file.read(CHUNK):
            checksum, size = crc32c(chunk, checksum), size + len(chunk)
            digest.update(chunk)
    return {"name": path.name, "size": size, "crc32c": text(checksum), "sha256": digest.hexdigest()}


def differs(path: Path, wanted: File) -> str | None:
    """Why the file is not what the controller says it is; None when it is."""
    found = describe(path)
    for what, expected in (("size", wanted.size), ("crc32c", wanted.crc32c), ("sha256", wanted.sha256)):
        if expected is not None and found[what] != expected:
            return f"{wanted.name}: {what} is {found[what]}, not {expected}"
    return None
