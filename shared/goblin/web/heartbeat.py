"""Heartbeats: events without meaning, so that proxies and clients do not give up a stream whose model still thinks.

head ─ chunk ─ chunk ─ … 15 s without one … ─ ping ─ chunk ─ end
early, if the caller chose it:  … 15 s without an answer … ─ head ─ ping ─ chunk ─ end, or an error as an event
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any, Protocol

import msgspec

from goblin.core.errors import InvalidRequest
from httpguard import whole_number

HEADER = "x-goblin-heartbeat"
EVERY_S = 15
"""Silence before a beat. Proxies give up after thirty seconds at the earliest."""
EVERY_S_MAX = 60
Send = Callable[[Any], Awaitable[None]]


@dataclass(frozen=True, kw_only=True, slots=True)
class StreamWords:
    """How an API's streams write what is no part of an answer."""

    ping: bytes
    """An event that the API's clients skip."""
    error: Callable[[bytes], bytes]
    """Turns the body of an error response into the event that ends a stream."""


def _responses_error(body: bytes) -> bytes:
    said = msgspec.json.decode(body)["error"]
    event = {"type": "error", "sequence_number": 0, **{name: said[name] for name in ("code", "message", "param")}}
    return b"event: error\ndata: " + msgspec.json.encode(event) + b"\n\n"


OPENAI = StreamWords(ping=b": ping\n\n", error=lambda body: b"data: " + body + b"\n\n")
RESPONSES = StreamWords(ping=b": ping\n\n", error=_responses_error)
ANTHROPIC = StreamWords(
    ping=b'event: ping\ndata: {"type":"ping"}\n\n', error=lambda body: b"event: error\ndata: " + body + b"\n\n"
)


class Timer(Protocol):
    """A call that is due later."""

    def cancel(self) -> None: ...


class Timers(Protocol):
    """A clock that calls back; an event loop is one."""

    def time(self) -> float: ...

    def call_later(self, delay: float, callback: Callable[[], None], /) -> Timer: ...


class Heartbeat:
    """The beats of one stream. One that is not begun, or was stopped, does nothing."""

    def __init__(
        self, words: StreamWords, *, early: bool = False, every_s: float = EVERY_S, timers: Timers | None = None
    ) -> None:
        """Keep how to beat.

        Args:
            words: Those of the stream's API.
            early: Whether to beat before the answer begins.
            every_s: Seconds of silence before a beat.
            timers: The clock; None: the event loop's.
        """
        self.words = words
        self.early = early
        self.head_sent = False
        self._every_s = every_s
        self._timers = timers or asyncio.get_running_loop()
        self._send: Send | None = None
        self._head: Callable[[], Any] | None = None
        self._sent_at = 0.0
        self._timer: Timer | None = None
        self._beating: asyncio.Task[None] | None = None

    def begin(self, send: Send, head: Callable[[], Any] | None = None) -> None:
        """Begin to beat.

        Args:
            send: ASGI's.
            head: Builds the message that must go out before the first beat; None: it has gone out.
        """
        self._send, self._head, self.head_sent = send, head, head is None
        self.sent()
        if self._timer is None:
            self._timer = self._timers.call_later(self._every_s, self._due)

    def sent(self) -> None:
        """Note that something was sent."""
        self._sent_at = self._timers.time()

    async def rest(self) -> None:
        """Stop, once a beat that is under way was sent."""
        if self._beating is not None:
            await asyncio.wait({self._beating})
        self._cancel_timer()

    def stop(self) -> None:
        """Stop at once: the caller has left, or everything was sent."""
        self._cancel_timer()
        if self._beating is not None:
            self._beating.cancel()

    def _cancel_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _due(self) -> None:
        wait_s = self._sent_at + self._every_s - self._timers.time()
        if wait_s > 0:
            self._timer = self._timers.call_later(wait_s, self._due)
            return
        self._timer = None
        self._beating = asyncio.ensure_future(self._beat())

    async def _beat(self) -> None:
        assert self._send is not None  # noqa: S101  Set by `begin`, which sets the timer.
        if self._head is not None:
            head, self._head, self.head_sent = self._head, None, True
            await self._send(head())
        # A caller that does not read holds this up, and so no further beat is written for it.
        await self._send({"type": "http.response.body", "body": self.words.ping, "more_body": True})
        self.sent()
        self._beating = None
        self._timer = self._timers.call_later(self._every_s, self._due)


def chosen(header: str | None, words: StreamWords) -> Heartbeat | None:
    """Return the heartbeat that a caller chose with `x-goblin-heartbeat`; None for `off`.

    Raises:
        InvalidRequest: The header is neither `off`, `early`, nor a number of seconds.
    """
    match (header or "").strip().lower():
        case "":
            return Heartbeat(words)
        case "off":
            return None
        case "early":
            return Heartbeat(words, early=True)
        case text:
            if not (seconds := whole_number(text, EVERY_S_MAX)):
                raise InvalidRequest(
                    f"The header {HEADER} is not valid. Send `early`, `off`, or a number of seconds from 1 to "
                    f"{EVERY_S_MAX}.",
                    param=HEADER,
                    code="invalid_value",
                )
            return Heartbeat(words, early=True, every_s=seconds)
