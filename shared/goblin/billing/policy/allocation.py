"""How budgets are allocated, so that none is ever overspent.

    limit ─┬─ spent      settled by holders, and all of expired allocations
           ├─ allocated  settled but not reported yet, reserved by requests in flight, or spare
           └─ left       may still be allocated

A holder (a process, or a rented instance) reserves the worst case of each request from its allocation and from nothing
else, and the ledger allocates only what is left. So for every budget, at every instant: settled + reserved <= spent +
allocated <= limit. Each function below is one step of the ledger, written in one atomic commit.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta

from goblin.billing.domain.accounts import Account, Allocation, BudgetUsage, Limit, Period, WhenUnreachable, windows_of
from goblin.billing.domain.accounts import resets_at as period_resets_at
from goblin.billing.domain.ledger import BudgetAction, EntryKind, LedgerEntry

ALLOCATION_LIFE = timedelta(minutes=3)
ALLOCATION_USD_MICROS_MAX = 5_000_000
"""The most that is spare in one allocation: the most that one crash can hold back without a request in flight."""
SHARES = 32
"""The spare part of an allocation is at most one SHARES-th of what is left."""
NEAR_THE_LIMIT = 10
"""When less than one tenth of a limit is left, nothing spare is allocated, only worst cases."""
THRESHOLDS_PERCENT = (50, 80, 95)
USED_UP_PERCENT = 100
USED_UP_FROM_PERCENT = 95
"""From this share on, a refusal means that the budget is used up. Below it, the request was too large for the rest."""


@dataclass(frozen=True, kw_only=True, slots=True)
class AllocationRequest:
    """What a holder reports and needs. The ledger trusts its report of what it has used."""

    allocation_id: str
    account: str
    also: tuple[str, ...] = ()
    seq: int
    """From 1; the same for each retry of the same exchange."""
    used_usd_micros: int
    """All that it settled on this allocation and has reserved now."""
    need_usd_micros: int = 0
    """Worst case of the request that waits."""
    want_usd_micros: int = 0
    """Spare money that would save further exchanges."""
    may_shrink: bool = False
    """Whether the allocation may shrink, because the holder reserves nothing until the answer is here. Otherwise it may
    only grow."""
    close: bool = False
    """Whether the holder is done with the allocation. Ignored while anything is reserved or not yet written as an
    entry."""
    expires_at: datetime | None = None
    """When the allocation expires without another exchange; None: after `ALLOCATION_LIFE`."""
    budget_required: bool = False
    """Whether nothing is allocated unless some budget limits it, as for instances that are rented for hours."""


@dataclass(frozen=True, kw_only=True, slots=True)
class InsufficientBudget:
    """The budget that does not cover a need."""

    account: str
    period: Period
    limit_usd_micros: int
    left_usd_micros: int
    need_usd_micros: int
    resets_at: datetime | None
    unset: bool = False
    """Whether there is no budget at all, and one is required."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ThresholdEvent:
    """A threshold that a budget has passed in this step."""

    account: str
    window: str
    percent: int
    spent_usd_micros: int
    reserved_usd_micros: int
    limit_usd_micros: int
    action: BudgetAction


@dataclass(frozen=True, kw_only=True, slots=True)
class AllocationResult:
    """What one commit writes."""

    accounts: tuple[Account, ...] = ()
    """The accounts after the step. Empty: no account is written."""
    allocation: Allocation | None = None
    """The allocation after the step; None: it is gone."""
    entries: tuple[LedgerEntry, ...] = ()
    insufficient: InsufficientBudget | None = None
    """Why the need is not met. The unused part of the allocation went back in this step."""
    threshold_events: tuple[ThresholdEvent, ...] = ()
    near_limit: bool = False
    """Whether so little is left that nothing spare is allocated. Spare money should be given back at once."""
    refuse_when_unreachable: bool = True
    """Whether nothing may be spent from it while the ledger does not answer, because one of its budgets says so."""
    writes: bool = True
    """Whether the step changes anything. False: it was made before, or there is nothing to do."""


