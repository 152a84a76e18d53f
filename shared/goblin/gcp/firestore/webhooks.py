"""Firestore: `hints/{digest}`, one document for each webhook event that was followed, deleted by its TTL."""

from __future__ import annotations

import hashlib
from datetime import datetime

from google.api_core.exceptions import AlreadyExists
from google.cloud.firestore import AsyncClient

from goblin.gcp.firestore.documents import CALL, in_time
from goblin.jobs.ports import WebhookEvent


class FirestoreWebhookEvents:
    """The port `WebhookEventStore`."""

    def __init__(self, client: AsyncClient) -> None:
        self._webhook_events = client.collection("hints")

    async def take(self, event: WebhookEvent, *, until: datetime) -> bool:
        fields = {"provider": event.provider, "kind": event.kind, "expires_at": until}
        try:
            await in_time(
                self._webhook_events.document(_name(event)).create(fields, **CALL), "write of a webhook event"
            )
        except AlreadyExists:
            return False
        return True

    async def give_back(self, event: WebhookEvent) -> None:
        await in_time(self._webhook_events.document(_name(event)).delete(**CALL), "delete of a webhook event")


def _name(event: WebhookEvent) -> str:
    """Hash the provider's event id, as it may be invalid as a document's name."""
    return hashlib.sha256(f"{event.provider}/{event.event_id}".encode()).hexdigest()
