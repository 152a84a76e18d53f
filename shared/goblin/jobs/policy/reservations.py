"""Reservations of instances: reserve the cost of an attempt's instance slice by slice, before it runs on.

    since ── start ── work ─────────────────┬── idle tail ── until
                                            └ leave_at: without a renewal it is released from here on

A slice is long enough that not every tick needs a renewal, and short enough that a crash strands little budget. The
slices of one UTC day are one allocation in the ledger; at midnight the next day's takes over, as providers bill by day.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta

from goblin.billing.domain.accounts import Account, Limit, Period
from goblin.billing.domain.ledger import (
    INSTANCE_PREFIX,
    TOTAL,
    BudgetAction,
    EntryKind,
    Freeze,
    LedgerEntry,
    day_of,
    lineage,
)
from goblin.billing.domain.ledger import named as account_named
from goblin.billing.policy import allocation
from goblin.billing.policy.allocation import InsufficientBudget
from goblin.billing.policy.local_allocation import LocalAllocation
from goblin.core.labels import job_of_label
from goblin.core.money import USD_MICROS, show_usd
from goblin.jobs.domain.job import InstanceReservation, Job
from goblin.jobs.domain.market import Placement
from goblin.jobs.policy.job_spec import USD_MAX
from goblin.jobs.policy.spot.offers import MONTH_H, Needs

SLICE_S = 3600
"""Work that one slice pays for."""
SLICE_S_MIN = 300
"""Shortest slice; less is not worth an exchange with the ledger."""
IDLE_S = 120
"""Time from the release of an instance until it is surely gone: two ticks."""
RENEW_S = 600
"""Renew when less paid time than this is left, so that a refusal leaves time for a last checkpoint."""
STOP_S_MIN = 180
HEARD_S = 90
"""Time until an attempt learns of a stop request: its next heartbeat, and a tick up to a minute late."""
COMES_WITHIN = timedelta(minutes=5)
"""Time from the plan within which the instance is rented; later the process that planned it was killed."""
PAID_MAX = timedelta(days=1)
"""Longest paid time, however low the price."""
EXPIRES_AFTER = timedelta(minutes=10)
"""After its paid time and this long, the ledger counts the whole allocation as spent, unless it was settled."""


def first(
    label: str, placement: Placement, needs: Needs, *, start_s_max: float, now: datetime, payer: str = ""
) -> InstanceReservation | None:
    """Plan the instance reservation of an attempt; None where the instance is free.

    Args:
        label: Label of the attempt.
        placement: The attempt's placement; a bid counts in full.
        needs: What the attempt downloads at its start, keeps on disk, and uploads with each save.
        start_s_max: Longest time from the rental to the agent's first request, billed or not.
        now: Aware UTC.
        payer: From `payer_of`.
    """
    offer = placement.offer
    bid = placement.bid_usd_micros_per_hour
    save = needs.checkpoint_gib * offer.upload_usd_micros_per_gib
    # The most saves possible, even if a save takes no time.
    saves_per_hour = 3600 / max(1.0, placement.run.interval_s)
    standing = needs.disk_gib * offer.storage_usd_micros_per_gib_month / MONTH_H
    hourly = (offer.price_usd_micros_per_hour if bid is None else bid) + math.ceil(standing + saves_per_hour * save)
    # The save requested at the end is an extra one.
    start = math.ceil((needs.download_gib + needs.checkpoint_gib) * offer.download_usd_micros_per_gib + save)
    if not hourly and not start:
        return None
    around_s = math.ceil(start_s_max) + IDLE_S
    work_s = min(SLICE_S, max(SLICE_S_MIN, math.ceil(needs.work_s)))
    return InstanceReservation(
        label=label,
        provider=offer.provider,
        spot=offer.spot,
        price_usd_micros_per_hour=max(1, hourly),
        start_usd_micros=start,
        since=now,
        until=now + timedelta(seconds=around_s + work_s),
        reserved_usd_micros=0,
        shortest_s=around_s + SLICE_S_MIN,
        payer=payer,
    )


def slices(plan: InstanceReservation) -> Sequence[InstanceReservation]:
    """List first slices for a plan, the longest first, halving the work down to the shortest worth a start."""
    return _halved(plan, shortest=plan.since + timedelta(seconds=plan.shortest_s), longest=plan.until)


def renewals(reservation: InstanceReservation, now: datetime) -> Sequence[InstanceReservation]:
    """List possible renewals of a reservation, the longest first; empty: not due yet, or too late."""
    if not is_live(reservation, now) or leave_at(reservation) > now + timedelta(seconds=RENEW_S):
        return ()
    shortest, longest = (reservation.until + timedelta(seconds=s) for s in (SLICE_S_MIN, SLICE_S))
    return _halved(reservation, shortest=shortest, longest=longest)


def turns(reservation: InstanceReservation, now: datetime) -> Sequence[InstanceReservation]:
    """List reservations for the new UTC day, the longest first; empty: the day of the reservation is not over.

    The shortest may end before yesterday's paid time: until that is settled, both must fit into the budget.
    """
    if not is_live(reservation, now) or day_of(now) <= day_of(reservation.since):
        return ()
    after = replace(
        reservation, since=_midnight(now), start_usd_micros=0, reserved_usd_micros=0, seq=0, part=reservation.part + 1
    )
    renewed = renewals(reservation, now)
    longest = renewed[0].until if renewed else reservation.until
    return _halved(
        after, shortest=min(reservation.until, now + timedelta(seconds=IDLE_S + SLICE_S_MIN)), longest=longest
    )


def _halved(
    reservation: InstanceReservation, *, shortest: datetime, longest: datetime
) -> Sequence[InstanceReservation]:
    found, beyond = [], longest - shortest + timedelta(seconds=SLICE_S_MIN)
    while beyond > timedelta(seconds=SLICE_S_MIN):
        found.append(replace(reservation, until=shortest + beyond - timedelta(seconds=SLICE_S_MIN)))
        beyond /= 2
    return (*found, replace(reservation, until=shortest))


def fitting(
    wishes: Sequence[InstanceReservation], *, paid_usd_micros: int, left_usd_micros: int
) -> InstanceReservation | None:
    """Choose the longest reservation that the budgets cover; None: they cover none.

    Args:
        wishes: Reservations to choose from, the longest first.
        paid_usd_micros: Amount reserved for the instance already.
        left_usd_micros: Amount left in the tightest budget.
    """
    return next((wish for wish in wishes if worst_usd_micros(wish) - paid_usd_micros <= left_usd_micros), None)


def worst_usd_micros(reservation: InstanceReservation) -> int:
    """Compute the cost if the instance exists until the end of the reservation."""
    return _bound(reservation, reservation.until)


def cost_usd_micros(reservation: InstanceReservation) -> int:
    """Compute the cost of an ended reservation by its price; 0 for a plan, and if it ended at its beginning.

    Never more than is reserved: an instance found gone long after its paid time was gone before, or the provider's bill
    corrects the cost.

    Raises:
        ValueError: `ended_at` is not set.
    """
    if reservation.ended_at is None:
        raise ValueError(f"The end of {reservation.label} is not known. Set ended_at first.")
    was = reservation.reserved_usd_micros > 0 and reservation.ended_at > reservation.since
    return min(_bound(reservation, reservation.ended_at), reservation.reserved_usd_micros) if was else 0


def _bound(reservation: InstanceReservation, end: datetime) -> int:
    return rent_bound_usd_micros(
        price_usd_micros_per_hour=reservation.price_usd_micros_per_hour,
        seconds=max(0, math.ceil((end - reservation.since).total_seconds())),
        start_s_max=0,  # Included in the seconds, as is the idle tail.
        idle_s_max=0,
        traffic_usd_micros=reservation.start_usd_micros,
    )


def granted(reservation: InstanceReservation, granted_usd_micros: int, seq: int) -> InstanceReservation:
    """Apply the ledger's answer to a reservation: the amount granted decides until when the instance is paid."""
    paid_s = max(0, granted_usd_micros - reservation.start_usd_micros) * 3600 // reservation.price_usd_micros_per_hour
    paid_until = reservation.since + min(timedelta(seconds=paid_s), PAID_MAX)
    return replace(
        reservation,
        reserved_usd_micros=granted_usd_micros,
        seq=seq,
        until=reservation.until if worst_usd_micros(reservation) == granted_usd_micros else paid_until,
    )


