"""Vast.ai's webhooks: who they are from.

Source: Vast.ai's page on notification webhooks, read 2026-11-23. `X-Vast-Signature-256` is the HMAC of the time in
`X-Vast-Timestamp`, a dot and the body. They come at least once, and have no field that says which instance is meant.
"""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Mapping
from typing import Annotated

import msgspec
from msgspec import Meta

from goblin.core.errors import Forbidden, InvalidRequest
from goblin.jobs.ports import WebhookEvent

NAME = "vastai"
VARIABLE = "VASTAI_WEBHOOK_SECRET"
BODY_BYTES_MAX = 64 * 1024
AGE_S_MAX = 300
Word = Annotated[str, Meta(min_length=1, max_length=200)]


class WebhookBody(msgspec.Struct, frozen=True, kw_only=True):
    """What is read of a delivery; the signed body counts, not the headers that repeat it."""

    event_id: Word
    notif_type: Word


def read_hint(headers: Mapping[str, str], body: bytes, *, secret: str, now: float) -> WebhookEvent:
    """See who it is from, and then what it says.

    Args:
        headers: Of the request, by lower-case names.
        body: As it came.
        secret: What Vast.ai said once, when the webhook was made.
        now: Seconds since 1970.

    Raises:
        Forbidden: It is not from Vast.ai, or of another time.
        InvalidRequest: It is, and cannot be read.
    """
    sent_at, signature = headers.get("x-vast-timestamp", ""), headers.get("x-vast-signature-256", "")
    expected = hmac.new(secret.encode(), sent_at.encode() + b"." + body, hashlib.sha256).hexdigest()
    if not secret or not hmac.compare_digest(f"sha256={expected}".encode(), signature.encode()):
        raise Forbidden("the signature is not the one of this body")
    # It is theirs, so it is a number unless they change their minds.
    if not sent_at.isascii() or not sent_at.isdecimal() or len(sent_at) > 12 or abs(now - int(sent_at)) > AGE_S_MAX:
        raise Forbidden(f"it is not of the last {AGE_S_MAX} seconds")
    try:
        told = msgspec.json.decode(body, type=WebhookBody)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise InvalidRequest("the body is no event") from error
    return WebhookEvent(provider=NAME, event_id=told.event_id, kind=told.notif_type.removeprefix("client:"))
