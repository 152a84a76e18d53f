"""`Idempotency-Key`: the same request sent twice is answered once, and both senders get that answer.

first  ──▶ production ──part──part──part──▶ kept for a day
second ──▶   └ joins: all parts so far, then each as it comes      third, later ──▶ the same parts again
another body under the same key ──▶ 409

A production is a task of its own, so that it outlives any one of its readers; when the last one leaves, it ends.
What failed or broke off is forgotten: the next request with the key tries anew.
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
"""As long as an answer is given again."""
CLAIM_LIFE = timedelta(minutes=15)
"""After so long an instance that took a request and never answered is taken for dead."""
MEMORY_BYTES_MAX = 64 * 1024 * 1024
MEMORY_ANSWERS_MAX = 4096
SHARED_BYTES_MAX = 768 * 1024
"""A document in Firestore holds 1 MiB; a longer answer is given again by this instance only."""
REPLAYED = {"idempotent-replayed": "true"}


class AnswerProduction:
    """One answer being made, for any number of readers."""

    def __init__(self, body_digest: str) -> None:
        self.body_digest = body_digest
        self.head: HttpReply | None = None
        """Status and headers, once known; its content is not its own."""
        self.parts: list[bytes] = []
        self.made = False
        """Nothing more will come; it may still have to be settled."""
        self.whole = False
        """The answer is a good one, with nothing missing."""
        self.streamed = False
        self.readers = 0
        self.until = 0.0
        """Monotonic seconds; how long it is given again."""
        self.task: asyncio.Task[None] | None = None
        self.given_up = False
        """Everybody has left; it only has to end."""
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
        """Until something has changed."""
        await self._news.wait()

    async def settled(self) -> None:
        """Until it is settled too, if only that is left."""
        if self.made and self.task is not None:
            await asyncio.wait({self.task})

    def leave(self) -> None:
        """One reader has gone; nobody works for nobody."""
        self.readers -= 1
        if not self.readers and not self.made and self.task is not None:
            self.given_up = True
            self.task.cancel()


@dataclass(frozen=True, kw_only=True, slots=True)
class AnswerSource:
    """How an answer is made."""

    make: Callable[[], Awaitable[HttpReply]]
    """Never raises."""
    settle: Callable[[], Awaitable[None]]
    """Called once it is made, or will not be."""
    is_whole: Callable[[], bool]
    """Whether what was made is good and complete; asked afterwards."""
    taken: Callable[[AnswerProduction], None]
    """Called when it begins: from here on it is ours to settle. Never, if the answer is there already."""


class AnswerReader(AsyncGenerator[bytes, None]):
    """The parts for one reader, from the first on. A class, so that closing it counts even before it began."""

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
    """Answers by tenant and key: those under way in this process, those it gave lately, and what others gave."""

    def __init__(self, store: IdempotencyStore, clock: Clock, *, bytes_max: int = MEMORY_BYTES_MAX) -> None:
        self._store = store
        self._clock = clock
        self._bytes_max = bytes_max
        self._going: dict[str, AnswerProduction] = {}
        self._kept: OrderedDict[str, AnswerProduction] = OrderedDict()
        self._held = 0

    async def answer(self, tenant: str, operation: str, key: str, body: bytes, work: AnswerSource) -> HttpReply:
        """The answer to a request, made now or found.

        Args:
            tenant: Whose key it is; others may use the same one.
            operation: Which route.
            key: The caller's `Idempotency-Key`.
            body: Of the request.
            work: How to make the answer, if nobody has or does.

        Raises:
            Conflict: the key was used for another request, or another instance works on it now.
            InvalidRequest: the key is not one.
        """
        if not 0 < len(key) <= KEY_CHARS_MAX or not key.isprintable():
            raise InvalidRequest(f"An Idempotency-Key has 1 to {KEY_CHARS_MAX} printable characters.")
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
        """The answer for one more reader, who is counted already."""
        try:
            while production.head is None and not production.made:
                await production.more()
        except BaseException:
            production.leave()
            raise
        if production.head is None:
            production.leave()
            raise Conflict("The request with this Idempotency-Key was given up. Send it again.", code=IN_USE)
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
        except Exception as error:  # noqa: BLE001  It is the readers'.
            production.error = error
        finally:
            try:
                if not production.whole:
                    # Before anybody hears of it: who tries again at once must find the way free.
                    await self._publish(entry, production)
                    self._end(entry, production)
                # The readers have it all now; they need not wait for the books.
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
        """It is made, or will not be; remember the good ones."""
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
        """Take the request for this instance; what another one has answered, if one has."""
        now = self._clock.now()
        claim = IdempotencyClaim(body_digest=digest, until=now + CLAIM_LIFE, expires_at=now + LIFE)
        try:
            found = await self._store.claim(entry, claim, now=now)
        except StoreUnavailable as error:
            # This instance still answers once; that others do cannot be known, and must not stop everything.
            log.warning("idempotency is this instance's only: %s", error.message)
            return None
        if found is None:
            return None
        if found.body_digest != digest:
            raise _reused()
        if found.reply is None:
            raise Conflict("The request with this Idempotency-Key is being answered. Ask again soon.", code=IN_USE)
        return found.reply

    async def _publish(self, entry: str, production: AnswerProduction) -> None:
        """Let other instances know how it ended."""
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
            log.warning("an idempotent answer is this instance's only: %s", error.message)


IN_USE = "idempotency_key_in_use"


def _reused() -> Conflict:
    return Conflict("This Idempotency-Key was used for another request.", code="idempotency_key_reused")


def _reply(stored: StoredHttpReply) -> HttpReply:
    return HttpReply(status=stored.status, media_type=stored.media_type, headers=dict(stored.headers))
