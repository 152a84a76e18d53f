"""How budgets are lent, so that none is ever overspent.

    limit ─┬─ spent    settled by borrowers, and what the dead may have spent
           ├─ leased   lent: settled and not told yet, reserved by requests under way, or spare
           └─ left     may still be lent

A borrower (an instance, or a job) reserves the worst case of each request from its lease and from nothing else, and
the ledger lends only what is left. So for every budget, at every instant: settled + reserved <= spent + leased <=
limit. Each function below is one step of the ledger, written in one commit that no other step can come between.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta

from goblin.billing.domain.accounts import Account, Lease, Limit, Period, Tally, Unreachable, windows_of
from goblin.billing.domain.accounts import resets_at as period_resets_at
from goblin.billing.domain.ledger import Action, Entry, EntryKind

LEASE_LIFE = timedelta(minutes=3)
LEASE_USD_MICROS_MAX = 5_000_000
"""The most that is spare in one lease, and so the most that one crash can hold up without a request under way."""
SHARES = 32
"""A lease's spare part is at most this part of what is left."""
NEAR_THE_LIMIT = 10
"""When less than this part of a limit is left, nothing spare is lent: only worst cases."""
THRESHOLDS_PERCENT = (50, 80, 95)
USED_UP_PERCENT = 100
USED_UP_FROM_PERCENT = 95
"""From here on a refusal means that the budget is used up; below, that the request was too large for what is left."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Ask:
    """What a borrower says and wants; the ledger takes its word for what it has used."""

    lease_id: str
    account: str
    also: tuple[str, ...] = ()
    seq: int
    """From 1; the same for each retry of the same exchange."""
    used_usd_micros: int
    """All that it settled on this lease and has reserved now."""
    need_usd_micros: int = 0
    """Worst case of the request that waits."""
    want_usd_micros: int = 0
    """Spare money that would save it further exchanges."""
    still: bool = False
    """Nothing is reserved from the lease until the answer is here, so it may shrink; otherwise it may only grow."""
    close: bool = False
    """It is done with the lease; ignored while anything is reserved or not yet written as an entry."""
    expires_at: datetime | None = None
    """When it counts as dead unless it is heard of again; None: after `LEASE_LIFE`."""
    budgeted: bool = False
    """Nothing is lent where no budget limits it: who rents machines for hours must have been told how much."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Shortage:
    """Which budget does not cover it."""

    account: str
    period: Period
    limit_usd_micros: int
    left_usd_micros: int
    need_usd_micros: int
    resets_at: datetime | None
    unset: bool = False
    """There is no budget at all, and there must be one."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Crossing:
    """A budget has passed a threshold in this very step."""

    account: str
    window: str
    percent: int
    spent_usd_micros: int
    reserved_usd_micros: int
    limit_usd_micros: int
    action: Action


@dataclass(frozen=True, kw_only=True, slots=True)
class Step:
    """What one commit writes."""

    accounts: tuple[Account, ...] = ()
    """As they are from now on; none of them is written when this is empty."""
    lease: Lease | None = None
    """As it is from now on; None: there is none any more."""
    entries: tuple[Entry, ...] = ()
    shortage: Shortage | None = None
    """Why the need is not met; what was lent and not used went back in this step."""
    crossings: tuple[Crossing, ...] = ()
    near: bool = False
    """So little is left that nothing spare is lent; what is not needed should come back at once."""
    strict: bool = True
    """While the ledger is silent nothing is spent of it: one of its budgets says so."""
    writes: bool = True
    """False when the step was made before, or there is nothing to do."""


def exchange(ask: Ask, lease: Lease | None, accounts: Sequence[Account], *, now: datetime) -> Step:
    """Open, renew, shrink or close a lease.

    Args:
        ask: The borrower's word.
        lease: As it is stored; None when there is none.
        accounts: One for each that the ask names.
        now: The borrower's clock; when it is behind the accounts', theirs holds.

    Returns:
        A step whose lease is None when the lease is gone, which a borrower that has one must take for: it expired.
    """
    if lease is None and ask.seq > 1:
        return Step(writes=False)
    if lease is not None and (lease.expired or lease.seq >= ask.seq):
        return Step(lease=None if lease.expired else lease, writes=False)
    windows = _windows(accounts, now)
    if lease is None:
        lease = Lease(lease_id=ask.lease_id, account=ask.account, also=ask.also, windows=windows, expires_at=now)
    turned = any(lease.windows[period] != window for period, window in windows.items())
    accounts = [_count(_turn(account, windows), lease) for account in accounts]
    lease = replace(lease, counted_usd_micros=lease.settled_usd_micros)

    used = max(ask.used_usd_micros, lease.settled_usd_micros)
    room, near, tightest = _room(accounts, spare=lease.granted_usd_micros - used)
    need = ask.need_usd_micros
    shortage = None
    if need and ask.budgeted and tightest is None:
        shortage, keep = _unset(ask), 0
    elif need > room or (turned and need):
        shortage = _shortage(tightest, room, need, now) if tightest is not None else None
        keep = 0
    elif ask.close or turned:
        keep = 0
    else:
        keep = max(need, 0 if near else min(ask.want_usd_micros, LEASE_USD_MICROS_MAX, room // SHARES))
    granted = used + keep if ask.still else max(used + keep, lease.granted_usd_micros)
    change = granted - lease.granted_usd_micros
    lease = replace(lease, granted_usd_micros=granted, seq=ask.seq, expires_at=ask.expires_at or now + LEASE_LIFE)
    accounts = [_move(account, lease, spent=0, leased=change) for account in accounts]
    closed = ask.still and ask.close and used == lease.settled_usd_micros
    told, crossings = _announce(accounts, refused=shortage)
    return Step(
        accounts=told,
        lease=None if closed else lease,
        entries=_lending(lease, f"{lease.lease_id}:{ask.seq}", change, now),
        shortage=shortage,
        crossings=crossings,
        near=near,
        strict=any(limit.unreachable is Unreachable.REFUSE for account in accounts for limit in account.limits),
    )


def expire(lease: Lease, accounts: Sequence[Account], *, now: datetime) -> Step:
    """Count all of a silent borrower's lease as spent; what it settles later comes out of that."""
    if lease.expired or now < lease.expires_at:
        return Step(lease=lease, writes=False)
    windows = _windows(accounts, now)
    spent = max(lease.granted_usd_micros, lease.settled_usd_micros)
    leased = lease.granted_usd_micros - lease.counted_usd_micros
    accounts = [
        _move(_turn(account, windows), lease, spent=spent - lease.counted_usd_micros, leased=-leased)
        for account in accounts
    ]
    lease = replace(lease, expired=True, granted_usd_micros=spent, counted_usd_micros=spent)
    told, crossings = _announce(accounts)
    entry = _entry(EntryKind.EXPIRE, lease, f"{lease.lease_id}:expire", lease.lost_usd_micros, now)
    return Step(accounts=told, lease=lease, entries=(entry,), crossings=crossings)


