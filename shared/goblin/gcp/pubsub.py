"""Publishing of events to Pub/Sub."""

from __future__ import annotations

import asyncio

import msgspec
from google.api_core.exceptions import GoogleAPICallError, NotFound, PermissionDenied, RetryError
from google.auth.exceptions import GoogleAuthError
from google.cloud import pubsub_v1

from goblin.core import events
from goblin.core.errors import StoreUnavailable, TopicForbidden, UnknownTopic

DEADLINE_S = 10.0


class PubSubBus:
    """The port `Bus`."""

    def __init__(self, client: pubsub_v1.PublisherClient, *, project: str) -> None:
        self._client = client
        self._project = project

    async def publish(self, topic: str, event: msgspec.Struct) -> None:
        path = self._client.topic_path(self._project, topic)
        sent = self._client.publish(path, events.encode(event), timeout=DEADLINE_S)
        try:
            async with asyncio.timeout(DEADLINE_S + 1):
                await asyncio.wrap_future(sent)
        except NotFound as error:
            raise UnknownTopic(f"There is no topic {topic}.") from error
        except PermissionDenied as error:
            raise TopicForbidden(
                f"This function may not publish to topic {topic}. Grant its account roles/pubsub.publisher on it."
            ) from error
        except (GoogleAPICallError, GoogleAuthError, RetryError, TimeoutError) as error:
            raise StoreUnavailable(f"Pub/Sub did not take the event: {type(error).__name__}: {error}") from error
