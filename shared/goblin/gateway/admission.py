"""Admission control: count requests in flight, let some wait, and refuse the rest before their body is read."""

from __future__ import annotations

import asyncio
from collections import Counter, OrderedDict, deque
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from goblin.core.errors import RateLimited
from goblin.core.ports import Clock
from goblin.gateway.policy import admission as policy
from goblin.gateway.policy.admission import AdmissionCounts, AdmissionLimits, AdmissionRefusal, TokenBucket
from goblin.gateway.ports import Counted

BUCKETS_MAX = 4096


class AdmissionControl:
    """The requests of this process that are running or waiting; served in the order of arrival."""

    def __init__(self, limits: AdmissionLimits, clock: Clock) -> None:
        self.limits = limits
        self._clock = clock
        self._running = 0
        self._waiting: deque[asyncio.Future[None]] = deque()
        self._of_key: Counter[str] = Counter()
        self._buckets: OrderedDict[str, TokenBucket] = OrderedDict()

    async def enter(self, key: Counted) -> None:
        """Admit a request, now or when another one ends. The caller must `leave` once it is admitted.

        Raises:
            RateLimited: There are too many requests, of this key or in all.
        """
        decision = policy.admit(
            running=self._running,
            waiting=len(self._waiting),
            of_key=self._of_key[key.counted_as],
            key_max=key.parallel_max,
            limits=self.limits,
        )
        if isinstance(decision, AdmissionRefusal):
            self._forget(key.counted_as)
            raise RateLimited(decision.reason, retry_after_s=decision.retry_after_s)
        if key.rate_per_minute is not None:
            self._take(key.counted_as, key.rate_per_minute)
        self._of_key[key.counted_as] += 1
        if decision is AdmissionCounts.RUN:
            self._running += 1
            return
        await self._wait(key)

    @asynccontextmanager
    async def place(self, key: Counted) -> AsyncIterator[None]:
        """Hold a place for as long as the block runs. Raises `RateLimited`."""
        await self.enter(key)
        try:
            yield
        finally:
            self.leave(key)

    def leave(self, key: Counted) -> None:
        """End an admitted request, and admit the next one that waits."""
        self._running -= 1
        self._of_key[key.counted_as] -= 1
        self._forget(key.counted_as)
        self._let_in()

    async def _wait(self, key: Counted) -> None:
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.append(turn)
        try:
            async with asyncio.timeout(self.limits.wait_s_max):
                await turn
        except BaseException as error:
            if turn.done() and not turn.cancelled():
                self._running -= 1  # It was admitted just before it was cancelled.
                self._let_in()
            elif turn in self._waiting:
                self._waiting.remove(turn)
            self._of_key[key.counted_as] -= 1
            self._forget(key.counted_as)
            if isinstance(error, TimeoutError):
                raise RateLimited(
                    "Too many requests are in flight. Try again later.", retry_after_s=policy.QUEUE_RETRY_S
                ) from error
            raise

    def _let_in(self) -> None:
        while self._waiting and self._running < self.limits.running_max:
            turn = self._waiting.popleft()
            if not turn.done():
                self._running += 1
                turn.set_result(None)

    def _take(self, digest: str, per_minute: int) -> None:
        bucket, wait_s = policy.take(self._buckets.get(digest), per_minute=per_minute, now_s=self._clock.monotonic())
        self._buckets[digest] = bucket
        self._buckets.move_to_end(digest)
        while len(self._buckets) > BUCKETS_MAX:
            self._buckets.popitem(last=False)
        if wait_s:
            raise RateLimited(f"This key may send {per_minute} requests a minute. Slow down.", retry_after_s=wait_s)

    def _forget(self, digest: str) -> None:
        if not self._of_key[digest]:
            del self._of_key[digest]
