"""`Idempotency-Key`: the same request sent twice is answered once, and both callers get that answer.

first  ──▶ production ──part──part──part──▶ kept for a day
second ──▶   └ joins: all parts so far, then each as it comes      third, later ──▶ the same parts again
another body under the same key ──▶ 409

A production is a task of its own, so that it outlives each of its readers; it is cancelled when the last one leaves.
An answer that failed or broke off is forgotten: the next request with the key starts again.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
from collections import OrderedDict
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import aclosing
from dataclasses import dataclass, replace
from datetime import timedelta
from typing import Any

from goblin.core.errors import Conflict, InvalidRequest, StoreUnavailable
from goblin.core.ports import Clock
from goblin.gateway.ports import HttpReply, IdempotencyClaim, IdempotencyStore, StoredHttpReply

log = logging.getLogger(__name__)

KEY_CHARS_MAX = 255
LIFE = timedelta(hours=24)
"""How long a stored answer is replayed."""
CLAIM_LIFE = timedelta(minutes=15)
"""A process that claimed a request and did not answer within this time is taken as crashed."""
MEMORY_BYTES_MAX = 64 * 1024 * 1024
MEMORY_ANSWERS_MAX = 4096
SHARED_BYTES_MAX = 768 * 1024
"""A document in Firestore holds 1 MiB; a longer answer is replayed by this process only."""
REPLAYED = {"idempotent-replayed": "true"}


class AnswerProduction:
    """One answer in the making, for any number of readers."""

    def __init__(self, body_digest: str) -> None:
        self.body_digest = body_digest
        self.head: HttpReply | None = None
        """Status and headers, once known; its content is empty, the body is in `parts`."""
        self.parts: list[bytes] = []
        self.made = False
        """Whether the answer has ended; it may still have to be settled."""
        self.whole = False
        """Whether the answer is a success and complete."""
        self.streamed = False
        self.readers = 0
        self.until = 0.0
        """The end of its replays, in monotonic seconds."""
        self.task: asyncio.Task[None] | None = None
        self.given_up = False
        """Whether all readers have left, so that it was cancelled."""
        self.error: Exception | None = None
        self._news = asyncio.Event()

    @property
    def size(self) -> int:
        return sum(map(len, self.parts))

    def tell(self) -> None:
        """Wake the readers."""
        news, self._news = self._news, asyncio.Event()
        news.set()

    async def more(self) -> None:
        """Wait until `tell` is called."""
        await self._news.wait()

    async def settled(self) -> None:
        """Wait until it is settled; returns at once while the answer is still in the making."""
        if self.made and self.task is not None:
            await asyncio.wait({self.task})

    def leave(self) -> None:
        """Remove one reader. When the last one leaves, cancel the upstream call."""
        self.readers -= 1
        if not self.readers and not self.made and self.task is not None:
            self.given_up = True
            self.task.cancel()


@dataclass(frozen=True, kw_only=True, slots=True)
class AnswerSource:
    """The way to make an answer."""

    make: Callable[[], Awaitable[HttpReply]]
    """Makes the answer. Never raises."""
    settle: Callable[[], Awaitable[None]]
    """Called once the answer is made, or has failed."""
    is_whole: Callable[[], bool]
    """Returns whether the answer is a success and complete; called after it was made."""
    taken: Callable[[AnswerProduction], None]
    """Called when a production begins, which then calls `settle`. Not called if an earlier answer is used."""


class AnswerReader(AsyncGenerator[bytes, None]):
    """All parts for one reader. A class and not a generator, so that closing it before its first part counts too."""

    def __init__(self, production: AnswerProduction) -> None:
        self._production = production
        self._position = 0
        self._gone = False

    async def __anext__(self) -> bytes:
        return await self.asend(None)

    async def asend(self, value: None) -> bytes:
        made = self._production
        while not self._gone:
            if self._position < len(made.parts):
                self._position += 1
                return made.parts[self._position - 1]
            if made.made:
                break
            await made.more()
        await self.aclose()
        raise StopAsyncIteration if made.error is None else made.error

    async def athrow(self, typ: Any, val: Any = None, tb: Any = None) -> bytes:
        await self.aclose()
        raise typ if val is None else val

    async def aclose(self) -> None:
        if not self._gone:
            self._gone = True
            self._production.leave()


class IdempotentRequests:
    """Answers by tenant and key: those in flight in this process, its recent ones, and those of other processes."""

    def __init__(self, store: IdempotencyStore, clock: Clock, *, bytes_max: int = MEMORY_BYTES_MAX) -> None:
        self._store = store
        self._clock = clock
        self._bytes_max = bytes_max
        self._going: dict[str, AnswerProduction] = {}
        self._kept: OrderedDict[str, AnswerProduction] = OrderedDict()
        self._held = 0

    async def answer(self, tenant: str, operation: str, key: str, body: bytes, work: AnswerSource) -> HttpReply:
        """Answer a request: make the answer, join one in the making, or replay a stored one.

        Args:
            tenant: The owner of the key; the same key of another tenant is another request.
            operation: The API operation; the same key for another operation is another request.
            key: The caller's `Idempotency-Key`.
            body: The body of the request.
            work: How to make the answer, if there is none yet.

        Raises:
            Conflict: The key was used for another request, or another process is answering it now.
            InvalidRequest: The key is empty, too long or not printable.
        """
        if not 0 < len(key) <= KEY_CHARS_MAX or not key.isprintable():
            raise InvalidRequest(f"An Idempotency-Key must have 1 to {KEY_CHARS_MAX} printable characters.")
        entry = hashlib.sha256(f"{tenant}\0{operation}\0{key}".encode("utf-8", "surrogatepass")).hexdigest()
        digest = hashlib.sha256(body).hexdigest()
        production = self._going.get(entry) or self._fresh(entry)
        if production is not None and not production.given_up:
            return await self._joined(production, digest)
        production = AnswerProduction(digest)
        self._going[entry] = production
        try:
            stored = await self._claim(entry, digest)
        except BaseException:
            self._end(entry, production)
            raise
        if stored is not None:
            production.head, production.parts, production.whole = _reply(stored), [stored.body], True
            self._end(entry, production)
            return await self._joined(production, digest)
        production.readers += 1
        production.task = asyncio.create_task(self._produce(entry, production, work))
        work.taken(production)
        return await self._head(production)

    async def _joined(self, production: AnswerProduction, digest: str) -> HttpReply:
        if production.body_digest != digest:
            raise _reused()
        production.readers += 1
        answer = await self._head(production)
        return replace(answer, headers={**answer.headers, **REPLAYED})

    async def _head(self, production: AnswerProduction) -> HttpReply:
        """Wait for the answer's head, for one more reader that `readers` already counts."""
        try:
            while production.head is None and not production.made:
                await production.more()
        except BaseException:
            production.leave()
            raise
        if production.head is None:
            production.leave()
            raise Conflict("The request with this Idempotency-Key was cancelled. Send it again.", code=IN_USE)
        if production.streamed:
            return replace(production.head, content=AnswerReader(production))
        production.leave()
        return replace(production.head, content=b"".join(production.parts))

    async def _produce(self, entry: str, production: AnswerProduction, work: AnswerSource) -> None:
        try:
            answer = await work.make()
            if isinstance(answer.content, bytes):
                production.parts.append(answer.content)
                production.head = replace(answer, content=b"")
            else:
                production.streamed = True
                production.head = replace(answer, content=b"")
                production.tell()
                async with aclosing(answer.content) as parts:
                    async for part in parts:
                        production.parts.append(part)
                        production.tell()
            production.whole = work.is_whole()
        except Exception as error:  # noqa: BLE001  Raised again to the readers.
            production.error = error
        finally:
            try:
                if not production.whole:
                    # Release the claim before readers get the failure, so that an immediate retry finds the key free.
                    await self._publish(entry, production)
                    self._end(entry, production)
                # The readers have the whole answer now; they need not wait for the settlement.
                production.made = True
                production.tell()
                await work.settle()
            finally:
                if production.whole:
                    self._end(entry, production)
                    await self._publish(entry, production)

    def _fresh(self, entry: str) -> AnswerProduction | None:
        kept = self._kept.get(entry)
        if kept is not None and kept.until <= self._clock.monotonic():
            self._held -= self._kept.pop(entry).size
            return None
        return kept

    def _end(self, entry: str, production: AnswerProduction) -> None:
        """End a production, and keep its answer in memory if it is complete."""
        production.made = True
        production.tell()
        if self._going.get(entry) is production:
            del self._going[entry]
        if not production.whole or production.size > self._bytes_max // 8:
            return
        production.until = self._clock.monotonic() + LIFE.total_seconds()
        self._kept[entry] = production
        self._held += production.size
        while self._held > self._bytes_max or len(self._kept) > MEMORY_ANSWERS_MAX:
            _, oldest = self._kept.popitem(last=False)
            self._held -= oldest.size

    async def _claim(self, entry: str, digest: str) -> StoredHttpReply | None:
        """Claim the request for this process; return the answer of another process if there is one."""
        now = self._clock.now()
        claim = IdempotencyClaim(body_digest=digest, until=now + CLAIM_LIFE, expires_at=now + LIFE)
        try:
            found = await self._store.claim(entry, claim, now=now)
        except StoreUnavailable as error:
            # Within this process the request is still answered once. Refusing all requests would be worse.
            log.warning("An idempotent request was claimed in this process only: %s", error.message)
            return None
        if found is None:
            return None
        if found.body_digest != digest:
            raise _reused()
        if found.reply is None:
            raise Conflict("The request with this Idempotency-Key is in flight. Try again later.", code=IN_USE)
        return found.reply

    async def _publish(self, entry: str, production: AnswerProduction) -> None:
        """Store the answer for other processes, or release the claim if there is nothing to replay."""
        try:
            if production.whole and production.head is not None and production.size <= SHARED_BYTES_MAX:
                head = production.head
                reply = StoredHttpReply(
                    status=head.status,
                    media_type=head.media_type,
                    headers=dict(head.headers),
                    body=b"".join(production.parts),
                )
                await self._store.finish(entry, reply)
            else:
                await self._store.release(entry)
        except StoreUnavailable as error:
            log.warning("An idempotent answer was not stored for other processes: %s", error.message)


IN_USE = "idempotency_key_in_use"


def _reused() -> Conflict:
    return Conflict("This Idempotency-Key was used for another request. Use a new key.", code="idempotency_key_reused")


def _reply(stored: StoredHttpReply) -> HttpReply:
    return HttpReply(status=stored.status, media_type=stored.media_type, headers=dict(stored.headers))
