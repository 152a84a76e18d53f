"""A simulation of Pub/Sub: messages arrive twice, late, in any order, and at most five times if unacknowledged."""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

import msgspec

from goblin.core import events
from goblin.core.events import JobStatusChanged

DELIVERIES_MAX = 5


@dataclass
class Message:
    """One copy of a message that is not delivered yet."""

    topic: str
    data: bytes
    message_id: str
    deliveries: int = 0


class Post:
    """The ports `Bus` and `DeadLetters`, with the subscriptions of our functions."""

    def __init__(
        self, rng: random.Random, later: Callable[[float, Callable[[], Awaitable[None]]], None],
        handle: Callable[[Message], Awaitable[None]],
    ) -> None:  # fmt: skip
        self._dice, self._later, self._handle = rng, later, handle
        self.told: deque[tuple[str, JobStatusChanged]] = deque()
        """For apps: no function of ours hears it."""
        self.dead: list[Message] = []
        self.buried: list[tuple[Message, str]] = []
        """Those that were refused for good, with the reason: nobody lets them come again."""
        self.under_way = 0
        self.rough = True
        self._published = 0

    async def publish(self, topic: str, event: msgspec.Struct) -> None:
        if isinstance(event, JobStatusChanged):
            self.told.append((topic, event))
            return
        self._published += 1
        for _ in range(2 if self.rough and self._dice.random() < 0.08 else 1):
            self.send(Message(topic, events.encode(event), f"m{self._published}"))

    async def bury(self, topic: str, event: events.Event, reason: str) -> None:
        self.buried.append((Message(topic, event.data, event.event_id), reason))

    def send(self, message: Message) -> None:
        """Bring it sooner or later."""
        late = self.rough and self._dice.random() < 0.08
        self.under_way += 1
        self._later(self._dice.expovariate(1 / 900 if late else 1.0), lambda: self._bring(message))

    async def _bring(self, message: Message) -> None:
        message.deliveries += 1
        acknowledged = False
        try:
            await self._handle(message)
            # The answer itself can be lost.
            acknowledged = not (self.rough and self._dice.random() < 0.04)
        finally:
            self.under_way -= 1
            if not acknowledged and message.deliveries >= DELIVERIES_MAX:
                self.dead.append(message)
            elif not acknowledged:
                self.under_way += 1
                backoff_s = min(600.0, 10 * 2.0**message.deliveries) * self._dice.uniform(0.8, 1.2)
                self._later(backoff_s, lambda: self._bring(message))

    def replay(self) -> None:
        """A person lets the dead letters come again."""
        dead, self.dead = self.dead, []
        for message in dead:
            message.deliveries = 0
            self.send(message)
