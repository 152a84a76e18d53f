"""Drains: answers that cost money even after their reader left, read to the end to know what they cost."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncGenerator, Coroutine
from contextlib import aclosing
from typing import Any

from goblin.core.errors import GoblinError
from goblin.gateway.stream_usage import StreamUsage

log = logging.getLogger(__name__)

DRAINS_MAX = 64
DRAIN_S_MAX = 300.0
AHEAD_MAX = 64
"""Items that are buffered for the caller."""


class _End:
    """The end of an answer, with its error if it failed."""

    def __init__(self, error: BaseException | None) -> None:
        self.error = error


class Drains:
    """The answers of this process that are read to the end without a reader."""

    def __init__(self, most: int = DRAINS_MAX, seconds_max: float = DRAIN_S_MAX) -> None:
        self._most = most
        self._seconds_max = seconds_max
        self._going: set[asyncio.Task[Any]] = set()
        self._after: set[asyncio.Task[None]] = set()

    def over(self, stream: AsyncGenerator[Any, None], stream_usage: StreamUsage) -> Drain:
        """Build a drain over a stream, so that it can outlive its reader."""
        return Drain(self, stream, stream_usage)

    def later(self, work: Coroutine[Any, Any, None]) -> None:
        """Run work in the background that waits for drains, and keep its task alive."""
        task = asyncio.create_task(work)
        self._after.add(task)
        task.add_done_callback(self._after.discard)

    def adopt(self, task: asyncio.Task[Any]) -> bool:
        """Keep the task of a drain whose reader left; False when there are too many."""
        if len(self._going) >= self._most:
            return False
        self._going.add(task)
        task.add_done_callback(self._going.discard)
        # Limit the time: a partly known cost is better than a connection that never ends.
        timer = asyncio.get_running_loop().call_later(self._seconds_max, task.cancel)
        task.add_done_callback(lambda _: timer.cancel())
        return True


class Drain:
    """One stream, read by a task of its own."""

    def __init__(self, drains: Drains, stream: AsyncGenerator[Any, None], stream_usage: StreamUsage) -> None:
        self._drains = drains
        self._stream = stream
        self._tally = stream_usage
        self._queue: asyncio.Queue[Any] = asyncio.Queue(AHEAD_MAX)
        self._task: asyncio.Task[None] | None = None
        self._left = False

    @property
    def done(self) -> bool:
        """Whether reading has ended, so that the usage is final."""
        return self._task is None or self._task.done()

    async def wait(self) -> None:
        """Wait until it is done."""
        if self._task is not None:
            await asyncio.wait({self._task})

    async def follow(self) -> AsyncGenerator[Any, None]:
        """Stream the items to the reader. When the reader leaves, reading continues without it."""
        self._task = asyncio.create_task(self._read())
        try:
            while True:
                item = await self._queue.get()
                if not isinstance(item, _End):
                    yield item
                elif item.error is None:
                    return
                else:
                    raise item.error
        finally:
            await self._leave()

    async def _read(self) -> None:
        error: Exception | None = None
        try:
            async with aclosing(self._stream):
                async for item in self._stream:
                    await self._queue.put(item)
                    if self._left:
                        self._count_waiting()
        except Exception as found:  # noqa: BLE001  Raised again to the reader.
            error = found
        finally:
            if self._left:
                self._count_waiting()
        if not self._left:
            await self._queue.put(_End(error))
        elif error is not None and not isinstance(error, GoblinError):
            log.error("Drain of an answer failed.", exc_info=error)

    async def _leave(self) -> None:
        if self._left:
            return
        self._left = True
        self._count_waiting()
        if self._task is None or self._task.done():
            return
        if not self._drains.adopt(self._task):
            log.warning("Too many drains: one answer was cancelled, and its cost is an estimate.")
            self._task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._task

    def _count_waiting(self) -> None:
        """Count the buffered items that the reader did not take."""
        while not self._queue.empty():
            item = self._queue.get_nowait()
            if not isinstance(item, _End):
                self._tally.add(item)
