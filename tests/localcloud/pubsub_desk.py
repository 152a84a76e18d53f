"""Pub/Sub without a network: its services on one state, under a clock that a test moves."""

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from localcloud.pubsub.chaos import Chaos
from localcloud.pubsub.journal import SCHEMA
from localcloud.pubsub.snapshots import Snapshots
from localcloud.pubsub.state import State
from localcloud.pubsub.subscriber import Subscriber
from localcloud.pubsub.topics import Publisher
from localcloud.pubsub.wire import PubsubMessage, Subscription, Topic, duration, raw, timestamp
from localcloud.store import Store

TOPIC = "projects/p/topics/topic-a"
SUB = "projects/p/subscriptions/sub-a"


class Clock:
    """Stands still until it is moved."""

    def __init__(self) -> None:
        self.now = datetime(2026, 11, 25, 12, tzinfo=UTC)

    def __call__(self) -> datetime:
        return self.now


class Desk:
    """One Pub/Sub; `reopened` is what a kill and a start leave."""

    def __init__(self, path: Path | None = None, *, clock: Clock | None = None, chaos: Chaos | None = None) -> None:
        self.path, self.clock, self.chaos = path, clock or Clock(), chaos
        self.store = Store(path, SCHEMA)
        self.state = State(self.store, clock=self.clock, chaos=chaos)
        self.publisher = Publisher(self.state)
        self.subscriber = Subscriber(self.state)
        self.snapshots = Snapshots(self.state)

    def reopened(self) -> "Desk":
        """Open the file again beside the abandoned one: nothing was closed or flushed, as after a kill."""
        desk = Desk(self.path, clock=self.clock, chaos=self.chaos)
        for backlog in desk.state.backlogs.values():
            backlog.resume()
        return desk

    def wait(self, seconds: float) -> None:
        self.clock.now += timedelta(seconds=seconds)
        for backlog in self.state.backlogs.values():
            backlog.wake()

    async def topic(self, name: str = TOPIC, **fields: Any) -> str:
        await self.publisher.create_topic(Topic(name=name, **fields))
        return name

    async def subscription(self, name: str = SUB, topic: str = TOPIC, **fields: Any) -> str:
        await self.subscriber.create_subscription(Subscription(name=name, topic=topic, **fields))
        return name

    async def publish(self, *bodies: bytes, topic: str = TOPIC, key: str = "", **attributes: str) -> list[str]:
        messages = [PubsubMessage(data=body, ordering_key=key, attributes=attributes) for body in bodies]
        answer = await self.publisher.publish(raw("PublishRequest")(topic=topic, messages=messages))
        return list(answer.message_ids)

    async def pull(self, subscription: str = SUB, limit: int = 100) -> list[Any]:
        request = raw("PullRequest")(subscription=subscription, max_messages=limit, return_immediately=True)
        return list((await self.subscriber.pull(request, time_left_s=None)).received_messages)

    async def ack(self, received: Sequence[Any], subscription: str = SUB) -> None:
        ack_ids = [one.ack_id for one in received]
        await self.subscriber.acknowledge(raw("AcknowledgeRequest")(subscription=subscription, ack_ids=ack_ids))

    async def nack(self, received: Sequence[Any], subscription: str = SUB, seconds: int = 0) -> None:
        ack_ids = [one.ack_id for one in received]
        await self.subscriber.modify_ack_deadline(
            raw("ModifyAckDeadlineRequest")(subscription=subscription, ack_ids=ack_ids, ack_deadline_seconds=seconds)
        )

    async def seek(self, *, seconds_ago: float | None = None, snapshot: str = "") -> None:
        if seconds_ago is None:
            request = raw("SeekRequest")(subscription=SUB, snapshot=snapshot)
        else:
            at_us = self.state.now_us() - round(seconds_ago * 1_000_000)
            request = raw("SeekRequest")(subscription=SUB, time=timestamp(at_us))
        await self.snapshots.seek(request)

    def stored(self, table: str) -> int:
        return int(self.store.execute(f"SELECT count(*) FROM {table}").fetchone()[0])


async def opened(desk: Desk, **fields: Any) -> Desk:
    """With a topic and a subscription."""
    await desk.topic()
    await desk.subscription(**fields)
    return desk


def retry(least_s: int, most_s: int) -> dict[str, Any]:
    return {"minimum_backoff": duration(least_s), "maximum_backoff": duration(most_s)}


def data(received: Sequence[Any]) -> list[bytes]:
    return [one.message.data for one in received]
