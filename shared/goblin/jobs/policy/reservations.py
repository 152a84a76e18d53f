"""What an attempt's instance may cost, put aside slice by slice before it runs on.

    since ── start ── work ─────────────────┬── idle tail ── until
                                            └ leave_at: without a renewal it is released from here on

A slice is so long that not every tick needs another one, and so short that a crash or a small budget strands little.
Slices of one UTC day are one lease of the ledger; at midnight the next day's takes over, as providers bill by the day.
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
from goblin.billing.policy import allocation
from goblin.billing.policy.allocation import InsufficientBudget
from goblin.billing.policy.local_allocation import LocalAllocation
from goblin.core.labels import job_of_label
from goblin.core.money import USD_MICROS, show_usd
from goblin.jobs.domain.job import InstanceReservation, Job
from goblin.jobs.domain.market import Placement
from goblin.jobs.policy.spot.offers import MONTH_H, Needs

SLICE_S = 3600
"""Of work."""
SLICE_S_MIN = 300
"""Less is not worth an exchange."""
IDLE_S = 120
"""From being asked to go until it is surely gone: two ticks."""
RENEW_S = 600
"""A renewal is asked for when less than so much is paid, so that a refusal leaves time for a last checkpoint."""
STOP_S_MIN = 180
HEARD_S = 90
"""An attempt hears of it with its next heartbeat, and a tick is up to a minute late."""
COMES_WITHIN = timedelta(minutes=5)
"""From the plan on; whoever has not asked for the instance by then has been killed."""
PAID_MAX = timedelta(days=1)
"""However little an hour costs."""
EXPIRES_AFTER = timedelta(minutes=10)
"""So long after its time the ledger counts all of a rent as spent, unless its end was written."""


def first(
    label: str, placement: Placement, needs: Needs, *, start_s_max: float, now: datetime
) -> InstanceReservation | None:
    """The plan of an attempt's rent; None where nothing costs anything.

    Args:
        label: The attempt's.
        placement: What it is placed on; of a bid all of it is counted.
        needs: What it downloads at its start, keeps on disk, and uploads with each save.
        start_s_max: From being asked for to its first word, billed or not.
        now: Aware UTC.
    """
    offer = placement.offer
    bid = placement.bid_usd_micros_per_hour
    save = needs.checkpoint_gib * offer.upload_usd_micros_per_gib
    # As many as there can be, however quick a save turns out to be.
    saves_per_hour = 3600 / max(1.0, placement.run.interval_s)
    standing = needs.disk_gib * offer.storage_usd_micros_per_gib_month / MONTH_H
    hourly = (offer.price_usd_micros_per_hour if bid is None else bid) + math.ceil(standing + saves_per_hour * save)
    # The save that it is asked for at the end comes out of turn.
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
    )


def slices(plan: InstanceReservation) -> Sequence[InstanceReservation]:
    """First slices for a plan, the longest first: half the work, and again, down to what is still worth a start."""
    return _halved(plan, shortest=plan.since + timedelta(seconds=plan.shortest_s), longest=plan.until)


def renewals(reservation: InstanceReservation, now: datetime) -> Sequence[InstanceReservation]:
    """How the rent could be prolonged now, the longest first; empty: it is not time, or too late."""
    if not is_live(reservation, now) or leave_at(reservation) > now + timedelta(seconds=RENEW_S):
        return ()
    shortest, longest = (reservation.until + timedelta(seconds=s) for s in (SLICE_S_MIN, SLICE_S))
    return _halved(reservation, shortest=shortest, longest=longest)


def turns(reservation: InstanceReservation, now: datetime) -> Sequence[InstanceReservation]:
    """Plans by which the day that has begun takes the rent over, the longest first; empty: it is still its day.

    The shortest may end sooner than what yesterday paid: it has to fit beside it until that is settled.
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
    """The longest that the budgets cover; None: none.

    Args:
        wishes: Longest first.
        paid_usd_micros: What is put aside for it already.
        left_usd_micros: In the tightest budget.
    """
    return next((wish for wish in wishes if worst_usd_micros(wish) - paid_usd_micros <= left_usd_micros), None)


def worst_usd_micros(reservation: InstanceReservation) -> int:
    """What it costs if its instance lives until the end of what is paid."""
    return _bound(reservation, reservation.until)


