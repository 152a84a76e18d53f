"""HTTP/1.1 keep-alive connections to providers: a transport for httpx that needs a fraction of the CPU of its own.

httptools parses, the event loop does TLS. There are no redirects, proxies, cookies or HTTP/2: providers need none.
"""

from __future__ import annotations

import asyncio
import ssl
from collections import deque
from collections.abc import AsyncIterator
from typing import Any, NamedTuple, cast

import httptools
import httpx

HEADER_BYTES_MAX = 64 * 1024
HEADERS_MAX = 256
BODY_BYTES_MAX = 64 * 1024 * 1024 + 1
"""Longest body, one byte beyond what `http` reads of an answer at most."""
BODY_S_MAX = 3600.0
"""Longest time that a body may take: one that trickles is never silent."""
HELD_BYTES_MAX = 256 * 1024
"""Unread body bytes in memory; beyond this, reading from the socket pauses."""
KEPT_S = 30.0
"""How long an idle connection is kept; most servers close it after a minute or more."""


class Origin(NamedTuple):
    tls: bool
    host: str
    port: int


class _Connection(asyncio.Protocol):
    """One socket, and the response that is arriving on it."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._transport: asyncio.Transport | None = None
        self._parser: httptools.HttpResponseParser | None = None
        self._waiting: asyncio.Future[None] | None = None
        self._pieces: deque[bytes] = deque()
        self._held = 0
        self._paused = False
        self._header_bytes = 0
        self._beside = 0
        """Bytes since the last of the body: of headers, trailers and chunk sizes."""
        self._begun = False
        self._bounded = False
        """Whether headers say where the response ends; otherwise it ends with the connection."""
        self._keeps = False
        self.headers: list[tuple[bytes, bytes]] = []
        self.status = 0
        """The response's status, once all its headers have arrived; 0 before."""
        self.complete = False
        self.error: httpx.TransportError | None = None
        self.gone = False
        self.kept_in: deque[_Connection] | None = None
        """The queue of idle connections that this one is in; None while it is in use."""
        self.kept_at = 0.0

    def send(self, data: bytes) -> None:
        """Start an exchange by sending a whole request."""
        self._parser = httptools.HttpResponseParser(self)
        self._pieces.clear()
        self._held, self.status, self.complete, self._begun, self._beside = 0, 0, False, False, 0
        self.on_message_begin()
        if self._transport is not None:
            self._transport.write(data)

    async def head(self, timeout_s: float | None) -> None:
        """Wait for status and headers. Raises `httpx.TransportError`."""
        while not self.status:
            await self._wait(timeout_s)

    async def piece(self, timeout_s: float | None) -> bytes:
        """Wait for the next body bytes; empty at the end of the body. Raises `httpx.TransportError`."""
        while not self._pieces:
            if self.complete:
                return b""
            await self._wait(timeout_s)
        found = self._pieces[0] if len(self._pieces) == 1 else b"".join(self._pieces)
        self._pieces.clear()
        self._held = 0
        if self._paused and self._transport is not None and not self.gone:
            self._paused = False
            self._transport.resume_reading()
        return found

    async def _wait(self, timeout_s: float | None) -> None:
        if self.error is not None:
            raise self.error
        self._waiting = waiting = self._loop.create_future()
        timer = None if timeout_s is None else self._loop.call_later(timeout_s, self._fail, httpx.ReadTimeout("silent"))
        try:
            await waiting
        finally:
            self._waiting = None
            if timer is not None:
                timer.cancel()

    def reusable(self) -> bool:
        """Tell whether the exchange is complete and the connection can carry another."""
        return self.complete and self._bounded and self._keeps and not self.gone and not self._paused

    def drop(self) -> None:
        """Close the connection at once, even in the middle of an exchange."""
        self.gone = True
        self._leave_pool()
        if self._transport is not None:
            self._transport.abort()

    def _leave_pool(self) -> None:
        if self.kept_in is not None:
            self.kept_in.remove(self)
            self.kept_in = None

    def _wake(self) -> None:
        if self._waiting is not None and not self._waiting.done():
            self._waiting.set_result(None)

    def _fail(self, error: httpx.TransportError) -> None:
        if self.error is None:
            self.error = error
        if self._waiting is not None and not self._waiting.done():
            self._waiting.set_exception(self.error)

    # Callbacks of the event loop.

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)

    def data_received(self, data: bytes) -> None:
        if self.kept_in is not None or self._parser is None or self.complete:
            self.drop()  # Data without a request: the connection is out of step.
            return
        self._begun = True
        self._beside += len(data)
        try:
            self._parser.feed_data(data)
            if self._beside > HEADER_BYTES_MAX and not self.complete:
                # The parser collects a header, or a trailer, until it ends.
                raise httptools.HttpParserError("too many headers")
        except (httptools.HttpParserError, httptools.HttpParserUpgrade) as error:
            broken = httpx.RemoteProtocolError(f"not HTTP: {type(error).__name__}")
            self._fail(broken)
            self.drop()
        if self._held > HELD_BYTES_MAX and not self._paused and self._transport is not None and not self.gone:
            self._paused = True
            self._transport.pause_reading()

    def connection_lost(self, exc: Exception | None) -> None:
        self.gone = True
        self._leave_pool()
        if self.status and not self._bounded:
            self.on_message_complete()
        if not self.complete:
            lost = "the connection broke" if self._begun else "the connection was closed before an answer"
            self._fail(httpx.ReadError(lost) if exc is not None else httpx.RemoteProtocolError(lost))

    # Callbacks of the parser.

    def on_message_begin(self) -> None:
        if self.complete:
            raise ValueError("a second answer")
        self.headers, self._header_bytes, self._bounded = [], 0, False

    def on_header(self, name: bytes, value: bytes) -> None:
        self._header_bytes += len(name) + len(value)
        if self._header_bytes > HEADER_BYTES_MAX or len(self.headers) >= HEADERS_MAX:
            raise ValueError("too many headers")
        name = name.lower()
        if name == b"content-length" or (name == b"transfer-encoding" and b"chunked" in value.lower()):
            self._bounded = True
        self.headers.append((name, value))

    def on_headers_complete(self) -> None:
        assert self._parser is not None  # noqa: S101  The parser made this call.
        status = self._parser.get_status_code()
        if status in (204, 304):
            self._bounded = True
        if status >= 200:  # 1xx is interim: the final response follows.
            self.status = status
            self._keeps = bool(self._parser.should_keep_alive())
            self._wake()

    def on_body(self, body: bytes) -> None:
        self._beside = 0
        self._pieces.append(body)
        self._held += len(body)
        self._wake()

    def on_message_complete(self) -> None:
        if self.status:
            self.complete = True
            self._wake()


