"""Push delivery: messages go to an HTTP endpoint on this machine, and its answer acknowledges them.

Source: https://cloud.google.com/pubsub/docs/push, read 2026-11-23. The ack deadline is the HTTP timeout. Each
subscription has its own window of requests, so a hung endpoint starves nobody else.
"""

import asyncio
import base64
import json
import logging
import re
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import httpx

from localcloud.identity import Identity
from localcloud.pubsub.backlog import Backlog
from localcloud.pubsub.deliveries import Received
from localcloud.pubsub.errors import Refused
from localcloud.pubsub.wire import MICROS, Raw, rfc3339, timestamp_us

log = logging.getLogger(__name__)

IN_FLIGHT_MAX = 50
"""Requests of one subscription at a time."""
IDLE_MAX = 8
"""Connections of one subscription that are kept for the next request."""
ACKNOWLEDGING = frozenset({102, 200, 201, 202, 204})
LEASE_MARGIN_S = 5
"""A lease outlives its request, so that only the request decides."""
TOKEN_AGE_S_MAX = 1800
"""Tokens are used again for half of their hour."""
ANSWER_BYTES_READ_MAX = 1 << 16

_HEADER_NAME = re.compile(r"[!#$%&'*+\-.^_`|~0-9A-Za-z]+")
_HEADER_VALUE = re.compile(r"[\x20-\x7e\t]*")
_OWN_HEADERS = frozenset(
    {"authorization", "connection", "content-length", "host", "te", "trailer", "transfer-encoding", "upgrade"}
)


@dataclass(frozen=True, slots=True)
class _Token:
    """A bearer token for one configuration."""

    email: str
    audience: str
    minted_at_us: int
    text: str


class Pusher:
    """Pushes one subscription's messages for as long as it has an endpoint."""

    def __init__(
        self,
        backlog: Backlog,
        *,
        connect: Callable[[], httpx.AsyncClient],
        identity: Identity,
        now_us: Callable[[], int],
    ) -> None:
        """Prepare; `run` delivers.

        Args:
            backlog: The subscription.
            connect: Opens a client for one request at a time. One shared pool would do, were it not that
                httpcore walks through all of its connections for each request: 3 ms of processor with fifty.
            identity: Signs tokens.
            now_us: Microseconds since 1970.
        """
        self._backlog = backlog
        self._connect = connect
        self._idle: list[httpx.AsyncClient] = []
        self._identity = identity
        self._now_us = now_us
        self._token: _Token | None = None
        self._requests: set[asyncio.Task[None]] = set()
        self._bell = asyncio.Event()

    async def run(self) -> None:
        """Until the subscription ends; idles while it is a pull subscription."""
        self._backlog.listen(self._bell)
        try:
            while self._backlog.over is None:
                self._bell.clear()
                if not self._start_some():
                    await self._bell.wait()
        except Refused as refused:
            log.info("push of %s ends: %s", self._backlog.name, refused)
        finally:
            self._backlog.unlisten(self._bell)
            for request in self._requests:
                request.cancel()
            await asyncio.gather(*self._requests, return_exceptions=True)
            for client in self._idle:
                await client.aclose()

    def _start_some(self) -> bool:
        """Start a request for each message that may go now; False when there is none."""
        free = IN_FLIGHT_MAX - len(self._requests)
        if not self._backlog.push_endpoint or free <= 0:
            return False
        deadline_s = self._backlog.resource.ack_deadline_seconds + LEASE_MARGIN_S
        received = self._backlog.take(limit=free, deadline_s=deadline_s, run_max=1)
        for one in received:
            request = asyncio.create_task(self._push(one))
            self._requests.add(request)
            request.add_done_callback(self._done)
        return bool(received)

    def _done(self, request: asyncio.Task[None]) -> None:
        self._requests.discard(request)
        self._bell.set()
        if not request.cancelled() and (error := request.exception()) is not None:
            log.error("push of %s failed", self._backlog.name, exc_info=error)

    async def _push(self, received: Received) -> None:
        backlog = self._backlog
        config, deadline_s = backlog.resource.push_config, backlog.resource.ack_deadline_seconds
        if await self._accepts(config, received, deadline_s):
            backlog.acknowledge([received.ack_id])
        else:
            backlog.modify_deadline([received.ack_id], 0)

    async def _accepts(self, config: Raw, received: Received, deadline_s: int) -> bool:
        """Whether the endpoint acknowledged; everything else, and silence, is a no."""
        headers, body = request_of(self._backlog, received)
        if config.HasField("oidc_token"):
            headers.append(("Authorization", f"Bearer {self._bearer(config)}"))
        try:
            async with (
                asyncio.timeout(deadline_s),
                self._client() as client,
                client.stream("POST", config.push_endpoint, headers=headers, content=body) as answer,
            ):
                await _drain(answer)
        except (httpx.HTTPError, httpx.InvalidURL, TimeoutError) as error:
            log.info("push of %s to %s: %r", self._backlog.name, config.push_endpoint, error)
            return False
        if answer.status_code not in ACKNOWLEDGING:
            log.info("push of %s: HTTP %d", self._backlog.name, answer.status_code)
            return False
        return True

    @asynccontextmanager
    async def _client(self) -> AsyncIterator[httpx.AsyncClient]:
        """The client that was used last, whose connection is warmest, or a new one."""
        client = self._idle.pop() if self._idle else self._connect()
        try:
            yield client
        finally:
            if len(self._idle) < IDLE_MAX:
                self._idle.append(client)
            else:
                await client.aclose()

    def _bearer(self, config: Raw) -> str:
        email = config.oidc_token.service_account_email
        audience = config.oidc_token.audience or config.push_endpoint
        now_us, token = self._now_us(), self._token
        fresh = token is not None and now_us - token.minted_at_us < TOKEN_AGE_S_MAX * MICROS
        if token is None or not fresh or (token.email, token.audience) != (email, audience):
            token = _Token(email, audience, now_us, self._identity.mint(email=email, audience=audience))
            self._token = token
        return token.text


