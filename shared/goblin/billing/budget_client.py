"""One instance's purses: worst cases are reserved locally, and the ledger hears of it now and then.

reserve ── covered by the lease? ── yes: no round trip
                  └─ no: one exchange, for all that wait        (refused: 402, no answer: 503)
settle  ── entries are written together, behind the answers
tend    ── renews leases before they run low, returns those that nobody needs
"""

from __future__ import annotations

import asyncio
import logging
import uuid
from collections.abc import Awaitable, Callable, Coroutine
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from goblin.billing.domain.ledger import Entry, EntryKind
from goblin.billing.policy.allocation import Crossing, Shortage, Step
from goblin.billing.policy.local_allocation import RENEW_AFTER, Purse
from goblin.billing.ports import Ledger, Lender
from goblin.billing.tills import IDLE, Till
from goblin.core.errors import Conflict, StoreUnavailable
from goblin.core.ports import Clock

log = logging.getLogger(__name__)

RESERVE_S_MAX = 4.0
"""How long a request waits for the ledger before it is told that nobody knows."""
BLIND_S = 1.0
"""After the ledger has not answered, those who ask within this time do not wait for it too."""
REFUSED_S = 0.25
"""A refusal holds so long, or a caller who hammers would hammer the ledger."""
EXCHANGES_MAX = 4
WRITE_AT = 20
WRITE_AFTER = timedelta(seconds=1)
"""So many entries, or so old a one, are written at once; a crash loses none that its lease does not stand for."""
UNWRITTEN_MAX = 400
"""Entries of one lease that may wait to be written."""
TILLS_MAX = 10_000


@dataclass(frozen=True, slots=True)
class Reservation:
    """Money put aside for one attempt; it is settled or released once."""

    purse: Purse
    reservation_id: str
    amount_usd_micros: int
    at: datetime