class _Body(httpx.AsyncByteStream):
    """The body of a response. The reader must close it, to give the connection back."""

    def __init__(self, pool: KeptConnections, origin: Origin, connection: _Connection, timeout_s: float | None) -> None:
        self._pool = pool
        self._origin = origin
        self._connection = connection
        self._timeout_s = timeout_s
        self._open = True

    async def __aiter__(self) -> AsyncIterator[bytes]:
        clock = asyncio.get_running_loop().time
        left, until = BODY_BYTES_MAX, clock() + BODY_S_MAX
        while piece := await self._connection.piece(self._timeout_s):
            left -= len(piece)
            if left < 0 or clock() > until:
                raise httpx.DecodingError("a body without end")
            yield piece

    async def aclose(self) -> None:
        if self._open:
            self._open = False
            self._pool.give_back(self._origin, self._connection)


class KeptConnections(httpx.AsyncBaseTransport):
    """A pool of connections by origin. Belongs to one event loop."""

    def __init__(self, *, tls: ssl.SSLContext, most: int, kept: int) -> None:
        """Keep the limits; connections are opened on first use.

        Args:
            tls: Checks certificates.
            most: Concurrent exchanges; a further one waits, at most the request's pool timeout.
            kept: Idle connections kept per origin.
        """
        self._tls = tls
        self._tls.set_alpn_protocols(["http/1.1"])
        self._free = asyncio.Semaphore(most)
        self._kept_max = kept
        self._kept: dict[Origin, deque[_Connection]] = {}

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        timeouts = request.extensions.get("timeout", {})
        data = _written(request) + await request.aread()
        origin = _origin(request.url)
        await self._enter(timeouts.get("pool"))
        connection: _Connection | None = None
        answered = False
        try:
            connection = self._take(origin)
            kept = connection is not None
            if connection is None:
                connection = await self._connect(origin, timeouts.get("connect"))
            connection.send(data)
            try:
                await connection.head(timeouts.get("read"))
            except (httpx.ReadError, httpx.RemoteProtocolError):
                if kept:
                    # The server closed it while it was idle, and may have closed the others too. Drop them all, so
                    # that a retry opens a new connection.
                    self._drop_kept(origin)
                raise
            answered = True
        finally:
            if not answered:
                self._free.release()
                if connection is not None:
                    connection.drop()
        body = _Body(self, origin, connection, timeouts.get("read"))
        return httpx.Response(connection.status, headers=connection.headers, stream=body)

    def give_back(self, origin: Origin, connection: _Connection) -> None:
        """Keep the connection after an exchange if it is reusable; close it otherwise."""
        self._free.release()
        kept = self._kept.setdefault(origin, deque())
        if not connection.reusable() or len(kept) >= self._kept_max:
            connection.drop()
            return
        connection.kept_in, connection.kept_at = kept, asyncio.get_running_loop().time()
        kept.append(connection)

    async def aclose(self) -> None:
        for origin in list(self._kept):
            self._drop_kept(origin)

    async def _enter(self, timeout_s: float | None) -> None:
        if not self._free.locked():
            await self._free.acquire()
            return
        try:
            async with asyncio.timeout(timeout_s):
                await self._free.acquire()
        except TimeoutError as error:
            raise httpx.PoolTimeout("every connection is in use") from error

    def _take(self, origin: Origin) -> _Connection | None:
        """Take the idle connection that was used last, so that the surplus ones expire. Drops those past `KEPT_S`."""
        kept = self._kept.get(origin)
        if not kept:
            return None
        oldest = asyncio.get_running_loop().time() - KEPT_S
        while kept and kept[0].kept_at < oldest:
            kept[0].drop()
        if not kept:
            return None
        connection = kept.pop()
        connection.kept_in = None
        return connection

    def _drop_kept(self, origin: Origin) -> None:
        for connection in list(self._kept.get(origin, ())):
            connection.drop()

    async def _connect(self, origin: Origin, timeout_s: float | None) -> _Connection:
        loop = asyncio.get_running_loop()
        tls = self._tls if origin.tls else None
        try:
            async with asyncio.timeout(timeout_s):
                _, connection = await loop.create_connection(_Connection, origin.host, origin.port, ssl=tls)
        except TimeoutError as error:
            raise httpx.ConnectTimeout("no connection in time") from error
        except OSError as error:
            raise httpx.ConnectError(f"no connection: {type(error).__name__}") from error
        return connection


