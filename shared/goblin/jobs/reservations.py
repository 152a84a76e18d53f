"""Budget for rented instances: reserved before they exist, renewed while they work, settled once they are gone.

    place    plan (`policy.reservations.first`) written into the job ─► reserve ─► result written into the job ─► rent
    tick     renew ─► result written into the job             refused: the instance runs until its paid time ends
    end      `ended_at` written into the job ─► settle ─► the reservation dropped from the job, its cost added

The job's document is written between any two steps. So a crash leaves either a reservation in a document, which the
next tick settles, or an allocation that expires and counts as spent until the provider's bill says otherwise. Each step
is idempotent.
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
    """Dependencies of the reservation services."""

    budget_client: BudgetClient
    ledger: Ledger


@dataclass(frozen=True, kw_only=True, slots=True)
class Renewal:
    """The outcome of a renewal."""

    reservations: tuple[InstanceReservation, ...]
    """Reservations that replace the renewed one in the job; after midnight yesterday's (ended) and today's."""
    refused: str = ""
    """Why a due renewal was refused; empty: none was. Each tick tries again until the paid time ends."""
    ends_job: bool = False
    """Whether no later renewal can succeed: the budget is used up and never resets."""

    @property
    def current(self) -> InstanceReservation:
        """The reservation that is still running."""
        return self.reservations[-1]


async def reserve(
    plan: InstanceReservation, deps: ReservationDeps, *, now: datetime
) -> InstanceReservation | InsufficientBudget:
    """Reserve the first slice of an attempt: the longest that every budget covers.

    Args:
        plan: From `policy.reservations.first`, already written into the job's document.
        deps: Ledger and budget client.
        now: Aware UTC.

    Returns:
        The reservation, to be written into the job's document before the instance is rented; or the budget that does
        not cover the shortest slice worth a start. In that case nothing is reserved.

    Raises:
        StoreUnavailable: It is unknown whether anything is reserved, so nothing is rented. `settle` with `ended_at` at
            `since` gives it back.
    """
    found = await _reserve_longest(policy.slices(plan), deps, now=now)
    if isinstance(found, InsufficientBudget):
        await _release(plan, deps, now=now)
    return found


async def renew(reservation: InstanceReservation, deps: ReservationDeps, *, now: datetime, halt: str = "") -> Renewal:
    """Renew a reservation when it is due; after midnight open the new day's. Most calls change nothing.

    Args:
        reservation: As it is in the job's document.
        deps: Ledger and budget client.
        now: Aware UTC.
        halt: Why nothing more is allocated to it, from `policy.reservations.why_halted`; empty: nothing is frozen.

    Returns:
        What to write into the job's document in place of the reservation, if it differs. After a refusal the attempt
        is asked to stop at `last_call`, and its instance released at `leave_at`, both of `policy.reservations`.

    Raises:
        StoreUnavailable: The reservation in the document stays valid, with the same two instants; the next tick tries
            again.
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
    """Write the cost of an ended reservation into the ledger, once, and give back the unspent rest.

    Args:
        reservation: Its `ended_at` is already written into the job's document, so each repetition settles the same.
        deps: Ledger and budget client.
        now: Aware UTC.

    Returns:
        The cost in micro-dollars, the same at each call. Add it to the job in the write that drops the reservation.

    Raises:
        StoreUnavailable: Try again later; nothing is settled twice.
        ValueError: `ended_at` is not set.
    """
    cost, entries = policy.cost_usd_micros(reservation), policy.settlement(reservation)
    if reservation.ended_at is not None and reservation.ended_at > reservation.until:
        log.warning(
            "Instance %s was found gone at %s, after its paid time ended at %s",
            reservation.label,
            reservation.ended_at,
            reservation.until,
        )
    await _release(reservation, deps, entries, now=now)
    if (lost := policy.unwritten(reservation)) is not None:
        await _release(lost, deps, now=now)
    return cost


async def limit_job(job: Job, ledger: Ledger) -> None:
    """Set the requested budget of a job as a ledger limit, before the job is accepted. Idempotent.

    Raises:
        StoreUnavailable: The limit is not set; the job must not be accepted, or it could spend without a limit.
    """
    if (found := policy.limit_of(job)) is not None:
        account, limit = found
        await ledger.limit(account, limit.period, limit)


async def unlimit_job(job: Job, ledger: Ledger) -> None:
    """Drop the limit of a job that has ended and whose reservations are settled. Idempotent.

    Raises:
        StoreUnavailable: The limit stays in the list of budgets until the next try.
    """
    if (found := policy.limit_of(job)) is not None:
        account, limit = found
        await ledger.limit(account, limit.period, None)


async def halt(ledger: Ledger) -> SpendingHalt:
    """Read the freezes of jobs, once per tick. Raises `StoreUnavailable`: then nothing is rented or renewed."""
    return policy.halt(await ledger.freezes())


async def _reserve_longest(
    wishes: Sequence[InstanceReservation], deps: ReservationDeps, *, now: datetime
) -> InstanceReservation | InsufficientBudget:
    """Reserve the longest of several reservations, equal except for their end, that every budget covers."""
    wish = wishes[0]
    before_usd_micros = wish.reserved_usd_micros
    allocation = policy.local_allocation(wish)
    for _ in range(len(wishes) + 1):
        paid_usd_micros = allocation.used_usd_micros
        need_usd_micros = max(0, policy.worst_usd_micros(wish) - paid_usd_micros)
        allocation.expires_at = wish.until + policy.EXPIRES_AFTER
        insufficient = await deps.budget_client.renew_until_covered(allocation, need_usd_micros, now=now)
        if allocation.retired or allocation.granted is None:
            break  # The allocation expired, another tick settled it, or its day is over by the ledger's clock.
        paid_usd_micros = max(paid_usd_micros, allocation.granted.granted_usd_micros)
        allocation.reserved = {wish.label: paid_usd_micros}
        if insufficient is None:
            return policy.granted(wish, paid_usd_micros, allocation.seq)
        if insufficient.left_usd_micros >= insufficient.need_usd_micros:
            break  # The day of this allocation is over by the ledger's clock, and soon by ours.
        shorter = policy.fitting(wishes, paid_usd_micros=paid_usd_micros, left_usd_micros=insufficient.left_usd_micros)
        if shorter is None:
            if paid_usd_micros > before_usd_micros:
                return policy.granted(wish, paid_usd_micros, allocation.seq)
            return insufficient
        wish = shorter
    raise StoreUnavailable("The ledger gave no clear answer, so nothing is reserved. The next run tries again.")


async def _release(
    reservation: InstanceReservation, deps: ReservationDeps, entries: Sequence[LedgerEntry] = (), *, now: datetime
) -> None:
    """Write the cost and give back the rest of the allocation; a missing one is no error. Raises as `release`."""
    await deps.budget_client.release(policy.local_allocation(reservation, close=True), entries, now=now)
