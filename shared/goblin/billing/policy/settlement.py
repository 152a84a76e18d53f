"""Our ledger against a provider's bill: spend of expired allocations, corrections, and alarms for a person."""

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
"""Share of a bill. A difference beyond that, and beyond a cent, raises an alarm for a person."""
DRIFT_USD_MICROS = 10_000
GRACE = timedelta(minutes=2)
"""Time after which an allocation past its end is expired: clocks differ."""
BELIEVED_AFTER = timedelta(days=3)
"""Time after the end of a day after which expired allocations without a bill count as fully spent."""
DAYS = 3
"""Days whose bills are read: today, and those before whose bills may still have changed."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ProviderDay:
    """One account's day in our ledger and in the bill. The account is a provider's, or a job's below it."""

    account: str
    also: tuple[str, ...] = ()
    """Further accounts that a correction counts in."""
    day: str
    billed_usd_micros: int
    booked_usd_micros: int
    """The balance of the account, corrections included."""
    entries: int = 0
    """Number of entries in the balance. It grows with each change, so no two states of a day look the same."""
    lost: tuple[Allocation, ...] = ()
    """Expired allocations of that day, in order."""
    lent_usd_micros: int = 0
    """What open allocations of that day hold and have not written as spent yet."""
    final: bool
    """Whether the bill will not change any more."""
    bounded: bool = False
    """Whether the booked amount is an upper bound, as for instances. Then a smaller bill raises no alarm."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Settlement:
    """The outcome of comparing one day with its bill."""

    found: tuple[tuple[Allocation, int], ...] = ()
    """What each expired allocation really spent."""
    corrections: tuple[LedgerEntry, ...] = ()
    """Entries to record after those are resolved: an adjustment, and perhaps an alarm."""

    @property
    def adds_usd_micros(self) -> int:
        """The amount by which the corrections change what is booked."""
        return sum(entry.amount_usd_micros for entry in self.corrections)


def settle_day(facts: ProviderDay) -> Settlement:
    """Decide how the ledger must change to match the bill.

    While a bill may still grow, nothing is taken back. Only an amount beyond everything that the ledger knows is added.
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
    # The count after these amounts are written. A run that sees them half written makes the same correction entry.
    entries = facts.entries + sum(spent > 0 for _, spent in found)
    corrections = _corrections(replace(facts, entries=entries), difference - explained, booked)
    return Settlement(found=tuple(found), corrections=corrections)


def _corrections(facts: ProviderDay, amount: int, booked: int) -> tuple[LedgerEntry, ...]:
    """Build the adjustment. Its id is made of all facts behind it, so that the same facts correct once."""
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
    why = "spending that is unknown to the ledger" if orphan else "the bill and the ledger differ too much"
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
    """Split a provider's day into parts: one for each job whose instances the bill lists, and one for all the rest.

    Args:
        provider: The provider that sent the bill.
        day: In UTC.
        bill: Its instances are matched by our label, or by the ids in the entries.
        balances: The day's balances, by account.
        allocations: Those that were opened on the day, of any provider, in order.
        earlier: Allocations of instances from days before that are not settled. They may run into this day.
        rented: Settlements of instances on the day, of any provider.
        final: Whether the bill will not change any more.
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

    # Who else pays for a job, for example the key that asked for it, is on what was written of its instances.
    also = {one.account: one.also for one in (*earlier, *allocations) if one.allocation_id.startswith(INSTANCE_PREFIX)}
    also |= {entry.account: entry.also for entry in rented}
    parts = [
        part(
            account,
            also.get(account) or (f"job/{account.partition('/')[2]}",),
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
    """Sum the charges for each job's instances, by account. A job is listed with all of its charges, or not at all."""
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
        # A charge that we cannot assign may belong to any instance whose provider id we do not know.
        nameless = {entry.account for entry in rented if not entry.instance_id} | {one.account for one in renting}
        return {account: micros for account, micros in told.items() if account not in nameless}
    if bill.charges is not None:
        # Every charge is assigned, so an account without a charge was not charged.
        return (
            dict.fromkeys([entry.account for entry in rented] + [allocation.account for allocation in renting], 0)
            | told
        )
    return told


def is_over(day: str, now: datetime, final_after: timedelta) -> bool:
    """Tell whether a day's bill is final: `final_after` has passed since the end of the day."""
    end = datetime.combine(datetime.fromisoformat(day), time(0), tzinfo=UTC) + timedelta(days=1)
    return now >= end + final_after


def days_to_read(now: datetime) -> list[str]:
    """List the days whose bills are worth reading, the oldest first."""
    return [f"{now.astimezone(UTC) - timedelta(days=back):%Y-%m-%d}" for back in reversed(range(DAYS))]


def provider_of(one: Allocation | LedgerEntry) -> str:
    """Return the provider whose bill shows what an allocation or entry spent."""
    return one.account.split("/")[0]


def untold(accounts: Sequence[Account], acted: frozenset[str]) -> list[ThresholdEvent]:
    """List the threshold events that were marked without an action so far: the message was lost, or is on its way.

    Args:
        accounts: The accounts now.
        acted: The ids of the latest actions; see `action_id`.
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
    """Return the id of the action that follows from a threshold event: it acts once, however often it is announced."""
    return f"budget:{account.replace('/', '~')}:{window}:{threshold:g}"


def forecast(spent_usd_micros: int, month: str, now: datetime) -> int:
    """Forecast a month's spending at its end, at its average rate so far; a past month's is its actual spending."""
    start = datetime.fromisoformat(f"{month}-01").replace(tzinfo=UTC)
    end = (start + timedelta(days=32)).replace(day=1)
    if now >= end or now <= start:
        return spent_usd_micros
    # The first minutes say little: at least an hour counts as having passed.
    passed = max((now - start).total_seconds(), 3600.0)
    return round(spent_usd_micros * (end - start).total_seconds() / passed)
