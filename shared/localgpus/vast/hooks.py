"""Webhooks: signed, delivered at least once, without a field that names the instance.

Vast.ai requires https and a public address. Here a webhook must have a loopback address, and http is allowed.
"""

from __future__ import annotations

import hashlib
import hmac
import ipaddress
from urllib.parse import urlsplit

import httpx
import msgspec

from localgpus.vast.market import Market
from localgpus.vast.state import Hook, Notice

HOOKS_MAX = 4
TIMEOUT_S = 10.0
TRIES_MAX = 5
RETRY_S = 10.0
"""Wait before the first retry; the wait before try n is n times as long."""
KINDS = (
    "low_credit", "outbid", "instance_created", "instance_started", "instance_stopped", "instance_resumed",
    "instance_deleted", "instance_offline", "error_msgs", "machine_maintenance", "upcoming_downtime",
    "low_disk_space", "storage_full", "billing_failed",
)  # fmt: skip
TEST = "webhook_test"


def may_be_told(url: str) -> bool:
    """Return whether the address is a loopback address."""
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https") or parts.hostname is None:
        return False
    try:
        return parts.hostname == "localhost" or ipaddress.ip_address(parts.hostname).is_loopback
    except ValueError:
        return False


def body(notice: Notice) -> bytes:
    """Encode the event; every try sends the same bytes."""
    return msgspec.json.encode(
        {
            "event_id": notice.event_id, "user_id": 1, "notif_type": notice.notif_type, "subject": notice.subject,
            "message": notice.message, "timestamp": notice.at,
        }
    )  # fmt: skip


def headers(hook: Hook, notice: Notice, payload: bytes, now: float) -> dict[str, str]:
    """Build the headers of a delivery. The signature covers the time and the body."""
    sent_at = str(int(now))
    signature = hmac.new(hook.secret.encode(), sent_at.encode() + b"." + payload, hashlib.sha256).hexdigest()
    return {
        "content-type": "application/json", "x-vast-event-id": notice.event_id,
        "x-vast-delivery-attempt": str(notice.attempt), "x-vast-timestamp": sent_at,
        "x-vast-signature-256": f"sha256={signature}",
    }  # fmt: skip


async def deliver(market: Market, client: httpx.AsyncClient) -> int:
    """Send the events that are due and return their number. A failed one is retried later, up to `TRIES_MAX` times."""
    now = market.clock()
    with market.lock:
        due = [notice for notice in market.state.notices if notice.due <= now]
        hooks = dict(market.state.hooks)
    for notice in due:
        hook = hooks.get(notice.hook_id)
        again = hook is not None and await _send(hook, notice, client, now)
        with market.lock:
            if again and notice.again and notice.attempt < TRIES_MAX:
                notice.due = now + RETRY_S * notice.attempt / market.pace
                notice.attempt += 1
            elif notice in market.state.notices:
                market.state.notices.remove(notice)
    return len(due)


async def _send(hook: Hook, notice: Notice, client: httpx.AsyncClient, now: float) -> bool:
    """Send one event; returns whether it must be sent again."""
    payload = body(notice)
    try:
        answer = await client.post(
            hook.url, content=payload, headers=headers(hook, notice, payload, now), timeout=TIMEOUT_S,
            follow_redirects=False,
        )  # fmt: skip
    except httpx.HTTPError:
        return True
    return answer.status_code in (408, 429) or answer.status_code >= 500
