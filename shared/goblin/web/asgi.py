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
from starlette.routing import BaseRoute
from starlette.types import ASGIApp, Receive, Scope, Send

import httpguard
import httpguard.protocol
from goblin.core.errors import Broken, GoblinError, InvalidRequest, MethodNotAllowed, NotFound, Transient
from goblin.gateway.ports import HttpReply
from goblin.web import logs
from httpguard import Limits, Refusal

logs.install()
httpguard.protocol.install()
log = logging.getLogger(__name__)

BODY_BYTES_MAX = 10 * 1024 * 1024
ENCODINGS = frozenset({"gzip", "zstd"})
"""How clients may pack what they send."""
SETTLE_TIMEOUT_S = 5.0
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
        self.background = None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
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
            answer = await self._produce()
        except Exception as error:  # noqa: BLE001  The caller gets a readable response for any error.
            answer = error_answer(error)
        headers = [(b"content-type", answer.media_type.encode())]
        if isinstance(answer.content, bytes):
            headers.append((b"content-length", str(len(answer.content)).encode()))
        headers += [(name.encode("latin-1"), value.encode("latin-1")) for name, value in answer.headers.items()]
        start = {"type": "http.response.start", "status": answer.status, "headers": headers}
        if isinstance(answer.content, bytes):
            await send(start)
            await send({"type": "http.response.body", "body": answer.content, "more_body": True})
            return
        await send(start)
        await _send_parts(answer.content, send)

    async def _settle_in_time(self) -> None:
        try:
            async with asyncio.timeout(SETTLE_TIMEOUT_S):
                await self._settle()
        except TimeoutError:
            log.warning("A request was not settled within %.0f s.", SETTLE_TIMEOUT_S)


async def _send_parts(parts: AsyncGenerator[bytes, None], send: Send) -> None:
    """Send the parts of a stream, and parts that are ready together in one call: a call costs as much as a part."""
    pending = bytearray()

    async def flush() -> None:
        if pending:
            body = bytes(pending)
            pending.clear()
            await send({"type": "http.response.body", "body": body, "more_body": True})

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


def with_headers(answer: HttpReply, headers: Mapping[str, str]) -> HttpReply:
    """Copy an answer with more headers."""
    return replace(answer, headers={**answer.headers, **headers})


class UnreadRequest(InvalidRequest):
    """A request that was not read to its end: too large, too slow, nested too deeply, in an unknown encoding."""

    def __init__(self, refusal: Refusal) -> None:
        super().__init__(refusal.message, code=refusal.code)
        self.status = refusal.status


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
        limits = Limits(body_bytes=limit, encodings=ENCODINGS)
        body = await httpguard.read_body(request.headers, request.receive, limits)
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
            raise  # Raised by Starlette's router, and handled by `on_http_error`.
        except Exception as error:  # noqa: BLE001  As in `HttpDelivery`.
            return error_response(error)

    return answering


def routed(routes: Sequence[BaseRoute]) -> Starlette:
    """Build the application of a doorway with several paths. It redirects nowhere: `Host` would choose the target."""
    made = Starlette(routes=routes, exception_handlers={HTTPException: on_http_error})
    made.router.redirect_slashes = False
    return made


async def on_http_error(request: Request, error: Exception) -> Response:
    """Answer a router's 404 and 405 in OpenAI's format."""
    assert isinstance(error, HTTPException)  # noqa: S101  Registered for this class only.
    if error.status_code == 405:
        response = error_response(MethodNotAllowed(f"Not allowed to {request.method} on {request.url.path}."))
        response.headers["allow"] = (error.headers or {}).get("Allow", "")
        return response
    return error_response(NotFound(f"Invalid URL ({request.method} {request.url.path})."))
