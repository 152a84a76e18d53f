"""Budgets: the actions that follow from a threshold event, and the freezes as the router sees them."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime

from goblin.billing import scale_to_zero
from goblin.billing.domain.accounts import Account, BudgetUsage, Limit, Period, WhenUnreachable, resets_at, window_of
from goblin.billing.domain.ledger import ACCOUNT, TOTAL, BudgetAction, EntryKind, Freeze, LedgerEntry
from goblin.billing.policy import budgets as policy
from goblin.billing.policy.budgets import IgnoredNotification, NoAction
from goblin.billing.ports import Ledger
from goblin.core import events
from goblin.core.endpoints import Endpoint
from goblin.core.errors import InvalidRequest, MalformedEvent, NotFound, StoreUnavailable
from goblin.core.money import show_usd
from goblin.core.ports import Clock

log = logging.getLogger(__name__)

REFRESH_S = 5.0
LOOK_FIRST_AFTER_S = 20.0
"""A copy of the freezes this old, as after a quiet time, is renewed before it is used. So is a copy that would refuse a
request: the account may have been thawed."""
LOOK_S_MAX = 1.0
"""How long a request waits for that renewal."""
BLIND_AFTER_S = 60.0
"""How long a copy of the freezes is good enough to spend by."""
BLIND = "the spend ledger cannot be read, so nothing that costs money is sent"


@dataclass(frozen=True, kw_only=True, slots=True)
class BudgetDeps:
    ledger: Ledger
    clock: Clock
    scaling: scale_to_zero.ScaleToZeroDeps | None = None
    """For the services that a freeze may scale to zero. None: there are none, or this process does not scale them."""


async def follow(event: events.Event, deps: BudgetDeps) -> None:
    """Act on a threshold event of our ledger or of Cloud Billing. It acts once, however often it is delivered.

    Raises:
        MalformedEvent: The event is neither of these, or contradicts itself.
        StoreUnavailable: Nothing was done.
        GoblinError: The action is recorded, but some Cloud Run service could not be scaled to zero. Deliver the event
            again.
    """
    now = deps.clock.now()
    decision: LedgerEntry | NoAction | IgnoredNotification
    if "billingAccountId" in event.attributes or "budgetId" in event.attributes:
        notice = events.decode(events.CloudBudget, event.data)
        total = await _account(TOTAL, deps)
        budget_id = event.attributes.get("budgetId", "")
        decision = policy.react_to_billing(notice, budget_id=budget_id, limits=total.limits, now=now)
    else:
        crossing = events.decode(events.BudgetExceeded, event.data)
        decision = policy.react(crossing, await _account(crossing.account, deps), now=now)
    match decision:
        case NoAction(reason=reason):
            log.info("Budget notification without an action: %s", reason)
        case IgnoredNotification(reason=reason):
            raise MalformedEvent(f"budget-exceeded: {reason}")
        case LedgerEntry():
            if await deps.ledger.record(decision):
                log.warning("%s of %s: %s", decision.kind, decision.account, decision.note)
            # On a second delivery too: the first may have crashed between the two steps.
            if decision.kind is EntryKind.FREEZE and deps.scaling is not None:
                await scale_to_zero.bring_in_line(deps.scaling)


async def _account(name: str, deps: BudgetDeps) -> Account:
    """Load an account with its limits and usage; without them if it has no limit."""
    found = await deps.ledger.limited((name,)) if ACCOUNT.fullmatch(name) else ()
    return next(iter(found), Account(name=name))


async def thaw(account: str, *, actor: str, wish_id: str, deps: BudgetDeps) -> list[Freeze]:
    """Lift the freezes of an account.

    Those that are recorded after this has read the ledger stay, whatever the order in which the entries are written.

    Args:
        account: `total` or a provider's name. Freezes of other accounts stay.
        actor: The person who lifts them.
        wish_id: New for each thaw, the same for each retry of it.

    Returns:
        The freezes that were lifted.

    Raises:
        InvalidRequest: The account's name is not valid.
        NotFound: The account is not frozen.
        GoblinError: The freezes are lifted, but some Cloud Run service could not be scaled back. The next hourly run
            tries again.
    """
    if not ACCOUNT.fullmatch(account):
        raise InvalidRequest(f"{account!r} is not an account. Examples: total, openai, vastai/job-7.", param="account")
    lifted = [freeze for freeze in await deps.ledger.freezes() if freeze.account == account]
    if not lifted:
        raise NotFound(f'Account {account} is not frozen. List the freezes with "goblin budget show".', param="account")
    entry = LedgerEntry(
        entry_id=f"thaw:{wish_id}",
        kind=EntryKind.THAW,
        account=account,
        amount_usd_micros=0,
        at=deps.clock.now(),
        note=f"thawed by {actor}",
        lifts=tuple(freeze.entry_id for freeze in lifted),
    )
    await deps.ledger.record(entry)
    if deps.scaling is not None:
        await scale_to_zero.bring_in_line(deps.scaling)
    return lifted


@dataclass(frozen=True, kw_only=True, slots=True)
class BudgetRow:
    """One limit of one account, with its usage now."""

    account: str
    period: Period
    window: str
    limit_usd_micros: int
    spent_usd_micros: int
    reserved_usd_micros: int
    """Allocated to processes and rented instances: reserved by requests in flight, or spare."""
    left_usd_micros: int
    resets_at: datetime | None
    action: BudgetAction
    unreachable: WhenUnreachable
    source: str
    """Where the limit comes from: `set`, or the name of an environment variable."""
    beside: str = ""
    """Another limit of the same account and period, which is not lower, as `SOURCE of $20.00`. Empty: there is none."""
    frozen: str = ""
    """Why nothing is spent under the account, whatever is left. Empty: it is not frozen."""


async def overview(deps: BudgetDeps) -> list[BudgetRow]:
    """List every budget, by account. Raises `StoreUnavailable`."""
    now = deps.clock.now()
    reasons = {freeze.account: freeze.reason for freeze in await deps.ledger.freezes()}
    found = []
    accounts = await deps.ledger.accounts()
    periods = {limit.period for account in accounts for limit in account.limits} - {Period.LIFETIME}
    balances = {
        (balance.window, balance.account): balance.spent_usd_micros
        for window in sorted(window_of(period, now) for period in periods)
        for balance in await deps.ledger.balances(window)
    }
    for account in accounts:
        for period in sorted({limit.period for limit in account.limits}, key=list(Period).index):
            # An environment's limit and a set one both hold, so the lower one is the budget.
            limit, *others = sorted(
                (limit for limit in account.limits if limit.period is period),
                key=lambda one: (one.limit_usd_micros, one.variable),
            )
            window = window_of(limit.period, now)
            usage = account.usages.get(limit.period)
            if usage is None or usage.window != window:
                usage = BudgetUsage(window=window)
            used = usage.spent_usd_micros + usage.allocated_usd_micros
            # Holders of allocations report what they settled at their next exchange; the balances have it now.
            spent = max(usage.spent_usd_micros, balances.get((window, account.name), 0))
            found.append(
                BudgetRow(
                    account=account.name,
                    period=limit.period,
                    window=window,
                    limit_usd_micros=limit.limit_usd_micros,
                    spent_usd_micros=spent,
                    reserved_usd_micros=max(0, used - spent),
                    left_usd_micros=max(0, limit.limit_usd_micros - used),
                    resets_at=resets_at(limit.period, now),
                    action=limit.action,
                    unreachable=limit.unreachable,
                    source=_source(limit),
                    beside=", ".join(f"{_source(one)} of {show_usd(one.limit_usd_micros)}" for one in others),
                    frozen=reasons.get(account.name, ""),
                )
            )
    return found


def _source(limit: Limit) -> str:
    return limit.variable or "set"


async def limit(account: str, period: Period, limit: Limit | None, deps: BudgetDeps) -> None:
    """Set a budget, or remove it if `limit` is None. Raises `InvalidRequest`."""
    if not ACCOUNT.fullmatch(account):
        raise InvalidRequest(f"{account!r} is not an account. Examples: total, openai, vastai/job-7.", param="account")
    await deps.ledger.limit(account, period, limit)


async def reactions(deps: BudgetDeps, action: BudgetAction) -> frozenset[str]:
    """Return the accounts for which an action holds until a thaw. Jobs and services check it before they continue."""
    return frozenset(freeze.account for freeze in await deps.ledger.freezes() if freeze.action is action)


class FreezeView:
    """A copy of the freezes for the router, renewed in the background so that requests do not wait for the ledger.

    When the ledger has not answered for too long, everything that costs money counts as frozen.
    """

    def __init__(self, deps: BudgetDeps) -> None:
        self._deps = deps
        self._freezes: Sequence[Freeze] = ()
        self._read_at: float | None = None
        self._tried_at: float | None = None
        self._refreshing: asyncio.Task[None] | None = None

    async def current(self) -> None:
        """Make the copy fresh enough. A request waits only where it matters. Never raises."""
        now = self._deps.clock.monotonic()
        if self._tried_at is None or now - self._tried_at > REFRESH_S:
            if self._refreshing is None or self._refreshing.done():
                self._refreshing = asyncio.create_task(self.refresh())
            if self.blind:
                await asyncio.shield(self._refreshing)
            elif self._freezes or self._read_at is None or now - self._read_at > LOOK_FIRST_AFTER_S:
                await asyncio.wait({self._refreshing}, timeout=LOOK_S_MAX)

    async def refresh(self) -> None:
        """Read the freezes now. Never raises."""
        try:
            self._freezes = await self._deps.ledger.freezes()
            self._read_at = self._deps.clock.monotonic()
        except StoreUnavailable as error:
            log.warning("The freezes could not be read: %s", error.message)
        self._tried_at = self._deps.clock.monotonic()

    @property
    def blind(self) -> bool:
        """Whether the copy is too old to spend by."""
        return self._read_at is None or self._deps.clock.monotonic() - self._read_at > BLIND_AFTER_S

    def why_frozen(self, endpoint: Endpoint) -> str:
        """Return why nothing may be spent on an endpoint, a ledger that cannot be read included; empty: it may."""
        if self.blind:
            return BLIND if policy.is_paid(endpoint) else ""
        return policy.why_frozen(endpoint, self._freezes)

    def why_payer_frozen(self, accounts: Sequence[str]) -> str:
        """Return why nothing may be spent under accounts of keys or jobs; empty: it may."""
        return next((freeze.reason for freeze in self._freezes if freeze.account in accounts), "")
