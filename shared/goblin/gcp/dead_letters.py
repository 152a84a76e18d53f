"""Dead letters in Pub/Sub: the subscription `TOPIC-dead` of each topic, read with synchronous pulls.

A pull that waits and times out says nothing: the topic may be empty, or the service slow. So the first pulls ask for an
answer at once, which a service that can be reached gives, and only then one waits a little for what the service holds
back. Source: google-cloud-pubsub 2.44, and its documentation of `returnImmediately`, read 2026-11-23.
"""

from __future__ import annotations

import asyncio
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

from google.api_core.exceptions import DeadlineExceeded, GoogleAPICallError, RetryError
from google.auth.exceptions import GoogleAuthError
from google.cloud import pubsub_v1
from google.pubsub_v1 import PublisherClient

from goblin.core.errors import NotFound, StoreUnavailable
from goblin.core.ports import HeldLetter

CALL_S = 20.0
WAIT_S = 2.0
"""How long the last pull waits, beyond the time that an answer took."""
AT_ONCE_MAX = 500
THREADS = 4
T = TypeVar("T")


class PubSubDeadLetters:
    """The port `DeadLetterBox`."""

    def __init__(
        self, subscriber: pubsub_v1.SubscriberClient, publisher: Callable[[], pubsub_v1.PublisherClient], *,
        project: str, call_s: float = CALL_S,
    ) -> None:  # fmt: skip
        """Keep the clients.

        Args:
            subscriber: Used from several threads.
            publisher: Opens the client that replays; called only then.
            project: Project of all topics.
            call_s: Timeout of one call.
        """
        # Asking for an answer at once is what tells an empty topic from a slow service.
        warnings.filterwarnings("ignore", message="The return_immediately flag is deprecated")
        self._subscriber = subscriber
        self._publisher = publisher
        self._project = project
        self._call_s = call_s
        self._threads = ThreadPoolExecutor(THREADS, thread_name_prefix="dead-letters")

    async def pull(self, topic: str, limit: int) -> tuple[Sequence[HeldLetter], bool]:
        return await self._run(lambda: self._pull(topic, limit))

    def _pull(self, topic: str, limit: int) -> tuple[Sequence[HeldLetter], bool]:
        found: dict[str, HeldLetter] = {}

        def take(*, wait_s: float) -> bool:
            """Pull once. Return whether something new came."""
            request = {
                "subscription": self._path(topic), "max_messages": min(AT_ONCE_MAX, limit + 1 - len(found)),
                "return_immediately": wait_s == 0,
            }  # fmt: skip
            try:
                got = self._subscriber.pull(request=request, timeout=wait_s or self._call_s, retry=None)
            except DeadlineExceeded:
                if wait_s:
                    return False  # The service answers, and waits for a message that does not come.
                raise
            before = len(found)
            for one in got.received_messages:
                # A later delivery of the same letter has the handle that is still good.
                found[one.message.message_id] = _held(one)
            return len(found) > before

        while len(found) <= limit:
            began = time.monotonic()
            if take(wait_s=0):
                continue
            if not take(wait_s=WAIT_S + time.monotonic() - began):
                break
        return list(found.values()), len(found) <= limit

    async def give_back(self, topic: str, letters: Sequence[HeldLetter]) -> None:
        def call() -> None:
            for at in range(0, len(letters), AT_ONCE_MAX):
                handles = [letter.handle for letter in letters[at : at + AT_ONCE_MAX]]
                request = {"subscription": self._path(topic), "ack_ids": handles, "ack_deadline_seconds": 0}
                self._subscriber.modify_ack_deadline(request=request, timeout=self._call_s)

        await self._run(call)

    async def replay(self, topic: str, letter: HeldLetter, attributes: Mapping[str, str]) -> None:
        message = {"data": letter.data, "attributes": dict(attributes), "ordering_key": letter.ordering_key}

        def call() -> None:
            publisher = self._publisher()
            request = {"topic": publisher.topic_path(self._project, topic), "messages": [message]}
            # The client's own `publish` takes attributes as keyword arguments, and cannot take all names.
            PublisherClient.publish(publisher, request=request, timeout=self._call_s)

        await self._run(call)

    async def drop(self, topic: str, letter: HeldLetter) -> None:
        request = {"subscription": self._path(topic), "ack_ids": [letter.handle]}
        await self._run(lambda: self._subscriber.acknowledge(request=request, timeout=self._call_s))

    def _path(self, topic: str) -> str:
        path: str = self._subscriber.subscription_path(self._project, f"{topic}-dead")
        return path

    async def _run(self, call: Callable[[], T]) -> T:
        try:
            return await asyncio.get_running_loop().run_in_executor(self._threads, call)
        except (GoogleAPICallError, GoogleAuthError, RetryError, TimeoutError) as error:
            said = getattr(error, "message", None) or error
            if isinstance(error, GoogleAPICallError) and error.code == 404:
                raise NotFound(f"Pub/Sub has no such topic or subscription: {said}") from error
            raise StoreUnavailable(
                f"Pub/Sub did not answer, so the dead letters are not known: {type(error).__name__}: {said}"
            ) from error


def _held(one: Any) -> HeldLetter:
    message = one.message
    return HeldLetter(
        message_id=message.message_id, data=message.data, attributes=dict(message.attributes),
        published_at=message.publish_time, handle=one.ack_id,
        ordering_key=message.ordering_key,
    )  # fmt: skip