def leave_at(reservation: InstanceReservation) -> datetime:
    """Compute when the instance is released: early enough to be surely gone when the paid time ends."""
    return reservation.until - timedelta(seconds=IDLE_S)


def last_call(reservation: InstanceReservation, *, save_s: float) -> datetime:
    """Compute when an attempt whose reservation is not renewed must be asked to save and stop.

    Args:
        reservation: The reservation that is not renewed.
        save_s: Duration of a save, with its upload.
    """
    return leave_at(reservation) - timedelta(seconds=max(STOP_S_MIN, 2 * save_s + HEARD_S))


def is_live(reservation: InstanceReservation, now: datetime) -> bool:
    """Check whether a reservation pays for now, and its instance is not known to be gone."""
    return reservation.ended_at is None and reservation.reserved_usd_micros > 0 and now < reservation.until


def ended(reservation: InstanceReservation, ended_at: datetime) -> InstanceReservation:
    """Set the end of a reservation, unless it is set already."""
    return (
        reservation
        if reservation.ended_at is not None
        else replace(reservation, ended_at=max(reservation.since, ended_at))
    )


def named(reservations: Sequence[InstanceReservation], label: str, instance_id: str) -> tuple[InstanceReservation, ...]:
    """Set the instance id in an attempt's reservations: it finds the charge in a bill that has no labels."""
    return tuple(
        replace(reservation, instance_id=instance_id) if reservation.label == label else reservation
        for reservation in reservations
    )


