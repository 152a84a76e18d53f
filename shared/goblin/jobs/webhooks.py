"""What a provider tells unasked: a reason to look now, and never a fact."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from datetime import timedelta

from goblin.core.errors import GoblinError
from goblin.jobs.lifecycle import JobDeps
from goblin.jobs.ports import WebhookEvent, WebhookEventStore
from goblin.jobs.reconcile import reconcile

log = logging.getLogger(__name__)

KEPT = timedelta(days=1)
"""How long one is remembered; it comes again for minutes at most."""
OUTBID = "outbid"
OUTBID_SEEN_S = 2.0
"""Vast.ai tells of an outbid instance up to 1.4 s before its list does. Measured by others, 2026-08-27."""
FOLLOWED = frozenset(
    {
        OUTBID, "low_credit", "billing_failed", "instance_stopped", "instance_deleted", "instance_offline",
        "error_msgs", "machine_maintenance", "upcoming_downtime",
    }
)  # fmt: skip
"""What may have taken an instance away; all else can wait for the minute."""


async def follow(
    event: WebhookEvent,
    deps: JobDeps,
    webhook_events: WebhookEventStore,
    *,
    sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
) -> bool:
    """Look at everything, once for each hint, however often it comes; whether it was looked at.

    Raises:
        Transient: It was not; it may come again.
    """
    if event.kind not in FOLLOWED:
        return False
    if not await webhook_events.take(event, until=deps.clock.now() + KEPT):
        return False
    log.info("%s tells of %s", event.provider, event.kind)
    try:
        if event.kind == OUTBID:
            await sleep(OUTBID_SEEN_S)
        await reconcile(deps)
    except GoblinError:
        await webhook_events.give_back(event)
        raise
    return True