class Spender:
    """Everything this instance spends passes through here."""

    def __init__(
        self,
        lender: Lender,
        ledger: Ledger,
        clock: Clock,
        *,
        announce: Callable[[Crossing], Awaitable[None]],
        new_id: Callable[[], str] = lambda: uuid.uuid4().hex,
        tend_every_s: float | None = None,
    ) -> None:
        """Take the ledger; nothing is asked yet.

        Args:
            lender: Where leases come from.
            ledger: Where late settlements go.
            clock: Decides windows.
            announce: Tells of thresholds; called beside the requests.
            new_id: Names leases.
            tend_every_s: How often a task looks after the leases, as long as there are any; None: somebody else does.
        """
        self._lender = lender
        self._ledger = ledger
        self._clock = clock
        self._announce = announce
        self._new_id = new_id
        self._tend_every_s = tend_every_s
        self._tills: dict[tuple[str, tuple[str, ...]], Till] = {}
        self._blind_until: datetime | None = None
        self._silent = False
        """The ledger has not answered when it was last asked."""
        self._beside: set[asyncio.Task[Any]] = set()
        self._tending: asyncio.Task[None] | None = None
        self._ending = False

    async def reserve(
        self, account: str, also: tuple[str, ...], reservation_id: str, amount_usd_micros: int
    ) -> Reservation | Shortage:
        """Put the worst case of an attempt aside, in every budget above it.

        Raises:
            StoreUnavailable: Nobody knows whether it may be spent, so it may not.
        """
        till, now = self._till(account, also), self._clock.now()
        till.recent.append(now)
        if not self._must_ask(till) and till.purse.reserve(reservation_id, amount_usd_micros, now=now):
            if till.purse.due(now) and not till.lock.locked():
                self._do_beside(self._renew(till))
            return Reservation(till.purse, reservation_id, amount_usd_micros, now)
        if till.refused is not None and now < till.refused[0] and amount_usd_micros >= till.refused[1]:
            return till.refused[2]
        if self._blind_until is not None and now < self._blind_until:
            raise StoreUnavailable("The spend ledger does not answer, and without it nothing is spent.")
        till.waiting_usd_micros += amount_usd_micros
        try:
            async with asyncio.timeout(RESERVE_S_MAX), till.lock:
                return await self._borrow(till, reservation_id, amount_usd_micros)
        except TimeoutError as error:
            self._no_answer()
            raise StoreUnavailable("The spend ledger did not answer in time, so nothing was spent.") from error
        finally:
            till.waiting_usd_micros -= amount_usd_micros

    async def _borrow(self, till: Till, reservation_id: str, amount: int) -> Reservation | Shortage:
        """Reserve, with as many exchanges as it takes; others wait, and are thought of."""
        for _ in range(EXCHANGES_MAX):
            now = self._clock.now()
            till.turn(now, self._new_purse)
            if not self._must_ask(till) and till.purse.reserve(reservation_id, amount, now=now):
                return Reservation(till.purse, reservation_id, amount, now)
            repeated = till.purse.asked is not None
            waiting = till.waiting_usd_micros - amount
            step = await self._exchange(till, till.purse, need_usd_micros=amount, waiting_usd_micros=waiting)
            if not repeated and step.shortage is not None:
                till.refused = (now + timedelta(seconds=REFUSED_S), amount, step.shortage)
                return step.shortage
            if not repeated and not till.purse.retired and till.purse.spare_usd_micros < amount:
                till.purse.retired = True  # The ledger's window is over, by another's clock.
        raise StoreUnavailable("The spend ledger gives no clear answer, so nothing was spent.")

    async def settle(self, reservation: Reservation, entry: Entry | None) -> None:
        """Replace a reservation by what it cost; None: nothing was sent. A second time does nothing.

        Never raises: what cannot be written now is written later, and counts as reserved until then.
        """
        purse = reservation.purse
        if not purse.settle(reservation.reservation_id, entry):
            return
        if entry is not None and entry.spent_usd_micros > reservation.amount_usd_micros:
            log.error(
                "%s cost %d millionths of a dollar and was bounded by %d",
                entry.entry_id, entry.spent_usd_micros, reservation.amount_usd_micros,
            )  # fmt: skip
        till, now = self._till(purse.account, purse.also), self._clock.now()
        if purse.unwritten and till.unwritten_since is None:
            till.unwritten_since = now
        quiet = not any(one.reserved for one in till.purses)
        late = till.unwritten_since is not None and now - till.unwritten_since >= WRITE_AFTER
        # While more is to be expected entries wait for each other: a commit for each would be twelve writes for each.
        rare = quiet and (till.near or self._ending or not till.is_busy(now))
        due = late or len(purse.unwritten) >= WRITE_AT
        # Who writes now writes this too; but when the ledger is slower than what is spent, it is waited for.
        if rare or (due and not till.writing.locked()) or len(purse.unwritten) >= UNWRITTEN_MAX:
            await self._write(till)
        if rare:
            # Between rare requests the processor may be taken away: what would go back later goes back now.
            await self._give_back(till)

    async def tend(self) -> None:
        """Write, renew and return what is due. Never raises."""
        now = self._clock.now()
        for till in list(self._tills.values()):
            till.turn(now, self._new_purse)
            await self._write(till)
            idle = not till.recent or now - till.recent[-1] >= IDLE
            if idle and not till.purse.reserved:
                await self._give_back(till)
                if all(purse.done and purse.lease is None for purse in till.purses) and not till.waiting_usd_micros:
                    del self._tills[till.account, till.also]
            elif till.purse.asked_at is not None and now - till.purse.asked_at >= RENEW_AFTER:
                await self._renew(till)
            for purse in list(till.retiring):
                await self._let_go(till, purse)

    async def close(self) -> None:
        """Write everything and return every lease; before the process ends.

        What is under way keeps what it needs, and the last settlement returns it.
        """
        self._ending = True
        if self._tending is not None:
            self._tending.cancel()
        for till in list(self._tills.values()):
            await self._write(till)
            await self._give_back(till)
        if self._beside:
            await asyncio.wait(self._beside)

    def _till(self, account: str, also: tuple[str, ...]) -> Till:
        key = account, also
        if key not in self._tills:
            if len(self._tills) >= TILLS_MAX:
                raise StoreUnavailable("Too many budgets are in use at once.", retry_after_s=1.0)
            self._tills[key] = Till(account, also, self._new_purse(account, also))
        if self._tend_every_s is not None and (self._tending is None or self._tending.done()):
            self._tending = asyncio.create_task(self._keep_tending(self._tend_every_s))
        return self._tills[key]

    async def _keep_tending(self, every_s: float) -> None:
        while self._tills:
            await asyncio.sleep(every_s)
            await self.tend()

    def _new_purse(self, account: str, also: tuple[str, ...]) -> Purse:
        return Purse(lease_id=self._new_id(), account=account, also=also)

    async def _exchange(self, till: Till, purse: Purse, **words: Any) -> Step:
        """One exchange, or again the one whose answer was lost."""
        now = self._clock.now()
        ask = purse.ask(now=now, **words)
        try:
            # What is written moves the lease's document, and an exchange wants to find it as it was read.
            async with till.writing:
                step = await self._lender.exchange(ask, now=now)
        except StoreUnavailable:
            self._no_answer()
            raise
        self._answered()
        purse.accept(step.lease, now=now)
        if step.writes:
            till.near, till.strict = step.near, step.strict
        for crossing in step.crossings:
            self._do_beside(self._tell(crossing))
        return step

    def _must_ask(self, till: Till) -> bool:
        """Whether nothing is spent of what was lent until the ledger is heard again."""
        return self._silent and till.strict

    def _no_answer(self) -> None:
        self._blind_until = self._clock.now() + timedelta(seconds=BLIND_S)
        self._silent = True

    def _answered(self) -> None:
        self._blind_until = None
        self._silent = False

    async def _renew(self, till: Till) -> None:
        """Ahead of time, so that nobody waits; requests go on meanwhile."""
        try:
            async with till.lock:
                # Several may have seen that it is due; the first has done it.
                if not till.purse.retired and till.purse.due(self._clock.now()):
                    await self._exchange(till, till.purse, still=False)
        except StoreUnavailable as error:
            log.warning("a lease could not be renewed ahead of time: %s", error.message)
            return
        if till.near:
            # Little is left, or a limit was lowered below what had been lent: what is spare is for all again.
            await self._give_back(till)

    async def _give_back(self, till: Till) -> None:
        """Return what is spare, and the lease itself if nothing is under way."""
        try:
            async with till.lock:
                purse = till.purse
                for _ in range(2):  # The first may be one whose answer was lost.
                    if purse.lease is not None or purse.asked is not None:
                        await self._exchange(till, purse, close=True)
                    if purse.retired:
                        break
                for retired in list(till.retiring):
                    await self._let_go(till, retired)
        except StoreUnavailable as error:
            log.warning("a lease could not be returned: %s", error.message)

    async def _let_go(self, till: Till, purse: Purse) -> None:
        """Close the lease of a purse that is no longer used, once nothing is under way in it."""
        if not purse.done:
            return
        try:
            if purse.lease is not None or purse.asked is not None:
                await self._exchange(till, purse, close=True)
        except StoreUnavailable as error:
            log.warning("an old lease could not be returned: %s", error.message)
            return
        if purse.lease is None and purse in till.retiring:
            till.retiring.remove(purse)

    async def _write(self, till: Till) -> None:
        """Write what was settled, all that there is in few commits. Never raises."""
        async with till.writing:
            for purse in till.purses:
                while purse.unwritten:
                    try:
                        await self._write_batch(purse)
                    except StoreUnavailable as error:
                        self._silent = True
                        log.warning("%d entries are not in the ledger yet: %s", len(purse.unwritten), error.message)
                        return
            till.unwritten_since = None

    async def _write_batch(self, purse: Purse) -> None:
        batch = purse.batch()
        if not await self._lender.settle(purse.lease_id, batch):
            log.warning("lease %s is gone; its entries are written without it", purse.lease_id)
            for entry in batch:
                try:
                    await self._ledger.record(entry)
                except Conflict as error:
                    log.error("%s", error.message)
        self._silent = False
        purse.wrote()

    def _do_beside(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(work)
        self._beside.add(task)
        task.add_done_callback(self._beside.discard)

    async def _tell(self, crossing: Crossing) -> None:
        try:
            await self._announce(crossing)
        except StoreUnavailable as error:
            # The hourly settlement tells of it again.
            log.warning("nobody was told that %s is at %d %%: %s", crossing.account, crossing.percent, error.message)


def spent_entry(reservation: Reservation, amount_usd_micros: int, *, model: str, note: str) -> Entry:
    """What an attempt cost, in the accounts it was reserved in and in its model's."""
    purse = reservation.purse
    return Entry(
        entry_id=f"request:{reservation.reservation_id}",
        kind=EntryKind.SETTLE,
        account=purse.account,
        also=(*purse.also, model),
        amount_usd_micros=amount_usd_micros,
        at=reservation.at,
        note=note,
    )
