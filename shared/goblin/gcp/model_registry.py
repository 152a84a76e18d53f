"""The model registry in Cloud Storage; `registry/domain/versions.py` has the layout.

The client is Google's blocking one: every call runs in a thread, and has a deadline. Each write carries a
precondition, so the client may repeat it safely. A repeated write whose first try had arrived answers 412 like a lost
race, and the caller distinguishes the two. Source: google-cloud-storage 3.17, read 2026-11-25.
"""

from __future__ import annotations

import asyncio
import base64
import hashlib
import logging
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, BinaryIO, TypeVar

import google_crc32c
import msgspec
from google.api_core.exceptions import (
    GoogleAPICallError,
    NotFound,
    PreconditionFailed,
    RequestRangeNotSatisfiable,
    RetryError,
)
from google.auth.exceptions import GoogleAuthError
from google.cloud import storage
from google.cloud.storage.exceptions import DataCorruption
from requests.exceptions import RequestException

from goblin.core import decoding
from goblin.core.errors import Broken, Conflict, InvalidRequest, StoreUnavailable
from goblin.registry.domain.versions import MANIFEST, ModelArtifact, ModelName, Pointer, Promotion, Version

log = logging.getLogger(__name__)

CALL_S_MAX = 10.0
UPLOAD_CHUNK_BYTES = 16 << 20
"""Size of the chunks that are acknowledged one by one: the most that a cut connection loses, and that memory holds."""
UPLOAD_CHUNK_S_MAX = 300.0
DOCUMENT_BYTES_MAX = 64 * 1024
"""The most bytes read of a manifest or pointer; the bucket may hold anything under their names."""
DOCUMENTS_MAX = 10_000

T = TypeVar("T")
Noun = TypeVar("Noun", Version, Promotion)


class GcsRegistry:
    """The port `ModelRegistry`."""

    def __init__(self, client: storage.Client, bucket: str) -> None:
        self._bucket = client.bucket(bucket)
        self._client = client
        self._root = f"gs://{bucket}/"

    async def upload(
        self, name: ModelName, version: str, artifact: str, file: Path, *, progress: Callable[[int], None]
    ) -> ModelArtifact:
        blob = self._bucket.blob(f"{name.folder}/{version}/{artifact}", chunk_size=UPLOAD_CHUNK_BYTES)
        sha256, crc32c, size = await _in_thread(_digests, file, progress)

        def send() -> None:
            blob.metadata = {"sha256": sha256}
            with file.open("rb") as opened:
                history: Any = _Watched(opened, lambda sent: progress(size + sent))
                blob.upload_from_file(
                    history, size=size, content_type="application/octet-stream", if_generation_match=0,
                    timeout=UPLOAD_CHUNK_S_MAX, checksum="crc32c",
                )  # fmt: skip

        try:
            await _in_thread(send)
        except PreconditionFailed:
            pass  # The object exists, perhaps from our own earlier try: the comparison below decides.
        except DataCorruption as error:
            raise StoreUnavailable(
                f"{file.name} was damaged during the upload; nothing was stored. Upload it again."
            ) from error
        await _in_thread(blob.reload, timeout=CALL_S_MAX)
        if blob.size != size or blob.crc32c != crc32c:
            raise Conflict(f"{self._root}{blob.name} exists already, and is another file.")
        return ModelArtifact(
            uri=f"{self._root}{blob.name}", generation=_generation(blob), size=size, crc32c=crc32c, sha256=sha256
        )

    async def publish(self, version: Version) -> bool:
        return await self._create(version.name.manifest_path(version.version), version)

    async def version(self, name: ModelName, version: str) -> Version | None:
        path = name.manifest_path(version)
        read = await self._read(path)
        return None if read is None else self._checked(Version, path, read[0])

    async def versions(self) -> Sequence[Version]:
        found = []
        for path in await self._list(f"models/*/*/*/{MANIFEST}"):
            read = await self._read(path)
            if read is not None:
                try:
                    found.append(self._checked(Version, path, read[0]))
                except Broken as error:
                    log.error("Skipped in the list: %s", error.message)
        return found

    async def pointer(self, name: ModelName) -> Pointer | None:
        return await self._pointer(name.pointer_path)

    async def pointers(self) -> Sequence[Pointer]:
        found = []
        for path in await self._list("models/*/*/_aliases/production.json"):
            try:
                pointer = await self._pointer(path)
            except Broken as error:
                log.error("Skipped in the list: %s", error.message)
                continue
            if pointer is not None:
                found.append(pointer)
        return found

    async def move(self, promotion: Promotion, *, generation: int) -> None:
        if not await self._create(promotion.name.pointer_path, promotion, generation=generation):
            raise Conflict(f"The production pointer of {promotion.name} was moved by another process at the same time.")

    async def history(self, name: ModelName, seq: int) -> Promotion | None:
        path = name.history_path(seq)
        read = await self._read(path)
        if read is None:
            return None
        move = self._checked(Promotion, path, read[0])
        if move.seq != seq:
            raise Broken(f"{self._root}{path} describes another promotion.")
        return move

    async def append_history(self, promotion: Promotion) -> None:
        await self._create(promotion.name.history_path(promotion.seq), promotion)

    async def _pointer(self, path: str) -> Pointer | None:
        read = await self._read(path)
        if read is None:
            return None
        return Pointer(promotion=self._checked(Promotion, path, read[0]), generation=read[1])

    async def _create(self, path: str, noun: Version | Promotion, *, generation: int = 0) -> bool:
        """Write a document over `generation`, or as a new one for 0; False when another one is there."""
        blob = self._bucket.blob(path)
        blob.cache_control = "no-store"
        try:
            await _in_thread(
                blob.upload_from_string, _document(noun), content_type="application/json",
                if_generation_match=generation, timeout=CALL_S_MAX,
            )  # fmt: skip
        except PreconditionFailed:
            return False
        return True

    async def _read(self, path: str) -> tuple[bytes, int] | None:
        """Read a document and its generation in one call; None when there is none."""
        blob = self._bucket.blob(path)
        try:
            data: bytes = await _in_thread(blob.download_as_bytes, end=DOCUMENT_BYTES_MAX, timeout=CALL_S_MAX)
        except NotFound:
            return None
        except RequestRangeNotSatisfiable as error:
            raise Broken(f"{self._root}{path} is empty.") from error
        return data, _generation(blob)

    async def _list(self, glob: str) -> list[str]:
        def names() -> list[str]:
            blobs: Iterable[Any] = self._client.list_blobs(
                self._bucket, match_glob=glob, fields="items(name),nextPageToken", max_results=DOCUMENTS_MAX,
                timeout=CALL_S_MAX,
            )  # fmt: skip
            return [blob.name for blob in blobs]

        return await _in_thread(names)

    def _checked(self, kind: type[Noun], path: str, data: bytes) -> Noun:
        """Decode and check a document; any account with write access may have written it."""
        try:
            fields: dict[str, Any] = decoding.decode(data, dict[str, Any], ValueError)
            name = ModelName.parse(f"{fields.pop('org')}/{fields.pop('model')}")
            noun = msgspec.convert({**fields, "name": name}, kind)
            decoding.check_values(noun)
        except (*decoding.UNREADABLE, InvalidRequest, KeyError) as error:
            raise Broken(f"{self._root}{path} is not a {kind.__name__}: {decoding.reason(error)}.") from error
        folder = f"{noun.name.folder}/"
        if not path.startswith(folder) or not noun.artifact.uri.startswith(f"{self._root}{folder}"):
            raise Broken(f"{self._root}{path} names {noun.name} and {noun.artifact.uri}, which are elsewhere.")
        return noun


