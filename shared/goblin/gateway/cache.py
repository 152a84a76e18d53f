"""Cache of answers: in this process's memory, and in a store that all processes share.

The store is read only for callers that opted in, with a short timeout. Answers that are merely deterministic are kept
in memory only, so that an ordinary request never waits for the store.
"""

from __future__ import annotations

import asyncio
import logging
from collections import OrderedDict
from collections.abc import AsyncGenerator
from dataclasses import dataclass
from datetime import timedelta

from msgspec import UNSET, UnsetType

from goblin.core.errors import StoreUnavailable
from goblin.core.ports import Clock
from goblin.gateway.domain.chat import ChatChunk, ChunkChoice, Delta, Usage
from goblin.gateway.ports import CachedAnswer, CacheStore

log = logging.getLogger(__name__)

MEMORY_BYTES_MAX = 32 * 1024 * 1024
MEMORY_S = 600.0
SHARED_LIFE = timedelta(hours=1)
SHARED_BYTES_MAX = 512 * 1024
"""A document in Firestore holds 1 MiB."""
LOOKUP_S_MAX = 0.25


@dataclass(slots=True)
class _CacheEntry:
    answer: CachedAnswer
    until: float
    size: int


class AnswerCache:
    """A cache bounded by bytes; the least recently used answer is dropped first."""

    def __init__(self, store: CacheStore, clock: Clock, *, bytes_max: int = MEMORY_BYTES_MAX) -> None:
        self._store = store
        self._clock = clock
        self._bytes_max = bytes_max
        self._held = 0
        self._kept: OrderedDict[str, _CacheEntry] = OrderedDict()

    async def find(self, key: str, *, shared: bool) -> CachedAnswer | None:
        """Find an answer; None if there is none. Reads the shared store only if `shared`. Never raises."""
        kept = self._kept.get(key)
        if kept is not None:
            if self._clock.monotonic() < kept.until:
                self._kept.move_to_end(key)
                return kept.answer
            self._drop(key)
        if not shared:
            return None
        try:
            async with asyncio.timeout(LOOKUP_S_MAX):
                found = await self._store.get(key)
        except (StoreUnavailable, TimeoutError) as error:
            log.warning("Shared cache was not read: %s", error)
            return None
        if found is None or found.expires_at <= self._clock.now():
            return None
        self._remember(key, found)
        return found

    async def keep(self, key: str, text: str, finish_reason: str, usage: Usage, *, shared: bool) -> None:
        """Keep an answer in memory and, if `shared`, in the shared store. Never raises."""
        answer = CachedAnswer(
            text=text, finish_reason=finish_reason, usage=usage, expires_at=self._clock.now() + SHARED_LIFE
        )
        size = self._remember(key, answer)
        if not shared or size > SHARED_BYTES_MAX:
            return
        try:
            await self._store.put(key, answer)
        except StoreUnavailable as error:
            log.warning("Answer was not written to the shared cache: %s", error.message)

    def _remember(self, key: str, answer: CachedAnswer) -> int:
        size = len(answer.text.encode("utf-8", "surrogatepass")) + 512
        if key in self._kept:
            self._drop(key)
        if size <= self._bytes_max // 8:
            left_s = (answer.expires_at - self._clock.now()).total_seconds()
            self._kept[key] = _CacheEntry(answer, self._clock.monotonic() + min(MEMORY_S, left_s), size)
            self._held += size
            while self._held > self._bytes_max:
                self._drop(next(iter(self._kept)))
        return size

    def _drop(self, key: str) -> None:
        self._held -= self._kept.pop(key).size


async def replay(answer: CachedAnswer, *, answer_id: str, created: int, model: str) -> AsyncGenerator[ChatChunk, None]:
    """Stream a cached answer as an endpoint would that has all of it at once."""

    def chunk(*choices: ChunkChoice, usage: Usage | UnsetType = UNSET) -> ChatChunk:
        return ChatChunk(id=answer_id, created=created, model=model, choices=choices, usage=usage)

    yield chunk(ChunkChoice(delta=Delta(role="assistant", content=answer.text)))
    yield chunk(ChunkChoice(finish_reason=answer.finish_reason))
    yield chunk(usage=answer.usage)