def exchange(
    request: AllocationRequest, allocation: Allocation | None, accounts: Sequence[Account], *, now: datetime
) -> AllocationResult:
    """Open, renew, shrink or close an allocation.

    Args:
        request: The holder's report and needs.
        allocation: As stored; None when there is none.
        accounts: One for each account that the request names.
        now: The holder's clock. When the windows of the accounts are ahead of it, they hold.

    Returns:
        A step whose allocation is None when it is gone. A holder that has one must conclude that it expired.
    """
    if allocation is None and request.seq > 1:
        return AllocationResult(writes=False)
    if allocation is not None and (allocation.expired or allocation.seq >= request.seq):
        return AllocationResult(allocation=None if allocation.expired else allocation, writes=False)
    windows = _windows(accounts, now)
    if allocation is None:
        allocation = Allocation(
            allocation_id=request.allocation_id,
            account=request.account,
            also=request.also,
            windows=windows,
            expires_at=now,
        )
    turned = any(allocation.windows[period] != window for period, window in windows.items())
    accounts = [_count(_turn(account, windows), allocation) for account in accounts]
    allocation = replace(allocation, counted_usd_micros=allocation.settled_usd_micros)

    used = max(request.used_usd_micros, allocation.settled_usd_micros)
    room, near_limit, tightest = _room(accounts, spare=allocation.granted_usd_micros - used)
    need = request.need_usd_micros
    insufficient = None
    if need and request.budget_required and tightest is None:
        insufficient, keep = _unset(request), 0
    elif need > room or (turned and need):
        insufficient = _insufficient(tightest, room, need, now) if tightest is not None else None
        keep = 0
    elif request.close or turned:
        keep = 0
    else:
        keep = max(need, 0 if near_limit else min(request.want_usd_micros, ALLOCATION_USD_MICROS_MAX, room // SHARES))
    granted = used + keep if request.may_shrink else max(used + keep, allocation.granted_usd_micros)
    change = granted - allocation.granted_usd_micros
    allocation = replace(
        allocation, granted_usd_micros=granted, seq=request.seq, expires_at=request.expires_at or now + ALLOCATION_LIFE
    )
    accounts = [_move(account, allocation, spent=0, allocated=change) for account in accounts]
    closed = request.may_shrink and request.close and used == allocation.settled_usd_micros
    told, threshold_events = _announce(accounts, refused=insufficient)
    return AllocationResult(
        accounts=told,
        allocation=None if closed else allocation,
        entries=_lending(allocation, f"{allocation.allocation_id}:{request.seq}", change, now),
        insufficient=insufficient,
        threshold_events=threshold_events,
        near_limit=near_limit,
        refuse_when_unreachable=any(
            limit.unreachable is WhenUnreachable.REFUSE for account in accounts for limit in account.limits
        ),
    )


def expire(allocation: Allocation, accounts: Sequence[Account], *, now: datetime) -> AllocationResult:
    """Count all of an expired allocation as spent. What its holder settles later comes out of that."""
    if allocation.expired or now < allocation.expires_at:
        return AllocationResult(allocation=allocation, writes=False)
    windows = _windows(accounts, now)
    spent = max(allocation.granted_usd_micros, allocation.settled_usd_micros)
    allocated = allocation.granted_usd_micros - allocation.counted_usd_micros
    accounts = [
        _move(_turn(account, windows), allocation, spent=spent - allocation.counted_usd_micros, allocated=-allocated)
        for account in accounts
    ]
    allocation = replace(allocation, expired=True, granted_usd_micros=spent, counted_usd_micros=spent)
    told, threshold_events = _announce(accounts)
    entry = _entry(EntryKind.EXPIRE, allocation, f"{allocation.allocation_id}:expire", allocation.lost_usd_micros, now)
    return AllocationResult(accounts=told, allocation=allocation, entries=(entry,), threshold_events=threshold_events)


def resolve(
    allocation: Allocation, accounts: Sequence[Account], *, spent_usd_micros: int, now: datetime
) -> AllocationResult:
    """Replace what an expired allocation may have spent by what it really spent.

    Args:
        allocation: Unless it is expired, nothing is done.
        accounts: One for each of its accounts.
        spent_usd_micros: The part of its lost amount that was spent. The rest goes back to the budgets whose windows
            are not over.
        now: Aware UTC.
    """
    if not allocation.expired:
        return AllocationResult(allocation=allocation, writes=False)
    found = min(allocation.lost_usd_micros, spent_usd_micros)
    windows = _windows(accounts, now)
    # It counted as spent up to the granted amount.
    change = allocation.settled_usd_micros + found - allocation.counted_usd_micros
    accounts = [_move(_turn(account, windows), allocation, spent=change, allocated=0) for account in accounts]
    told, threshold_events = _announce(accounts)
    entries = [
        _entry(
            EntryKind.RELEASE,
            allocation,
            f"{allocation.allocation_id}:resolve",
            allocation.lost_usd_micros - found,
            now,
        )
    ]
    if found:
        entries.append(
            _entry(EntryKind.SETTLE, allocation, f"{allocation.allocation_id}:found", found, noon_of(allocation))
        )
    return AllocationResult(accounts=told, allocation=None, entries=tuple(entries), threshold_events=threshold_events)


def noon_of(allocation: Allocation) -> datetime:
    """Return noon of the day on which an allocation was opened, so that late findings count in its windows."""
    return datetime.fromisoformat(allocation.windows[Period.DAY]).replace(hour=12, tzinfo=UTC)


def record_entry(entry: LedgerEntry, accounts: Sequence[Account], *, now: datetime) -> AllocationResult:
    """Count an entry that no allocation covers: a bill's correction, a credit, or a settlement that came too late.

    It is a fact and may take a budget over its limit. Then nothing is allocated until there is room again.
    """
    windows, said = _windows(accounts, now), windows_of(entry.at)
    changed = []
    for account in accounts:
        turned = _turn(account, windows)
        usages = {
            period: replace(usage, spent_usd_micros=usage.spent_usd_micros + entry.spent_usd_micros)
            if usage.window == said[period]
            else usage
            for period, usage in turned.usages.items()
        }
        changed.append(replace(turned, usages=usages))
    told, threshold_events = _announce(changed)
    return AllocationResult(accounts=told, entries=(entry,), threshold_events=threshold_events)


def _windows(accounts: Sequence[Account], now: datetime) -> dict[Period, str]:
    """Return the current windows by the latest clock that any account has seen: windows never go back."""
    windows = windows_of(now)
    for account in accounts:
        for period, usage in account.usages.items():
            windows[period] = max(windows[period], usage.window)
    return windows


def _turn(account: Account, windows: Mapping[Period, str]) -> Account:
    """Return the account with a new usage for each window that is over."""
    usages = {}
    for period, window in windows.items():
        usage = account.usages.get(period)
        usages[period] = usage if usage is not None and usage.window == window else BudgetUsage(window=window)
    return replace(account, usages=usages)


def _count(account: Account, allocation: Allocation) -> Account:
    """Move what an allocation's entries say was spent from allocated to spent."""
    moved = allocation.settled_usd_micros - allocation.counted_usd_micros
    return _move(account, allocation, spent=moved, allocated=-moved)


def _move(account: Account, allocation: Allocation, *, spent: int, allocated: int) -> Account:
    """Change the usage of the windows in which the allocation was opened, not of later ones."""
    usages = {
        period: replace(
            usage,
            spent_usd_micros=usage.spent_usd_micros + spent,
            allocated_usd_micros=usage.allocated_usd_micros + allocated,
        )
        if usage.window == allocation.windows[period]
        else usage
        for period, usage in account.usages.items()
    }
    return replace(account, usages=usages)


def _room(accounts: Sequence[Account], spare: int) -> tuple[int, bool, tuple[Account, Limit] | None]:
    """Return what may be allocated, spare money included, whether that is near a limit, and the tightest limit."""
    room, near_limit, tightest = ALLOCATION_USD_MICROS_MAX * SHARES, False, None
    unlimited = True
    for account in accounts:
        for limit in account.limits:
            usage = account.usages[limit.period]
            left = limit.limit_usd_micros - usage.spent_usd_micros - usage.allocated_usd_micros + spare
            near_limit = near_limit or left * NEAR_THE_LIMIT < limit.limit_usd_micros
            if unlimited or left < room:
                room, tightest, unlimited = left, (account, limit), False
    return room, near_limit, tightest


def _unset(request: AllocationRequest) -> InsufficientBudget:
    return InsufficientBudget(
        account=request.account, period=Period.LIFETIME, limit_usd_micros=0, left_usd_micros=0,
        need_usd_micros=request.need_usd_micros, resets_at=None, unset=True,
    )  # fmt: skip


def _insufficient(tightest: tuple[Account, Limit], room: int, need: int, now: datetime) -> InsufficientBudget:
    account, limit = tightest
    return InsufficientBudget(
        account=account.name,
        period=limit.period,
        limit_usd_micros=limit.limit_usd_micros,
        left_usd_micros=max(0, room),
        need_usd_micros=need,
        resets_at=period_resets_at(limit.period, now),
    )


def _announce(
    accounts: Sequence[Account], *, refused: InsufficientBudget | None = None
) -> tuple[tuple[Account, ...], tuple[ThresholdEvent, ...]]:
    """Mark the thresholds that were passed, each once per window, and return their events."""
    marked, threshold_events = [], []
    for account in accounts:
        usages = dict(account.usages)
        for limit in account.limits:
            usage = usages[limit.period]
            short = refused is not None and (refused.account, refused.period) == (account.name, limit.period)
            percent = _passed(usage, limit, short=short)
            if percent <= usage.told_percent:
                continue
            usages[limit.period] = replace(usage, told_percent=percent)
            threshold_events.append(
                threshold_event(
                    account.name, usage, limit, percent, refused=refused.need_usd_micros if refused and short else 0
                )
            )
        marked.append(replace(account, usages=usages))
    return tuple(marked), tuple(threshold_events)


def threshold_event(
    account: str, usage: BudgetUsage, limit: Limit, percent: int, *, refused: int = 0
) -> ThresholdEvent:
    """Build a threshold event. A refused amount counts as reserved, because together they exceed the limit."""
    return ThresholdEvent(
        account=account,
        window=usage.window,
        percent=percent,
        spent_usd_micros=usage.spent_usd_micros,
        reserved_usd_micros=usage.allocated_usd_micros + refused,
        limit_usd_micros=limit.limit_usd_micros,
        action=limit.action,
    )


def passed_percent(usage: BudgetUsage, limit: Limit) -> int:
    """Return the highest threshold that a budget has passed, in percent; 0: none.

    That it was refused something shows only in what was announced, which may be of a limit that was raised since.
    """
    return _passed(usage, limit, short=usage.told_percent >= USED_UP_PERCENT)


def _passed(usage: BudgetUsage, limit: Limit, *, short: bool) -> int:
    def at_least(percent: int) -> bool:
        return usage.spent_usd_micros * 100 >= limit.limit_usd_micros * percent

    if at_least(USED_UP_PERCENT) or (short and at_least(USED_UP_FROM_PERCENT)):
        return USED_UP_PERCENT
    return max((percent for percent in THRESHOLDS_PERCENT if at_least(percent)), default=0)


def _lending(allocation: Allocation, entry_id: str, change: int, now: datetime) -> tuple[LedgerEntry, ...]:
    if not change:
        return ()
    kind = EntryKind.RESERVE if change > 0 else EntryKind.RELEASE
    return (_entry(kind, allocation, entry_id, abs(change), now),)


def _entry(kind: EntryKind, allocation: Allocation, entry_id: str, amount: int, at: datetime) -> LedgerEntry:
    return LedgerEntry(
        entry_id=entry_id, kind=kind, account=allocation.account, also=allocation.also, amount_usd_micros=amount, at=at
    )