def may_come(reservation: InstanceReservation, now: datetime) -> bool:
    """Check whether the instance was never seen and may still be being rented: its absence then proves nothing.

    If the provider refused the rental, the reservation has ended.
    """
    return reservation.instance_id is None and reservation.ended_at is None and now < reservation.since + COMES_WITHIN


def unwritten(reservation: InstanceReservation) -> InstanceReservation | None:
    """Return the next day's part, which may be reserved without being in the job; None: it took this one over."""
    taken_over = reservation.ended_at == _midnight(reservation.since + timedelta(days=1))
    return None if taken_over else replace(reservation, part=reservation.part + 1, seq=0)


def allocation_id(reservation: InstanceReservation) -> str:
    """Name the allocation of a reservation: one for each attempt and UTC day."""
    return f"{INSTANCE_PREFIX}{reservation.label}:{reservation.part}"


def payer_of(job: Job) -> str:
    """Return the account of the API key that asked for a job; empty: no key asked."""
    return account_named("key", job.owner.key_name) if job.owner.key_digest else ""


def accounts_of(provider: str, job_id: str, payer: str = "") -> tuple[str, ...]:
    """List the accounts whose budgets and freezes apply to a job's instance at a provider; for `payer` see there."""
    return TOTAL, provider, f"{provider}/{job_id}", *_also(job_id, payer)


def _also(job_id: str, payer: str) -> tuple[str, ...]:
    """List the accounts of a job outside the tree of providers."""
    return (f"job/{job_id}", payer) if payer else (f"job/{job_id}",)


def local_allocation(reservation: InstanceReservation, *, close: bool = False) -> LocalAllocation:
    """Build the local allocation that pays for an instance.

    Its used amount is what the job's document says is reserved, so the next exchange repairs one whose answer was lost.

    Args:
        reservation: As it is in the job's document.
        close: Whether to give the allocation back: nothing of it is used any more.
    """
    job_id = job_of_label(reservation.label)
    return LocalAllocation(
        allocation_id=allocation_id(reservation),
        account=f"{reservation.provider}/{job_id}",
        also=_also(job_id, reservation.payer),
        # An exchange with the number 1 would open an allocation only to close it.
        seq=max(1, reservation.seq) if close else reservation.seq,
        reserved={} if close else {reservation.label: reservation.reserved_usd_micros},
        ahead=False,
        expires_at=reservation.until + EXPIRES_AFTER,
    )


def uncovered(plan: InstanceReservation, budgets: Mapping[str, Account], now: datetime) -> InsufficientBudget | None:
    """Find a budget that does not cover the shortest slice of a plan; None: all do. The ledger decides in the end.

    Args:
        plan: From `first`.
        budgets: Accounts by name; a missing one sets no limit.
        now: Aware UTC.
    """
    shortest = slices(plan)[-1]
    asked = local_allocation(shortest).next_request(now=now, need_usd_micros=worst_usd_micros(shortest))
    names = (*lineage(asked.account), *asked.also)
    accounts = [budgets.get(name, Account(name=name)) for name in names]
    return allocation.exchange(replace(asked, budget_required=False), None, accounts, now=now).insufficient


def settlement(reservation: InstanceReservation) -> tuple[LedgerEntry, ...]:
    """Build the ledger entries of an ended reservation's cost; empty: it cost nothing. Equal for each repetition.

    A reservation runs past midnight if no budget was left for the new day. Each day still gets its own entry, as in the
    provider's bill.
    """
    cost = cost_usd_micros(reservation)
    if not cost or reservation.ended_at is None:
        return ()
    midnight = _midnight(reservation.since + timedelta(days=1))
    before = cost if reservation.ended_at <= midnight else min(cost, _bound(reservation, midnight))
    entries = [_entry(reservation, f"{allocation_id(reservation)}:settled", before, reservation.since)]
    if cost > before:
        entries.append(_entry(reservation, f"{allocation_id(reservation)}:settled:after", cost - before, midnight))
    return tuple(entries)


