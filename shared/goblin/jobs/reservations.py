"""Money for rented instances: put aside before they exist, prolonged while they work, settled once they are gone.

    place    plan (`renting.first`) written into the job ─► reserve ─► what it gave written into the job ─► rent
    tick     keep ─► what it gave written into the job         no money: the instance runs to the end of what is paid
    end      `ended_at` written into the job ─► settle ─► the rent dropped from the job, its cost added

The job's document is written between any two of these, so that a crash leaves either a rent that somebody finds there
and settles, or a lease of the ledger that runs out and counts as spent until the provider's bill says otherwise. Each
step may be repeated, by anybody, and then gives what it gave.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from datetime import datetime

from goblin.billing.policy.allocation import Ask, Crossing, Shortage, Step
from goblin.billing.ports import Ledger, Lender
from goblin.core.errors import StoreUnavailable
from goblin.jobs.domain.job import Job, Rent
from goblin.jobs.policy import reservations as policy
from goblin.jobs.policy.reservations import Halted

log = logging.getLogger(__name__)

EXCHANGES_MAX = 12
"""More than there are slices, and earlier exchanges whose answers were lost."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Deps:
    ledger: Ledger
    lender: Lender
    announce: Callable[[Crossing], Awaitable[None]]
    """Tells that a budget passed a threshold; what it fails to tell, the hourly settlement does."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Kept:
    """A rent after a tick."""

    rents: tuple[Rent, ...]
    """What stands in the job for it from now on; after midnight yesterday's, which has ended, and today's."""
    refused: str = ""
    """Why it is not prolonged though it is time; each tick tries again, until the end of what is paid."""
    ends_job: bool = False
    """It will never be: the budget is used up for good."""

    @property
    def rent(self) -> Rent:
        """The one that goes on."""
        return self.rents[-1]


async def reserve(plan: Rent, deps: Deps, *, now: datetime) -> Rent | Shortage:
    """Put the first slice of an attempt aside: the longest that every budget covers.

    Args:
        plan: From `renting.first`, and in the job's document already.
        deps: The ledger.
        now: Aware UTC.

    Returns:
        The rent, to be written into the job's document before anything is rented; or the budget that does not even
        cover a slice that is worth a start. Then nothing is put aside.

    Raises:
        StoreUnavailable: Nobody knows whether anything is put aside, so nothing is rented. `settle` with `ended_at` at
            `since` gives it back.
    """
    found = await _put_aside(policy.slices(plan), deps, now=now)
    if isinstance(found, Shortage):
        await _close(plan, deps, now=now)
    return found


async def keep(rent: Rent, deps: Deps, *, now: datetime, halted: str = "") -> Kept:
    """Prolong a rent when it is time, and let the new day's take it over after midnight; mostly it does nothing.

    Args:
        rent: As it is in the job's document.
        deps: The ledger.
        now: Aware UTC.
        halted: Why nothing more is lent to it, from `renting.why_halted`; empty: nothing is frozen.

    Returns:
        What to write into the job's document in place of the rent, if it is not the same. When it is refused the
        instance is asked to stop at `renting.last_call` and released at `renting.leave_at`.

    Raises:
        StoreUnavailable: The rent holds as it is in the document, to the same two instants; the next tick tries again.
    """
    turned = policy.turns(rent, now)
    wishes = turned or policy.renewals(rent, now)
    if not wishes or halted:
        return Kept(rents=(rent,), refused=halted if wishes else "")
    found = await _put_aside(wishes, deps, now=now)
    if isinstance(found, Shortage):
        return Kept(rents=(rent,), refused=policy.said(found), ends_job=policy.is_used_up(found))
    return Kept(rents=(policy.ended(rent, found.since), found) if turned else (found,))


async def settle(rent: Rent, deps: Deps, *, now: datetime) -> int:
    """Write what a rent that has ended cost, once, and give back the rest of what was put aside.

    Args:
        rent: With its `ended_at` written into the job's document before, so that each repetition says the same.
        deps: The ledger.
        now: Aware UTC.

    Returns:
        The cost in millionths of a dollar, as often as it is called: to be added to the job in the same write that
        drops the rent from it.

    Raises:
        StoreUnavailable: Again, later; nothing of it happens twice.
        ValueError: Its end is not known.
    """
    cost, entries = policy.cost_usd_micros(rent), policy.settlement(rent)
    if entries and not await deps.lender.settle(policy.lease_id(rent), entries):
        # It had run out, and the provider's bill was quicker to say what it cost; or all of this was done before.
        log.warning("%s is settled already", policy.lease_id(rent))
    if rent.ended_at is not None and rent.ended_at > rent.until:
        log.warning("%s was seen to be gone at %s and was paid until %s", rent.label, rent.ended_at, rent.until)
    await _close(rent, deps, now=now)
    if (lost := policy.unwritten(rent)) is not None:
        await _close(lost, deps, now=now)
    return cost


async def limit_job(job: Job, ledger: Ledger) -> None:
    """Set the budget that a job was requested with, when it is accepted; again changes nothing.

    Raises:
        StoreUnavailable: It is not accepted yet, for it could spend without a limit.
    """
    if (found := policy.limit_of(job)) is not None:
        account, limit = found
        await ledger.limit(account, limit.period, limit)


async def unlimit_job(job: Job, ledger: Ledger) -> None:
    """Drop the budget of a job that has ended and whose rents are settled; again changes nothing.

    Raises:
        StoreUnavailable: It stands among the budgets for longer.
    """
    if (found := policy.limit_of(job)) is not None:
        account, limit = found
        await ledger.limit(account, limit.period, None)


async def halted(ledger: Ledger) -> Halted:
    """What is frozen for jobs, read once in a tick. Raises `StoreUnavailable`: nothing is rented or prolonged then."""
    return policy.halted(await ledger.freezes())


async def _put_aside(wishes: Sequence[Rent], deps: Deps, *, now: datetime) -> Rent | Shortage:
    """Ask for the longest of some rents that differ in nothing but their end; if need be for a shorter one."""
    wish = wishes[0]
    before_usd_micros = paid_usd_micros = wish.reserved_usd_micros
    seq, shortage = wish.seq, None
    for _ in range(EXCHANGES_MAX):
        need = policy.worst_usd_micros(wish) - paid_usd_micros
        asked = policy.ask(wish, seq=seq + 1, need_usd_micros=max(0, need), paid_usd_micros=paid_usd_micros)
        step = await _exchange(asked, deps, now=now)
        if step.lease is None:
            break  # It ran out, or was settled by somebody who saw the end.
        seq, paid_usd_micros = step.lease.seq, max(paid_usd_micros, step.lease.granted_usd_micros)
        if paid_usd_micros >= policy.worst_usd_micros(wish):
            return policy.lent(wish, paid_usd_micros, seq)
        if not step.writes:
            continue  # An earlier exchange, whose answer was lost, had this number.
        shortage = step.shortage
        if shortage is None or shortage.left_usd_micros >= shortage.need_usd_micros:
            break  # By another's clock the day of this lease is over; by ours it soon is.
        shorter = policy.fitting(wishes, paid_usd_micros=paid_usd_micros, left_usd_micros=shortage.left_usd_micros)
        if shorter is None:
            if paid_usd_micros > before_usd_micros:
                return policy.lent(wish, paid_usd_micros, seq)
            return shortage
        wish = shorter
    raise StoreUnavailable("The spend ledger gives no clear answer, so nothing is put aside.")


async def _close(rent: Rent, deps: Deps, *, now: datetime) -> None:
    """Give back what is not settled; that there is nothing is no error.

    Raises:
        StoreUnavailable: As the ledger's, or others keep exchanging on it.
    """
    seq = max(1, rent.seq)
    for _ in range(EXCHANGES_MAX):
        step = await _exchange(policy.ask(rent, seq=seq + 1, close=True), deps, now=now)
        if step.lease is None and step.writes:
            return
        if step.lease is None:
            # Gone, or expired: then what it really cost is written, and the rest was not spent.
            await deps.lender.resolve(policy.lease_id(rent), spent_usd_micros=0, now=now)
            return
        seq = step.lease.seq
    raise StoreUnavailable("The spend ledger does not let go of a rent yet.")


async def _exchange(asked: Ask, deps: Deps, *, now: datetime) -> Step:
    step = await deps.lender.exchange(asked, now=now)
    for crossing in step.crossings:
        try:
            await deps.announce(crossing)
        except StoreUnavailable as error:
            log.warning("nobody was told that %s is at %d %%: %s", crossing.account, crossing.percent, error.message)
    return step
