"""HTTP requests to a provider: the one place that calls httpx and turns its errors and statuses into ours."""

from __future__ import annotations

import asyncio
import zlib
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from typing import Any, NamedTuple, TypeVar

import httpx
import msgspec

from goblin import __version__
from goblin.core import decoding
from goblin.core.endpoints import Credential, KeySource
from goblin.core.errors import Fault, GoblinError, ProviderUnavailable
from goblin.core.redaction import learn
from goblin.providers.common import sse
from goblin.providers.common.refusals import Judge, fault_of, refusal
from httpguard.text import is_bounded

T = TypeVar("T")

CONNECT_TIMEOUT_S = 5.0
ANSWER_TIMEOUT_S = 600.0
"""Longest silence on a connection; the router's own timeouts are far shorter."""
LINGER_S = 2.0
"""How long an answer is read on after its end, for the usage; some servers do not end the response."""
ADDRESSES_MAX = 16
"""Parsed URLs that an `Upstream` keeps."""
ERROR_BYTES_MAX = 64 * 1024
JSON_BYTES_MAX = 64 * 1024 * 1024
"""2048 vectors of 3072 floats as text are about 60 MiB."""
UNPACKED_BYTES = 64 * 1024
"""Bytes of a compressed body that are unpacked at once."""


class _Ask(NamedTuple):
    """One request."""

    method: str
    path: str
    content: bytes | None
    timeout_s: float
    again: bool = True
    """Whether one retry is allowed when a kept connection turns out to be closed."""
    headers: Mapping[str, str] = {}
    """Sent beside those of every request, and instead of those of the same name."""


