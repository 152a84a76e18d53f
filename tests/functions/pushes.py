"""Pub/Sub's pushes and the scheduler's calls, with tokens that the local cloud minted."""

from __future__ import annotations

import base64
import itertools
from typing import Any

import httpx
import msgspec
import pytest

from tests.clouds import RunningCloud

AUDIENCE = "https://functions.example"
EMAIL = "invoker@goblin.iam.gserviceaccount.com"
_ids = itertools.count(1)


class Invoker:
    """Somebody our functions let in."""

    def __init__(self, cloud: RunningCloud, monkeypatch: pytest.MonkeyPatch) -> None:
        assert cloud.cloud is not None
        self._identity = cloud.cloud.identity
        monkeypatch.setenv("GOBLIN_PUSH_AUDIENCE", AUDIENCE)
        monkeypatch.setenv("GOBLIN_INVOKER_EMAIL", EMAIL)
        monkeypatch.setenv("GOBLIN_OIDC_CERTS_URL", f"{cloud.addresses.http}/oauth2/v1/certs")

    def headers(self, email: str = EMAIL) -> dict[str, str]:
        return {"authorization": "Bearer " + self._identity.mint(email=email, audience=AUDIENCE)}

    def call(self, url: str, email: str = EMAIL) -> int:
        """As the scheduler."""
        return httpx.post(url, headers=self.headers(email), timeout=30).status_code

    def push(self, url: str, payload: Any, email: str = EMAIL, **attributes: str) -> int:
        """As Pub/Sub; the status."""
        data = payload if isinstance(payload, bytes) else msgspec.json.encode(payload)
        message = {
            "data": base64.b64encode(data).decode(), "attributes": attributes, "messageId": str(next(_ids)),
            "publishTime": "2026-11-25T12:00:00Z",
        }  # fmt: skip
        body = {"message": message, "subscription": "projects/p/subscriptions/s", "deliveryAttempt": 1}
        return httpx.post(url, json=body, headers=self.headers(email), timeout=30).status_code