def cost_usd_micros(reservation: InstanceReservation) -> int:
    """What a rent that has ended cost, by its price; 0 for a plan, and when it ended at its beginning.

    Never more than was put aside: when it was missed long after its time, it was gone by then, or the bill says so.

    Raises:
        ValueError: Its end is not known, and nothing may be guessed.
    """
    if reservation.ended_at is None:
        raise ValueError(f"the end of {reservation.label} is not known")
    was = reservation.reserved_usd_micros > 0 and reservation.ended_at > reservation.since
    return min(_bound(reservation, reservation.ended_at), reservation.reserved_usd_micros) if was else 0


def _bound(reservation: InstanceReservation, end: datetime) -> int:
    return rent_bound_usd_micros(
        price_usd_micros_per_hour=reservation.price_usd_micros_per_hour,
        seconds=max(0, math.ceil((end - reservation.since).total_seconds())),
        start_s_max=0,  # Part of the time, as is the idle tail.
        idle_s_max=0,
        traffic_usd_micros=reservation.start_usd_micros,
    )


def granted(reservation: InstanceReservation, granted_usd_micros: int, seq: int) -> InstanceReservation:
    """The rent as the ledger lent for it: what is put aside says until when it is paid, and nothing else does."""
    paid_s = max(0, granted_usd_micros - reservation.start_usd_micros) * 3600 // reservation.price_usd_micros_per_hour
    paid_until = reservation.since + min(timedelta(seconds=paid_s), PAID_MAX)
    return replace(
        reservation,
        reserved_usd_micros=granted_usd_micros,
        seq=seq,
        until=reservation.until if worst_usd_micros(reservation) == granted_usd_micros else paid_until,
    )


def leave_at(reservation: InstanceReservation) -> datetime:
    """From here on its instance is released: it takes the rest of the time to be surely gone."""
    return reservation.until - timedelta(seconds=IDLE_S)


def last_call(reservation: InstanceReservation, *, save_s: float) -> datetime:
    """When an instance whose rent is not prolonged must be asked to save and stop, so that it can.

    Args:
        save_s: How long a save takes, with its upload.
    """
    return leave_at(reservation) - timedelta(seconds=max(STOP_S_MIN, 2 * save_s + HEARD_S))


def is_live(reservation: InstanceReservation, now: datetime) -> bool:
    """Whether something is put aside for now, and its end is not known."""
    return reservation.ended_at is None and reservation.reserved_usd_micros > 0 and now < reservation.until


def ended(reservation: InstanceReservation, ended_at: datetime) -> InstanceReservation:
    """The rent with its end; one that is known already stays."""
    return (
        reservation
        if reservation.ended_at is not None
        else replace(reservation, ended_at=max(reservation.since, ended_at))
    )


def named(reservations: Sequence[InstanceReservation], label: str, instance_id: str) -> tuple[InstanceReservation, ...]:
    """A job's rents once an attempt's instance is known: its bill is found by that where no label is told."""
    return tuple(
        replace(reservation, instance_id=instance_id) if reservation.label == label else reservation
        for reservation in reservations
    )


def may_come(reservation: InstanceReservation, now: datetime) -> bool:
    """Whether its instance was never seen and somebody may still be asking for it: that it is not there says nothing.

    One whose provider said no has ended.
    """
    return reservation.instance_id is None and reservation.ended_at is None and now < reservation.since + COMES_WITHIN


def unwritten(reservation: InstanceReservation) -> InstanceReservation | None:
    """The next day's part, which may have been put aside and never written down; None: it is, it took this one over."""
    taken_over = reservation.ended_at == _midnight(reservation.since + timedelta(days=1))
    return None if taken_over else replace(reservation, part=reservation.part + 1, seq=0)


def allocation_id(reservation: InstanceReservation) -> str:
    """The ledger's lease: one for each attempt and day."""
    return f"{INSTANCE_PREFIX}{reservation.label}:{reservation.part}"


def accounts_of(provider: str, job_id: str) -> tuple[str, ...]:
    """Whose budgets, and whose freezes, an instance of a job at a provider concerns."""
    return TOTAL, provider, f"{provider}/{job_id}", f"job/{job_id}"


def local_allocation(reservation: InstanceReservation, *, close: bool = False) -> LocalAllocation:
    """The client's side of the allocation that pays for an instance.

    What it has used is what the job's document says is reserved, so that an exchange whose answer was lost is made up
    for by the next one.

    Args:
        reservation: As it is in the job's document.
        close: To give it back: nothing of it is used any more.
    """
    job_id = job_of_label(reservation.label)
    return LocalAllocation(
        allocation_id=allocation_id(reservation),
        account=f"{reservation.provider}/{job_id}",
        also=(f"job/{job_id}",),
        # An exchange with the number 1 would open an allocation only to close it.
        seq=max(1, reservation.seq) if close else reservation.seq,
        reserved={} if close else {reservation.label: reservation.reserved_usd_micros},
        ahead=False,
        expires_at=reservation.until + EXPIRES_AFTER,
    )


