"""HTTP client for Vast.ai's API: rate limits, errors, and what a lost response means.

The API requires a minimum time between two requests of a kind, per key and address. A request that comes too soon is
refused, and a create is penalised on top. So all code in this process with the same key shares one queue, with a short
longest wait.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
import re
import threading
import time
from collections import deque
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, NamedTuple, TypeVar

import httpx

from goblin.core.endpoints import KeySource
from goblin.core.errors import Fault, ProviderUnavailable, Transient
from goblin.providers.common import rental_http
from goblin.providers.common.error_words import retry_after_s
from goblin.providers.common.refusals import ErrorDetail, error_detail
from goblin.providers.common.rental_http import CONNECT_S

log = logging.getLogger(__name__)
T = TypeVar("T")
Sleep = Callable[[float], Awaitable[None]]

ANSWER_S = 30.0
"""Timeout for a whole response."""
WAIT_S_MAX = 20.0
"""Longest wait for a turn; a request that would wait longer fails at once."""
INTERVALS_S: Mapping[str, float] = {
    "list": 1.0, "one": 2.0, "destroy": 3.0, "create": 4.5, "metrics": 3.0,
}  # fmt: skip
"""Minimum time between two requests of a kind.

Source: the thresholds in Vast.ai's answers, and dstack and skypilot, read 2026-11-23.
"""
PENALTY_S: Mapping[str, float] = {"create": 12.0}
"""Wait after a 429, by kind."""
SEARCHES, SEARCHES_S = 10, 60.0
"""Most searches in this many seconds."""
RETRY_AFTER_S_MAX = 60.0
"""Longest `Retry-After` that is believed."""


class VastReply(NamedTuple):
    """A response with any status."""

    status: int
    data: bytes
    retry_after_s: float | None
    resets_at: float | None
    """When the search quota is refilled, in seconds since 1970; None when the response does not say."""

    @property
    def detail(self) -> ErrorDetail:
        return error_detail(self.data)


class RequestLine:
    """Rate limiter in which all requests with one key wait for their turn. Threads and event loops may share it."""

    def __init__(self, monotonic: Callable[[], float] = time.monotonic, sleep: Sleep = asyncio.sleep) -> None:
        self._monotonic = monotonic
        self._sleep = sleep
        self._free_at: dict[str, float] = {}
        self._searches: deque[float] = deque(maxlen=SEARCHES)
        self._lock = threading.Lock()

    async def turn(self, kind: str) -> None:
        """Wait until a request of a kind may be sent. Raises `ProviderUnavailable` at once if the wait is too long."""
        with self._lock:
            now = self._monotonic()
            at = max(now, self._free_at.get(kind, 0.0))
            if kind == "search" and len(self._searches) == SEARCHES:
                at = max(at, self._searches[0] + SEARCHES_S)
            if at - now > WAIT_S_MAX:
                wait_s = at - now
                raise ProviderUnavailable(
                    f"The rate limit of vastai allows no request for {wait_s:.0f} s.",
                    fault=Fault.RATE,
                    retry_after_s=wait_s,
                )
            self._free_at[kind] = at + INTERVALS_S.get(kind, 0.0)
            if kind == "search":
                self._searches.append(at)
        if at > now:
            await self._sleep(at - now)

    def refused(self, kind: str, retry_after_s: float | None) -> None:
        """Delay the next request of a kind after a 429: another process with the same key sent requests too."""
        wait_s = max(INTERVALS_S.get(kind, 6.0), PENALTY_S.get(kind, 0.0), min(retry_after_s or 0.0, RETRY_AFTER_S_MAX))
        with self._lock:
            self._free_at[kind] = max(self._free_at.get(kind, 0.0), self._monotonic() + wait_s)


_lines: dict[tuple[str, str], RequestLine] = {}
_LINES_MAX = 64


def line_of(url: str, key: str | KeySource) -> RequestLine:
    """Find the `RequestLine` that all code in this process with this key shares."""
    whose = hashlib.sha256(key.encode()).hexdigest() if isinstance(key, str) else f"source {id(key)}"
    if (url, whose) not in _lines:
        if len(_lines) >= _LINES_MAX:
            _lines.clear()
        _lines[url, whose] = RequestLine()
    return _lines[url, whose]


class VastApi:
    """Sends requests to the API. Does not retry, except a GET after a 429, once."""

    def __init__(self, name: str, url: str, key: str | KeySource, client: httpx.AsyncClient, line: RequestLine) -> None:
        """Keep what every request needs.

        Args:
            name: The provider's name, for messages.
            url: Base URL, without `/api`.
            key: The API key, sent in a header and nowhere else.
            client: Shared HTTP client; its owner configures limits and proxies.
            line: Rate limiter for its requests.
        """
        self._name = name
        self._url = url.rstrip("/")
        self._key = key
        self._client = client
        self._line = line

    async def ask(
        self, kind: str, method: str, path: str, *, params: Mapping[str, str] | None = None,
        body: Mapping[str, Any] | None = None,
    ) -> VastReply:  # fmt: skip
        """Send one request and return its response, whatever its status.

        Args:
            kind: The rate limit that it counts against: `search`, or a key of `INTERVALS_S`.
            method: HTTP method.
            path: Appended to the base URL.
            params: Query parameters.
            body: Sent as JSON.

        Raises:
            ProviderUnavailable: No instance was created: the request was not sent, or does not create one.
            Transient: A create was sent, and it is unknown whether it took effect.
        """
        await self._line.turn(kind)
        key = self._key if isinstance(self._key, str) else await self._key.key()
        answer = await self._send(key, method, path, params, body)
        refused = answer.status >= 400 and fault_of(answer) is Fault.AUTH
        if refused and not isinstance(self._key, str) and await self._key.renew(key):
            await self._line.turn(kind)
            answer = await self._send(await self._key.key(), method, path, params, body)
        if answer.status == 429:
            self._line.refused(kind, answer.retry_after_s)
            if method == "GET":
                # Our functions on other machines use the same key and run on the same schedule: retry once.
                await self._line.turn(kind)
                key = self._key if isinstance(self._key, str) else await self._key.key()
                answer = await self._send(key, method, path, params, body)
        return answer

    def parse(self, answer: VastReply, kind: type[T]) -> T:
        """Parse a response, which is untrusted. Raises `ProviderUnavailable`, also for a status other than 200."""
        if answer.status != httpx.codes.OK:
            raise self.refused(answer)
        return rental_http.parse(self._name, answer.data, kind)

    def refused(self, answer: VastReply) -> ProviderUnavailable:
        """Build the error for an unexpected status, without the provider's message, which may quote a key."""
        return ProviderUnavailable(
            f"{self._name} answered {answer.status} ({fault_of(answer)}).", fault=fault_of(answer),
            retry_after_s=answer.retry_after_s,
        )  # fmt: skip

    async def _send(
        self, key: str, method: str, path: str, params: Mapping[str, str] | None, body: Mapping[str, Any] | None
    ) -> VastReply:
        request = rental_http.build(method, self._url + path, key, within_s=ANSWER_S, params=params, body=body)
        creates = path.startswith("/api/v0/asks/")
        try:
            async with asyncio.timeout(ANSWER_S + CONNECT_S):
                try:
                    response, data = await rental_http.exchange(self._client, request)
                except (httpx.RemoteProtocolError, httpx.ReadError, httpx.WriteError):
                    if creates:
                        raise
                    # The server may have closed a kept connection while it was idle: retry once on a new one.
                    response, data = await rental_http.exchange(self._client, request)
        except (httpx.ConnectError, httpx.ConnectTimeout, httpx.PoolTimeout) as error:
            raise ProviderUnavailable(f"{self._name} cannot be reached: {type(error).__name__}.") from error
        except (httpx.HTTPError, TimeoutError) as error:
            lost = f"{self._name} did not answer {method} {path}: {type(error).__name__}."
            raise (Transient(lost) if creates else ProviderUnavailable(lost)) from error
        if response.status_code >= 300:
            log.warning("%s answered %d to %s %s.", self._name, response.status_code, method, path)
        return VastReply(response.status_code, data, retry_after_s(response.headers), _resets_at(response))


def fault_of(answer: VastReply) -> Fault:
    """Find the fault of a refusal: a bad key may come as 404, low credit as text, a gone offer as 404 or 410."""
    detail, status = answer.detail, answer.status
    words = f"{detail.code} {detail.message}".lower()
    if status >= 500:
        return Fault.TRANSIENT
    if status == 402 or _MONEY.search(words):
        return Fault.MONEY
    if "auth_error" in words or "invalid user key" in words or status in (401, 403):
        return Fault.AUTH
    if status == 429:
        return Fault.RATE
    return Fault.CAPACITY if "no_such_ask" in words or _BID.search(words) else Fault.TRANSIENT


_MONEY = re.compile(r"(low|insufficient|not enough)[ _](credit|balance|funds)")
_BID = re.compile(r"\bbid(\b|_)")


def _resets_at(response: httpx.Response) -> float | None:
    try:
        found = float(response.headers["x-ratelimit-reset"])
    except (KeyError, ValueError):
        return None
    return found if 0 < found < 1e11 else None
