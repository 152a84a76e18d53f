"""Incremental parser for server-sent events, as the WHATWG specifies them."""

from __future__ import annotations

from typing import NamedTuple

LINE_BYTES_MAX = 8 * 1024 * 1024
"""Largest event; tool calls that contain whole files stay below."""


class ServerEvent(NamedTuple):
    event: str
    """The event's name; `message` if it has none."""
    data: bytes


class EventTooLarge(Exception):
    """One event passes `LINE_BYTES_MAX`: the sender does not end it."""


class EventParser:
    """Turns bytes into events as they arrive; skips comments, which servers send to keep a connection open."""

    def __init__(self) -> None:
        self._parts: list[bytes] = []
        """The line that has not ended, as it arrived."""
        self._parts_held = 0
        self._held_cr = False
        self._event = ""
        self._data: list[bytes] = []
        self._held = 0

    def feed(self, piece: bytes) -> list[ServerEvent]:
        """Add bytes and return the events that are complete now.

        Raises:
            EventTooLarge: When one event passes `LINE_BYTES_MAX`.
        """
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
        return None

    def _dispatch(self) -> ServerEvent | None:
        name, data = self._event or "message", self._data
        self._event, self._data, self._held = "", [], 0
        return ServerEvent(name, b"\n".join(data)) if data else None
