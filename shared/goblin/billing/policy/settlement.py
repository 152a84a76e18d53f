"""Our ledger against a provider's bill: what the dead spent, what we counted wrong, and when a person must look."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime, time, timedelta
from decimal import Decimal

from goblin.billing.domain.accounts import Account, Allocation
from goblin.billing.domain.ledger import INSTANCE_PREFIX, Balance, Bill, EntryKind, LedgerEntry
from goblin.billing.policy.allocation import ThresholdEvent, threshold_event
from goblin.core.labels import job_of_label
from goblin.core.money import show_usd

DRIFT_SHARE = Decimal("0.05")
"""Of a bill; a difference beyond that, and beyond a cent, is for a person."""
DRIFT_USD_MICROS = 10_000
GRACE = timedelta(minutes=2)
"""A lease is given so long beyond its time: clocks differ."""
BELIEVED_AFTER = timedelta(days=3)
"""Whoever sends no bill is then believed to have taken all that the dead may have spent."""
DAYS = 3
"""How far back bills are read: today's, and those that may still have changed."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ProviderDay:
    """One account's day, as both sides know it: a provider's, or what a job's instances are of it."""

    account: str
    also: tuple[str, ...] = ()
    """Further accounts that a correction counts in."""
    day: str
    billed_usd_micros: int
    booked_usd_micros: int
    """The balance of its account, corrections included."""
    entries: int = 0
    """That the balance is made of: no two states of a day are the same."""
    lost: tuple[Allocation, ...] = ()
    """Expired leases of that day, in order."""
    lent_usd_micros: int = 0
    """What living leases of that day have not written yet."""
    final: bool
    """The bill will not change any more."""
    bounded: bool = False
    """What is booked is the most that it could be, as of rents: that it was less is no news."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Settlement:
    """What follows."""

    found: tuple[tuple[Allocation, int], ...] = ()
    """What each of the lost leases really spent."""
    corrections: tuple[LedgerEntry, ...] = ()
    """To be recorded after those: an adjustment, and an alarm."""

    @property
    def adds_usd_micros(self) -> int:
        """By how much the corrections change what is booked."""
        return sum(entry.amount_usd_micros for entry in self.corrections)


def settle_day(facts: ProviderDay) -> Settlement:
    """Bring the ledger to the bill.

    While a bill may still grow nothing is taken back, and only what goes beyond everything we know of is added.
    """
    difference = facts.billed_usd_micros - facts.booked_usd_micros
    lost = sum(allocation.lost_usd_micros for allocation in facts.lost)
    if not facts.final or facts.lent_usd_micros:
        beyond = max(0, difference - lost - facts.lent_usd_micros)
        return Settlement(corrections=_corrections(facts, beyond, facts.booked_usd_micros))
    left, found = max(0, difference), []
    for allocation in facts.lost:
        spent = min(allocation.lost_usd_micros, left)
        found.append((allocation, spent))
        left -= spent
    explained = sum(spent for _, spent in found)
    booked = facts.booked_usd_micros + explained
    # As they will be once what was found is written: whoever sees it half written corrects by the same entry.
    entries = facts.entries + sum(spent > 0 for _, spent in found)
    corrections = _corrections(replace(facts, entries=entries), difference - explained, booked)
    return Settlement(found=tuple(found), corrections=corrections)


def _corrections(facts: ProviderDay, amount: int, booked: int) -> tuple[LedgerEntry, ...]:
    """An adjustment whose id is made of all that it follows from, so that the same facts correct once."""
    if not amount:
        return ()
    fact = f"{facts.account.replace('/', '~')}:{facts.day}:{facts.billed_usd_micros}:{booked}:{facts.entries}"
    at = datetime.combine(datetime.fromisoformat(facts.day), time(12), tzinfo=UTC)
    said = f"{facts.day}: billed {show_usd(facts.billed_usd_micros)}, booked {show_usd(booked)}"
    adjust = LedgerEntry(
        entry_id=f"bill:{fact}",
        kind=EntryKind.ADJUST,
        account=facts.account,
        also=facts.also,
        amount_usd_micros=amount,
        at=at,
        note=said,
    )
    known = booked or facts.lent_usd_micros or any(allocation.lost_usd_micros for allocation in facts.lost)
    orphan = facts.billed_usd_micros > 0 and not known
    off = amount if facts.bounded else abs(amount)
    drift = off > DRIFT_USD_MICROS and off > DRIFT_SHARE * facts.billed_usd_micros
    if not orphan and not drift:
        return (adjust,)
    why = "spending that nobody here asked for" if orphan else "the bill and the ledger drift apart"
    alarm = LedgerEntry(
        entry_id=f"drift:{fact}", kind=EntryKind.ALERT, account=facts.account, amount_usd_micros=0, at=at,
        note=f"{why}; {said}",
    )  # fmt: skip
    return (adjust, alarm)


def split(
    provider: str,
    day: str,
    bill: Bill,
    *,
    balances: Mapping[str, Balance],
    allocations: Sequence[Allocation],
    earlier: Sequence[Allocation] = (),
    rented: Sequence[LedgerEntry],
    final: bool,
) -> list[ProviderDay]:
    """A provider's day, part by part: each job whose instances its bill tells of, and then all the rest.

    Args:
        provider: Whose bill it is.
        day: In UTC.
        bill: Its instances are known by our label, or by the ids in the entries.
        balances: The day's, by account.
        leases: Those that were opened on the day, of any provider, in order.
        earlier: Those of rents of days before that are not settled: they may run into this day.
        rented: What was settled for instances on the day, of any provider.
        final: The bill will not change any more.
    """
    allocations = [allocation for allocation in allocations if provider_of(allocation) == provider]
    earlier = [allocation for allocation in earlier if provider_of(allocation) == provider]
    rented = [entry for entry in rented if provider_of(entry) == provider]
    told = _told(
        provider,
        bill,
        rented,
        [allocation for allocation in (*allocations, *earlier) if allocation.allocation_id.startswith(INSTANCE_PREFIX)],
    )

    def part(
        account: str, also: tuple[str, ...], billed: int, concerns: Callable[[Allocation], bool], *, apart: int = 0
    ) -> ProviderDay:
        balance, mine = balances.get(account), [allocation for allocation in allocations if concerns(allocation)]
        lent = [allocation for allocation in mine if not allocation.expired] + [
            allocation for allocation in earlier if concerns(allocation)
        ]
        return ProviderDay(
            account=account,
            also=also,
            day=day,
            billed_usd_micros=billed,
            booked_usd_micros=(balance.spent_usd_micros if balance else 0) - apart,
            entries=balance.entries if balance else 0,
            lost=tuple(allocation for allocation in mine if allocation.expired),
            lent_usd_micros=sum(
                max(0, allocation.granted_usd_micros - allocation.settled_usd_micros) for allocation in lent
            ),
            final=final,
            bounded=bool(also),
        )

    parts = [
        part(
            account,
            (f"job/{account.partition('/')[2]}",),
            billed,
            lambda allocation, account=account: allocation.account == account,  # type: ignore[misc]
        )
        for account, billed in sorted(told.items())
    ]
    rest = part(
        provider,
        (),
        bill.usd_micros - sum(told.values()),
        lambda allocation: allocation.account not in told,
        apart=sum(balances[account].spent_usd_micros for account in told if account in balances),
    )
    return [*parts, rest]


def _told(provider: str, bill: Bill, rented: Sequence[LedgerEntry], renting: Sequence[Allocation]) -> dict[str, int]:
    """What is charged for the instances of each job, by account, as far as the bill tells; a job's all or nothing."""
    by_instance = {entry.instance_id: entry.account for entry in rented if entry.instance_id}
    told: dict[str, int] = {}
    unclear = False
    for charge in bill.charges or ():
        if charge.label:
            account = f"{provider}/{job_of_label(charge.label)}"
        else:
            account = by_instance.get(charge.instance_id, "")
        if account:
            told[account] = told.get(account, 0) + charge.usd_micros
        unclear = unclear or not account
    if unclear:
        # What is nobody's we know may be of any instance whose name we do not know.
        nameless = {entry.account for entry in rented if not entry.instance_id} | {one.account for one in renting}
        return {account: micros for account, micros in told.items() if account not in nameless}
    if bill.charges is not None:
        # Each charge is somebody's, so who has none was not charged.
        return (
            dict.fromkeys([entry.account for entry in rented] + [allocation.account for allocation in renting], 0)
            | told
        )
    return told


