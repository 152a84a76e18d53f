"""Readers of request bodies and parameters, with limits."""

import base64
import binascii
from collections.abc import AsyncIterator, Mapping
from typing import Any

import msgspec
from starlette.requests import Request

from httpguard import whole_number
from localcloud.storage import transcoding
from localcloud.storage.errors import invalid, too_large, unkept

JSON_BYTES_MAX = 1 << 20
OBJECT_BYTES_MAX = 5 << 40
"""Production's limit: 5 TiB."""


async def read_body(request: Request, limit: int) -> bytes:
    """Read a whole small body, unpacked if it is compressed; raises 413 above `limit` bytes."""
    declared = request.headers.get("content-length", "")
    if declared and whole_number(declared, limit) is None:
        raise too_large(f"The request body is larger than {limit} bytes")
    body = bytearray()
    async for chunk in transcoding.body(request):
        body += chunk
        if len(body) > limit:
            raise too_large(f"The request body is larger than {limit} bytes")
    return bytes(body)


async def read_json(request: Request) -> dict[str, Any]:
    """Read a JSON object; an empty body is an empty object."""
    return parse_json(await read_body(request, JSON_BYTES_MAX))


def parse_json(body: bytes) -> dict[str, Any]:
    """Parse a JSON object; raises 400 for anything else."""
    if not body.strip():
        return {}
    try:
        parsed: dict[str, Any] = msgspec.json.decode(body, type=dict[str, Any])
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise invalid(f"Parse Error: {error}") from error
    return parsed


def generation(query: Mapping[str, str], name: str = "generation") -> int | None:
    """Return the generation that a request names; None when it names none."""
    raw = query.get(name)
    if raw is None:
        return None
    if not raw.isascii() or not raw.isdigit() or len(raw) > 18:
        raise invalid(f"Invalid value for {name}")
    return int(raw)


def digests(headers: Mapping[str, str], fields: Mapping[str, Any] | None = None) -> dict[str, str]:
    """Return the checksums that a client sent: in `x-goog-hash`, `Content-MD5`, or JSON members."""
    found: dict[str, str] = {}
    if "content-md5" in headers:
        found["md5"] = headers["content-md5"]
    for part in headers.get("x-goog-hash", "").split(","):
        kind, separator, value = part.strip().partition("=")
        if separator and kind in {"crc32c", "md5"}:
            found[kind] = value
    for kind, member in (("crc32c", "crc32c"), ("md5", "md5Hash")):
        if fields and isinstance(fields.get(member), str):
            found[kind] = fields[member]
    for kind, value in found.items():
        _check_digest(kind, value)
    return found


def refuse_customer_keys(headers: Mapping[str, str]) -> None:
    """Raise 400 for customer-supplied encryption keys: localcloud would store the bytes unencrypted."""
    if any(name.startswith(("x-goog-encryption-key", "x-goog-copy-source-encryption")) for name in headers):
        raise unkept("Encryption with customer-supplied keys")


async def bounded(chunks: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    """Yield the same chunks; raises 413 past the size of the largest allowed object."""
    size = 0
    async for chunk in chunks:
        size += len(chunk)
        if size > OBJECT_BYTES_MAX:
            raise too_large("The object is larger than 5 TiB")
        yield chunk


def endpoint(request: Request) -> str:
    """Return the base URL that the client used, for links in answers."""
    return f"{request.url.scheme}://{request.headers.get('host', '127.0.0.1')}"


def _check_digest(kind: str, value: str) -> None:
    try:
        raw = base64.b64decode(value, validate=True)
    except binascii.Error:
        raw = b""
    if len(raw) != (4 if kind == "crc32c" else 16):
        raise invalid(f"Invalid {kind} digest", xml_code="InvalidDigest")
