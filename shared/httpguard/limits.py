"""How much of a request is read, and for how long."""

from __future__ import annotations

from dataclasses import dataclass

MIB = 1024 * 1024


@dataclass(frozen=True, kw_only=True, slots=True)
class Limits:
    """Limits of one request."""

    head_bytes: int = 64 * 1024
    """Request line, names and values of the headers together."""
    head_lines: int = 128
    """Number of headers."""
    head_s: float = 10.0
    """From a request's first byte, or from the connection's beginning, to the end of its headers."""
    body_bytes: int = 10 * MIB
    """The body, as it is sent and as it is unpacked."""
    room_bytes: int = 128 * MIB
    """All bodies that are arriving together; a quarter of the smallest instance's memory."""
    body_s: float = 60.0
    """From the end of the headers to the end of the body."""
    pause_s: float = 10.0
    """Between two pieces of the body."""
    unread_s: float = 60.0
    """How long a caller may read nothing of an answer that waits for it: until then it holds its place."""
    depth: int = 32
    """Levels of nested arrays and objects in JSON."""
    encodings: frozenset[str] = frozenset()
    """Values of `Content-Encoding` that are unpacked: `gzip`, `zstd`."""


DEFAULT = Limits()
