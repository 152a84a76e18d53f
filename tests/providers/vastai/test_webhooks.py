"""Vast.ai's webhooks: only theirs, only now, and only what can be read."""

from __future__ import annotations

import hashlib
import hmac
import json

import pytest

from goblin.core.errors import Forbidden, InvalidRequest
from goblin.jobs.ports import WebhookEvent
from goblin.providers.vastai.webhooks import read_event
from localgpus.vast import hooks
from localgpus.vast.state import Hook, Notice

SECRET = "whsec_1"
NOW = 1_800_000_000.0
HOOK = Hook(id=1, name="h", url="http://127.0.0.1/", event_types=["client:outbid"], secret=SECRET)
NOTICE = Notice(
    event_id="e1", hook_id=1, notif_type="outbid", subject="Instance #7: outbid", message="", at=NOW - 60, due=NOW
)


def signed(body: bytes, *, sent_at: str = str(int(NOW)), secret: str = SECRET) -> dict[str, str]:
    signature = hmac.new(secret.encode(), sent_at.encode() + b"." + body, hashlib.sha256).hexdigest()
    return {"x-vast-timestamp": sent_at, "x-vast-signature-256": f"sha256={signature}"}


def test_what_the_market_sends_is_read() -> None:
    body = hooks.body(NOTICE)
    hint = read_event(hooks.headers(HOOK, NOTICE, body, NOW), body, secret=SECRET, now=NOW)
    assert hint == WebhookEvent(provider="vastai", event_id="e1", kind="outbid")


@pytest.mark.parametrize(
    "change",
    [
        {"x-vast-signature-256": ""},
        {"x-vast-signature-256": "sha256="},
        {"x-vast-signature-256": "sha256=ünsinn"},
        {"x-vast-timestamp": ""},
        {"x-vast-timestamp": str(int(NOW) + 1)},
    ],
)
def test_another_signature_or_time_is_refused(change: dict[str, str]) -> None:
    body = hooks.body(NOTICE)
    with pytest.raises(Forbidden):
        read_event({**signed(body), **change}, body, secret=SECRET, now=NOW)


def test_another_body_or_secret_is_refused() -> None:
    body = hooks.body(NOTICE)
    for secret, said in ((SECRET, body + b" "), ("other", body), ("", body)):
        with pytest.raises(Forbidden):
            read_event(signed(body), said, secret=secret, now=NOW)
    with pytest.raises(Forbidden):
        read_event(signed(body, secret=""), body, secret="", now=NOW)


@pytest.mark.parametrize("age_s", [301, -301])
def test_another_time_is_refused_however_well_signed(age_s: int) -> None:
    body = hooks.body(NOTICE)
    with pytest.raises(Forbidden):
        read_event(signed(body), body, secret=SECRET, now=NOW + age_s)
    assert read_event(signed(body), body, secret=SECRET, now=NOW + age_s - age_s / abs(age_s))


@pytest.mark.parametrize("sent_at", ["soon", "1e9", "-1", "٣", "9" * 400])
def test_a_time_that_is_none_is_refused(sent_at: str) -> None:
    with pytest.raises(Forbidden):
        read_event(signed(b"{}", sent_at=sent_at), b"{}", secret=SECRET, now=NOW)


@pytest.mark.parametrize(
    "body", [b"", b"[]", b"{}", b'{"event_id": ""}', json.dumps({"event_id": "x" * 300, "notif_type": "o"}).encode()]
)
def test_theirs_and_unreadable_is_told_apart(body: bytes) -> None:
    with pytest.raises(InvalidRequest):
        read_event(signed(body), body, secret=SECRET, now=NOW)
