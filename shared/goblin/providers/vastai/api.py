"""Vast.ai's API as a client meets it: one request of a kind at a time, and what it means that nothing came back.

The API wants a shortest time between two requests of a kind, for each key and address. Who asks too soon is refused,
for a create with a penalty on top. So everybody in this process who has the same key waits in one line, not for long.
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
from goblin.providers.common.refusals import ErrorDetail, error_detail, retry_after_s
from goblin.providers.common.rental_http import CONNECT_S

log = logging.getLogger(__name__)
T = TypeVar("T")
Sleep = Callable[[float], Awaitable[None]]

ANSWER_S = 30.0
"""For all of an answer."""
WAIT_S_MAX = 20.0
"""The longest stand in line; whoever would stand longer is told so at once."""
INTERVALS_S: Mapping[str, float] = {
    "list": 1.0, "one": 2.0, "destroy": 3.0, "create": 4.5, "metrics": 3.0,
}  # fmt: skip
"""Source: the thresholds in Vast.ai's answers, and dstack and skypilot, read 2026-11-23."""
PENALTY_S: Mapping[str, float] = {"create": 12.0}
SEARCHES, SEARCHES_S = 10, 60.0
"""So many searches in so many seconds."""
RETRY_AFTER_S_MAX = 60.0


class VastReply(NamedTuple):
    """What came back, whatever it says."""

    status: int
    data: bytes
    retry_after_s: float | None
    resets_at: float | None
    """Seconds since 1970: until then the quota of searches is used up."""

    @property
    def detail(self) -> ErrorDetail:
        return error_detail(self.data)


class RequestLine:
    """Where all requests with one key wait for their turn. Threads and event loops may share it."""

    def __init__(self, monotonic: Callable[[], float] = time.monotonic, sleep: Sleep = asyncio.sleep) -> None:
        self._monotonic = monotonic
        self._sleep = sleep
        self._free_at: dict[str, float] = {}
        self._searches: deque[float] = deque(maxlen=SEARCHES)
        self._lock = threading.Lock()

    async def turn(self, kind: str) -> None:
        """Wait for it. Raises `ProviderUnavailable`: the line is too long, nothing was asked."""
        with self._lock:
            now = self._monotonic()
            at = max(now, self._free_at.get(kind, 0.0))
            if kind == "search" and len(self._searches) == SEARCHES:
                at = max(at, self._searches[0] + SEARCHES_S)
            if at - now > WAIT_S_MAX:
                wait_s = at - now
                raise ProviderUnavailable(
                    f"vastai may not be asked again for {wait_s:.0f} s.", fault=Fault.RATE, retry_after_s=wait_s
                )
            self._free_at[kind] = at + INTERVALS_S.get(kind, 0.0)
            if kind == "search":
                self._searches.append(at)
        if at > now:
            await self._sleep(at - now)

    def refused(self, kind: str, retry_after_s: float | None) -> None:
        """It was too soon all the same: somebody else has the key, too."""
        wait_s = max(INTERVALS_S.get(kind, 6.0), PENALTY_S.get(kind, 0.0), min(retry_after_s or 0.0, RETRY_AFTER_S_MAX))
        with self._lock:
            self._free_at[kind] = max(self._free_at.get(kind, 0.0), self._monotonic() + wait_s)


_lines: dict[tuple[str, str], RequestLine] = {}
_LINES_MAX = 64


def line_of(url: str, key: str | KeySource) -> RequestLine:
    """The line of everybody in this process with this key."""
    whose = hashlib.sha256(key.encode()).hexdigest() if isinstance(key, str) else f"source {id(key)}"
    if (url, whose) not in _lines:
        if len(_lines) >= _LINES_MAX:
            _lines.clear()
        _lines[url, whose] = RequestLine()
    return _lines[url, whose]


class VastApi:
    """Asks, once: nothing is tried again here, but a look that came too soon."""

    def __init__(self, name: str, url: str, key: str | KeySource, client: httpx.AsyncClient, line: RequestLine) -> None:
        """Keep what every request needs.

        Args:
            name: The provider's, for messages.
            url: Without `/api`.
            key: Sent in a header and nowhere else.
            client: Shared; its limits and proxies are its owner's.
            line: Where its requests wait.
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
        """One exchange.

        Raises:
            ProviderUnavailable: Nothing was made: it was not sent, or makes nothing.
            Transient: A create was sent, and nobody knows whether it took effect.
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
                # Functions of ours on other machines have the key too, and their schedules tick together: once more.
                await self._line.turn(kind)
                key = self._key if isinstance(self._key, str) else await self._key.key()
                answer = await self._send(key, method, path, params, body)
        return answer

    def parse(self, answer: VastReply, kind: type[T]) -> T:
        """Parse what came back, which is not to be trusted. Raises `ProviderUnavailable`."""
        if answer.status != httpx.codes.OK:
            raise self.refused(answer)
        return rental_http.parse(self._name, answer.data, kind)

    def refused(self, answer: VastReply) -> ProviderUnavailable:
        """A status that was not hoped for, without the words that came with it: they may quote a key."""
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
                    # A kept connection may have been closed at the other end while it lay idle.
                    response, data = await rental_http.exchange(self._client, request)
        except (httpx.ConnectError, httpx.ConnectTimeout, httpx.PoolTimeout) as error:
            raise ProviderUnavailable(f"{self._name} cannot be reached: {type(error).__name__}.") from error
        except (httpx.HTTPError, TimeoutError) as error:
            lost = f"{self._name} gave no answer to {method} {path}: {type(error).__name__}."
            raise (Transient(lost) if creates else ProviderUnavailable(lost)) from error
        if response.status_code >= 300:
            log.warning("%s answered %d to %s %s", self._name, response.status_code, method, path)
        return VastReply(response.status_code, data, retry_after_s(response.headers), _resets_at(response))


def fault_of(answer: VastReply) -> Fault:
    """What a refusal is about. A bad key may be told as 404, too little money in words, a gone offer as 404 or 410."""
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
