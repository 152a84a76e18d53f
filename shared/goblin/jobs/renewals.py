"""Each minute: renew the reservations of running instances, settle ended ones, ask attempts to stop."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from datetime import datetime

from goblin.core.errors import StoreUnavailable
from goblin.jobs import reservations
from goblin.jobs.domain.instances import Inventory, KnownInventory
from goblin.jobs.domain.job import LEASED, InstanceReservation, Job, JobState, StopRequest
from goblin.jobs.lifecycle import JobDeps, change
from goblin.jobs.placement import MarketSnapshot
from goblin.jobs.policy import placement, state_machine
from goblin.jobs.policy import reservations as reservation_policy
from goblin.jobs.policy.placement import STOP_WITHIN
from goblin.jobs.policy.state_machine import Transition
from goblin.jobs.reservations import Renewal

log = logging.getLogger(__name__)


async def settle_ended(job: Job, inventories: Mapping[str, Inventory], deps: JobDeps) -> None:
    """Settle each reservation whose instance is known to be gone: write its end, then its cost, then drop it.

    Raises:
        StoreUnavailable: The ledger or the job store did not answer; the next run continues from here.
    """
    if not job.reservations:
        return
    now = deps.clock.now()
    # Use the job as read before the inventory was listed: a label without a live lease then is never rented later.
    gone = {reservation.label for reservation in job.reservations if _is_gone(reservation, job, inventories, now)}

    def end(job: Job) -> Transition | None:
        after = tuple(
            reservation_policy.ended(reservation, now) if reservation.label in gone else reservation
            for reservation in job.reservations
        )
        return state_machine.note(job, reservations=after) if after != job.reservations else None

    await change(deps, job.job_id, end)
    stored = await deps.jobs.get(job.job_id)
    for reservation in stored.job.reservations if stored else ():
        if reservation.ended_at is None:
            continue
        cost = await reservations.settle(reservation, deps.money, now=now)
        await change(deps, job.job_id, lambda job, reservation=reservation, cost=cost: _drop(job, reservation, cost))  # type: ignore[misc]


def _is_gone(reservation: InstanceReservation, job: Job, inventories: Mapping[str, Inventory], now: datetime) -> bool:
    """Whether an inventory listed after the job was read lacks the instance, and no rental request can be under way."""
    if (
        reservation.ended_at is not None
        or state_machine.has_live_lease(job, reservation.label)
        or reservation_policy.may_come(reservation, now)
    ):
        return False
    inventory = inventories.get(reservation.provider)
    return isinstance(inventory, KnownInventory) and reservation.label not in inventory.by_label()


def _drop(job: Job, reservation: InstanceReservation, cost_usd_micros: int) -> Transition | None:
    if reservation not in job.reservations:
        return None
    left = tuple(one for one in job.reservations if one != reservation)
    return state_machine.note(job, reservations=left, spent_usd_micros=job.spent_usd_micros + cost_usd_micros)


async def keep(job: Job, market: MarketSnapshot, deps: JobDeps) -> None:
    """Renew a live attempt's reservation; ask it to stop when it is not renewed or the job should move.

    Raises:
        StoreUnavailable: The current reservation stays valid; the next run tries again.
    """
    if job.state not in LEASED or job.lease is None:
        return
    now, label = deps.clock.now(), job.lease.label
    reservation = next((one for one in job.reservations if one.label == label and one.ended_at is None), None)
    stop = None
    if reservation is not None:
        accounts = reservation_policy.accounts_of(reservation.provider, job.job_id, reservation.payer)
        if reason := reservation_policy.why_halted(accounts, market.frozen.stops):
            stop = StopRequest(reason=reason, by=min(now + STOP_WITHIN, reservation_policy.leave_at(reservation)))
        else:
            stop = await _prolong(
                job, reservation, reservation_policy.why_halted(accounts, market.frozen.starts), deps, now
            )
    if stop is None and job.spec.deadline is not None and job.state is JobState.RUNNING:
        facts = await market.facts(job)
        stop = placement.move(job, facts) if facts is not None else None
    if stop is not None and (job.stop is None or stop.by < job.stop.by):
        await _ask_to_stop(job, stop, deps)


async def _prolong(
    job: Job, reservation: InstanceReservation, halt: str, deps: JobDeps, now: datetime
) -> StopRequest | None:
    """Renew the reservation; return why and by when the attempt must stop, or None."""
    try:
        kept = await reservations.renew(reservation, deps.money, now=now, halt=halt)
    except StoreUnavailable as error:
        log.warning(
            "Job %s: its instance reservation could not be renewed, the next run tries again: %s", job.job_id, error
        )
        kept = Renewal(reservations=(reservation,), refused=error.message)
    if kept.reservations != (reservation,):

        def write(job: Job) -> Transition | None:
            if reservation not in job.reservations:
                return None
            at = job.reservations.index(reservation)
            return state_machine.note(
                job, reservations=(*job.reservations[:at], *kept.reservations, *job.reservations[at + 1 :])
            )

        await change(deps, job.job_id, write)
    save_s = job.progress.save_s if job.progress and job.progress.save_s else 0.0
    leave_at = reservation_policy.leave_at(kept.current)
    paid_up = not kept.refused and now < leave_at
    if paid_up or now < reservation_policy.last_call(kept.current, save_s=save_s):
        return None
    return StopRequest(reason=kept.refused or "the reserved budget is used up", by=leave_at, ends_job=kept.ends_job)


async def _ask_to_stop(job: Job, stop: StopRequest, deps: JobDeps) -> None:
    label = job.lease.label if job.lease else ""
    log.info("Job %s: attempt %d is asked to stop: %s", job.job_id, job.attempt, stop.reason)

    def decide(job: Job) -> Transition | None:
        if job.state not in LEASED or job.lease is None or job.lease.label != label:
            return None
        if job.stop is not None and job.stop.by <= stop.by:
            return None
        return state_machine.ask_to_stop(job, stop, now=deps.clock.now())

    await change(deps, job.job_id, decide)
