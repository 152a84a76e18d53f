"""The action that follows from a threshold event, and the endpoints that a freeze covers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime

from goblin.billing.domain.accounts import Account, Limit, window_of
from goblin.billing.domain.ledger import (
    ACCOUNT,
    ENTRY_ID,
    TOTAL,
    WINDOW,
    BudgetAction,
    EntryKind,
    Freeze,
    LedgerEntry,
    is_over,
)
from goblin.billing.policy import prices
from goblin.billing.policy.allocation import ThresholdEvent, passed_percent
from goblin.billing.policy.settlement import action_id
from goblin.core.endpoints import Endpoint
from goblin.core.events import BudgetExceeded, CloudBudget
from goblin.core.money import show_usd, to_micros

SEVERITY = (BudgetAction.ALERT, BudgetAction.FREEZE, BudgetAction.STOP_JOBS, BudgetAction.SCALE_TO_ZERO)
FREEZES_FROM = 1.0
"""Share of a budget from which on spending stops. Below it only an alert is recorded."""


@dataclass(frozen=True, kw_only=True, slots=True)
class NoAction:
    """A notification that calls for no action."""

    reason: str


@dataclass(frozen=True, kw_only=True, slots=True)
class IgnoredNotification:
    """A notification that makes no sense; a person must look."""

    reason: str


def budget_exceeded_event(threshold_event: ThresholdEvent) -> BudgetExceeded:
    """Build the event to publish when our own ledger passes a threshold."""
    return BudgetExceeded(
        account=threshold_event.account,
        window=threshold_event.window,
        spent_usd_micros=max(0, threshold_event.spent_usd_micros),
        reserved_usd_micros=threshold_event.reserved_usd_micros,
        limit_usd_micros=threshold_event.limit_usd_micros,
        threshold=threshold_event.percent / 100,
        action=threshold_event.action,
    )


def react(event: BudgetExceeded, account: Account, *, now: datetime) -> LedgerEntry | NoAction | IgnoredNotification:
    """Decide the action that follows from a threshold event of our own ledger.

    Anybody who may publish can write such an event. So it only says where to look: what is done follows from the
    ledger's own usage, limit and action. The entry's id is made of account, window and threshold. So one crossing acts
    once, however often it is announced, and an old message does not undo a thaw.

    Args:
        event: Names the account and the window.
        account: That account as the ledger has it.
        now: Aware UTC.
    """
    if not ACCOUNT.fullmatch(event.account):
        return IgnoredNotification(reason=f"{event.account[:80]!r} is not an account")
    if not WINDOW.fullmatch(event.window):
        return IgnoredNotification(reason=f"{event.window[:80]!r} is not a window")
    if event.action not in list(BudgetAction):
        return IgnoredNotification(reason=f"{event.action[:80]!r} is not an action")
    if is_over(event.window, now):
        # A month that is over has no budget left to protect: the next month's is another.
        return NoAction(reason=f"{event.window} is over, for {event.account}")
    limits = [limit for limit in account.limits if window_of(limit.period, now) == event.window]
    usages = [account.usages.get(limit.period) for limit in limits]
    crossed = [
        (passed_percent(usage, limit), SEVERITY.index(limit.action), limit, usage)
        for limit, usage in zip(limits, usages, strict=True)
        if usage is not None and usage.window == event.window
    ]
    # A configured limit holds beside one that was set: what is furthest used decides, then what is more severe.
    percent, _, limit, usage = max(crossed, key=lambda one: one[:2], default=(0, 0, None, None))
    if limit is None or usage is None or not percent:
        return NoAction(reason=f"{event.account} has no budget for {event.window} that has passed a threshold")
    said = (
        f"{event.account} spent {show_usd(usage.spent_usd_micros)} of {show_usd(limit.limit_usd_micros)} "
        f"in {event.window}"
    )
    threshold = percent / 100
    if threshold < FREEZES_FROM:
        said += f", past {threshold:.0%}"
    freezes = threshold >= FREEZES_FROM and limit.action is not BudgetAction.ALERT
    return LedgerEntry(
        entry_id=action_id(event.account, event.window, threshold),
        kind=EntryKind.FREEZE if freezes else EntryKind.ALERT,
        account=event.account,
        amount_usd_micros=0,
        at=now,
        reaction=limit.action if freezes else None,
        note=said,
    )


def react_to_billing(
    event: CloudBudget, *, budget_id: str, limits: Sequence[Limit] = (), now: datetime
) -> LedgerEntry | NoAction | IgnoredNotification:
    """Decide the action that follows from Cloud Billing's own notification.

    It is sent several times a day, whether or not a threshold was passed; without a threshold none was. It knows only
    the project, so it concerns `total`, and it is hours late: it is the second guard, not the first.

    Args:
        event: The notification.
        budget_id: From the message's attributes.
        limits: The limits of `total`. The most severe of their actions follows from this too, and at least a freeze.
        now: Aware UTC.
    """
    threshold, forecast = event.alert_threshold_exceeded, event.forecast_threshold_exceeded
    crossed = threshold if threshold is not None else forecast
    if crossed is None:
        return NoAction(reason="no threshold was passed")
    entry_id = f"billing:{budget_id}:{event.cost_interval_start:%Y-%m-%dT%H:%M:%SZ}:{crossed:g}"
    if threshold is None:
        entry_id += ":forecast"
    if not budget_id or not ENTRY_ID.fullmatch(entry_id):
        return IgnoredNotification(reason="its attribute budgetId is missing or malformed")
    if not all(amount.is_finite() for amount in (event.cost_amount, event.budget_amount)):
        return IgnoredNotification(reason="its amounts are not numbers")
    freezes = threshold is not None and threshold >= FREEZES_FROM
    spent = f"{event.cost_amount} of {event.budget_amount} {event.currency_code}"
    if event.currency_code == "USD":
        spent = f"{show_usd(to_micros(event.cost_amount))} of {show_usd(to_micros(event.budget_amount))}"
    return LedgerEntry(
        entry_id=entry_id,
        kind=EntryKind.FREEZE if freezes else EntryKind.ALERT,
        account=TOTAL,
        amount_usd_micros=0,
        at=now,
        reaction=max((BudgetAction.FREEZE, *(limit.action for limit in limits)), key=SEVERITY.index)
        if freezes
        else None,
        note=f"Cloud Billing: {event.budget_display_name[:200]!r} {'is at' if threshold else 'is forecast to reach'} "
        f"{crossed:.0%}, {spent}",
    )


def is_paid(endpoint: Endpoint) -> bool:
    """Tell whether a request to an endpoint may cost something; an unknown price is not zero."""
    return not prices.is_free(endpoint)


def why_frozen(endpoint: Endpoint, freezes: Sequence[Freeze]) -> str:
    """Return the reason why nothing may be spent on an endpoint; empty when it may, or when it costs nothing.

    Args:
        endpoint: Covered by a freeze of its own name, of its provider's, or of `total`.
        freezes: All in force. The first one that covers the endpoint gives the reason.
    """
    if not is_paid(endpoint):
        return ""
    concerning = (freeze for freeze in freezes if freeze.account in (endpoint.name, endpoint.provider, TOTAL))
    return next((freeze.reason or f"{freeze.account} is frozen" for freeze in concerning), "")