class Upstream:
    """One endpoint's base URL and keys, over an HTTP client that many endpoints share."""

    def __init__(
        self,
        name: str,
        url: str,
        api_key: str | KeySource | None,
        client: httpx.AsyncClient,
        *,
        headers: Mapping[str, str] | None = None,
        credentials: tuple[Credential, ...] = (),
        judge: Judge | None = None,
    ) -> None:
        """Keep what every request needs.

        Args:
            name: The endpoint's name, for messages.
            url: The base URL, to which paths are appended.
            api_key: Sent as `Authorization: Bearer`, which most providers expect.
            client: Shared HTTP client; its owner configures limits and proxies.
            headers: Sent with every request.
            credentials: Further credentials, each in its own header.
            judge: Finds the fault behind this provider's refusals. Default: `fault_of`.
        """
        self.name = name
        self._url = url.rstrip("/")
        self._client = client
        self.judge = judge or fault_of
        self._addresses: dict[str, httpx.URL] = {}
        plain = {"accept": "*/*", "accept-encoding": "identity", "user-agent": f"goblin/{__version__}"}
        self._headers = {**plain, **(headers or {})}
        if api_key:
            credentials = (Credential("authorization", "Bearer", api_key), *credentials)
        self._changing: list[tuple[Credential, KeySource]] = []
        for credential in credentials:
            if isinstance(credential.key, str):
                learn(credential.key)
                self._headers[credential.header] = credential.value(credential.key)
            else:
                self._changing.append((credential, credential.key))

    @asynccontextmanager
    async def stream(
        self, path: str, body: Mapping[str, Any], *, headers: Mapping[str, str] | None = None
    ) -> AsyncIterator[httpx.Response]:
        """POST a body and keep the response open for streaming. `headers` are for this request alone.

        Raises:
            ProviderUnavailable, InvalidRequest: As `refusal` decides; also when the connection breaks in between.
        """
        content = msgspec.json.encode(body)
        response = await self._send(_Ask("POST", path, content, ANSWER_TIMEOUT_S, headers=headers or {}))
        try:
            if not 200 <= response.status_code < 300:
                raise self._refusal(response, await read_up_to(response, ERROR_BYTES_MAX))
            yield response
        except httpx.HTTPError as error:
            raise self._broken(error) from error
        finally:
            await response.aclose()

    async def json(self, method: str, path: str, *, body: Mapping[str, Any] | None = None, timeout_s: float) -> Any:
        """Send one request and parse its JSON response. Raises like `stream`."""
        return self.decode(await self.exchange(method, path, body=body, timeout_s=timeout_s))

    async def exchange(
        self,
        method: str,
        path: str,
        *,
        body: Mapping[str, Any] | None = None,
        form: tuple[bytes, str] | None = None,
        timeout_s: float,
        again: bool = True,
    ) -> bytes:
        """Send one request and return the response body, which may be empty. Raises like `stream`.

        Args:
            method: HTTP method.
            path: Appended to the base URL.
            body: Sent as JSON.
            form: Another body, and its media type.
            timeout_s: Longest silence.
            again: Whether to retry once when a kept connection was closed; False where a request is not idempotent.
        """
        content = None if body is None else msgspec.json.encode(body)
        headers = {}
        if form is not None:
            content, headers["content-type"] = form
        response = await self._send(_Ask(method, path, content, timeout_s, again, headers))
        try:
            good = 200 <= response.status_code < 300
            data = await read_up_to(response, JSON_BYTES_MAX if good else ERROR_BYTES_MAX)
        except httpx.HTTPError as error:
            raise self._broken(error) from error
        finally:
            await response.aclose()
        if not good:
            raise self._refusal(response, data)
        return data

    def decode(self, data: bytes, kind: Any = Any) -> Any:
        """Parse the provider's JSON, which is untrusted. Raises `ProviderUnavailable`."""
        if not is_bounded(data):
            raise self.nonsense()
        try:
            return msgspec.json.decode(data, type=kind)
        except decoding.UNREADABLE as error:
            raise self.nonsense() from error

    def convert(self, value: Any, kind: type[T]) -> T:
        """Convert parsed JSON to a type. Raises `ProviderUnavailable`."""
        try:
            return msgspec.convert(value, kind)
        except msgspec.ValidationError as error:
            raise self.nonsense() from error

    def nonsense(self) -> ProviderUnavailable:
        """Build the error for a response that does not parse."""
        return ProviderUnavailable(f"{self.name} sent an answer that cannot be read.")

    def _refusal(self, response: httpx.Response, data: bytes) -> GoblinError:
        return refusal(self.name, response, data, self.judge)

    async def _send(self, ask: _Ask) -> httpx.Response:
        keys = [await source.key() for _, source in self._changing]
        response = await self._send_with(keys, ask)
        if response.status_code not in (401, 403) or not keys:
            return response
        try:
            renewed = [await source.renew(key) for (_, source), key in zip(self._changing, keys, strict=True)]
            if not any(renewed):
                return response
            keys = [await source.key() for _, source in self._changing]
        except BaseException:
            await response.aclose()
            raise
        await response.aclose()
        return await self._send_with(keys, ask)

    async def _send_with(self, keys: list[str], ask: _Ask) -> httpx.Response:
        headers = {**self._headers, **ask.headers}
        for (credential, _), key in zip(self._changing, keys, strict=True):
            learn(key)
            headers[credential.header] = credential.value(key)
        if ask.content is not None:
            headers.setdefault("content-type", "application/json")
        # Not `build_request`: it merges the client's defaults, of which there are none, and that costs as much time
        # as parsing up to ten chunks.
        connect_s = min(ask.timeout_s, CONNECT_TIMEOUT_S)
        waits = {"connect": connect_s, "read": ask.timeout_s, "write": ask.timeout_s, "pool": ask.timeout_s}
        request = httpx.Request(
            ask.method,
            self._address(ask.path),
            content=ask.content,
            headers=headers,
            extensions={"timeout": waits},
        )
        try:
            return await self._client.send(request, stream=True)
        except (httpx.RemoteProtocolError, httpx.ReadError, httpx.WriteError) as error:
            if not ask.again:
                raise self._broken(error) from error
            # The server may have closed a kept connection while it was idle; llama-server does so even right after
            # a stream. No response had begun, so one retry cannot produce a second answer.
        except httpx.HTTPError as error:
            raise self._broken(error) from error
        try:
            return await self._client.send(request, stream=True)
        except httpx.HTTPError as error:
            raise self._broken(error) from error

    def _address(self, path: str) -> httpx.URL:
        """Parse a URL once for the paths that repeat."""
        if (found := self._addresses.get(path)) is None:
            found = httpx.URL(self._url + path)
            if len(self._addresses) < ADDRESSES_MAX:
                self._addresses[path] = found
        return found

    def _broken(self, error: httpx.HTTPError) -> ProviderUnavailable:
        match error:
            case httpx.DecodingError():
                return self.nonsense()
            case httpx.PoolTimeout():
                return ProviderUnavailable(f"{self.name}: all connections are in use.", fault=Fault.CAPACITY)
            case httpx.ConnectTimeout() | httpx.ConnectError():
                return ProviderUnavailable(f"{self.name} cannot be reached.")
            case httpx.TimeoutException():
                return ProviderUnavailable(f"{self.name} did not answer in time.")
        return ProviderUnavailable(f"{self.name} broke off the connection.")


