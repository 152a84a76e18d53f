"""Budget for rented instances: reserved before they exist, renewed while they work, settled once they are gone.

    place    plan (`reservations.first`) written into the job ─► reserve ─► its result written into the job ─► rent
    tick     renew ─► its result written into the job         refused: the instance runs to the end of what is paid
    end      `ended_at` written into the job ─► settle ─► the reservation dropped from the job, its cost added

The job's document is written between any two of these. So a crash leaves either a reservation in a document, which the
next tick settles, or an allocation that expires and counts as spent until the provider's bill says otherwise. Each step
may be repeated and then returns what it returned.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime

from goblin.billing.budget_client import BudgetClient
from goblin.billing.domain.ledger import LedgerEntry
from goblin.billing.policy.allocation import InsufficientBudget
from goblin.billing.ports import Ledger
from goblin.core.errors import StoreUnavailable
from goblin.jobs.domain.job import InstanceReservation, Job
from goblin.jobs.policy import reservations as policy
from goblin.jobs.policy.reservations import SpendingHalt

log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True, slots=True)
class ReservationDeps:
    budget_client: BudgetClient
    ledger: Ledger


@dataclass(frozen=True, kw_only=True, slots=True)
class Renewal:
    """A rent after a tick."""

    reservations: tuple[InstanceReservation, ...]
    """What stands in the job for it from now on; after midnight yesterday's, which has ended, and today's."""
    refused: str = ""
    """Why it is not prolonged though it is time; each tick tries again, until the end of what is paid."""
    ends_job: bool = False
    """It will never be: the budget is used up for good."""

    @property
    def current(self) -> InstanceReservation:
        """The one that goes on."""
        return self.reservations[-1]


async def reserve(
    plan: InstanceReservation, deps: ReservationDeps, *, now: datetime
) -> InstanceReservation | InsufficientBudget:
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
    found = await _reserve_longest(policy.slices(plan), deps, now=now)
    if isinstance(found, InsufficientBudget):
        await _release(plan, deps, now=now)
    return found


async def renew(reservation: InstanceReservation, deps: ReservationDeps, *, now: datetime, halt: str = "") -> Renewal:
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
    turned = policy.turns(reservation, now)
    wishes = turned or policy.renewals(reservation, now)
    if not wishes or halt:
        return Renewal(reservations=(reservation,), refused=halt if wishes else "")
    found = await _reserve_longest(wishes, deps, now=now)
    if isinstance(found, InsufficientBudget):
        return Renewal(reservations=(reservation,), refused=policy.said(found), ends_job=policy.is_used_up(found))
    return Renewal(reservations=(policy.ended(reservation, found.since), found) if turned else (found,))


async def settle(reservation: InstanceReservation, deps: ReservationDeps, *, now: datetime) -> int:
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
    cost, entries = policy.cost_usd_micros(reservation), policy.settlement(reservation)
    if reservation.ended_at is not None and reservation.ended_at > reservation.until:
        log.warning(
            "%s was seen to be gone at %s and was paid until %s",
            reservation.label,
            reservation.ended_at,
            reservation.until,
        )
    await _release(reservation, deps, entries, now=now)
    if (lost := policy.unwritten(reservation)) is not None:
        await _release(lost, deps, now=now)
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


async def halt(ledger: Ledger) -> SpendingHalt:
    """What is frozen for jobs, read once in a tick. Raises `StoreUnavailable`: nothing is rented or prolonged then."""
    return policy.halt(await ledger.freezes())


async def _reserve_longest(
    wishes: Sequence[InstanceReservation], deps: ReservationDeps, *, now: datetime
) -> InstanceReservation | InsufficientBudget:
    """Reserve the longest of some reservations that differ in their end alone and that every budget covers."""
    wish = wishes[0]
    before_usd_micros = wish.reserved_usd_micros
    allocation = policy.local_allocation(wish)
    for _ in range(len(wishes) + 1):
        paid_usd_micros = allocation.used_usd_micros
        need_usd_micros = max(0, policy.worst_usd_micros(wish) - paid_usd_micros)
        allocation.expires_at = wish.until + policy.EXPIRES_AFTER
        insufficient = await deps.budget_client.renew_until_covered(allocation, need_usd_micros, now=now)
        if allocation.retired or allocation.granted is None:
            break  # It expired, or was settled by a tick that saw the end; or by the ledger's clock its day is over.
        paid_usd_micros = max(paid_usd_micros, allocation.granted.granted_usd_micros)
        allocation.reserved = {wish.label: paid_usd_micros}
        if insufficient is None:
            return policy.granted(wish, paid_usd_micros, allocation.seq)
        if insufficient.left_usd_micros >= insufficient.need_usd_micros:
            break  # By the ledger's clock the day of this allocation is over; by ours it soon is.
        shorter = policy.fitting(wishes, paid_usd_micros=paid_usd_micros, left_usd_micros=insufficient.left_usd_micros)
        if shorter is None:
            if paid_usd_micros > before_usd_micros:
                return policy.granted(wish, paid_usd_micros, allocation.seq)
            return insufficient
        wish = shorter
    raise StoreUnavailable("The spend ledger gives no clear answer, so nothing is reserved.")


async def _release(
    reservation: InstanceReservation, deps: ReservationDeps, entries: Sequence[LedgerEntry] = (), *, now: datetime
) -> None:
    """Write what was spent and give back the rest; that there is nothing is no error. Raises as `release`."""
    await deps.budget_client.release(policy.local_allocation(reservation, close=True), entries, now=now)
