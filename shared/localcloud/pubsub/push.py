"""Push delivery: messages are posted to an HTTP endpoint on this machine, and its answer acknowledges them.

Source: https://cloud.google.com/pubsub/docs/push, read 2026-11-23. The ack deadline is the HTTP timeout. Each
subscription has its own window of requests, so a hung endpoint does not delay other subscriptions.
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
"""Requests in flight of one subscription."""
IDLE_MAX = 8
"""Idle connections of one subscription kept for the next request."""
ACKNOWLEDGING = frozenset({102, 200, 201, 202, 204})
LEASE_MARGIN_S = 5
"""Seconds that a lease outlives its request, so that the answer alone decides about the message."""
TOKEN_AGE_S_MAX = 1800
"""Seconds for which a token is reused: half of its lifetime of an hour."""
ANSWER_BYTES_READ_MAX = 1 << 16

_HEADER_NAME = re.compile(r"[!#$%&'*+\-.^_`|~0-9A-Za-z]+")
_HEADER_VALUE = re.compile(r"[\x20-\x7e\t]*")
_OWN_HEADERS = frozenset(
    {"authorization", "connection", "content-length", "host", "te", "trailer", "transfer-encoding", "upgrade"}
)


@dataclass(frozen=True, slots=True)
class _Token:
    """A bearer token for one push configuration."""

    email: str
    audience: str
    minted_at_us: int
    text: str


class Pusher:
    """Delivery of one subscription's messages to its push endpoint."""

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
            backlog: The subscription's messages.
            connect: Opens a client for one request at a time. One shared pool would be simpler, but
                httpcore walks through all of its connections for each request: 3 ms of CPU with fifty.
            identity: Signs the tokens.
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
        """Push until the subscription ends; wait while it is a pull subscription."""
        self._backlog.listen(self._bell)
        try:
            while self._backlog.over is None:
                self._bell.clear()
                if not self._start_some():
                    await self._bell.wait()
        except Refused as refused:
            log.info("Push delivery of %s ended: %s", self._backlog.name, refused)
        finally:
            self._backlog.unlisten(self._bell)
            for request in self._requests:
                request.cancel()
            await asyncio.gather(*self._requests, return_exceptions=True)
            for client in self._idle:
                await client.aclose()

    def _start_some(self) -> bool:
        """Start a request for each message that may be delivered now. False when there is none."""
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
            log.error("Push delivery of %s failed.", self._backlog.name, exc_info=error)

    async def _push(self, received: Received) -> None:
        backlog = self._backlog
        config, deadline_s = backlog.resource.push_config, backlog.resource.ack_deadline_seconds
        if await self._accepts(config, received, deadline_s):
            backlog.acknowledge([received.ack_id])
        else:
            backlog.modify_deadline([received.ack_id], 0)

    async def _accepts(self, config: Raw, received: Received, deadline_s: int) -> bool:
        """Return whether the endpoint acknowledged; any other answer, and a timeout, is a no."""
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
            log.info("Push delivery of %s to %s failed: %r", self._backlog.name, config.push_endpoint, error)
            return False
        if answer.status_code not in ACKNOWLEDGING:
            log.info("Push delivery of %s was answered with HTTP %d.", self._backlog.name, answer.status_code)
            return False
        return True

    @asynccontextmanager
    async def _client(self) -> AsyncIterator[httpx.AsyncClient]:
        """Yield the client that was used last, whose connection is most likely open, or a new one."""
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
    """Read a short answer, so that its connection can be reused; leave a long one unread."""
    read = 0
    async for chunk in answer.aiter_bytes():
        read += len(chunk)
        if read > ANSWER_BYTES_READ_MAX:
            return


def request_of(backlog: Backlog, received: Received) -> tuple[list[tuple[str, str]], bytes]:
    """Return the headers and the body that production would send."""
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
    """Build the JSON of a wrapped push, with ids and times in both spellings, as production sends them."""
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
    """Return attributes and ids as headers of an unwrapped push; values that HTTP cannot carry are left out."""
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
