"""uvicorn's HTTP protocol with bounds on the head and on time, which uvicorn itself does not have.

The parser (httptools) gathers a header of any length before anybody sees it, and a connection that never ends its
request line is kept for ever. Source: uvicorn 0.54 and httptools 0.7, read 2026-12-01.
"""

from __future__ import annotations

import asyncio
import re
from typing import Any

from uvicorn.protocols.http import auto
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol

from httpguard.guard import too_large_head
from httpguard.limits import DEFAULT
from httpguard.refusal import Refusal, in_openais_words

PAUSE_S = 30.0
"""Longest silence within a body. Who reads a body has shorter limits; this one holds for those that nobody reads."""
METHODS = frozenset({b"GET", b"HEAD", b"POST", b"PUT", b"PATCH", b"DELETE", b"OPTIONS"})
_HIDDEN = re.compile(rb"%0[0ad]", re.IGNORECASE)
KEEP_ALIVE_S = 75
"""How long a connection is kept after an answer. uvicorn's five seconds are httpx's too, and a request that crosses the
server's farewell is reset; so the server waits longer than clients do."""


class Protocol(HttpToolsProtocol):
    """A connection. Subclasses may set other limits, or other words for refusals."""

    limits = DEFAULT
    words = staticmethod(in_openais_words)

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.timeout_keep_alive = max(self.timeout_keep_alive, KEEP_ALIVE_S)
        self._refusal: Refusal | None = None
        self._in_head = True
        self._begun = False
        """Whether a byte of the current request has arrived."""
        self._seen = self._size = self._lines = 0
        self._changed_at = 0.0
        """When the current head began, or the last piece of a body came; the loop's seconds."""
        self._timer: asyncio.TimerHandle | None = None
        self._unread: asyncio.TimerHandle | None = None
        """Set while an answer waits because the caller does not read."""

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Wait for the first request, for a limited time."""
        super().connection_made(transport)
        self._changed_at = self.loop.time()
        self._watch()

    def connection_lost(self, exc: Exception | None) -> None:
        """Stop waiting."""
        self._rest()
        self._forget_unread()
        super().connection_lost(exc)

    def pause_writing(self) -> None:
        """Wait for the caller to read, for a limited time."""
        super().pause_writing()
        self._forget_unread()
        self._unread = self.loop.call_later(self.limits.unread_s, self.transport.abort)

    def resume_writing(self) -> None:
        """Go on writing."""
        self._forget_unread()
        super().resume_writing()

    def _forget_unread(self) -> None:
        if self._unread is not None:
            self._unread.cancel()
            self._unread = None

    def data_received(self, data: bytes) -> None:
        """Feed the parser, no more of a head than the limit."""
        now = self.loop.time()
        if not self._begun or not self._in_head:
            self._changed_at = now
        self._begun = True
        if self._in_head:
            self._seen += len(data)
        super().data_received(data)
        if self.transport.is_closing():
            return
        if self._in_head and self._seen > self.limits.head_bytes:
            self._refuse(too_large_head(self.limits))
        elif self._begun and self._timer is None:
            self._watch()

    def on_message_begin(self) -> None:
        """Begin to count."""
        self._seen = self._size = self._lines = 0
        super().on_message_begin()

    def on_url(self, url: bytes) -> None:
        """Count the target."""
        self._count(len(url))
        super().on_url(url)

    def on_header(self, name: bytes, value: bytes) -> None:
        """Count a header. One that comes after the body is left out: nobody checks it there."""
        self._lines += 1
        self._count(len(name) + len(value) + 4)
        if self._in_head:
            super().on_header(name, value)

    def _count(self, size: int) -> None:
        self._size += size
        if self._size > self.limits.head_bytes or self._lines > self.limits.head_lines:
            self._refusal = too_large_head(self.limits)
            raise self._refusal  # The parser stops, and `send_400_response` follows.

    def on_headers_complete(self) -> None:
        """Hand the request on, if its method and target are ones that a route may have."""
        if self.parser.get_method() not in METHODS:
            self._refusal = Refusal(405, "method_not_allowed", "No route has that method.")
            raise self._refusal  # As above.
        path = self.url.partition(b"?")[0]
        if not path.startswith(b"/") or b"#" in path or _HIDDEN.search(path):
            # A router matches none of these, and an absolute target names a second host.
            self._refusal = Refusal(
                400, "invalid_target", "The target is not a path that begins with a slash, without NULs and line ends."
            )
            raise self._refusal
        self._in_head = False
        super().on_headers_complete()

    def on_message_complete(self) -> None:
        """Wait for the next request, which may take its time to begin."""
        self._in_head, self._begun, self._seen = True, False, 0
        self._rest()
        super().on_message_complete()

    def send_400_response(self, msg: str) -> None:
        """Refuse what the parser could not read."""
        self._refuse(self._refusal or Refusal(400, "invalid_http", msg))

    def _watch(self) -> None:
        wait_s = self._deadline() - self.loop.time()
        self._timer = self.loop.call_later(max(wait_s, 0.05), self._look)

    def _deadline(self) -> float:
        return self._changed_at + (self.limits.head_s if self._in_head else PAUSE_S)

    def _look(self) -> None:
        self._timer = None
        if self.transport.is_closing():
            return
        # What waits in our own buffers is not the caller's delay, and a running answer must not be broken.
        busy = self.cycle is not None and not self.cycle.response_complete
        paused = self.flow.read_paused or (busy and self._in_head)
        if paused or self.loop.time() < self._deadline():
            if paused:
                self._changed_at = self.loop.time()
            self._watch()
        elif self._in_head and self._begun:
            self._refuse(Refusal(408, "head_timeout", "The headers did not arrive in time. Send them faster."))
        else:
            self.transport.close()

    def _rest(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _refuse(self, refusal: Refusal) -> None:
        self._rest()
        if self.cycle is None or self.cycle.response_complete:
            body = self.words(refusal)
            head = b"content-type: application/json\r\ncontent-length: %d\r\nconnection: close\r\n\r\n" % len(body)
            self.transport.write(STATUS_LINE[refusal.status] + head + body)
        self.transport.close()


def install() -> None:
    """Let every uvicorn server of this process that chooses its protocol itself use this one."""
    auto.AutoHTTPProtocol = Protocol
