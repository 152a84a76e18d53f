"""Budgets: what crossing one leads to, and what the router must know of it."""

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
from goblin.core.ports import Clock

log = logging.getLogger(__name__)

REFRESH_S = 5.0
LOOK_FIRST_AFTER_S = 20.0
"""A copy so old, as after a quiet time, is renewed before it is gone by, and so is one that would refuse: it may have
been thawed."""
LOOK_S_MAX = 1.0
"""How long a request waits for that."""
BLIND_AFTER_S = 60.0
"""How long the last look at the ledger is good enough to spend by."""
BLIND = "the spend ledger cannot be read, and without it nothing is spent"


@dataclass(frozen=True, kw_only=True, slots=True)
class BudgetDeps:
    ledger: Ledger
    clock: Clock
    scaling: scale_to_zero.ScaleToZeroDeps | None = None
    """For the services that a freeze may turn off; None: there are none, or they are no concern here."""


async def follow(event: events.Event, deps: BudgetDeps) -> None:
    """Act on a crossing: ours, or one that Cloud Billing tells of. Once, however often it is delivered.

    Raises:
        MalformedEvent: It is neither, or contradicts itself.
        StoreUnavailable: Nothing was done.
        GoblinError: It is recorded, and not every Cloud Run service could be turned off: to be delivered again.
    """
    now = deps.clock.now()
    decision: LedgerEntry | NoAction | IgnoredNotification
    if "billingAccountId" in event.attributes or "budgetId" in event.attributes:
        notice = events.decode(events.CloudBudget, event.data)
        (total,) = [one for one in await deps.ledger.accounts() if one.name == TOTAL] or [Account(name=TOTAL)]
        budget_id = event.attributes.get("budgetId", "")
        decision = policy.react_to_billing(notice, budget_id=budget_id, limits=total.limits, now=now)
    else:
        decision = policy.react(events.decode(events.BudgetExceeded, event.data), now=now)
    match decision:
        case NoAction(reason=reason):
            log.info("budget notification: %s", reason)
        case IgnoredNotification(reason=reason):
            raise MalformedEvent(f"budget-exceeded: {reason}")
        case LedgerEntry():
            if await deps.ledger.record(decision):
                log.warning("%s of %s: %s", decision.kind, decision.account, decision.note)
            # The second time too: the first may have died between the two.
            if decision.kind is EntryKind.FREEZE and deps.scaling is not None:
                await scale_to_zero.bring_in_line(deps.scaling)


async def thaw(account: str, *, actor: str, wish_id: str, deps: BudgetDeps) -> list[Freeze]:
    """Lift what is frozen under an account by its own name; what that was.

    A freeze made in the meantime is not lifted: nobody has seen it.

    Args:
        account: `total` or a provider's name.
        actor: Who says so.
        wish_id: Fresh for each wish, the same for each retry of it.

    Raises:
        NotFound: It is not frozen.
        GoblinError: It is lifted, and not every Cloud Run service could be turned on; the next hour tries again.
    """
    if not ACCOUNT.fullmatch(account):
        raise InvalidRequest(f"{account!r} is no account.", param="account")
    lifted = [freeze for freeze in await deps.ledger.freezes() if freeze.account == account]
    if not lifted:
        raise NotFound(f"{account} is not frozen.", param="account")
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
    """One limit of one account, as it stands."""

    account: str
    period: Period
    window: str
    limit_usd_micros: int
    spent_usd_micros: int
    reserved_usd_micros: int
    """Lent to instances and jobs: reserved by what is under way, or spare."""
    left_usd_micros: int
    resets_at: datetime | None
    action: BudgetAction
    unreachable: WhenUnreachable
    frozen: str = ""
    """Why nothing is spent under the account, whatever is left."""


async def overview(deps: BudgetDeps) -> list[BudgetRow]:
    """Every budget, by account. Raises `StoreUnavailable`."""
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
        for limit in account.limits:
            window = window_of(limit.period, now)
            usage = account.usages.get(limit.period)
            if usage is None or usage.window != window:
                usage = BudgetUsage(window=window)
            used = usage.spent_usd_micros + usage.allocated_usd_micros
            # Borrowers tell of what they have settled when they next ask; entries know it now.
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
                    frozen=reasons.get(account.name, ""),
                )
            )
    return found


async def limit(account: str, period: Period, limit: Limit | None, deps: BudgetDeps) -> None:
    """Set or remove a budget. Raises `InvalidRequest`."""
    if not ACCOUNT.fullmatch(account):
        raise InvalidRequest(f"{account!r} is no account.", param="account")
    await deps.ledger.limit(account, period, limit)


async def reactions(deps: BudgetDeps, action: BudgetAction) -> frozenset[str]:
    """The accounts for which an action holds until a thaw: what jobs and services ask before they go on."""
    return frozenset(freeze.account for freeze in await deps.ledger.freezes() if freeze.action is action)


class FreezeView:
    """What the router believes is frozen: a copy, renewed beside the requests and not in their way.

    When the ledger has been silent for too long, everything that costs money counts as frozen.
    """

    def __init__(self, deps: BudgetDeps) -> None:
        self._deps = deps
        self._freezes: Sequence[Freeze] = ()
        self._read_at: float | None = None
        self._tried_at: float | None = None
        self._refreshing: asyncio.Task[None] | None = None

    async def current(self) -> None:
        """See to it that the copy is fresh enough; waits only where it matters. Never raises."""
        now = self._deps.clock.monotonic()
        if self._tried_at is None or now - self._tried_at > REFRESH_S:
            if self._refreshing is None or self._refreshing.done():
                self._refreshing = asyncio.create_task(self.refresh())
            if self.blind:
                await asyncio.shield(self._refreshing)
            elif self._freezes or self._read_at is None or now - self._read_at > LOOK_FIRST_AFTER_S:
                await asyncio.wait({self._refreshing}, timeout=LOOK_S_MAX)

    async def refresh(self) -> None:
        """Read now. Never raises."""
        try:
            self._freezes = await self._deps.ledger.freezes()
            self._read_at = self._deps.clock.monotonic()
        except StoreUnavailable as error:
            log.warning("freezes could not be read: %s", error.message)
        self._tried_at = self._deps.clock.monotonic()

    @property
    def blind(self) -> bool:
        """Whether nobody knows what is frozen."""
        return self._read_at is None or self._deps.clock.monotonic() - self._read_at > BLIND_AFTER_S

    def why_frozen(self, endpoint: Endpoint) -> str:
        """As the policy's, with silence as a reason."""
        if self.blind:
            return BLIND if policy.is_paid(endpoint) else ""
        return policy.why_frozen(endpoint, self._freezes)

    def why_payer_frozen(self, accounts: Sequence[str]) -> str:
        """The reason why nothing may be spent under accounts that are no provider's: a key's, a job's."""
        return next((freeze.reason for freeze in self._freezes if freeze.account in accounts), "")
