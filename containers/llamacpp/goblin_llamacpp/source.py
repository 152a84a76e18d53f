"""Where a model comes from, and proof that it is the one that was meant."""

import asyncio
import hashlib
import hmac
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

from .fetch import Fetch, download


class SourceRefused(ValueError):
    """The file is missing, out of bounds, or not the one that was meant."""


@dataclass(frozen=True, slots=True)
class ModelSource:
    """A local path, or an `https://`, `http://` or `gs://` address, which needs a digest."""

    where: str
    sha256: str | None = None

    @property
    def is_remote(self) -> bool:
        return "://" in self.where

    @property
    def stem(self) -> str:
        """The file's name without its ending, for an alias."""
        return Path(self.where.split("?", 1)[0]).stem


@dataclass(frozen=True, slots=True)
class LocalModel:
    """A file ready to be loaded, as it was when its digest was taken."""

    path: Path
    sha256: str | None
    identity: tuple[int, int, int]

    def is_unchanged(self) -> bool:
        """False when the file was written or replaced since, so that what was loaded is not what was checked."""
        return identity(self.path) == self.identity


def identity(path: Path) -> tuple[int, int, int]:
    status = path.stat()
    return status.st_ino, status.st_size, status.st_mtime_ns


@asynccontextmanager
async def local_model(source: ModelSource, fetch: Fetch) -> AsyncIterator[LocalModel]:
    """The model as a verified local file; a downloaded one is deleted at the end, for by then it is in memory.

    Raises:
        SourceRefused: Missing, unverifiable, or with another digest.
        FetchFailed: The download failed.
    """
    if not source.is_remote:
        yield await asyncio.to_thread(_verified, Path(source.where), source.sha256)
        return
    if source.sha256 is None:
        raise SourceRefused("A model from an address needs its SHA-256")
    path = await download(source.where, fetch)
    try:
        yield await asyncio.to_thread(_verified, path, source.sha256)
    finally:
        path.unlink(missing_ok=True)


def _verified(path: Path, sha256: str | None) -> LocalModel:
    try:
        before = identity(path)
        if sha256 is None:
            return LocalModel(path, None, before)
        with path.open("rb") as file:
            found = hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise SourceRefused(f"{path.name}: {os.strerror(error.errno or 0)}") from error
    if not hmac.compare_digest(found, sha256.lower()):
        raise SourceRefused(f"The SHA-256 of {path.name} is {found}, not {sha256.lower()}")
    return LocalModel(path, found, before)
