"""Our ledger against a provider's bill: what the dead spent, what we counted wrong, and when a person must look."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, time, timedelta
from decimal import Decimal

from goblin.domain.accounts import Account, Lease
from goblin.domain.money import Entry, EntryKind, show_usd
from goblin.policy.spending import Crossing, crossing

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
class Day:
    """One provider's day, as both sides know it."""

    provider: str
    day: str
    billed_usd_micros: int
    booked_usd_micros: int
    """The balance of its account, corrections included."""
    lost: tuple[Lease, ...] = ()
    """Expired leases of that day, in order."""
    lent_usd_micros: int = 0
    """What living leases of that day have not written yet."""
    final: bool
    """The bill will not change any more."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Settlement:
    """What follows."""

    found: tuple[tuple[Lease, int], ...] = ()
    """What each of the lost leases really spent."""
    corrections: tuple[Entry, ...] = ()
    """To be recorded after those: an adjustment, and an alarm."""


def settle_day(facts: Day) -> Settlement:
    """Bring the ledger to the bill.

    While a bill may still grow nothing is taken back, and only what goes beyond everything we know of is added.
    """
    difference = facts.billed_usd_micros - facts.booked_usd_micros
    lost = sum(lease.lost_usd_micros for lease in facts.lost)
    if not facts.final:
        beyond = max(0, difference - lost - facts.lent_usd_micros)
        return Settlement(corrections=_corrections(facts, beyond, facts.booked_usd_micros))
    left, found = max(0, difference), []
    for lease in facts.lost:
        spent = min(lease.lost_usd_micros, left)
        found.append((lease, spent))
        left -= spent
    explained = sum(spent for _, spent in found)
    booked = facts.booked_usd_micros + explained
    return Settlement(found=tuple(found), corrections=_corrections(facts, difference - explained, booked))


def _corrections(facts: Day, amount: int, booked: int) -> tuple[Entry, ...]:
    """An adjustment whose id is made of all that it follows from, so that the same facts correct once."""
    if not amount:
        return ()
    fact = f"{facts.provider}:{facts.day}:{facts.billed_usd_micros}:{booked}"
    at = datetime.combine(datetime.fromisoformat(facts.day), time(12), tzinfo=UTC)
    said = f"{facts.day}: billed {show_usd(facts.billed_usd_micros)}, booked {show_usd(booked)}"
    adjust = Entry(
        entry_id=f"bill:{fact}",
        kind=EntryKind.ADJUST,
        account=facts.provider,
        amount_usd_micros=amount,
        at=at,
        note=said,
    )
    orphan = facts.billed_usd_micros > 0 and not booked and not facts.lost
    drift = abs(amount) > DRIFT_USD_MICROS and abs(amount) > DRIFT_SHARE * facts.billed_usd_micros
    if not orphan and not drift:
        return (adjust,)
    why = "spending that nobody here asked for" if orphan else "the bill and the ledger drift apart"
    alarm = Entry(
        entry_id=f"drift:{fact}", kind=EntryKind.ALERT, account=facts.provider, amount_usd_micros=0, at=at,
        note=f"{why}; {said}",
    )  # fmt: skip
    return (adjust, alarm)


def is_over(day: str, now: datetime, final_after: timedelta) -> bool:
    """Whether a day's bill is final: so long after its end."""
    end = datetime.combine(datetime.fromisoformat(day), time(0), tzinfo=UTC) + timedelta(days=1)
    return now >= end + final_after


def days_to_read(now: datetime) -> list[str]:
    """The days whose bills are worth reading, the oldest first."""
    return [f"{now.astimezone(UTC) - timedelta(days=back):%Y-%m-%d}" for back in reversed(range(DAYS))]


def provider_of(lease: Lease) -> str:
    """Whose bill will show what it spent."""
    return lease.account.split("/")[0]


def untold(accounts: Sequence[Account], acted: frozenset[str]) -> list[Crossing]:
    """Crossings that were marked and of which nothing came: the event was lost, or is on its way.

    Args:
        accounts: As they are.
        acted: The ids of the latest actions; a crossing's is made of what it is.
    """
    found = []
    for account in accounts:
        for limit in account.limits:
            tally = account.tallies.get(limit.period)
            if tally is None or not tally.told_percent:
                continue
            if action_id(account.name, tally.window, tally.told_percent / 100) not in acted:
                refused = max(0, limit.limit_usd_micros - tally.spent_usd_micros - tally.leased_usd_micros)
                found.append(crossing(account.name, tally, limit, tally.told_percent, refused=refused))
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
