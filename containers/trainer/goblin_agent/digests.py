"""Size and checksums of files, and their comparison with what the controller expects."""

from __future__ import annotations

import hashlib
import re
from pathlib import Path
from typing import Any

from goblin_worker.controller import File
from goblin_worker.crc32c import crc32c, text

NAME = re.compile(r"^[A-Za-z0-9][A-Za-z0-9._-]{0,127}\Z")
"""Valid names of files in checkpoints and inputs. They cannot contain a path."""
CHUNK = 1024 * 1024


def describe(path: Path) -> dict[str, Any]:
    """Describe a file as the controller expects it: name, size, CRC-32C, SHA-256. Reads the whole file."""
    checksum, digest, size = 0, hashlib.sha256(), 0
    with path.open("rb") as file:
        while chunk := file.read(CHUNK):
            checksum, size = crc32c(chunk, checksum), size + len(chunk)
            digest.update(chunk)
    return {"name": path.name, "size": size, "crc32c": text(checksum), "sha256": digest.hexdigest()}


def differs(path: Path, wanted: File) -> str | None:
    """Return the first difference between a file and what the controller expects; None if there is none."""
    found = describe(path)
    for what, expected in (("size", wanted.size), ("crc32c", wanted.crc32c), ("sha256", wanted.sha256)):
        if expected is not None and found[what] != expected:
            return f"{wanted.name}: {what} is {found[what]}, not {expected}"
    return None
