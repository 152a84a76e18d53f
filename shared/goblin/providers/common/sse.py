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
        self._rest = b""
        self._event = ""
        self._data: list[bytes] = []
        self._held = 0

    def feed(self, piece: bytes) -> list[ServerEvent]:
        """Add bytes and return the events that are complete now.

        Raises:
            EventTooLarge: When one event passes `LINE_BYTES_MAX`.
        """
        text = self._rest + piece
        # A line may end in CR, LF or CRLF; a CR at the very end may be the first half of CRLF.
        held_cr = text.endswith(b"\r")
        if held_cr:
            text = text[:-1]
        if b"\r" in text:
            text = text.replace(b"\r\n", b"\n").replace(b"\r", b"\n")
        *lines, rest = text.split(b"\n")
        self._rest = rest + b"\r" if held_cr else rest
        events = [event for line in lines if (event := self._line(line)) is not None]
        if len(self._rest) + self._held > LINE_BYTES_MAX:
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
            self._held += len(value)
        elif field == b"event":
            self._event = value.decode("utf-8", "replace")
        return None

    def _dispatch(self) -> ServerEvent | None:
        name, data = self._event or "message", self._data
        self._event, self._data, self._held = "", [], 0
        return ServerEvent(name, b"\n".join(data)) if data else None
