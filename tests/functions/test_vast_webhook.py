"""Vast.ai's webhook, loaded by the framework, over the local cloud: what Vast.ai sends, and what strangers do."""

from __future__ import annotations

import time
from datetime import UTC, datetime, timedelta
from typing import Any

import httpx
import pytest

from localgpus.vast import hooks
from localgpus.vast.state import Hook, Notice
from tests.functions.test_jobs import Doorways
from tests.functions.test_jobs import doors as doors  # A fixture.

SECRET = "whsec_functions"


class Sender:
    """Signs as Vast.ai does."""

    def __init__(self, doors: Doorways) -> None:
        self.doors = doors

    def __call__(
        self, event_id: str = "e1", *, kind: str = "instance_stopped", secret: str = SECRET, age_s: float = 0.0
    ) -> httpx.Response:
        now = time.time() - age_s
        hook = Hook(id=1, name="h", url="http://127.0.0.1/", event_types=[], secret=secret)
        notice = Notice(
            event_id=event_id, hook_id=1, notif_type=kind, subject="Instance #7", message="", at=now, due=now
        )
        body = hooks.body(notice)
        url = f"{self.doors.url('jobs')}/webhooks/vastai"
        return httpx.post(url, content=body, headers=hooks.headers(hook, notice, body, now), timeout=30)


@pytest.fixture
def send(doors: Doorways, monkeypatch: pytest.MonkeyPatch) -> Sender:
    monkeypatch.setenv("VASTAI_WEBHOOK_SECRET", SECRET)
    return Sender(doors)


def waiting(doors: Doorways, job_id: str) -> None:
    """A job that the next look brings on."""
    from goblin.core.events import JobRequested
    from goblin.jobs.domain.job import Job, JobState, spec_digest

    doors.upload(job_id, 3)
    spec = JobRequested(**doors.spec(job_id))
    now = datetime.now(UTC) - timedelta(minutes=1)
    doors.write(
        Job(
            job_id=job_id, spec=spec, spec_sha256=spec_digest(spec), state=JobState.REQUESTED, requested_at=now,
            updated_at=now,
        )
    )  # fmt: skip


def state(doors: Doorways, job_id: str) -> Any:
    return doors.ask("GET", f"/jobs/{job_id}").json()["state"]


def test_a_signed_event_makes_it_look_once(doors: Doorways, send: Sender) -> None:
    waiting(doors, "first")
    assert send().status_code == 204
    assert state(doors, "first") == "queued"
    waiting(doors, "second")
    assert send().status_code == 204
    assert state(doors, "second") == "requested"
    assert send("e2").status_code == 204
    assert state(doors, "second") == "queued"


def test_what_was_followed_is_forgotten_in_time(doors: Doorways, send: Sender, firestore: Any) -> None:
    send()
    (document,) = firestore.collection("hints").stream()
    assert document.get("expires_at") > datetime.now(UTC) + timedelta(hours=23)


def test_strangers_make_it_look_at_nothing(doors: Doorways, send: Sender) -> None:
    waiting(doors, "j")
    url = f"{doors.url('jobs')}/webhooks/vastai"
    assert send(secret="guessed").status_code == 403
    assert send(age_s=600).status_code == 403
    assert httpx.post(url, json={"event_id": "e", "notif_type": "outbid"}).status_code == 403
    assert httpx.post(url, content=b"x" * 100_000).status_code == 413
    assert httpx.get(url).status_code == 405
    assert state(doors, "j") == "requested"


@pytest.mark.parametrize("secret", [None, "", " "])
def test_without_a_secret_nobody_is_listened_to(
    doors: Doorways, secret: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("VASTAI_WEBHOOK_SECRET", raising=False)
    if secret is not None:
        monkeypatch.setenv("VASTAI_WEBHOOK_SECRET", secret)
    assert Sender(doors)(secret=secret or "").status_code == 404
