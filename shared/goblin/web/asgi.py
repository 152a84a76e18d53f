"""Shared by HTTP doorways: bounded request bodies, errors in OpenAI's format, cancellation when the caller leaves."""

from __future__ import annotations

import asyncio
import functools
import logging
import math
import types
from collections.abc import AsyncGenerator, Awaitable, Callable, Coroutine, Generator, Mapping, Sequence
from contextlib import aclosing, suppress
from dataclasses import replace
from typing import Any

import msgspec
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Match, Route
from starlette.types import ASGIApp, Receive, Scope, Send

import httpguard
import httpguard.protocol
from goblin.core.errors import Broken, GoblinError, InvalidRequest, MethodNotAllowed, NotFound, Transient
from goblin.gateway.ports import HttpReply
from goblin.web import logs
from goblin.web.addresses import SHOWN_MAX, Addresses
from goblin.web.heartbeat import Heartbeat
from httpguard import Limits, Refusal

logs.install()
httpguard.protocol.install()
log = logging.getLogger(__name__)

BODY_BYTES_MAX = 10 * 1024 * 1024
ENCODINGS = frozenset({"gzip", "zstd"})
"""How clients may pack what they send."""
SETTLE_TIMEOUT_S = 5.0
EVENTS = "text/event-stream; charset=utf-8"
UNBUFFERED = {"cache-control": "no-cache", "x-accel-buffering": "no"}
"""Headers of a stream: a proxy that buffers would turn it into one late answer."""
TOGETHER_BYTES_MAX = 64 * 1024
"""Parts of a stream that are ready together are sent as one message, up to about this size."""


