"""Downloads: an object's bytes, whole, as a range, or decompressed for a client that does not accept gzip."""

import re
from collections.abc import AsyncIterator, Mapping
from email.utils import formatdate
from pathlib import Path
from urllib.parse import quote

from starlette.requests import Request
from starlette.responses import Response, StreamingResponse

from localcloud.storage import files as disk
from localcloud.storage import transcoding
from localcloud.storage.errors import StorageError
from localcloud.storage.files import CHUNK, Files
from localcloud.storage.records import StoredObject

_HEADER_NAME_MARKS = "!#$&'*+-.^_`|~"
"""The characters allowed in a header's name beside letters and digits."""


_RANGE = re.compile(r"bytes=([0-9]{0,18})-([0-9]{0,18})")


class RangeNotSatisfiable(StorageError):
    """416: the object does not have the requested range."""

    def __init__(self, size: int) -> None:
        super().__init__(416, "requestedRangeNotSatisfiable", "Request range not satisfiable", xml_code="InvalidRange")
        self.size = size


async def send(
    files: Files, stored: StoredObject, request: Request, *, overrides: Mapping[str, str] | None = None
) -> Response:
    """Answer with the object's bytes.

    Args:
        files: The data files.
        stored: The version to send.
        request: The request; its `Range` and `Accept-Encoding` are applied, and HEAD gets headers only.
        overrides: Headers that a signed URL asks for in place of the object's own.
    """
    headers = {**object_headers(stored), **(overrides or {})}
    size = stored.content.size
    path = files.path(stored.generation)
    accepted = request.headers.get("accept-encoding", "")
    if transcoding.is_served_unpacked(stored.fields, accepted) and await _is_gzip(path, size):
        del headers["content-encoding"]
        headers["warning"] = "214 UploadServer gunzipped"
        chunks = transcoding.gunzip(disk.read(path, 0, size))
        return StreamingResponse(_nothing() if request.method == "HEAD" else chunks, headers=headers)
    wanted = parse_range(request.headers.get("range"), size)
    start, length = wanted or (0, size)
    headers["content-length"] = str(length)
    headers["accept-ranges"] = "bytes"
    if wanted is not None:
        headers["content-range"] = f"bytes {start}-{start + length - 1}/{size}"
    status = 200 if wanted is None else 206
    if request.method == "HEAD" or not length:
        return Response(status_code=status, headers=headers)
    chunks = disk.read(path, start, length)
    if length <= CHUNK:
        return Response(b"".join([chunk async for chunk in chunks]), status, headers=headers)
    # Open the file before the first header is sent, so that a deletion meanwhile does not cut the download short.
    first = await anext(chunks)
    return StreamingResponse(_chain(first, chunks), status, headers=headers)


def object_headers(stored: StoredObject) -> dict[str, str]:
    """Return the headers of a version in both APIs, with its custom metadata."""
    fields = stored.fields
    headers = {
        "content-type": stored.content_type,
        "etag": f'"{stored.etag}"',
        "last-modified": formatdate(stored.updated_us / 1_000_000, usegmt=True),
        "x-goog-generation": str(stored.generation),
        "x-goog-hash": stored.hashes,
        "x-goog-metageneration": str(stored.metageneration),
        "x-goog-storage-class": stored.storage_class,
        "x-goog-stored-content-encoding": str(fields.get("contentEncoding") or "identity"),
        "x-goog-stored-content-length": str(stored.content.size),
        "cache-control": str(fields.get("cacheControl") or "private, max-age=0"),
    }
    if stored.content.components is not None:
        headers["x-goog-component-count"] = str(stored.content.components)
    for member in ("contentDisposition", "contentEncoding", "contentLanguage"):
        if fields.get(member):
            headers["content-" + member.removeprefix("content").lower()] = str(fields[member])
    for key, value in fields.get("metadata", {}).items():
        headers["x-goog-meta-" + quote(key.lower(), safe=_HEADER_NAME_MARKS)] = header_text(value)
    return {name: header_text(value) for name, value in headers.items()}


def parse_range(header: str | None, size: int) -> tuple[int, int] | None:
    """Parse a single range as `(start, length)`. None sends everything, also for a range that cannot be parsed.

    Raises:
        RangeNotSatisfiable: The range begins past the end.
    """
    match = _RANGE.fullmatch((header or "").replace(" ", ""))
    if match is None or match[0] == "bytes=-":
        return None
    first, last = match.groups()
    if not first:
        length = min(int(last), size)
        if not length:
            raise RangeNotSatisfiable(size)
        return size - length, length
    start = int(first)
    end = min(int(last), size - 1) if last else size - 1
    if last and int(last) < start:
        return None
    if start >= size:
        raise RangeNotSatisfiable(size)
    return start, end - start + 1


def header_text(value: str) -> str:
    """Return a value safe for a header: Latin-1 stays, the rest and line breaks are percent-encoded."""
    if value.isascii() and value.isprintable():
        return value
    return quote(value, safe=" !#$&'()*+,-./:;<=>?@[]^_`{|}~\"")


async def _is_gzip(path: Path, size: int) -> bool:
    start = disk.read(path, 0, min(size, len(transcoding.MAGIC)))
    return b"".join([piece async for piece in start]) == transcoding.MAGIC


async def _chain(first: bytes, rest: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    yield first
    async for chunk in rest:
        yield chunk


async def _nothing() -> AsyncIterator[bytes]:
    return
    yield b""  # The `yield` makes it a generator.
