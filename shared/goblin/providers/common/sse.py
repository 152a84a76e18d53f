"""Incremental parser for server-sent events, as the WHATWG specifies them; and for JSON that comes instead of them."""

from __future__ import annotations

from typing import NamedTuple

LINE_BYTES_MAX = 8 * 1024 * 1024
"""Largest event; tool calls that contain whole files stay below."""


_MARK = b"\xef\xbb\xbf"
"""Byte order mark."""


class ServerEvent(NamedTuple):
    event: str
    """The event's name; `message` if it has none."""
    data: bytes


class EventTooLarge(Exception):
    """One event passes `LINE_BYTES_MAX`: the sender does not end it."""


class EventParser:
    """Turns bytes into events as they arrive; skips comments, which servers send to keep a connection open.

    A body that begins with a bracket is JSON, whatever its type is called: it becomes one event when it ends.
    """

    def __init__(self) -> None:
        self._parts: list[bytes] = []
        """The line that has not ended, as it arrived."""
        self._parts_held = 0
        self._held_cr = False
        self._first = b""
        """The first bytes, while they do not tell what the body is."""
        self._begun = False
        self._json: bytearray | None = None
        self._event = ""
        self._data: list[bytes] = []
        self._held = 0

    def feed(self, piece: bytes) -> list[ServerEvent]:
        """Add bytes and return the events that are complete now.

        Raises:
            EventTooLarge: When one event passes `LINE_BYTES_MAX`.
        """
        if not self._begun:
            piece = self._begin(piece)
            if not self._begun:
                return []
        if self._json is not None:
            self._json += piece
            if len(self._json) > LINE_BYTES_MAX:
                raise EventTooLarge
            return []
        if self._parts and not self._held_cr and b"\n" not in piece and b"\r" not in piece:
            # In the middle of a line: joining it anew for each piece would take the square of its length.
            self._parts.append(piece)
            self._parts_held += len(piece)
            if self._parts_held + self._held > LINE_BYTES_MAX:
                raise EventTooLarge
            return []
        text = b"".join((*self._parts, piece))
        # A line may end in CR, LF or CRLF; a CR at the very end may be the first half of CRLF.
        self._held_cr = text.endswith(b"\r")
        if self._held_cr:
            text = text[:-1]
        if b"\r" in text:
            text = text.replace(b"\r\n", b"\n").replace(b"\r", b"\n")
        *lines, rest = text.split(b"\n")
        self._parts = [rest + b"\r" if self._held_cr else rest]
        self._parts_held = len(self._parts[0])
        events = [event for line in lines if (event := self._line(line)) is not None]
        if self._parts_held + self._held > LINE_BYTES_MAX:
            raise EventTooLarge
        return events

    def end(self) -> list[ServerEvent]:
        """Return the events of a body that has ended without an empty line after the last."""
        if self._json is not None:
            return [ServerEvent("message", bytes(self._json))]
        events = [self._line(b"".join(self._parts).removesuffix(b"\r")), self._dispatch()]
        self._parts, self._parts_held, self._held_cr = [], 0, False
        return [event for event in events if event is not None]

    def _begin(self, piece: bytes) -> bytes:
        """Look at the first bytes for a byte order mark and for JSON. Returns what is to be read."""
        text = self._first + piece
        begin = text.removeprefix(_MARK).lstrip()
        if not begin or _MARK.startswith(text):
            self._first = text[:3]  # Nothing but white space, or a part of the mark, so far.
            return b""
        self._first, self._begun = b"", True
        if begin[:1] in (b"{", b"["):
            self._json = bytearray()
        return begin

    def _line(self, line: bytes) -> ServerEvent | None:
        if not line:
            return self._dispatch()
        field, colon, value = line.partition(b":")
        if colon and value.startswith(b" "):
            value = value[1:]
        if field == b"data":
            self._data.append(value)
            self._held += len(value) or 1  # An empty line takes memory too.
        elif field == b"event":
            self._event = value.decode("utf-8", "replace")
        elif line[:1] == b"{":
            # A proxy that fails in the middle writes its JSON without a field name.
            self._data.append(line)
            self._held += len(line)
        return None

    def _dispatch(self) -> ServerEvent | None:
        name, data = self._event or "message", self._data
        self._event, self._data, self._held = "", [], 0
        return ServerEvent(name, b"\n".join(data)) if data else None