def _entry(reservation: InstanceReservation, entry_id: str, amount_usd_micros: int, at: datetime) -> LedgerEntry:
    asked, kind = local_allocation(reservation), "spot" if reservation.spot else "on demand"
    return LedgerEntry(
        entry_id=entry_id,
        kind=EntryKind.SETTLE,
        account=asked.account,
        also=asked.also,
        amount_usd_micros=amount_usd_micros,
        at=at,
        instance_id=reservation.instance_id or "",
        note=f"{reservation.label}: {reservation.provider}, {kind}, until {reservation.ended_at:%Y-%m-%dT%H:%M:%SZ}",
    )


def _midnight(at: datetime) -> datetime:
    return at.astimezone(UTC).replace(hour=0, minute=0, second=0, microsecond=0)


def limit_of(job: Job) -> tuple[str, Limit] | None:
    """Return the account and limit of the budget that a job was requested with, for all its attempts; None: no budget.

    When it is used up the ledger allocates no more, so the job saves and stops; no freeze follows.
    """
    dollars = job.spec.budget_usd
    if dollars is None or not (dollars.is_finite() and dollars <= USD_MAX):
        return None  # A job with an impossible budget was refused.
    micros = max(0, math.floor(dollars * USD_MICROS))
    return f"job/{job.job_id}", Limit(period=Period.LIFETIME, limit_usd_micros=micros)


def is_used_up(insufficient: InsufficientBudget) -> bool:
    """Check whether a budget never resets, such as a job's own: waiting does not help."""
    return insufficient.resets_at is None and not insufficient.unset


def said(insufficient: InsufficientBudget) -> str:
    """Explain for a person which budget does not suffice."""
    if insufficient.unset:
        return unbudgeted(insufficient.account.partition("/")[0])
    again = f"; it resets at {insufficient.resets_at:%Y-%m-%d %H:%M}" if insufficient.resets_at else ""
    return (
        f"the {insufficient.period} budget of {insufficient.account}, {show_usd(insufficient.limit_usd_micros)}, has "
        f"{show_usd(insufficient.left_usd_micros)} left, but {show_usd(insufficient.need_usd_micros)} are needed{again}"
    )


def unbudgeted(provider: str) -> str:
    """Explain that nothing is rented at a provider without a budget."""
    return f"nothing is rented without a budget: run `goblin budget set {provider} 50`, or give the job a budget"


@dataclass(frozen=True, kw_only=True, slots=True)
class SpendingHalt:
    """Effect of freezes on jobs: accounts by name, each with the reason."""

    starts: Mapping[str, str]
    """Accounts under which nothing is rented or renewed; running instances continue until their paid time ends."""
    stops: Mapping[str, str]
    """Accounts under which running attempts are also asked to save and stop at once."""


def halt(freezes: Sequence[Freeze]) -> SpendingHalt:
    """Derive the effect of freezes on jobs; the oldest freeze of an account gives the reason."""
    reasons = [(freeze, f"{freeze.account} is frozen: {freeze.reason or freeze.entry_id}") for freeze in freezes]
    newest_first = list(reversed(reasons))
    return SpendingHalt(
        starts={freeze.account: reason for freeze, reason in newest_first},
        stops={freeze.account: reason for freeze, reason in newest_first if freeze.action is BudgetAction.STOP_JOBS},
    )


def why_halted(accounts: Sequence[str], reasons: Mapping[str, str]) -> str:
    """Find the reason of the first halted account, of those from `accounts_of`; empty: none is halted."""
    return next((reasons[account] for account in accounts if account in reasons), "")


def rent_bound_usd_micros(
    *,
    price_usd_micros_per_hour: int,
    seconds: int,
    start_s_max: int,
    idle_s_max: int,
    disk_usd_micros: int = 0,
    traffic_usd_micros: int = 0,
) -> int:
    """Compute the most that an instance can cost for some time. It is reserved before the rental and at each renewal.

    Args:
        price_usd_micros_per_hour: Price as offered, or our bid.
        seconds: Seconds of work, to the end of the reservation.
        start_s_max: Longest time from the rental to the agent's first request, billed or not.
        idle_s_max: Longest time from the agent's last request until it is surely released: two reconcile ticks.
        disk_usd_micros: Cost of storage for all of that time.
        traffic_usd_micros: Cost of traffic: image, dataset, checkpoints and outputs, in and out.
    """
    billed_s = seconds + start_s_max + idle_s_max
    return -(-price_usd_micros_per_hour * billed_s // 3600) + disk_usd_micros + traffic_usd_micros