def pieces(response: httpx.Response) -> AsyncIterator[bytes]:
    """Iterate over the body as it arrives, without the three extra generators of httpx."""
    encoding = response.headers.get("content-encoding", "identity").strip().lower()
    if encoding != "identity":
        return _unpacked(response, encoding)
    if not isinstance(response.stream, httpx.AsyncByteStream):
        return response.aiter_bytes()
    return aiter(response.stream)


async def _unpacked(response: httpx.Response, encoding: str) -> AsyncIterator[bytes]:
    """Decompress a body that was asked for without compression, a bounded piece at a time: it may be a bomb.

    Raises:
        httpx.DecodingError: The encoding is neither gzip nor deflate, the data is damaged, or too much comes out.
    """
    if encoding not in ("gzip", "x-gzip", "deflate"):
        raise httpx.DecodingError("an encoding that was not asked for")
    if not isinstance(response.stream, httpx.AsyncByteStream):
        raise httpx.DecodingError("a body that is not a stream")
    unpacking, left = zlib.decompressobj(zlib.MAX_WBITS | 32), JSON_BYTES_MAX
    async for packed in response.stream:
        while packed and not unpacking.eof:
            try:
                piece = unpacking.decompress(packed, UNPACKED_BYTES)
            except zlib.error as error:
                raise httpx.DecodingError("damaged data") from error
            packed, left = unpacking.unconsumed_tail, left - len(piece)
            if left < 0:
                raise httpx.DecodingError("a body without end")
            if piece:
                yield piece
    if rest := unpacking.flush():
        yield rest


async def next_piece(source: AsyncIterator[bytes]) -> bytes | None:
    """Wait for the next piece of a body whose answer is whole; None when it has ended, or when nothing comes."""
    try:
        async with asyncio.timeout(LINGER_S):
            return await anext(source)
    except (StopAsyncIteration, TimeoutError):
        return None


async def read_up_to(response: httpx.Response, limit: int) -> bytes:
    """Read the body up to a limit in bytes: a provider's response is untrusted and may be endless.

    All of it must arrive within the time that its request allowed for a silence; a body may also be a trickle.
    """
    held = bytearray()
    try:
        async with asyncio.timeout(response.request.extensions.get("timeout", {}).get("read")):
            async for piece in pieces(response):
                held += piece
                if len(held) > limit:
                    break
    except TimeoutError as error:
        raise httpx.ReadTimeout("a body without end") from error
    return bytes(held[:limit])


async def lines(upstream: Upstream, response: httpx.Response, limit: int) -> AsyncGenerator[bytes, None]:
    """Yield the lines of a body as they arrive, without empty ones. Raises `ProviderUnavailable` beyond `limit`."""
    rest = bytearray()
    async for piece in pieces(response):
        new = len(rest)
        rest += piece
        if (end := rest.rfind(b"\n", new)) >= 0:
            whole = bytes(rest[:end])
            del rest[: end + 1]
            for line in whole.split(b"\n"):
                if len(line) > limit:
                    raise upstream.nonsense()
                if line.strip():
                    yield line
        if len(rest) > limit:
            raise upstream.nonsense()
    if rest.strip():
        yield bytes(rest)


async def events(
    upstream: Upstream, response: httpx.Response, over: Callable[[], bool]
) -> AsyncGenerator[sse.ServerEvent, None]:
    """Yield the server-sent events of a body. Raises `ProviderUnavailable` for one that does not end.

    Args:
        upstream: For messages.
        response: Its body; JSON instead of events is one event.
        over: Tells whether the answer is whole, so that nothing more needs to come.
    """
    parser, source = sse.EventParser(), pieces(response)
    while True:
        piece = await next_piece(source) if over() else await anext(source, None)
        if piece is None:
            break
        try:
            found = parser.feed(piece)
        except sse.EventTooLarge as error:
            raise upstream.nonsense() from error
        for event in found:
            yield event
    for event in parser.end():
        yield event
