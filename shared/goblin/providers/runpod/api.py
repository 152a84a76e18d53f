"""HTTP client for RunPod's management API: which requests are retried, and what a lost response means."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Iterable, Mapping
from decimal import Decimal
from typing import Annotated, Any, NamedTuple, TypeVar

import httpx
import msgspec
from msgspec import Meta

from goblin.core.endpoints import KeySource
from goblin.core.errors import Fault, ProviderUnavailable, Transient
from goblin.core.redaction import REDACTED
from goblin.providers.common import rental_http
from goblin.providers.common.error_words import retry_after_s
from goblin.providers.common.refusals import error_detail, says_no_capacity
from goblin.providers.common.rental_http import CONNECT_S

log = logging.getLogger(__name__)
T = TypeVar("T")

READ_S = 15.0
"""Timeout for the whole response to a GET."""
WRITE_S = 60.0
"""Timeout for the whole response to anything else: RunPod searches a machine meanwhile."""
TRIES = 3
"""Attempts of a GET."""
WAIT_S_MAX = 10.0
"""Longest wait after a 429; if RunPod asks for more, the caller gets the 429."""
BACKOFF_S = 0.5
WORDS_MAX = 300
"""Longest reason that is quoted from a refusal."""

Sleep = Callable[[float], Awaitable[None]]


class RunPodReply(NamedTuple):
    """A response with any status."""

    status: int
    data: bytes
    retry_after_s: float | None


class PodRow(msgspec.Struct, frozen=True, kw_only=True):
    """The fields of a pod that we read."""

    id: Annotated[str, Meta(pattern=r"^[A-Za-z0-9_-]{1,64}\Z")]
    name: str
    status: str
    cost: Decimal | None = None
    runtime: Any = None
    created_at: str = msgspec.field(default="", name="createdAt")


class Pagination(msgspec.Struct, frozen=True, kw_only=True, rename="camel"):
    has_next_page: bool = False
    next_cursor: str | None = None


class Pods(msgspec.Struct, frozen=True, kw_only=True):
    pods: tuple[PodRow, ...]
    pagination: Pagination | None = None


class Prices(msgspec.Struct, frozen=True, kw_only=True):
    """Prices in dollars per hour for one GPU, by cloud."""

    secure: Decimal | None = None
    community: Decimal | None = None


class Counts(msgspec.Struct, frozen=True, kw_only=True):
    """Most GPUs of one pod, by cloud."""

    secure: int = 0
    community: int = 0


class PlaceRow(msgspec.Struct, frozen=True, kw_only=True):
    id: str
    availability: str = "NONE"


class RunPodGpuRow(msgspec.Struct, frozen=True, kw_only=True):
    """The fields of a GPU type that we read."""

    id: Annotated[str, Meta(min_length=1)]
    name: str
    memory: Annotated[int, Meta(ge=0)]
    secure: bool
    community: bool
    price: Prices
    max_count: Counts = msgspec.field(name="maxCount")
    availability: str
    data_centers: tuple[PlaceRow, ...] = msgspec.field(default=(), name="dataCenters")


class RunPodGpus(msgspec.Struct, frozen=True, kw_only=True):
    gpus: tuple[RunPodGpuRow, ...]


class RunPodApi:
    """Sends requests. Retries a GET without a response or with a 5xx, and any request after a 429 with a short wait."""

    def __init__(
        self, name: str, url: str, key: str | KeySource, client: httpx.AsyncClient, *, sleep: Sleep = asyncio.sleep
    ) -> None:
        """Keep what every request needs.

        Args:
            name: The provider's name, for messages.
            url: Base URL with the version: `https://api.runpod.io/v2`.
            key: The API key, sent in a header and nowhere else.
            client: Shared HTTP client; its owner configures limits and proxies.
            sleep: Waits a number of seconds.
        """
        self._name = name
        self._url = url.rstrip("/")
        self._key = key
        self._client = client
        self._sleep = sleep
        self._sent = ""

    async def ask(
        self, method: str, path: str, *, params: Mapping[str, str] | None = None, body: Mapping[str, Any] | None = None
    ) -> RunPodReply:
        """Send one request, with retries, and return its response, whatever its status.

        Raises:
            ProviderUnavailable: The request was not sent, or it is a GET.
            Transient: Another request was sent, and it is unknown whether it took effect.
        """
        tries = TRIES if method == "GET" else 1
        for attempt in range(1, TRIES + 1):
            waited = attempt * BACKOFF_S
            try:
                answer = await self._ask_once(method, path, params, body)
            except Transient:
                if attempt >= tries:
                    raise
            else:
                if answer.status == 429:
                    waited = answer.retry_after_s if answer.retry_after_s is not None else BACKOFF_S
                    if attempt == TRIES or waited > WAIT_S_MAX:
                        return answer
                elif answer.status < 500 or attempt >= tries:
                    return answer
            await self._sleep(waited)
        raise AssertionError("the last try returns or raises")

    async def read(self, path: str, kind: type[T], *, params: Mapping[str, str] | None = None) -> T:
        """GET and parse. Raises `ProviderUnavailable`, also for a response of another kind, such as a proxy's page."""
        answer = await self.ask("GET", path, params=params)
        if answer.status != httpx.codes.OK:
            raise self.refused(answer, path)
        return self.parse(answer, kind)

    def parse(self, answer: RunPodReply, kind: type[T]) -> T:
        """Parse a response, which is untrusted. Raises `ProviderUnavailable`."""
        return rental_http.parse(self._name, answer.data, kind)

    def refused(self, answer: RunPodReply, path: str) -> ProviderUnavailable:
        """Build the error for an unexpected status, without the provider's message, which may quote a key."""
        fault = {401: Fault.AUTH, 403: Fault.AUTH, 402: Fault.MONEY, 429: Fault.RATE}.get(answer.status)
        return ProviderUnavailable(
            f"{self._name} answered {answer.status} to {path}.",
            fault=fault or Fault.TRANSIENT,
            retry_after_s=answer.retry_after_s,
        )

    def words(self, answer: RunPodReply, secrets: Iterable[str]) -> str:
        """Quote a refusal's reason for a person, unless it repeats our key or one of the secrets that were sent.

        Args:
            answer: The refusal.
            secrets: Values that must not appear in the result.
        """
        detail = error_detail(answer.data)
        said = " ".join(f"{detail.message} {detail.code}".split())
        if REDACTED in said or any(secret and secret in said for secret in (self._sent, *secrets)):
            return "the reason is hidden because it quotes a secret."
        return said[:WORDS_MAX] or "it gave no reason."

    async def _ask_once(
        self, method: str, path: str, params: Mapping[str, str] | None, body: Mapping[str, Any] | None
    ) -> RunPodReply:
        key = self._key if isinstance(self._key, str) else await self._key.key()
        answer = await self._send(key, method, path, params, body)
        if answer.status == 401 and not isinstance(self._key, str) and await self._key.renew(key):
            answer = await self._send(await self._key.key(), method, path, params, body)
        return answer

    async def _send(
        self, key: str, method: str, path: str, params: Mapping[str, str] | None, body: Mapping[str, Any] | None
    ) -> RunPodReply:
        self._sent = key
        within_s = READ_S if method == "GET" else WRITE_S
        request = rental_http.build(method, self._url + path, key, within_s=within_s, params=params, body=body)
        try:
            async with asyncio.timeout(within_s + CONNECT_S):
                response, data = await rental_http.exchange(self._client, request)
        except (httpx.ConnectError, httpx.ConnectTimeout, httpx.PoolTimeout) as error:
            raise ProviderUnavailable(f"{self._name} cannot be reached: {type(error).__name__}.") from error
        except (httpx.HTTPError, TimeoutError) as error:
            lost = f"{self._name} did not answer {method} {path}: {type(error).__name__}."
            raise (ProviderUnavailable(lost) if method == "GET" else Transient(lost)) from error
        if response.status_code >= 300:
            log.warning("%s answered %d to %s %s.", self._name, response.status_code, method, path)
        return RunPodReply(response.status_code, data, retry_after_s(response.headers))


def is_full(answer: RunPodReply) -> bool:
    """Tell whether a refusal is about a lack of capacity. Only its message shows it; the status may be anything."""
    detail = error_detail(answer.data)
    said = f"{detail.message} {detail.code}"
    return says_no_capacity(detail) or "does not have the resources" in said or "not enough free GPUs" in said