def resolve(lease: Lease, accounts: Sequence[Account], *, spent_usd_micros: int, now: datetime) -> Step:
    """Replace what an expired lease may have spent by what it did.

    Args:
        spent_usd_micros: Of what it lost; the rest goes back to the budgets whose windows are not over.
    """
    if not lease.expired:
        return Step(lease=lease, writes=False)
    found = min(lease.lost_usd_micros, spent_usd_micros)
    windows = _windows(accounts, now)
    # It was counted as spent up to what was granted.
    change = lease.settled_usd_micros + found - lease.counted_usd_micros
    accounts = [_move(_turn(account, windows), lease, spent=change, leased=0) for account in accounts]
    told, crossings = _announce(accounts)
    entries = [_entry(EntryKind.RELEASE, lease, f"{lease.lease_id}:resolve", lease.lost_usd_micros - found, now)]
    if found:
        entries.append(_entry(EntryKind.SETTLE, lease, f"{lease.lease_id}:found", found, noon_of(lease)))
    return Step(accounts=told, lease=None, entries=tuple(entries), crossings=crossings)


def noon_of(lease: Lease) -> datetime:
    """An instant on the day that a lease was opened, for what is found later to count in its windows."""
    return datetime.fromisoformat(lease.windows[Period.DAY]).replace(hour=12, tzinfo=UTC)


def book(entry: Entry, accounts: Sequence[Account], *, now: datetime) -> Step:
    """Count an entry that no lease covers: a bill's correction, a credit, or a settlement that came too late.

    It is a fact and may take a budget over its limit; then nothing is lent until there is room again.
    """
    windows, said = _windows(accounts, now), windows_of(entry.at)
    changed = []
    for account in accounts:
        turned = _turn(account, windows)
        tallies = {
            period: replace(tally, spent_usd_micros=tally.spent_usd_micros + entry.spent_usd_micros)
            if tally.window == said[period]
            else tally
            for period, tally in turned.tallies.items()
        }
        changed.append(replace(turned, tallies=tallies))
    told, crossings = _announce(changed)
    return Step(accounts=told, entries=(entry,), crossings=crossings)


def _windows(accounts: Sequence[Account], now: datetime) -> dict[Period, str]:
    """The present windows by the latest clock that any account has seen: windows never turn back."""
    windows = windows_of(now)
    for account in accounts:
        for period, tally in account.tallies.items():
            windows[period] = max(windows[period], tally.window)
    return windows


