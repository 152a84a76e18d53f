"""Source of a model, and the check that the file is the expected one."""

import asyncio
import hashlib
import hmac
import logging
import os
import stat
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from .fetch import Fetch, download

log = logging.getLogger(__name__)


class SourceRefused(ValueError):
    """The file is missing, cannot be verified, or is not the expected one."""


@dataclass(frozen=True, slots=True)
class ModelSource:
    """A local path, or an `https://`, `http://` or `gs://` URL. A URL needs a digest."""

    where: str
    sha256: str | None = None
    from_caller: bool = False
    """Whether a request named it: then only a plain file is read, which cannot block, and a download follows no
    redirects, which could lead anywhere."""

    @property
    def is_remote(self) -> bool:
        return "://" in self.where

    @property
    def stem(self) -> str:
        """File name without its extension, used as the default alias."""
        return Path(self.where.split("?", 1)[0]).stem


@dataclass(frozen=True, slots=True)
class LocalModel:
    """A file that is ready to be loaded, with its state when the digest was computed."""

    path: Path
    sha256: str | None
    identity: tuple[int, int, int]

    def is_unchanged(self) -> bool:
        """Tell whether the file was neither written nor replaced since its digest was computed.

        If it was, the weights that were loaded may not be those that were checked.
        """
        return identity(self.path) == self.identity


def identity(path: Path) -> tuple[int, int, int]:
    status = path.stat()
    return status.st_ino, status.st_size, status.st_mtime_ns


@asynccontextmanager
async def local_model(source: ModelSource, fetch: Fetch) -> AsyncIterator[LocalModel]:
    """Provide the model as a verified local file.

    A downloaded file is deleted when the block ends, because the model is in memory by then.

    Raises:
        SourceRefused: The file is missing, has another digest, or comes from a URL without a digest.
        FetchFailed: The download failed.
    """
    if not source.is_remote:
        yield await asyncio.to_thread(_named, source)
        return
    if source.sha256 is None:
        raise SourceRefused("A model from a URL needs its SHA-256.")
    path = await download(source.where, fetch, follow_redirects=not source.from_caller)
    try:
        yield await asyncio.to_thread(_verified, path, source.sha256)
    finally:
        path.unlink(missing_ok=True)


def _named(source: ModelSource) -> LocalModel:
    path = Path(source.where)
    with suppress(OSError):  # Missing, or a name that is too long: `_verified` says which.
        if source.from_caller and not stat.S_ISREG(path.stat().st_mode):
            raise SourceRefused(f"{path.name} is not a file.")
    return _verified(path, source.sha256)


def _verified(path: Path, sha256: str | None) -> LocalModel:
    try:
        before = identity(path)
        if sha256 is None:
            return LocalModel(path, None, before)
        with path.open("rb") as file:
            found = hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise SourceRefused(f"Cannot read {path.name}: {os.strerror(error.errno or 0)}.") from error
    if not hmac.compare_digest(found, sha256.lower()):
        # Only the log says what was found: a caller learns nothing of a file but that it is not the one that it named.
        log.warning("The SHA-256 of %s is %s, not %s.", path.name, found, sha256.lower())
        raise SourceRefused(f"The SHA-256 of {path.name} is not {sha256.lower()}.")
    return LocalModel(path, found, before)