def is_over(day: str, now: datetime, final_after: timedelta) -> bool:
    """Whether a day's bill is final: so long after its end."""
    end = datetime.combine(datetime.fromisoformat(day), time(0), tzinfo=UTC) + timedelta(days=1)
    return now >= end + final_after


def days_to_read(now: datetime) -> list[str]:
    """The days whose bills are worth reading, the oldest first."""
    return [f"{now.astimezone(UTC) - timedelta(days=back):%Y-%m-%d}" for back in reversed(range(DAYS))]


def provider_of(one: Allocation | LedgerEntry) -> str:
    """Whose bill will show what it spent."""
    return one.account.split("/")[0]


def untold(accounts: Sequence[Account], acted: frozenset[str]) -> list[ThresholdEvent]:
    """Crossings that were marked and of which nothing came: the event was lost, or is on its way.

    Args:
        accounts: As they are.
        acted: The ids of the latest actions; a crossing's is made of what it is.
    """
    found = []
    for account in accounts:
        for limit in account.limits:
            usage = account.usages.get(limit.period)
            if usage is None or not usage.told_percent:
                continue
            if action_id(account.name, usage.window, usage.told_percent / 100) not in acted:
                refused = max(0, limit.limit_usd_micros - usage.spent_usd_micros - usage.allocated_usd_micros)
                found.append(threshold_event(account.name, usage, limit, usage.told_percent, refused=refused))
    return found


def action_id(account: str, window: str, threshold: float) -> str:
    """The id of what follows from a crossing: one crossing acts once, however often it is told."""
    return f"budget:{account.replace('/', '~')}:{window}:{threshold:g}"


def forecast(spent_usd_micros: int, month: str, now: datetime) -> int:
    """A month's spending at its end, by the average of its time so far; a past month's is what it was."""
    start = datetime.fromisoformat(f"{month}-01").replace(tzinfo=UTC)
    end = (start + timedelta(days=32)).replace(day=1)
    if now >= end or now <= start:
        return spent_usd_micros
    # The first hours say little: an hour at the least is taken as having passed.
    passed = max((now - start).total_seconds(), 3600.0)
    return round(spent_usd_micros * (end - start).total_seconds() / passed)
