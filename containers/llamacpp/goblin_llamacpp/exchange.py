"""Answers of one request on the event loop: submit, stream or collect, cancel when the client disconnects."""

import asyncio
from collections.abc import Callable, Sequence
from typing import Any

import msgspec
from starlette.responses import JSONResponse, Response
from starlette.types import Receive, Scope, Send

from .answers import Answer, Frame, envelope, timings, usage
from .engine import Engine
from .errors import ApiError, broken, invalid
from .generation import Event, Failed, Finished, Generation, Piece

PING_S = 15.0
"""Silence after which a stream sends a comment, so that proxies do not close it."""


class Mailbox:
    """Events of one request, from the engine to the one task that reads them."""

    def __init__(self) -> None:
        self._events: list[tuple[int, Event]] = []
        self._loop = asyncio.get_running_loop()
        self._waiter: asyncio.Future[None] | None = None

    def put(self, generation: Generation, event: Event) -> None:
        """Add an event and wake the reader. Call it on the event loop."""
        self._events.append((generation.index, event))
        self._wake()

    async def take(self, timeout_s: float | None = None) -> list[tuple[int, Event]]:
        """Take all events, waiting for the first one. The list is empty if none came in time.

        This runs once per token. A future and a timer are cheaper than the task that `asyncio.wait_for` would create.
        """
        if not self._events:
            self._waiter = self._loop.create_future()
            timer = None if timeout_s is None else self._loop.call_later(timeout_s, self._wake)
            try:
                await self._waiter
            finally:
                self._waiter = None
                if timer is not None:
                    timer.cancel()
        events, self._events = self._events, []
        return events

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)


class Exchange:
    """One request with its answers, from submission to the end."""

    def __init__(
        self,
        engine: Engine,
        mailbox: Mailbox,
        generations: Sequence[Generation],
        frame: Frame,
        answers: Sequence[Answer],
    ) -> None:
        self._engine = engine
        self._mailbox = mailbox
        self._generations = generations
        self.frame = frame
        self.answers = answers

    def submit(self) -> None:
        """Queue all answers in the engine.

        Raises:
            ApiError: As `Engine.submit`.
        """
        self._engine.submit(*self._generations)

    def cancel(self) -> None:
        """Cancel all answers. After the end this does nothing."""
        for generation in self._generations:
            self._engine.cancel(generation)

    @property
    def is_over(self) -> bool:
        return all(answer.finished is not None for answer in self.answers)

    async def next_choices(self, timeout_s: float | None) -> list[dict[str, Any]] | None:
        """Wait for events and convert them to choices, or return None if none came in time.

        Raises:
            ApiError: An answer failed; the others are cancelled.
        """
        events = await self._mailbox.take(timeout_s)
        if not events:
            return None
        choices: list[dict[str, Any]] = []
        for index, event in events:
            if isinstance(event, Piece):
                choices += self.answers[index].take_piece(event)
            elif isinstance(event, Finished):
                choices += self.answers[index].take_finished(event)
            else:
                self.cancel()
                raise _explain(event)
        return choices

    async def collect(self, receive: Receive, kind: str) -> Response:
        """Wait for the whole answer and return it as one JSON object. A disconnect cancels it.

        Raises:
            ApiError: An answer failed; the others are cancelled.
        """
        watch = asyncio.create_task(on_disconnect(receive, self.cancel))
        try:
            while not self.is_over:
                await self.next_choices(None)
        finally:
            watch.cancel()
            self.cancel()
        body = envelope(self.frame, kind, [answer.whole() for answer in self.answers])
        return JSONResponse(body | self.closing())

    def closing(self) -> dict[str, Any]:
        """Return usage and timings. Call it when all answers have ended."""
        ends = [answer.finished for answer in self.answers if answer.finished is not None]
        extra: dict[str, Any] = {"usage": usage(ends), "timings": timings(ends[0])}
        if any(end.cut_short for end in ends):
            extra["cut_short"] = "shutting_down"
        return extra


class EventStream(Response):
    """Server-sent events in OpenAI's order: role, deltas, finish reason, usage if requested, `[DONE]`.

    The response starts with the first event, so an error before it is an ordinary HTTP error. A later error is an
    `error` event, and the stream ends without `[DONE]`.
    """

    def __init__(self, exchange: Exchange, kind: str, *, wants_usage: bool) -> None:
        super().__init__(
            media_type="text/event-stream", headers={"Cache-Control": "no-store", "X-Accel-Buffering": "no"}
        )
        del self.headers["content-length"]
        self._exchange = exchange
        self._kind = kind
        self._wants_usage = wants_usage

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        watch = asyncio.create_task(on_disconnect(receive, self._exchange.cancel))
        try:
            first = await self._exchange.next_choices(PING_S)
            await send({"type": "http.response.start", "status": 200, "headers": self.raw_headers})
            await self._follow(first, send)
        except ApiError as error:
            await error_response(error)(scope, receive, send)
        finally:
            watch.cancel()
            self._exchange.cancel()

    async def _follow(self, first: list[dict[str, Any]] | None, send: Send) -> None:
        try:
            await self._send(send, self._openings() + self._chunks(first))
            while not self._exchange.is_over:
                await self._send(send, self._chunks(await self._exchange.next_choices(PING_S)))
            await self._send(send, self._ending())
        except ApiError as error:
            await self._send(send, _event(error.body()))
        await send({"type": "http.response.body", "body": b"", "more_body": False})

    async def _send(self, send: Send, body: bytes) -> None:
        if body:
            await send({"type": "http.response.body", "body": body, "more_body": True})

    def _openings(self) -> bytes:
        openings = (answer.opening() for answer in self._exchange.answers)
        return b"".join(self._chunk([choice]) for choice in openings if choice is not None)

    def _chunks(self, choices: list[dict[str, Any]] | None) -> bytes:
        if choices is None:
            return b": ping\n\n"
        return b"".join(self._chunk([choice]) for choice in choices)

    def _chunk(self, choices: list[dict[str, Any]], **extra: Any) -> bytes:
        body = envelope(self._exchange.frame, self._kind, choices)
        if self._wants_usage:
            body["usage"] = None
        if choices and choices[0]["finish_reason"] is not None and self._exchange.is_over:
            # The last choice of the stream also carries the timings.
            closing = self._exchange.closing()
            del closing["usage"]
            body |= closing
        return _event(body | extra)

    def _ending(self) -> bytes:
        usage_chunk = self._chunk([], usage=self._exchange.closing()["usage"]) if self._wants_usage else b""
        return usage_chunk + b"data: [DONE]\n\n"


def _event(body: dict[str, Any]) -> bytes:
    return b"data: " + msgspec.json.encode(body) + b"\n\n"


def _explain(event: Failed) -> ApiError:
    return invalid(event.message, code="generation_failed") if event.client_fault else broken(event.message)


async def on_disconnect(receive: Receive, act: Callable[[], None]) -> None:
    """Wait until the client has disconnected, then call `act`."""
    while (await receive())["type"] != "http.disconnect":
        pass
    act()


def error_response(error: ApiError) -> JSONResponse:
    """Return the HTTP response for an error."""
    return JSONResponse(error.body(), status_code=error.status, headers=error.headers())
