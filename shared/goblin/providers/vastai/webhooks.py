"""Vast.ai's webhooks: signature check and parsing.

Source: Vast.ai's page on notification webhooks, read 2026-11-23. `X-Vast-Signature-256` is the HMAC of the time in
`X-Vast-Timestamp`, a dot and the body. Deliveries come at least once, and no field says which instance is meant.
"""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Mapping
from typing import Annotated

import msgspec
from msgspec import Meta

from goblin.core import decoding
from goblin.core.errors import Forbidden, InvalidRequest
from goblin.jobs.ports import WebhookEvent
from httpguard import whole_number

NAME = "vastai"
VARIABLE = "VASTAI_WEBHOOK_SECRET"
BODY_BYTES_MAX = 64 * 1024
AGE_S_MAX = 300
"""Largest distance of the timestamp from now, against replays."""
Word = Annotated[str, Meta(min_length=1, max_length=200)]


class WebhookBody(msgspec.Struct, frozen=True, kw_only=True):
    """The fields of a delivery that we read, from the signed body and not from the headers that repeat it."""

    event_id: Word
    notif_type: Word


def read_event(headers: Mapping[str, str], body: bytes, *, secret: str, now: float) -> WebhookEvent:
    """Check a delivery's signature and age, then parse it.

    Args:
        headers: The request's headers, by lower-case names.
        body: The request's body, unchanged.
        secret: The secret that Vast.ai showed once, when the webhook was created.
        now: Seconds since 1970.

    Raises:
        Forbidden: It is not from Vast.ai, or its time is too far off.
        InvalidRequest: It is from Vast.ai, and cannot be parsed.
    """
    sent_at, signature = headers.get("x-vast-timestamp", ""), headers.get("x-vast-signature-256", "")
    expected = hmac.new(secret.encode(), sent_at.encode() + b"." + body, hashlib.sha256).hexdigest()
    if not secret or not hmac.compare_digest(f"sha256={expected}".encode(), signature.encode()):
        raise Forbidden("The signature does not match the body.")
    # The signature is valid, so this is a number unless Vast.ai changes the format.
    sent_at_s = whole_number(sent_at, 10**12 - 1)
    if sent_at_s is None or abs(now - sent_at_s) > AGE_S_MAX:
        raise Forbidden(f"The delivery's timestamp is more than {AGE_S_MAX} seconds off.")
    told = decoding.decode(
        body, WebhookBody, lambda why: InvalidRequest(f"The body is not an event of Vast.ai: {why}.")
    )
    return WebhookEvent(provider=NAME, event_id=told.event_id, kind=told.notif_type.removeprefix("client:"))