def _turn(account: Account, windows: Mapping[Period, str]) -> Account:
    """The account with new tallies where a window is over."""
    tallies = {}
    for period, window in windows.items():
        tally = account.tallies.get(period)
        tallies[period] = tally if tally is not None and tally.window == window else Tally(window=window)
    return replace(account, tallies=tallies)


def _count(account: Account, lease: Lease) -> Account:
    """Move what a lease's entries say was spent from leased to spent."""
    moved = lease.settled_usd_micros - lease.counted_usd_micros
    return _move(account, lease, spent=moved, leased=-moved)


def _move(account: Account, lease: Lease, *, spent: int, leased: int) -> Account:
    """Change the tallies that the lease was opened in; those of later windows are not concerned."""
    tallies = {
        period: replace(
            tally,
            spent_usd_micros=tally.spent_usd_micros + spent,
            leased_usd_micros=tally.leased_usd_micros + leased,
        )
        if tally.window == lease.windows[period]
        else tally
        for period, tally in account.tallies.items()
    }
    return replace(account, tallies=tallies)


def _room(accounts: Sequence[Account], spare: int) -> tuple[int, bool, tuple[Account, Limit] | None]:
    """What may be lent with what is spare already, whether that is near a limit, and the tightest limit."""
    room, near, tightest = LEASE_USD_MICROS_MAX * SHARES, False, None
    unlimited = True
    for account in accounts:
        for limit in account.limits:
            tally = account.tallies[limit.period]
            left = limit.limit_usd_micros - tally.spent_usd_micros - tally.leased_usd_micros + spare
            near = near or left * NEAR_THE_LIMIT < limit.limit_usd_micros
            if unlimited or left < room:
                room, tightest, unlimited = left, (account, limit), False
    return room, near, tightest


def _unset(ask: Ask) -> Shortage:
    return Shortage(
        account=ask.account, period=Period.LIFETIME, limit_usd_micros=0, left_usd_micros=0,
        need_usd_micros=ask.need_usd_micros, resets_at=None, unset=True,
    )  # fmt: skip


def _shortage(tightest: tuple[Account, Limit], room: int, need: int, now: datetime) -> Shortage:
    account, limit = tightest
    return Shortage(
        account=account.name,
        period=limit.period,
        limit_usd_micros=limit.limit_usd_micros,
        left_usd_micros=max(0, room),
        need_usd_micros=need,
        resets_at=period_resets_at(limit.period, now),
    )


def _announce(
    accounts: Sequence[Account], *, refused: Shortage | None = None
) -> tuple[tuple[Account, ...], tuple[Crossing, ...]]:
    """Mark the thresholds that were passed, each once in its window."""
    marked, crossings = [], []
    for account in accounts:
        tallies = dict(account.tallies)
        for limit in account.limits:
            tally = tallies[limit.period]
            short = refused is not None and (refused.account, refused.period) == (account.name, limit.period)
            percent = _passed(tally, limit, short=short)
            if percent <= tally.told_percent:
                continue
            tallies[limit.period] = replace(tally, told_percent=percent)
            crossings.append(
                crossing(
                    account.name, tally, limit, percent, refused=refused.need_usd_micros if refused and short else 0
                )
            )
        marked.append(replace(account, tallies=tallies))
    return tuple(marked), tuple(crossings)


def crossing(account: str, tally: Tally, limit: Limit, percent: int, *, refused: int = 0) -> Crossing:
    """What is announced of a threshold; what was refused counts with what is reserved: together they are too much."""
    return Crossing(
        account=account,
        window=tally.window,
        percent=percent,
        spent_usd_micros=tally.spent_usd_micros,
        reserved_usd_micros=tally.leased_usd_micros + refused,
        limit_usd_micros=limit.limit_usd_micros,
        action=limit.action,
    )


def _passed(tally: Tally, limit: Limit, *, short: bool) -> int:
    def at_least(percent: int) -> bool:
        return tally.spent_usd_micros * 100 >= limit.limit_usd_micros * percent

    if at_least(USED_UP_PERCENT) or (short and at_least(USED_UP_FROM_PERCENT)):
        return USED_UP_PERCENT
    return max((percent for percent in THRESHOLDS_PERCENT if at_least(percent)), default=0)


def _lending(lease: Lease, entry_id: str, change: int, now: datetime) -> tuple[Entry, ...]:
    if not change:
        return ()
    kind = EntryKind.RESERVE if change > 0 else EntryKind.RELEASE
    return (_entry(kind, lease, entry_id, abs(change), now),)


def _entry(kind: EntryKind, lease: Lease, entry_id: str, amount: int, at: datetime) -> Entry:
    return Entry(entry_id=entry_id, kind=kind, account=lease.account, also=lease.also, amount_usd_micros=amount, at=at)
