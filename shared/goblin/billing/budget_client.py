"""The one client of the ledger's allocations, for requests and for rented instances.

reserve ── covered by an allocation? ── yes: no round trip
                  └─ no: renew until it covers the need, once for all that wait   (refused: 402, no answer: 503)
settle  ── entries are written together, after the answers
maintain ─ renews allocations before they run low, gives back those that are idle

An instance reservation keeps its side of the protocol in the job's document: `renew_until_covered` and `release` are
given a `LocalAllocation` made from it.
"""

from __future__ import annotations

import asyncio
import contextvars
import logging
import uuid
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from goblin.billing.allocation_pool import IDLE_AFTER, AllocationPool
from goblin.billing.domain.ledger import EntryKind, LedgerEntry
from goblin.billing.policy.allocation import AllocationResult, InsufficientBudget, ThresholdEvent
from goblin.billing.policy.local_allocation import RENEW_AFTER, LocalAllocation
from goblin.billing.ports import AllocationStore, Ledger
from goblin.core.errors import Conflict, StoreUnavailable
from goblin.core.ports import Clock

log = logging.getLogger(__name__)

RESERVE_S_MAX = 4.0
"""How long a request waits for the ledger before it is refused with 503."""
BLIND_S = 1.0
"""After the ledger failed to answer, requests within this time are refused without asking it again."""
REFUSED_S = 0.25
"""A refusal is repeated for this long, so that a caller who retries at once does not load the ledger."""
EXCHANGES_MAX = 4
"""Tries to get one clear answer."""
WRITE_AT = 20
WRITE_AFTER = timedelta(seconds=1)
"""So many entries, or so old a one, are written at once; a crash loses no money, as the allocation covers them."""
UNWRITTEN_MAX = 400
"""Entries of one allocation that may wait to be written."""
POOLS_MAX = 10_000


@dataclass(frozen=True, slots=True)
class Reservation:
    """Money reserved for one upstream attempt; it is settled or released once."""

    allocation: LocalAllocation
    reservation_id: str
    amount_usd_micros: int
    at: datetime


