"""Reading a body: no larger, no slower and in no other encoding than agreed."""

from __future__ import annotations

import asyncio
import sys
import zlib
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Any
from weakref import WeakKeyDictionary

from httpguard.limits import DEFAULT, MIB, Limits
from httpguard.refusal import Refusal


async def read_body(
    headers: Mapping[str, str], receive: Callable[[], Awaitable[Any]], limits: Limits = DEFAULT
) -> bytes:
    """Read the whole body of a request and unpack it.

    Args:
        headers: The request's headers; looked up in lower case.
        receive: ASGI's `receive`.
        limits: Of them: those of bodies, and `encodings`.

    Raises:
        Refusal: 408 if it takes too long, 429 if it is the one that leaves others no room, 413 if it is too large, 415
            if its encoding is not accepted, 400 if it ends early or cannot be unpacked. The rest is not read.
    """
    encoding = headers.get("content-encoding", "").strip().lower()
    if encoding not in ("", "identity") and encoding not in limits.encodings:
        accepted = ", ".join(sorted(limits.encodings)) or "none"
        raise Refusal(
            415,
            "unsupported_encoding",
            f"The Content-Encoding is not supported. Leave it out; supported: {accepted}.",
        )
    length = headers.get("content-length", "")
    if length.isdecimal() and (len(length) > 15 or int(length) > limits.body_bytes):
        raise too_large(limits)
    body = await _received(receive, limits)
    if encoding in ("", "identity"):
        return body
    return unpack(encoding, body, limits)


def too_large(limits: Limits) -> Refusal:
    """Build the refusal of a body that is too large."""
    most = limits.body_bytes
    said = f"{most // MIB} MiB" if most >= MIB else f"{most // 1024} KiB" if most >= 1024 else f"{most} bytes"
    return Refusal(413, "request_too_large", f"The body is over {said}.")


@dataclass(eq=False, kw_only=True, slots=True)
class _Arriving:
    """A body of which a part has come."""

    began_at: float
    patience: asyncio.Timeout
    size: int = 0
    put_out: bool = False

    def held(self, now: float) -> float:
        """Return how much memory it has held, for how long."""
        return self.size * (now - self.began_at)


class _Room:
    """Memory for the bodies that are arriving, of one event loop.

    Nobody is counted yet while a body arrives, so a caller may send many at once. When they take too much memory, those
    that have held the most of it for the longest are refused: not the one that comes quickly, whoever else is slow.
    """

    def __init__(self) -> None:
        self._bodies: set[_Arriving] = set()
        self._size = 0

    def add(self, body: _Arriving) -> None:
        self._bodies.add(body)

    def grow(self, body: _Arriving, size: int, limits: Limits) -> None:
        body.size += size
        self._size += size
        now = asyncio.get_running_loop().time()
        while self._size > max(limits.room_bytes, limits.body_bytes):
            largest = max(self._bodies, key=lambda one: (one.held(now), one.size))
            self.remove(largest)
            largest.put_out = True
            largest.patience.reschedule(now)

    def remove(self, body: _Arriving) -> None:
        if body in self._bodies:
            self._bodies.remove(body)
            self._size -= body.size


_rooms: WeakKeyDictionary[asyncio.AbstractEventLoop, _Room] = WeakKeyDictionary()


async def _received(receive: Callable[[], Awaitable[Any]], limits: Limits) -> bytes:
    held, body = bytearray(), None
    loop = asyncio.get_running_loop()
    room = _rooms.setdefault(loop, _Room())
    try:
        began_at = loop.time()
        # One timer for both limits: it is set anew for each piece, and never beyond the end of the whole.
        async with asyncio.timeout_at(began_at) as patience:
            body = _Arriving(began_at=began_at, patience=patience)
            room.add(body)
            while not body.put_out:
                patience.reschedule(min(loop.time() + limits.pause_s, began_at + limits.body_s))
                message = await receive()
                if message["type"] == "http.disconnect":
                    raise Refusal(400, "incomplete_body", "The connection closed before the whole body arrived.")
                piece = message.get("body", b"")
                if len(held) + len(piece) > limits.body_bytes:
                    raise too_large(limits)
                held += piece
                if not message.get("more_body", False):
                    return bytes(held)
                if not body.put_out:
                    room.grow(body, len(piece), limits)
            raise TimeoutError  # It was put out, and its next pieces are here already.
    except TimeoutError:
        if body is not None and body.put_out:
            raise Refusal(
                429,
                "too_many_bodies",
                "Too many large bodies arrive at once, and this one takes long. Send fewer at once, or send it again.",
            ) from None
        raise Refusal(
            408,
            "body_timeout",
            f"The body did not arrive in time: {limits.pause_s:.0f} s passed without a piece of it, or "
            f"{limits.body_s:.0f} s in all. Send it faster.",
        ) from None
    finally:
        if body is not None:
            room.remove(body)


def unpack(encoding: str, body: bytes, limits: Limits) -> bytes:
    """Unpack a body: memory is taken for no more than the limit, whatever the packed bytes claim.

    Args:
        encoding: `gzip` or `zstd`.
        body: The packed body.
        limits: Of them: `body_bytes`.

    Raises:
        Refusal: 413 if it unpacks to more than the limit, 400 if it is no whole packed text.
    """
    unpacked = bytearray()
    fault: type[Exception] = zlib.error if encoding == "gzip" else _zstd().ZstdError
    try:
        while body:  # Both formats may be several packed texts in a row.
            one = zlib.decompressobj(wbits=31) if encoding == "gzip" else _zstd().ZstdDecompressor()
            unpacked += one.decompress(body, limits.body_bytes + 1 - len(unpacked))
            if len(unpacked) > limits.body_bytes:
                raise too_large(limits)
            if not one.eof:
                raise ValueError("it ends early")
            body = one.unused_data
    except (ValueError, EOFError, fault) as error:
        raise Refusal(400, "invalid_encoding", f"The body is not whole {encoding}. Send it again.") from error
    return bytes(unpacked)


def _zstd() -> Any:
    if sys.version_info >= (3, 14):
        from compression import zstd
    else:
        from backports import zstd
    return zstd
