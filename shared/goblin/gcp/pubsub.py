"""Publishing of events to Pub/Sub."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Any

import msgspec
from google.api_core.exceptions import GoogleAPICallError, NotFound, PermissionDenied, RetryError
from google.auth.exceptions import GoogleAuthError
from google.cloud import pubsub_v1

from goblin.core import events
from goblin.core.errors import StoreUnavailable, TopicForbidden, UnknownTopic
from goblin.core.events import Event

DEADLINE_S = 10.0


ATTRIBUTES_MAX = 100
NAME_BYTES_MAX = 256
VALUE_BYTES_MAX = 1024
"""Limits of Pub/Sub. Source: cloud.google.com/pubsub/quotas, read 2026-11-23."""


class PubSubBus:
    """The ports `Bus` and `DeadLetters`."""

    def __init__(self, client: pubsub_v1.PublisherClient, *, project: str) -> None:
        self._client = client
        self._project = project

    async def publish(self, topic: str, event: msgspec.Struct) -> None:
        await self._send(topic, events.encode(event), {})

    async def bury(self, topic: str, event: Event, reason: str) -> None:
        # As Pub/Sub marks the messages that it moves itself, so that one reader serves both.
        marks = {
            events.REASON: reason,
            f"{events.SOURCE}DeliveryCount": str(event.delivery_attempt or 1),
            f"{events.SOURCE}Subscription": event.source.rpartition("/")[2] or f"{topic}-push",
            f"{events.SOURCE}SubscriptionProject": self._project,
        }
        if event.published_at is not None:
            marks[f"{events.SOURCE}TopicPublishTime"] = event.published_at.isoformat()
        own = [
            (name, value) for name, value in event.attributes.items() if name not in marks and _publishable(name, value)
        ]
        marks = {name: _cut(value) for name, value in marks.items()}
        await self._send(f"{topic}-dead", event.data, dict(own[: ATTRIBUTES_MAX - len(marks)]) | marks)

    async def _send(self, topic: str, data: bytes, attributes: Mapping[str, Any]) -> None:
        path = self._client.topic_path(self._project, topic)
        try:
            sent = self._client.publish(path, data, timeout=DEADLINE_S, **attributes)
            async with asyncio.timeout(DEADLINE_S + 1):
                await asyncio.wrap_future(sent)
        except NotFound as error:
            raise UnknownTopic(f"There is no topic {topic}.") from error
        except PermissionDenied as error:
            raise TopicForbidden(
                f"This function may not publish to topic {topic}. Grant its account roles/pubsub.publisher on it."
            ) from error
        except (GoogleAPICallError, GoogleAuthError, RetryError, TimeoutError, ValueError) as error:
            # ValueError: the client itself refuses a message that is larger than Pub/Sub takes.
            raise StoreUnavailable(f"Pub/Sub did not take the event: {type(error).__name__}: {error}") from error


def _publishable(name: str, value: str) -> bool:
    """Whether Pub/Sub takes an attribute; headers of an unwrapped push may be larger than it does."""
    return (
        0 < len(name.encode()) <= NAME_BYTES_MAX
        and len(value.encode()) <= VALUE_BYTES_MAX
        and not name.startswith("goog")
        and name not in _ARGUMENTS
    )


_ARGUMENTS = frozenset({"topic", "data", "ordering_key", "retry", "timeout", "self"})
"""Names that the client's `publish` takes for arguments of its own."""


def _cut(text: str) -> str:
    """Cut a text to what an attribute holds, between two characters."""
    return text.encode()[:VALUE_BYTES_MAX].decode(errors="ignore")