def _document(noun: Version | Promotion) -> bytes:
    """Encode a noun as one flat JSON object, which people can read in the bucket too."""
    fields: dict[str, Any] = msgspec.to_builtins(noun)
    return msgspec.json.format(msgspec.json.encode({**fields.pop("name"), **fields}), indent=1)


def _generation(blob: Any) -> int:
    if blob.generation is None:
        raise StoreUnavailable(f"Cloud Storage answered without the generation of {blob.name}.")
    return int(blob.generation)


def _digests(file: Path, progress: Callable[[int], None]) -> tuple[str, str, int]:
    """Compute the SHA-256 in hex, the CRC32C as Cloud Storage writes it, and the size."""
    sha256, crc32c, size = hashlib.sha256(), google_crc32c.Checksum(), 0
    with file.open("rb") as opened:
        while piece := opened.read(1 << 20):
            sha256.update(piece)
            crc32c.update(piece)
            size += len(piece)
            progress(size)
    return sha256.hexdigest(), base64.b64encode(crc32c.digest()).decode(), size


class _Watched:
    """A file that reports how far it was read."""

    def __init__(self, file: BinaryIO, told: Callable[[int], None]) -> None:
        self._file = file
        self._told = told

    def read(self, size: int = -1) -> bytes:
        data = self._file.read(size)
        self._told(self._file.tell())
        return data

    def tell(self) -> int:
        return self._file.tell()

    def seek(self, offset: int, whence: int = 0) -> int:
        return self._file.seek(offset, whence)


async def _in_thread(call: Callable[..., T], *words: Any, **named: Any) -> T:
    try:
        return await asyncio.to_thread(call, *words, **named)
    except (NotFound, PreconditionFailed, RequestRangeNotSatisfiable):
        raise
    except (GoogleAPICallError, GoogleAuthError, RetryError, RequestException, TimeoutError) as error:
        raise StoreUnavailable(f"Cloud Storage failed to answer: {error}") from error