async def _drain(answer: httpx.Response) -> None:
    """Read a short answer, so that its connection can be used again; leave a long one."""
    read = 0
    async for chunk in answer.aiter_bytes():
        read += len(chunk)
        if read > ANSWER_BYTES_READ_MAX:
            return


def request_of(backlog: Backlog, received: Received) -> tuple[list[tuple[str, str]], bytes]:
    """The headers and the body that production would send."""
    headers = [
        ("Accept-Encoding", "identity"),
        ("User-Agent", "CloudPubSub-Google"),
        ("From", "noreply@google.com"),
    ]
    if backlog.resource.push_config.HasField("no_wrapper"):
        metadata = backlog.resource.push_config.no_wrapper.write_metadata
        extra = metadata_headers(backlog.name, received.message) if metadata else []
        return headers + extra, bytes(received.message.data)
    attempt = received.attempt if backlog.shows_attempts else None
    body = wrapped(backlog.name, received.message, attempt)
    headers += [("Content-Type", "application/json"), ("Accept", "application/json")]
    return headers, json.dumps(body, separators=(",", ":")).encode()


def wrapped(subscription: str, message: Raw, attempt: int | None) -> dict[str, Any]:
    """The JSON of a wrapped push; ids and times in both spellings, as production sends them."""
    published_at = rfc3339(timestamp_us(message.publish_time))
    inner: dict[str, Any] = {}
    if message.attributes:
        inner["attributes"] = dict(message.attributes)
    if message.data:
        inner["data"] = base64.b64encode(message.data).decode()
    inner["messageId"] = inner["message_id"] = message.message_id
    if message.ordering_key:
        inner["orderingKey"] = message.ordering_key
    inner["publishTime"] = inner["publish_time"] = published_at
    body = {"message": inner, "subscription": subscription}
    return body if attempt is None else {"deliveryAttempt": attempt, **body}


def metadata_headers(subscription: str, message: Raw) -> list[tuple[str, str]]:
    """Attributes and ids of an unwrapped push; what HTTP cannot carry stays behind."""
    own = {
        "x-goog-pubsub-message-id": message.message_id,
        "x-goog-pubsub-publish-time": rfc3339(timestamp_us(message.publish_time)),
        "x-goog-pubsub-subscription-name": subscription,
    }
    if message.ordering_key:
        own["x-goog-pubsub-ordering-key"] = message.ordering_key
    return list(_sendable([*message.attributes.items(), *own.items()]))


def _sendable(headers: Iterable[tuple[str, str]]) -> Iterable[tuple[str, str]]:
    for name, value in headers:
        if _HEADER_NAME.fullmatch(name) and _HEADER_VALUE.fullmatch(value) and name.lower() not in _OWN_HEADERS:
            yield name, value
