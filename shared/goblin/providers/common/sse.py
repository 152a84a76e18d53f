"""Server-sent events, read piece by piece, as the WHATWG describes them."""

from __future__ import annotations

from typing import NamedTuple

LINE_BYTES_MAX = 8 * 1024 * 1024
"""An event beyond this is no event; tool calls with whole files in them stay below."""


class ServerEvent(NamedTuple):
    event: str
    """`message` unless named."""
    data: bytes


class EventTooLarge(Exception):
    """The sender does not end its event."""


class EventParser:
    """Feed it bytes as they come; comments, which servers send to keep a connection, disappear."""

    def __init__(self) -> None:
        self._rest = b""
        self._event = ""
        self._data: list[bytes] = []
        self._held = 0

    def feed(self, piece: bytes) -> list[ServerEvent]:
        """Events that are complete now.

        Raises:
            EventTooLarge: when one event passes `LINE_BYTES_MAX`.
        """
        text = self._rest + piece
        # A line may end in CR, LF or both; a CR at the very end may be half of a pair.
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