class BudgetClient:
    """Everything that this process spends passes through here."""

    def __init__(
        self,
        allocation_store: AllocationStore,
        ledger: Ledger,
        clock: Clock,
        *,
        announce: Callable[[ThresholdEvent], Awaitable[None]],
        new_id: Callable[[], str] = lambda: uuid.uuid4().hex,
        maintain_every_s: float | None = None,
    ) -> None:
        """Keep the ledger; nothing is asked yet.

        Args:
            allocation_store: Where budget is allocated.
            ledger: Where settlements go whose allocation is gone.
            clock: Decides budget windows.
            announce: Publishes thresholds that were passed; raises `StoreUnavailable`.
            new_id: Names allocations.
            maintain_every_s: How often a task maintains the allocations, as long as there are any; None: the caller
                calls `maintain`.
        """
        self._allocation_store = allocation_store
        self._ledger = ledger
        self._clock = clock
        self._announce = announce
        self._new_id = new_id
        self._maintain_every_s = maintain_every_s
        self._pools: dict[tuple[str, tuple[str, ...]], AllocationPool] = {}
        self._blind_until: datetime | None = None
        self._silent = False
        """The ledger did not answer the last call."""
        self._background: set[asyncio.Task[Any]] = set()
        self._maintaining: asyncio.Task[None] | None = None
        self._ending = False

    # For requests: reservations from allocations that this process keeps.

    async def reserve(
        self, account: str, also: tuple[str, ...], reservation_id: str, amount_usd_micros: int
    ) -> Reservation | InsufficientBudget:
        """Reserve the worst case of an upstream attempt in every budget above it.

        Raises:
            StoreUnavailable: The ledger does not answer, so nothing may be spent.
        """
        pool, now = self._pool(account, also), self._clock.now()
        pool.recent.append(now)
        if not self._must_reach_ledger(pool) and pool.current.reserve(reservation_id, amount_usd_micros, now=now):
            if pool.current.due(now) and not pool.lock.locked():
                self._in_background(self._renew_ahead(pool))
            return Reservation(pool.current, reservation_id, amount_usd_micros, now)
        if pool.refused is not None and now < pool.refused[0] and amount_usd_micros >= pool.refused[1]:
            return pool.refused[2]
        if self._blind_until is not None and now < self._blind_until:
            raise StoreUnavailable("The spend ledger does not answer, so nothing that costs money is sent.")
        pool.waiting_usd_micros += amount_usd_micros
        try:
            async with asyncio.timeout(RESERVE_S_MAX), pool.lock:
                return await self._reserve_with_exchanges(pool, reservation_id, amount_usd_micros)
        except TimeoutError as error:
            self._no_answer()
            raise StoreUnavailable("The spend ledger did not answer in time, so nothing was spent.") from error
        finally:
            pool.waiting_usd_micros -= amount_usd_micros

    async def _reserve_with_exchanges(
        self, pool: AllocationPool, reservation_id: str, amount: int
    ) -> Reservation | InsufficientBudget:
        """Reserve after as many exchanges as it takes; the others that wait are asked for too."""
        for _ in range(EXCHANGES_MAX):
            now = self._clock.now()
            pool.rotate(now, self._new_allocation)
            if not self._must_reach_ledger(pool) and pool.current.reserve(reservation_id, amount, now=now):
                return Reservation(pool.current, reservation_id, amount, now)
            insufficient = await self.renew_until_covered(pool.current, amount, pool=pool)
            if insufficient is not None:
                pool.refused = (now + timedelta(seconds=REFUSED_S), amount, insufficient)
                return insufficient
        raise StoreUnavailable("The spend ledger gives no clear answer, so nothing was spent.")

    async def settle(self, reservation: Reservation, entry: LedgerEntry | None) -> None:
        """Replace a reservation by what it cost; None: nothing was sent. A second time does nothing.

        Never raises: what cannot be written now is written later, and counts as reserved until then.
        """
        allocation = reservation.allocation
        if not allocation.settle(reservation.reservation_id, entry):
            return
        if entry is not None and entry.spent_usd_micros > reservation.amount_usd_micros:
            log.error(
                "%s cost %d micro-dollars, more than its worst case of %d",
                entry.entry_id, entry.spent_usd_micros, reservation.amount_usd_micros,
            )  # fmt: skip
        pool, now = self._pool(allocation.account, allocation.also), self._clock.now()
        if allocation.unwritten and pool.unwritten_since is None:
            pool.unwritten_since = now
        quiet = not any(one.reserved for one in pool.allocations)
        late = pool.unwritten_since is not None and now - pool.unwritten_since >= WRITE_AFTER
        # While more is to be expected entries wait for each other: a commit for each would be twelve writes for each.
        rare = quiet and (pool.near_limit or self._ending or not pool.is_busy(now))
        due = late or len(allocation.unwritten) >= WRITE_AT
        # A write that is running takes this entry along; only when the ledger is slower than the spending, wait.
        if rare or (due and not pool.writing.locked()) or len(allocation.unwritten) >= UNWRITTEN_MAX:
            await self._write(pool)
        if rare:
            # Between rare requests the platform may take the CPU away, so do not leave this to `maintain`.
            await self._give_back(pool)

    async def maintain(self) -> None:
        """Write, renew and give back what is due. Never raises."""
        now = self._clock.now()
        for pool in list(self._pools.values()):
            pool.rotate(now, self._new_allocation)
            await self._write(pool)
            idle = not pool.recent or now - pool.recent[-1] >= IDLE_AFTER
            if idle and not pool.current.reserved:
                await self._give_back(pool)
                if all(one.done and one.granted is None for one in pool.allocations) and not pool.waiting_usd_micros:
                    del self._pools[pool.account, pool.also]
            elif pool.current.exchanged_at is not None and now - pool.current.exchanged_at >= RENEW_AFTER:
                await self._renew_ahead(pool)
            for retired in list(pool.retired):
                await self._close_retired(pool, retired)

    async def close(self) -> None:
        """Write everything and give back every allocation; before the process ends.

        Requests in flight keep what they need; the last settlement gives it back.
        """
        self._ending = True
        if self._maintaining is not None:
            self._maintaining.cancel()
        for pool in list(self._pools.values()):
            await self._write(pool)
            await self._give_back(pool)
        if self._background:
            await asyncio.wait(self._background)

    # For both: the protocol with the ledger.

    async def renew_until_covered(
        self,
        allocation: LocalAllocation,
        need_usd_micros: int,
        *,
        now: datetime | None = None,
        pool: AllocationPool | None = None,
    ) -> InsufficientBudget | None:
        """Exchange with the ledger until an allocation covers `need_usd_micros` more than it does.

        Args:
            allocation: This side of it; changed by each exchange.
            need_usd_micros: Beyond what is used of it.
            now: Aware UTC; None: by the client's clock.
            pool: Where it belongs, for an allocation of requests.

        Returns:
            None when it covers the need, or when it is retired and the caller needs another one; else the budget that
            does not cover it.

        Raises:
            StoreUnavailable: No answer, or no clear one; nothing may be spent.
        """
        for _ in range(EXCHANGES_MAX):
            repeated = allocation.pending is not None
            waiting = pool.waiting_usd_micros - need_usd_micros if pool is not None else 0
            result = await self._exchange(
                allocation, pool, now=now, need_usd_micros=need_usd_micros, waiting_usd_micros=waiting
            )
            if not repeated and result.insufficient is not None:
                return result.insufficient
            if allocation.retired or allocation.spare_usd_micros >= need_usd_micros:
                return None
            if not repeated and result.writes:
                allocation.retired = True  # By the ledger's clock, its window is over.
                return None
        raise StoreUnavailable("The spend ledger gives no clear answer, so nothing was spent.")

    async def release(self, allocation: LocalAllocation, entries: Sequence[LedgerEntry] = (), *, now: datetime) -> None:
        """Write what was spent from an allocation that belongs to no pool, and give back the rest.

        May be repeated: entries are written once, and an allocation that is gone is no error.

        Raises:
            StoreUnavailable: Call it again; nothing of it happens twice.
        """
        allocation_id = allocation.allocation_id
        if entries and not await self._allocation_store.settle(allocation_id, entries):
            # It expired, and the provider's bill settled it first; or an earlier call did all of this.
            log.warning("Allocation %s is settled already.", allocation_id)
        for _ in range(EXCHANGES_MAX):
            result = await self._exchange(allocation, None, now=now, close=True)
            if result.allocation is not None:
                continue
            if not result.writes:
                # Gone or expired. If expired, it counts as spent: what it really cost is written, so free the rest.
                await self._allocation_store.resolve(allocation_id, spent_usd_micros=0, now=now)
            return
        raise StoreUnavailable(f"The spend ledger is still releasing {allocation_id}. Try again in a minute.")

    async def _exchange(
        self, allocation: LocalAllocation, pool: AllocationPool | None, *, now: datetime | None = None, **words: Any
    ) -> AllocationResult:
        """Make one exchange, or repeat the one whose answer was lost."""
        now = now or self._clock.now()
        request = allocation.next_request(now=now, **words)
        try:
            # A write changes the allocation's document, which an exchange must find as it was read.
            async with pool.writing if pool is not None else nullcontext():
                result = await self._allocation_store.exchange(request, now=now)
        except StoreUnavailable:
            self._no_answer()
            raise
        self._answered()
        allocation.accept(result.allocation, now=now)
        if pool is not None and result.writes:
            pool.near_limit, pool.refuse_when_unreachable = result.near_limit, result.refuse_when_unreachable
        for event in result.threshold_events:
            if pool is not None:
                self._in_background(self._announce_threshold(event))
            else:
                await self._announce_threshold(event)
        return result

    async def _announce_threshold(self, event: ThresholdEvent) -> None:
        try:
            await self._announce(event)
        except StoreUnavailable as error:
            # The hourly settlement announces it again.
            log.warning("%s at %d %% was not announced: %s", event.account, event.percent, error.message)

    def _pool(self, account: str, also: tuple[str, ...]) -> AllocationPool:
        key = account, also
        if key not in self._pools:
            if len(self._pools) >= POOLS_MAX:
                raise StoreUnavailable("Too many budgets are in use at once.", retry_after_s=1.0)
            self._pools[key] = AllocationPool(account, also, self._new_allocation(account, also))
        if self._maintain_every_s is not None and (self._maintaining is None or self._maintaining.done()):
            # A context of its own, because it outlives the request that starts it: no log line gets that one's trace.
            work = self._keep_maintaining(self._maintain_every_s)
            self._maintaining = asyncio.create_task(work, context=contextvars.Context())
        return self._pools[key]

    async def _keep_maintaining(self, every_s: float) -> None:
        while self._pools:
            await asyncio.sleep(every_s)
            await self.maintain()

    def _new_allocation(self, account: str, also: tuple[str, ...]) -> LocalAllocation:
        return LocalAllocation(allocation_id=self._new_id(), account=account, also=also)

    def _must_reach_ledger(self, pool: AllocationPool) -> bool:
        """Whether nothing is reserved from what was allocated until the ledger answers again."""
        return self._silent and pool.refuse_when_unreachable

    def _no_answer(self) -> None:
        self._blind_until = self._clock.now() + timedelta(seconds=BLIND_S)
        self._silent = True

    def _answered(self) -> None:
        self._blind_until = None
        self._silent = False

    async def _renew_ahead(self, pool: AllocationPool) -> None:
        """Renew before a request has to wait; requests go on meanwhile."""
        try:
            async with pool.lock:
                # Several may have seen that it is due; the first has done it.
                if not pool.current.retired and pool.current.due(self._clock.now()):
                    await self._exchange(pool.current, pool, may_shrink=False)
        except StoreUnavailable as error:
            log.warning("An allocation was not renewed ahead of time: %s", error.message)
            return
        if pool.near_limit:
            # Little is left, or a limit was lowered below what was allocated: other processes need what is spare here.
            await self._give_back(pool)

    async def _give_back(self, pool: AllocationPool) -> None:
        """Return what is spare, and the allocation itself if nothing is in flight."""
        try:
            async with pool.lock:
                current = pool.current
                for _ in range(2):  # The first may repeat an exchange whose answer was lost.
                    if current.granted is not None or current.pending is not None:
                        await self._exchange(current, pool, close=True)
                    if current.retired:
                        break
                for retired in list(pool.retired):
                    await self._close_retired(pool, retired)
        except StoreUnavailable as error:
            log.warning("An allocation was not given back: %s", error.message)

    async def _close_retired(self, pool: AllocationPool, allocation: LocalAllocation) -> None:
        """Close a retired allocation once nothing is in flight on it."""
        if not allocation.done:
            return
        try:
            if allocation.granted is not None or allocation.pending is not None:
                await self._exchange(allocation, pool, close=True)
        except StoreUnavailable as error:
            log.warning("A retired allocation was not given back: %s", error.message)
            return
        if allocation.granted is None and allocation in pool.retired:
            pool.retired.remove(allocation)

    async def _write(self, pool: AllocationPool) -> None:
        """Write all settled entries in few commits. Never raises."""
        async with pool.writing:
            for allocation in pool.allocations:
                while allocation.unwritten:
                    try:
                        await self._write_batch(allocation)
                    except StoreUnavailable as error:
                        self._silent = True
                        log.warning(
                            "%d entries are not in the ledger yet: %s", len(allocation.unwritten), error.message
                        )
                        return
            pool.unwritten_since = None

    async def _write_batch(self, allocation: LocalAllocation) -> None:
        batch = allocation.batch()
        if not await self._allocation_store.settle(allocation.allocation_id, batch):
            log.warning("Allocation %s is gone; its entries are written without it.", allocation.allocation_id)
            for entry in batch:
                try:
                    await self._ledger.record(entry)
                except Conflict as error:
                    log.error("%s", error.message)
        self._silent = False
        allocation.wrote()

    def _in_background(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(work)
        self._background.add(task)
        task.add_done_callback(self._background.discard)


def request_settlement(reservation: Reservation, amount_usd_micros: int, *, model: str, note: str) -> LedgerEntry:
    """Build the entry of what an upstream attempt cost, in the accounts it was reserved in and in its model's."""
    allocation = reservation.allocation
    return LedgerEntry(
        entry_id=f"request:{reservation.reservation_id}",
        kind=EntryKind.SETTLE,
        account=allocation.account,
        also=(*allocation.also, model),
        amount_usd_micros=amount_usd_micros,
        at=reservation.at,
        note=note,
    )
