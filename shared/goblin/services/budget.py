"""Budgets: what crossing one leads to, and what the router must know of it."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence
from dataclasses import dataclass

from goblin import events
from goblin.domain.chat import Usage
from goblin.domain.models import Endpoint
from goblin.domain.money import ACCOUNT, Entry, EntryKind, Freeze
from goblin.errors import InvalidRequest, MalformedEvent, NotFound, StoreUnavailable
from goblin.money_ports import Ledger
from goblin.policy import budget as policy
from goblin.policy.budget import NoAction, Nonsense
from goblin.ports import Clock

log = logging.getLogger(__name__)

REFRESH_S = 5.0
BLIND_AFTER_S = 60.0
"""How long the last look at the ledger is good enough to spend by."""
BLIND = "the spend ledger cannot be read, and without it nothing is spent"


@dataclass(frozen=True, kw_only=True, slots=True)
class Deps:
    ledger: Ledger
    clock: Clock


async def follow(event: events.Event, deps: Deps) -> None:
    """Act on a crossing: ours, or one that Cloud Billing tells of. Once, however often it is delivered.

    Raises:
        MalformedEvent: It is neither, or contradicts itself.
        StoreUnavailable: Nothing was done.
    """
    now = deps.clock.now()
    decision: Entry | NoAction | Nonsense
    if "billingAccountId" in event.attributes or "budgetId" in event.attributes:
        notice = events.decode(events.CloudBudget, event.data)
        decision = policy.react_to_billing(notice, budget_id=event.attributes.get("budgetId", ""), now=now)
    else:
        decision = policy.react(events.decode(events.BudgetExceeded, event.data), now=now)
    match decision:
        case NoAction(reason=reason):
            log.info("budget notification: %s", reason)
        case Nonsense(reason=reason):
            raise MalformedEvent(f"budget-exceeded: {reason}")
        case Entry():
            if await deps.ledger.record(decision):
                log.warning("%s of %s: %s", decision.kind, decision.account, decision.note)


async def thaw(account: str, *, actor: str, wish_id: str, deps: Deps) -> list[Freeze]:
    """Lift what is frozen under an account by its own name; what that was.

    A freeze made in the meantime is not lifted: nobody has seen it.

    Args:
        account: `total` or a provider's name.
        actor: Who says so.
        wish_id: Fresh for each wish, the same for each retry of it.

    Raises:
        NotFound: It is not frozen.
    """
    if not ACCOUNT.fullmatch(account):
        raise InvalidRequest(f"{account!r} is no account.", param="account")
    lifted = [freeze for freeze in await deps.ledger.freezes() if freeze.account == account]
    if not lifted:
        raise NotFound(f"{account} is not frozen.", param="account")
    entry = Entry(
        entry_id=f"thaw:{wish_id}",
        kind=EntryKind.THAW,
        account=account,
        amount_usd_micros=0,
        at=deps.clock.now(),
        note=f"thawed by {actor}",
        lifts=tuple(freeze.entry_id for freeze in lifted),
    )
    await deps.ledger.record(entry)
    return lifted


async def book(request_id: str, endpoint: Endpoint, usage: Usage, deps: Deps) -> None:
    """Write down what a request cost, once, whoever tells it how often. What is free is no entry.

    Raises:
        StoreUnavailable: It may be told again.
    """
    if not policy.is_paid(endpoint):
        return
    if endpoint.price is None:
        log.warning("request %s went to %s, whose price is unknown: it is not in the ledger", request_id, endpoint.name)
        return
    cost = endpoint.price.cost_usd_micros(input_tokens=usage.prompt_tokens, output_tokens=usage.completion_tokens)
    entry = Entry(
        entry_id=f"request:{request_id}",
        kind=EntryKind.SETTLE,
        account=endpoint.provider,
        amount_usd_micros=cost,
        at=deps.clock.now(),
        note=f"{endpoint.name}: {usage.prompt_tokens} tokens in, {usage.completion_tokens} out",
    )
    await deps.ledger.record(entry)


class FreezeView:
    """What the router believes is frozen: a copy, renewed beside the requests and not in their way.

    When the ledger has been silent for too long, everything that costs money counts as frozen.
    """

    def __init__(self, deps: Deps) -> None:
        self._deps = deps
        self._freezes: Sequence[Freeze] = ()
        self._read_at: float | None = None
        self._tried_at: float | None = None
        self._refreshing: asyncio.Task[None] | None = None

    async def current(self) -> None:
        """See to it that the copy is fresh enough; waits at the start and after a long silence. Never raises."""
        now = self._deps.clock.monotonic()
        if self._tried_at is None or now - self._tried_at > REFRESH_S:
            if self._refreshing is None or self._refreshing.done():
                self._refreshing = asyncio.create_task(self.refresh())
            if self.blind:
                await asyncio.shield(self._refreshing)

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