class HttpDelivery(Response):
    """Produces an answer and sends it; cancels the work if the caller disconnects first.

    `settle` runs before the response ends, because Cloud Run gives CPU only until then. The caller already has the
    whole answer at that time and does not wait for it.
    """

    def __init__(
        self,
        produce: Callable[[], Awaitable[HttpReply]],
        settle: Callable[[], Awaitable[None]],
        *,
        heard: asyncio.Event,
    ) -> None:
        """Keep the callbacks.

        Args:
            produce: Reads the request's body, then makes the answer.
            settle: Called once, however the request ends.
            heard: Set by `produce` once the body is read. Body and disconnect both come from ASGI's single `receive`,
                so waiting for the disconnect earlier could swallow parts of the body.
        """
        self._produce = produce
        self._settle = settle
        self._heard = heard
        self._heartbeat: Heartbeat | None = None
        self._send: Send | None = None
        self.background = None

    def expect_stream(self, heartbeat: Heartbeat | None, headers: Callable[[], Mapping[str, str]]) -> None:
        """Note, while the answer is awaited, that it will be a stream of events.

        Args:
            heartbeat: Keeps the connection in use. An early one sends status 200 if the answer takes long; an error
                after that is sent as an event.
            headers: Returns the headers known so far, for a status that is sent early.
        """
        self._heartbeat = heartbeat
        if heartbeat is not None and heartbeat.early and self._send is not None:
            heartbeat.begin(
                self._send, lambda: _start(HttpReply(media_type=EVENTS, headers={**UNBUFFERED, **headers()}))
            )

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        self._send = send
        delivering = asyncio.create_task(self._deliver(send))
        leaving = asyncio.create_task(self._hung_up(receive))
        try:
            await asyncio.wait({delivering, leaving}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            leaving.cancel()
            if not delivering.done():
                delivering.cancel()
            await asyncio.gather(delivering, leaving, return_exceptions=True)
            await asyncio.shield(self._settle_in_time())
        if not delivering.cancelled():
            delivering.result()
            await send({"type": "http.response.body", "body": b"", "more_body": False})

    async def _hung_up(self, receive: Receive) -> None:
        await self._heard.wait()
        while (await receive())["type"] != "http.disconnect":
            pass

    async def _deliver(self, send: Send) -> None:
        try:
            try:
                answer = await self._produce()
            except Exception as error:  # noqa: BLE001  The caller gets a readable response for any error.
                answer = error_answer(error)
            beat = self._heartbeat
            if beat is not None:
                await beat.rest()
            if beat is not None and beat.head_sent:
                if isinstance(answer.content, bytes) and answer.status >= 400:
                    answer = replace(answer, content=beat.words.error(answer.content))
            else:
                await send(_start(answer))
            if isinstance(answer.content, bytes):
                await send({"type": "http.response.body", "body": answer.content, "more_body": True})
                return
            if beat is not None:
                beat.begin(send)
            await _send_parts(answer.content, send, beat)
            if beat is not None:
                await beat.rest()
        finally:
            if self._heartbeat is not None:
                self._heartbeat.stop()

    async def _settle_in_time(self) -> None:
        try:
            async with asyncio.timeout(SETTLE_TIMEOUT_S):
                await self._settle()
        except TimeoutError:
            log.warning("A request was not settled within %.0f s.", SETTLE_TIMEOUT_S)


def _start(answer: HttpReply) -> dict[str, Any]:
    headers = [(b"content-type", answer.media_type.encode())]
    if isinstance(answer.content, bytes) and answer.media_type != EVENTS:
        headers.append((b"content-length", str(len(answer.content)).encode()))
    headers += [(name.encode("latin-1"), value.encode("latin-1")) for name, value in answer.headers.items()]
    return {"type": "http.response.start", "status": answer.status, "headers": headers}


async def _send_parts(parts: AsyncGenerator[bytes, None], send: Send, beat: Heartbeat | None) -> None:
    """Send the parts of a stream, and parts that are ready together in one call: a call costs as much as a part."""
    pending = bytearray()

    async def flush() -> None:
        if pending:
            body = bytes(pending)
            pending.clear()
            await send({"type": "http.response.body", "body": body, "more_body": True})
            if beat is not None:
                beat.sent()

    async with aclosing(parts):
        with suppress(StopAsyncIteration):
            while True:
                pending += await _before_waiting(parts.__anext__(), flush)
                if len(pending) > TOGETHER_BYTES_MAX:
                    await flush()
        await flush()


@types.coroutine
def _before_waiting(
    step: Awaitable[bytes], prepare: Callable[[], Coroutine[Any, Any, None]]
) -> Generator[Any, Any, bytes]:
    """Await a step. If it is not ready at once, run `prepare` while it waits."""
    running = step.__await__()
    try:
        wanted = next(running)
        try:
            yield from prepare().__await__()
        except BaseException as error:  # noqa: BLE001  The step must learn of the cancellation.
            wanted = running.throw(error)
        while True:
            try:
                told = yield wanted
            except BaseException as error:  # noqa: BLE001  As above.
                wanted = running.throw(error)
            else:
                wanted = running.send(told)
    except StopIteration as done:
        part: bytes = done.value
        return part


class Delegated(Response):
    """A response that an ASGI application produces: lets one function serve the several paths of an application."""

    def __init__(self, application: ASGIApp) -> None:
        self._application = application
        self.background = None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await self._application(scope, receive, send)


def server_event(event: Mapping[str, Any]) -> bytes:
    """Encode a server-sent event that is named by its `type`.

    The type may be an upstream's own word: no line end in it may begin another line of the stream.
    """
    kind = "".join(letter for letter in str(event["type"]) if letter.isalnum() or letter in "_.-")
    return f"event: {kind}\ndata: ".encode() + msgspec.json.encode(event) + b"\n\n"


def with_headers(answer: HttpReply, headers: Mapping[str, str]) -> HttpReply:
    """Copy an answer with more headers."""
    return replace(answer, headers={**answer.headers, **headers})


class UnreadRequest(InvalidRequest):
    """A request that was not read to its end: too large, too slow, nested too deeply, in an unknown encoding."""

    def __init__(self, refusal: Refusal) -> None:
        super().__init__(refusal.message, code=refusal.code)
        self.status = refusal.status


@functools.cache
def _limits(body_bytes: int) -> Limits:
    return Limits(body_bytes=body_bytes, encodings=ENCODINGS)


async def read_body(request: Request, limit: int = BODY_BYTES_MAX, *, is_json: bool = True) -> bytes:
    """Read and unpack the request's body.

    Args:
        request: The request.
        limit: The most bytes, packed and unpacked.
        is_json: Whether it is JSON, so that encoding and nesting are checked before it is parsed.

    Raises:
        UnreadRequest: 408, 413, 415, 429 or 400. The rest is not read.
    """
    try:
        body = await httpguard.read_body(request.headers, request.receive, _limits(limit))
        if is_json:
            httpguard.check_json(body)
    except Refusal as refusal:
        raise UnreadRequest(refusal) from None
    return body


def error_answer(error: Exception) -> HttpReply:
    """Build an error response in OpenAI's format. Unexpected exceptions are logged and reveal no details."""
    if not isinstance(error, GoblinError):
        log.error("A request failed with an unexpected error.", exc_info=error)
        error = Broken("Internal error. The cause is in the server's log.")
    headers = {}
    if isinstance(error, Transient) and error.retry_after_s is not None:
        headers["retry-after"] = str(math.ceil(error.retry_after_s))
    if error.status == 408 or error.code == "too_many_bodies":
        headers["connection"] = "close"  # The rest of the body may never come.
    if error.status == 401:
        headers["www-authenticate"] = "Bearer"
    if isinstance(error, Broken):
        log.error("A request failed: %s", error.message)
    return HttpReply(status=error.status, headers=headers, content=msgspec.json.encode(error.body()))


def json_response(value: object, status: int = 200, headers: Mapping[str, str] | None = None) -> Response:
    """Build a JSON response."""
    return Response(msgspec.json.encode(value), status, headers=dict(headers or {}), media_type="application/json")


def error_response(error: Exception) -> Response:
    """Build the response of `error_answer`."""
    return respond(error_answer(error))


def respond(answer: HttpReply) -> Response:
    """Turn an answer that is not a stream into a response."""
    assert isinstance(answer.content, bytes)  # noqa: S101  `HttpDelivery` sends streams.
    return Response(answer.content, answer.status, headers=dict(answer.headers), media_type=answer.media_type)


Handler = Callable[[Request], Awaitable[Response]]


def answers_errors(handler: Handler) -> Handler:
    """Wrap a handler: its log lines have the request's trace, and every error becomes a response in OpenAI's format."""

    @functools.wraps(handler)
    async def answering(request: Request) -> Response:
        logs.follow(request.scope)
        try:
            return await handler(request)
        except HTTPException:
            raise  # Raised by Starlette's router, and handled by `routed`.
        except Exception as error:  # noqa: BLE001  As in `HttpDelivery`.
            return error_response(error)

    return answering


def routed(routes: Sequence[Route]) -> Starlette:
    """Build the application of a doorway with several paths. It redirects nowhere: `Host` would choose the target."""
    known = Addresses(route.path for route in routes)

    async def on_http_error(request: Request, error: Exception) -> Response:
        """Answer the router's 404 and 405 in OpenAI's format, and say what there is."""
        assert isinstance(error, HTTPException)  # noqa: S101  Registered for this class only.
        path = request.url.path[:SHOWN_MAX]
        if error.status_code == 405:
            allowed = _methods(routes, request.scope)
            response = error_response(
                MethodNotAllowed(f"{request.method} is not served at {path}. Send {' or '.join(allowed)}.")
            )
            response.headers["allow"] = ", ".join(allowed)
            return response
        near = known.near(path)
        meant = f" Did you mean {' or '.join(near)}?" if near else ""
        said = f"{request.method} {path} is not served here.{meant} Served: {', '.join(known.paths)}."
        return error_response(NotFound(said.replace(":path}", "}")))

    made = Starlette(routes=routes, exception_handlers={HTTPException: on_http_error})
    made.router.redirect_slashes = False
    return made


def _methods(routes: Sequence[Route], scope: Scope) -> list[str]:
    """List the methods of the routes that have the path."""
    found = {
        method
        for route in routes
        if route.matches(scope)[0] is not Match.NONE
        for method in route.methods or ()
        if method != "HEAD"
    }
    return sorted(found)
