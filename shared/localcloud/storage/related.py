"""A streaming parser of `multipart/related`: a small JSON part, then a part of any size."""

from collections.abc import AsyncIterator
from email.message import Message
from typing import Any

from localcloud.storage.errors import invalid
from localcloud.storage.requests import JSON_BYTES_MAX, parse_json

_HEAD_BYTES_MAX = 16 << 10


def boundary(content_type: str, kind: str) -> bytes:
    """Return the boundary that a multipart content type names; raises 400 when it names none."""
    message = Message()
    message["content-type"] = content_type
    found = message.get_param("boundary")
    if message.get_content_type() != kind or not isinstance(found, str) or not 0 < len(found) <= 200:
        raise invalid(f"Content-Type must be {kind} with a boundary")
    return found.encode("latin-1", "replace")


class Related:
    """Two parts, read in order: first `metadata`, then `media`."""

    def __init__(self, chunks: AsyncIterator[bytes], mark: bytes) -> None:
        """Read from `chunks`, whose parts `mark` separates."""
        self._chunks = chunks
        self._mark = b"\r\n--" + mark
        self._held = b"\r\n"  # The first mark may open the body, without a line before it.
        self.media_type = ""
        """The content type of the second part, known after `metadata`."""

    async def metadata(self) -> dict[str, Any]:
        """Read the first part."""
        await self._until(self._mark, _HEAD_BYTES_MAX)
        await self._headers()
        metadata = parse_json(await self._until(self._mark, JSON_BYTES_MAX))
        self.media_type = (await self._headers()).get("content-type", "")
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

    async def _headers(self) -> dict[str, str]:
        head = await self._until(b"\r\n\r\n", _HEAD_BYTES_MAX)
        lines = [line.partition(":") for line in head.decode("latin-1").split("\r\n")]
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
