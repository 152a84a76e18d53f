"""Webhook events of providers: each is a reason to reconcile now, never a fact."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from datetime import timedelta

from goblin.jobs.lifecycle import JobDeps
from goblin.jobs.ports import WebhookEvent, WebhookEventStore
from goblin.jobs.reconcile import reconcile

log = logging.getLogger(__name__)

KEPT = timedelta(days=1)
"""How long an event is remembered; providers repeat one for minutes at most."""
OUTBID = "outbid"
OUTBID_SEEN_S = 2.0
"""Vast.ai sends the event up to 1.4 s before its list shows the instance as outbid. Measured by others, 2026-08-27."""
FOLLOWED = frozenset(
    {
        OUTBID, "low_credit", "billing_failed", "instance_stopped", "instance_deleted", "instance_offline",
        "error_msgs", "machine_maintenance", "upcoming_downtime",
    }
)  # fmt: skip
"""Events that may mean a lost instance; all others wait for the next minute's reconcile."""


async def follow(
    event: WebhookEvent,
    deps: JobDeps,
    webhook_events: WebhookEventStore,
    *,
    sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
) -> bool:
    """Reconcile once for a webhook event, however often it is delivered.

    Returns:
        Whether this call reconciled; False for an event that was followed before or is not in `FOLLOWED`.

    Raises:
        GoblinError: The reconcile failed; the event may be delivered again.
    """
    if event.kind not in FOLLOWED:
        return False
    if not await webhook_events.take(event, until=deps.clock.now() + KEPT):
        return False
    log.info("%s sent webhook event %s", event.provider, event.kind)
    try:
        if event.kind == OUTBID:
            await sleep(OUTBID_SEEN_S / deps.pace)
        await reconcile(deps)
    except Exception:
        await webhook_events.give_back(event)
        raise
    return True
