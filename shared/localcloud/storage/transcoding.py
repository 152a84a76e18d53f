"""gzip in both directions: compressed request bodies, and compressed objects for clients that do not accept gzip.

- `Content-Encoding: gzip` on a request of the JSON API compresses the transfer: the bytes are unpacked and stored
  plain (`gcloud storage cp --gzip-in-flight`). Content-Range and checksums count unpacked bytes.
- `contentEncoding: gzip` in an object's metadata describes the stored bytes: they stay compressed, and are unpacked
  when a client downloads them without accepting gzip (`--gzip-local`, `gzip: true` in Node). A client that says both
  has compressed once, so the bytes stay as they are.

Source: https://cloud.google.com/storage/docs/transcoding and `handle_gzip_request` of googleapis/storage-testbench,
read 2026-12-01.
"""

import re
import zlib
from collections.abc import AsyncIterator, Mapping

from starlette.requests import Request

from localcloud.storage.errors import StorageError, invalid, unkept
from localcloud.storage.files import CHUNK

_NEVER = re.compile(r"0(\.0*)?")
MAGIC = b"\x1f\x8b"
"""The first two bytes of every gzip file."""


def is_packed(headers: Mapping[str, str], content_encoding: object = None) -> bool:
    """Whether a request's body is compressed for the transfer.

    Args:
        headers: The request's headers.
        content_encoding: The `contentEncoding` of the object whose bytes the body is, if it has one.

    Raises:
        StorageError: 400, the body has another coding than gzip.
    """
    coding = headers.get("content-encoding", "").strip().lower()
    if coding in {"", "identity", content_encoding}:
        return False
    if coding not in {"gzip", "x-gzip"}:
        raise unkept(f"A request body with Content-Encoding {coding}")
    return True


def body(request: Request, content_encoding: object = None) -> AsyncIterator[bytes]:
    """Return a request's body, unpacked if it is compressed for the transfer; arguments as of `is_packed`."""
    return gunzip(request.stream()) if is_packed(request.headers, content_encoding) else request.stream()


async def gunzip(chunks: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    """Yield the unpacked bytes of one or more gzip members; raises 400 for bytes that are cut off or not gzip."""
    member = _member()
    is_open = False
    async for chunk in chunks:
        tail = chunk
        while tail:
            try:
                piece = member.decompress(tail, CHUNK)
            except zlib.error as error:
                raise _not_gzip() from error
            if piece:
                yield piece
            is_open = not member.eof
            if member.eof:
                # Objects composed of compressed objects are several members, one after another.
                tail = member.unused_data
                member = _member()
            else:
                tail = member.unconsumed_tail
    if is_open:
        raise _not_gzip()


def is_served_unpacked(fields: Mapping[str, object], accept_encoding: str) -> bool:
    """Whether an object with these fields is unpacked for a client, provided that its bytes are gzip."""
    if fields.get("contentEncoding") != "gzip" or "no-transform" in str(fields.get("cacheControl", "")):
        return False
    return not any(_accepts_gzip(choice) for choice in accept_encoding.lower().split(","))


def _accepts_gzip(choice: str) -> bool:
    coding, _, weight = choice.replace(" ", "").partition(";q=")
    return coding in {"gzip", "x-gzip"} and _NEVER.fullmatch(weight) is None


def _member() -> "zlib._Decompress":
    return zlib.decompressobj(wbits=zlib.MAX_WBITS | 16)


def _not_gzip() -> StorageError:
    return invalid("The body is not valid gzip, or it ends early. Send the whole gzip stream or no Content-Encoding.")
