"""Receipts written many at a time, so that a request under load adds no call to the store.

A receipt that comes alone is written before its request ends: a function may have no CPU after that. Those that come
within a second of a write wait for the next one; a process that dies takes at most those with it.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from itertools import islice

from goblin.core.errors import StoreUnavailable
from goblin.core.ports import Clock
from goblin.gateway.ports import RequestBatchStore, RequestRecord

log = logging.getLogger(__name__)

EVERY_S = 1.0
BATCH_MAX = 200
"""Firestore takes up to 10 MiB at once, and a receipt with every endpoint in it is some kilobytes."""
HELD_MAX = 5000


class ReceiptBatches:
    """The port `RequestStore` over one that writes many at once."""

    def __init__(
        self,
        store: RequestBatchStore,
        clock: Clock,
        *,
        pause: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        self._store = store
        self._clock = clock
        self._pause = pause
        self._held: dict[str, RequestRecord] = {}
        self._going: dict[str, RequestRecord] = {}
        """Being written now."""
        self._wrote_s = -EVERY_S
        self._turn: asyncio.Task[None] | None = None
        self._one_at_a_time = asyncio.Lock()
        self._ending = False

    async def put(self, record: RequestRecord) -> None:
        """Take one, and write it now if that is due. Raises `StoreUnavailable`: too many wait already."""
        if len(self._held) >= HELD_MAX:
            raise StoreUnavailable("Too many receipts wait to be written.")
        self._held[record.request_id] = record
        if self._turn is not None:
            return
        if self._ending or self._clock.monotonic() - self._wrote_s >= EVERY_S:
            await self._write()
        if self._held and self._turn is None:
            self._turn = asyncio.create_task(self._write_later())

    async def get(self, request_id: str) -> RequestRecord | None:
        """Find one, written or not."""
        here = self._held.get(request_id) or self._going.get(request_id)
        return here or await self._store.get(request_id)

    async def close(self) -> None:
        """Write what waits, and from now on what comes; before the process ends."""
        self._ending = True
        if self._turn is not None:
            self._turn.cancel()
        while self._held and await self._write():
            pass

    async def _write_later(self) -> None:
        try:
            while self._held:
                await self._pause(EVERY_S)
                await self._write()
        finally:
            self._turn = None

    async def _write(self) -> bool:
        """Write one batch; what cannot be written waits on."""
        async with self._one_at_a_time:
            self._wrote_s = self._clock.monotonic()
            self._going = batch = dict(islice(self._held.items(), BATCH_MAX))
            for request_id in batch:
                del self._held[request_id]
            written = False
            try:
                await self._store.put_all(tuple(batch.values()))
                written = True
            except StoreUnavailable as error:
                log.warning("%d receipts wait on: %s", len(batch), error.message)
            finally:
                if not written:
                    self._held = {**batch, **self._held}
                self._going = {}
            return written
