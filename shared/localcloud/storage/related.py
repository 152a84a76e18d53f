"""A streaming parser of `multipart/related`: a small JSON part, then a part of any size.

RFC 2046 ends lines with CR LF and puts no single quotes around a boundary. `gcloud storage` 528 sends single quotes;
it and gcsfs 2026.10 end lines with LF. Production accepts both. The first boundary line decides for the whole body:
data that ends with CR before an LF boundary must keep its CR.
"""

from collections.abc import AsyncIterator
from email.message import Message
from typing import Any

from localcloud.storage.errors import invalid, unkept
from localcloud.storage.requests import JSON_BYTES_MAX, parse_json

_HEAD_BYTES_MAX = 16 << 10
_PLAIN_CODINGS = {"7bit", "8bit", "binary"}


def boundary(content_type: str, kind: str) -> bytes:
    """Return the boundary that a multipart content type names, without quotes; raises 400 when it names none."""
    message = Message()
    message["content-type"] = content_type
    found = message.get_param("boundary")
    if message.get_content_type() != kind or not isinstance(found, str) or not 0 < len(found) <= 200:
        raise invalid(f"Content-Type must be {kind} with a boundary")
    if len(found) > 2 and found[0] == found[-1] == "'":
        found = found[1:-1]
    return found.encode("latin-1", "replace")


class Related:
    """Two parts, read in order: first `metadata`, then `media`."""

    def __init__(self, chunks: AsyncIterator[bytes], mark: bytes) -> None:
        """Read from `chunks`, whose parts `mark` separates."""
        self._chunks = chunks
        self._dashed = b"--" + mark
        self._line_end = b"\r\n"
        self._held = b"\n"  # The first mark may open the body, without a line before it.
        self.media_type = ""
        """The content type of the second part, known after `metadata`."""

    async def metadata(self) -> dict[str, Any]:
        """Read the first part."""
        await self._until(b"\n" + self._dashed, _HEAD_BYTES_MAX)
        rest = await self._until(b"\n", _HEAD_BYTES_MAX)
        self._line_end = b"\r\n" if rest.endswith(b"\r") else b"\n"
        self._held = self._line_end + self._held
        await self._headers()
        metadata = parse_json(await self._until(self._mark, JSON_BYTES_MAX))
        headers = await self._headers()
        coding = headers.get("content-transfer-encoding", "binary").lower()
        if coding not in _PLAIN_CODINGS:
            raise unkept(f"Content-Transfer-Encoding {coding}")
        self.media_type = headers.get("content-type", "")
        return metadata

    async def media(self) -> AsyncIterator[bytes]:
        """Yield the second part in chunks; raises 400 when the body ends without the closing mark."""
        while True:
            end = self._held.find(self._mark)
            if end >= 0:
                if end:
                    yield self._held[:end]
                async for _ in self._chunks:
                    pass  # Bytes after the closing mark are ignored.
                return
            # The end of a chunk may cut the mark in two.
            safe = len(self._held) - len(self._mark) + 1
            if safe > 0:
                yield self._held[:safe]
                self._held = self._held[safe:]
            await self._more()

    @property
    def _mark(self) -> bytes:
        return self._line_end + self._dashed

    async def _headers(self) -> dict[str, str]:
        """Read to the end of a part's headers; the body stands at the line end of its boundary line."""
        head = await self._until(self._line_end * 2, _HEAD_BYTES_MAX)
        lines = [line.partition(":") for line in head.decode("latin-1").splitlines()]
        return {name.strip().lower(): value.strip() for name, _, value in lines}

    async def _until(self, stop: bytes, limit: int) -> bytes:
        """Read everything before `stop`, which is dropped; raises 400 past `limit` bytes."""
        while (at := self._held.find(stop)) < 0:
            if len(self._held) > limit:
                raise invalid("A part of the multipart body is too large")
            await self._more()
        before, self._held = self._held[:at], self._held[at + len(stop) :]
        return before

    async def _more(self) -> None:
        async for chunk in self._chunks:
            self._held += chunk
            return
        raise invalid("The multipart body ends early")
