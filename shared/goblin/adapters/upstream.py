"""HTTP to a provider: one place that knows httpx, and turns its errors and statuses into ours."""

from __future__ import annotations

import logging
from collections.abc import AsyncGenerator, AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import Any, TypeVar

import httpx
import msgspec

from goblin.errors import Fault, GoblinError, InvalidRequest, ProviderUnavailable

log = logging.getLogger(__name__)

T = TypeVar("T")

CONNECT_TIMEOUT_S = 5.0
ANSWER_TIMEOUT_S = 600.0
"""The longest silence on a connection; the router's own timeouts are far shorter."""
ERROR_BYTES_MAX = 64 * 1024
JSON_BYTES_MAX = 64 * 1024 * 1024
"""2048 vectors of 3072 floats as text are about 60 MiB."""


class ErrorDetail(msgspec.Struct, frozen=True, kw_only=True):
    """What a provider's error body says, in OpenAI's words."""

    message: str = ""
    type: str = ""
    code: str = ""
    param: str | None = None


class Upstream:
    """One endpoint's base URL and key, over a client that many endpoints share."""

    def __init__(self, name: str, url: str, api_key: str | None, client: httpx.AsyncClient) -> None:
        self.name = name
        self._url = url.rstrip("/")
        self._client = client
        self._headers = {"accept-encoding": "identity"}
        if api_key:
            self._headers["authorization"] = f"Bearer {api_key}"

    @asynccontextmanager
    async def stream(self, path: str, body: Mapping[str, Any]) -> AsyncIterator[httpx.Response]:
        """POST, and hold the answer open.

        Raises:
            ProviderUnavailable, InvalidRequest: as `refusal` decides; also when the connection breaks inside.
        """
        content = msgspec.json.encode(body)
        response = await self._send("POST", path, content=content, timeout_s=ANSWER_TIMEOUT_S)
        try:
            if response.status_code != 200:
                raise refusal(self.name, response, await _read(response, ERROR_BYTES_MAX))
            yield response
        except httpx.HTTPError as error:
            raise self._broken(error) from error
        finally:
            await response.aclose()

    async def json(self, method: str, path: str, *, body: Mapping[str, Any] | None = None, timeout_s: float) -> Any:
        """One exchange of JSON. Raises like `stream`."""
        content = None if body is None else msgspec.json.encode(body)
        response = await self._send(method, path, content=content, timeout_s=timeout_s)
        try:
            good = response.status_code == 200
            data = await _read(response, JSON_BYTES_MAX if good else ERROR_BYTES_MAX)
        except httpx.HTTPError as error:
            raise self._broken(error) from error
        finally:
            await response.aclose()
        if not good:
            raise refusal(self.name, response, data)
        return self.decode(data)

    def decode(self, data: bytes, kind: Any = Any) -> Any:
        """Parse what the provider sent, which is not to be trusted."""
        try:
            return msgspec.json.decode(data, type=kind)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
            raise self.nonsense() from error

    def convert(self, value: Any, kind: type[T]) -> T:
        """Give parsed JSON its type."""
        try:
            return msgspec.convert(value, kind)
        except msgspec.ValidationError as error:
            raise self.nonsense() from error

    def nonsense(self) -> ProviderUnavailable:
        return ProviderUnavailable(f"{self.name} sent an answer that cannot be read.")

    async def _send(self, method: str, path: str, *, content: bytes | None, timeout_s: float) -> httpx.Response:
        headers = dict(self._headers)
        if content is not None:
            headers["content-type"] = "application/json"
        request = self._client.build_request(
            method,
            self._url + path,
            content=content,
            headers=headers,
            timeout=httpx.Timeout(timeout_s, connect=min(timeout_s, CONNECT_TIMEOUT_S)),
        )
        try:
            return await self._client.send(request, stream=True)
        except (httpx.RemoteProtocolError, httpx.ReadError, httpx.WriteError):
            # A kept connection may have been closed at the other end while it lay idle; llama-server does so
            # even right after a stream. Nothing was answered, so one fresh try is no second answer.
            pass
        except httpx.HTTPError as error:
            raise self._broken(error) from error
        try:
            return await self._client.send(request, stream=True)
        except httpx.HTTPError as error:
            raise self._broken(error) from error

    def _broken(self, error: httpx.HTTPError) -> ProviderUnavailable:
        match error:
            case httpx.PoolTimeout():
                return ProviderUnavailable(f"{self.name}: no connection is free.", fault=Fault.CAPACITY)
            case httpx.ConnectTimeout() | httpx.ConnectError():
                return ProviderUnavailable(f"{self.name} cannot be reached.")
            case httpx.TimeoutException():
                return ProviderUnavailable(f"{self.name} did not answer in time.")
        return ProviderUnavailable(f"{self.name} broke off the connection.")