def uncovered(plan: InstanceReservation, budgets: Mapping[str, Account], now: datetime) -> InsufficientBudget | None:
    """Which budget does not even cover the shortest slice of a plan, as they stand; the ledger has the last word.

    Args:
        plan: From `first`.
        budgets: Accounts by name; one that is missing sets no limit.
        now: Aware UTC.
    """
    shortest = slices(plan)[-1]
    asked = local_allocation(shortest).next_request(now=now, need_usd_micros=worst_usd_micros(shortest))
    names = (*lineage(asked.account), *asked.also)
    accounts = [budgets.get(name, Account(name=name)) for name in names]
    return allocation.exchange(replace(asked, budget_required=False), None, accounts, now=now).insufficient


def settlement(reservation: InstanceReservation) -> tuple[LedgerEntry, ...]:
    """What it cost, as the entries that say so; empty: nothing. The same for the same end, however often it is made.

    Where midnight could not part it, as there was no money for the new day, each day has its own entry all the same:
    the bill has.
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
    """The budget that a job was requested with, over all its attempts, and its account; None: it has none.

    Nothing but a record follows from its end: the ledger lends no more, so the job saves and stops.
    """
    if job.spec.budget_usd is None:
        return None
    micros = max(0, math.floor(job.spec.budget_usd * USD_MICROS))
    return f"job/{job.job_id}", Limit(period=Period.LIFETIME, limit_usd_micros=micros)


def is_used_up(insufficient: InsufficientBudget) -> bool:
    """Whether it is a budget that never starts anew, as a job's own: no waiting helps."""
    return insufficient.resets_at is None and not insufficient.unset


def said(insufficient: InsufficientBudget) -> str:
    """Why there is no money, for a person."""
    if insufficient.unset:
        return unbudgeted(insufficient.account.partition("/")[0])
    again = f"; it starts anew at {insufficient.resets_at:%Y-%m-%d %H:%M}" if insufficient.resets_at else ""
    return (
        f"the {insufficient.period} budget of {insufficient.account}, {show_usd(insufficient.limit_usd_micros)}, has "
        f"{show_usd(insufficient.left_usd_micros)} left, and {show_usd(insufficient.need_usd_micros)} are needed{again}"
    )


def unbudgeted(provider: str) -> str:
    """Why nothing is rented where no budget says how much may be spent."""
    return f"nothing is rented without a budget: `goblin budget set {provider} 50`, or a budget of the job's own"


@dataclass(frozen=True, kw_only=True, slots=True)
class SpendingHalt:
    """What freezes mean for jobs: accounts, each with the reason."""

    starts: Mapping[str, str]
    """Nothing is rented under it, and no rent prolonged: what runs goes on to the end of what is paid."""
    stops: Mapping[str, str]
    """And what runs is asked at once to save and stop."""


def halt(freezes: Sequence[Freeze]) -> SpendingHalt:
    """Read freezes as jobs must; the oldest gives the reason."""
    reasons = [(freeze, f"{freeze.account} is frozen: {freeze.reason or freeze.entry_id}") for freeze in freezes]
    newest_first = list(reversed(reasons))
    return SpendingHalt(
        starts={freeze.account: reason for freeze, reason in newest_first},
        stops={freeze.account: reason for freeze, reason in newest_first if freeze.action is BudgetAction.STOP_JOBS},
    )


def why_halted(accounts: Sequence[str], reasons: Mapping[str, str]) -> str:
    """The reason that concerns any of some accounts, as `accounts_of` names them; empty: none does."""
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
    """The most that renting an instance for so long can cost: a job reserves it before it rents, and per renewal.

    Args:
        price_usd_micros_per_hour: As offered; a bid is what we bid.
        seconds: Of work, to the end of the lease.
        start_s_max: From being asked for to its first word, billed or not.
        idle_s_max: From its last word until it is surely released: two reconcile ticks.
        disk_usd_micros: Storage for all of that time.
        traffic_usd_micros: Image, dataset, checkpoints and outputs, in and out.
    """
    billed_s = seconds + start_s_max + idle_s_max
    return -(-price_usd_micros_per_hour * billed_s // 3600) + disk_usd_micros + traffic_usd_micros