class PlainClient(httpx.AsyncClient):
    """An httpx client that sends each request unchanged: no cookies, redirects or credentials of its own."""

    def __init__(self, connections: KeptConnections) -> None:
        super().__init__(transport=connections, trust_env=False, follow_redirects=False)
        self._connections = connections

    async def send(self, request: httpx.Request, *, stream: bool = False, **_: Any) -> httpx.Response:
        response = await self._connections.handle_async_request(request)
        response.request = request
        if not stream:
            try:
                await response.aread()
            finally:
                await response.aclose()
        return response


def _origin(url: httpx.URL) -> Origin:
    tls = url.scheme == "https"
    if not tls and url.scheme != "http":
        raise httpx.UnsupportedProtocol(f"the scheme {url.scheme} is not supported")
    return Origin(tls, url.host, url.port or (443 if tls else 80))


def _written(request: httpx.Request) -> bytes:
    """Encode the head of a request.

    Raises:
        httpx.LocalProtocolError: A header would break the framing, or the response could not be delimited.
    """
    if request.method in ("HEAD", "CONNECT"):
        raise httpx.LocalProtocolError(f"the method {request.method} is not supported")
    lines = [b"%b %b HTTP/1.1" % (request.method.encode("ascii"), request.url.raw_path)]
    if "transfer-encoding" in request.headers:
        raise httpx.LocalProtocolError("chunked request bodies are not supported")
    lines += [b"%b: %b" % header for header in request.headers.raw]
    head = b"\r\n".join(lines) + b"\r\n\r\n"
    ends = len(lines) + 1
    if head.count(b"\n") != ends or head.count(b"\r") != ends or b"\0" in head:
        raise httpx.LocalProtocolError("a header contains a line break or a null byte")
    return head