async def _read(response: httpx.Response, limit: int) -> bytes:
    """The body, up to a limit: a provider's answer is not to be trusted either."""
    held = bytearray()
    async for piece in response.aiter_bytes():
        held += piece
        if len(held) > limit:
            break
    return bytes(held[:limit])


async def lines(upstream: Upstream, response: httpx.Response, limit: int) -> AsyncGenerator[bytes, None]:
    """Lines of a body as they come, without the empty ones."""
    rest = b""
    async for piece in response.aiter_bytes():
        *whole, rest = (rest + piece).split(b"\n")
        if len(rest) > limit:
            raise upstream.nonsense()
        for line in whole:
            if line.strip():
                yield line
    if rest.strip():
        yield rest


def refusal(name: str, response: httpx.Response, data: bytes) -> GoblinError:
    """What an answer that is not 200 means for the caller and the router."""
    detail = error_detail(data)
    status = response.status_code
    # Providers quote keys and prompts in their messages; types and codes are enough to find the cause.
    log.warning("%s answered %d (type %.80r, code %.80r)", name, status, detail.type, detail.code)
    fault = fault_of(status, detail)
    if fault is None:
        return InvalidRequest(
            detail.message or f"{name} refused the request with status {status}.",
            param=detail.param,
            code=_caller_code(detail),
        )
    return ProviderUnavailable(
        f"{name} answered {status} ({fault}).", fault=fault, retry_after_s=retry_after_s(response.headers)
    )


# Source: help.openai.com 5955604 and the error codes of OpenAI's API reference, read 2026-11-23. They come with
# 429 and look like a rate limit; no waiting mends them.
_MONEY_CODES = frozenset(
    {
        "insufficient_quota",
        "credit_balance_exhausted",
        "organization_usage_limit_exceeded",
        "organization_spend_limit_exceeded",
        "project_spend_limit_exceeded",
        "billing_not_active",
        "billing_hard_limit_reached",
    }
)


def fault_of(status: int, detail: ErrorDetail) -> Fault | None:
    """The fault behind a status, or None when the request itself is to blame."""
    if status == 402 or detail.code in _MONEY_CODES or detail.type in _MONEY_CODES:
        return Fault.MONEY
    match status:
        case 401 | 403:
            return Fault.AUTH
        case 404:
            return Fault.MISSING
        case 405 | 501:
            return Fault.UNSUPPORTED
        case 408:
            return Fault.TRANSIENT
        case 429:
            return Fault.RATE
        case 503 if "loading" in detail.message.lower():
            return Fault.LOADING
        case 503 if "busy" in detail.message.lower() or "overloaded" in detail.message.lower():
            return Fault.CAPACITY
        case 498 | 529:
            return Fault.CAPACITY
    if 400 <= status < 500:
        return None
    return Fault.TRANSIENT


def error_detail(data: bytes) -> ErrorDetail:
    """Read `{"error": {…}}`, `{"error": "…"}` or `{"detail": "…"}`; anything else says nothing."""
    try:
        body = msgspec.json.decode(data)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return ErrorDetail()
    return detail_of(body)


def detail_of(body: Any) -> ErrorDetail:
    """The same from parsed JSON."""
    error = body.get("error", body.get("detail")) if isinstance(body, dict) else None
    if isinstance(error, str):
        return ErrorDetail(message=error)
    if not isinstance(error, dict):
        return ErrorDetail()
    param = error.get("param")
    return ErrorDetail(
        message=_text(error.get("message")),
        type=_text(error.get("type")),
        code=_text(error.get("code")),
        param=param if isinstance(param, str) else None,
    )


def retry_after_s(headers: Mapping[str, str]) -> float | None:
    """`retry-after-ms`, or `Retry-After` in seconds; a date is not worth a clock here."""
    for name, scale in (("retry-after-ms", 0.001), ("retry-after", 1.0)):
        try:
            value = float(headers[name]) * scale
        except (KeyError, ValueError):
            continue
        if 0 <= value < float("inf"):
            return value
    return None


def _caller_code(detail: ErrorDetail) -> str | None:
    if detail.type == "exceed_context_size_error":
        return "context_length_exceeded"
    # llama-server repeats the status as the code.
    return detail.code if detail.code and not detail.code.isdigit() else None


def _text(value: object) -> str:
    return "" if value is None else str(value)[:2000]
