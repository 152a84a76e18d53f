"""Topics and their subscriptions; a publish is written for all of them in one transaction."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass, field

import grpc

from localcloud.clock import Clock
from localcloud.pubsub.backlog import Backlog
from localcloud.pubsub.chaos import Chaos
from localcloud.pubsub.errors import Refused, not_found
from localcloud.pubsub.journal import Delivery, Journal
from localcloud.pubsub.names import DELETED_TOPIC
from localcloud.pubsub.wire import (
    PubsubMessage,
    Raw,
    Subscription,
    Topic,
    duration_us,
    micros,
    timestamp,
)
from localcloud.store import Store

log = logging.getLogger(__name__)


@dataclass(slots=True, eq=False)
class TopicState:
    """A topic that exists."""

    number: int
    resource: Raw
    backlogs: dict[str, Backlog] = field(default_factory=dict)
    """Its subscriptions by name, without the detached ones."""

    @property
    def retention_us(self) -> int:
        """How long the topic keeps acknowledged messages, in microseconds; 0 when it does not."""
        return duration_us(self.resource.message_retention_duration)


class State:
    """All topics, subscriptions and snapshots."""

    def __init__(self, store: Store, *, clock: Clock, chaos: Chaos | None) -> None:
        """Read the store, which must have `journal.SCHEMA`."""
        self.store = store
        self.journal = Journal(store)
        self.topics: dict[str, TopicState] = {}
        self.backlogs: dict[str, Backlog] = {}
        self._clock = clock
        self._chaos = chaos
        for number, resource in store.execute("SELECT id, resource FROM topics"):
            topic = Topic.FromString(resource)
            self.topics[topic.name] = TopicState(number, topic)
        for row in store.execute("SELECT id, epoch, topic, resource FROM subscriptions").fetchall():
            self._attach(row["id"], row["epoch"], row["topic"], Subscription.FromString(row["resource"]))

    def now_us(self) -> int:
        """Return microseconds since 1970."""
        return micros(self._clock())

    def topic(self, name: str) -> TopicState:
        """Return a topic; refused with NOT_FOUND."""
        topic = self.topics.get(name)
        if topic is None:
            raise not_found("Topic", name)
        return topic

    def backlog(self, name: str) -> Backlog:
        """Return a subscription; refused with NOT_FOUND."""
        backlog = self.backlogs.get(name)
        if backlog is None:
            raise not_found("Subscription", name)
        return backlog

    # Topics.

    def add_topic(self, resource: Raw) -> None:
        """Store a new topic."""
        cursor = self.store.execute(
            "INSERT INTO topics (name, resource) VALUES (?, ?)", (resource.name, resource.SerializeToString())
        )
        self.topics[resource.name] = TopicState(int(cursor.lastrowid or 0), resource)

    def save_topic(self, topic: TopicState) -> None:
        """Store a changed topic."""
        self.store.execute(
            "UPDATE topics SET resource = ? WHERE id = ?",
            (topic.resource.SerializeToString(), topic.number),
        )

    def drop_topic(self, name: str) -> None:
        """Delete a topic; its subscriptions keep their backlog and lose its name."""
        topic = self.topic(name)
        with self.store.transaction():
            self.store.execute("DELETE FROM topics WHERE id = ?", (topic.number,))
            for backlog in self.backlogs.values():
                if backlog.resource.topic == name:
                    backlog.resource.topic = DELETED_TOPIC
                    self.save_subscription(backlog)
            del self.topics[name]
            self.journal.sweep(topic.number, before=self.retained_since(topic.number))

    # Subscriptions.

    def add_subscription(self, resource: Raw) -> Backlog:
        """Store a new subscription."""
        topic = self.topic(resource.topic)
        cursor = self.store.execute(
            "INSERT INTO subscriptions (name, topic, resource) VALUES (?, ?, ?)",
            (resource.name, topic.number, resource.SerializeToString()),
        )
        return self._attach(int(cursor.lastrowid or 0), 0, topic.number, resource)

    def save_subscription(self, backlog: Backlog) -> None:
        """Store a changed subscription."""
        self.store.execute(
            "UPDATE subscriptions SET resource = ?, epoch = ? WHERE id = ?",
            (backlog.resource.SerializeToString(), backlog.epoch, backlog.number),
        )

    def drop_subscription(self, name: str) -> None:
        """Delete a subscription with all its deliveries."""
        backlog = self.backlog(name)
        with self.store.transaction():
            self.store.execute("DELETE FROM subscriptions WHERE id = ?", (backlog.number,))
            self._forget_backlog(backlog)
        del self.backlogs[name]
        backlog.end(not_found("Subscription", name))

    def detach(self, backlog: Backlog, reason: Refused) -> None:
        """Detach a subscription from its topic for good; its deliveries are dropped."""
        with self.store.transaction():
            backlog.resource.detached = True
            self.save_subscription(backlog)
            self._forget_backlog(backlog)
        backlog.end(reason)

    def _forget_backlog(self, backlog: Backlog) -> None:
        self.journal.forget_subscription(backlog.number)
        self.journal.sweep(backlog.topic, before=self.retained_since(backlog.topic))
        topic = self.topics.get(backlog.resource.topic)
        if topic is not None:
            topic.backlogs.pop(backlog.name, None)

    # Messages.

    def publish(self, topic_name: str, messages: Sequence[Raw]) -> list[str]:
        """Store messages for every subscription whose filter matches. Returns their ids.

        Args:
            topic_name: The topic; refused with NOT_FOUND.
            messages: `PubsubMessage`s, already checked; this sets their id and publish time.
        """
        topic = self.topic(topic_name)
        keeps_all = self._keeps_bodies(topic.number) or self._has_snapshot(topic.number)
        bodies: list[tuple[int, bytes]] = []
        owed: list[tuple[Backlog, Delivery]] = []
        for message in messages:
            number = self.journal.next_message(self.now_us())
            message.message_id = str(number)
            message.publish_time.CopyFrom(timestamp(number))
            body = message.SerializeToString()
            debts = [
                (backlog, debt)
                for backlog in topic.backlogs.values()
                if (debt := backlog.debt(number, message, len(body))) is not None
            ]
            owed += debts
            if debts or keeps_all:
                bodies.append((number, body))
        self.journal.publish(topic.number, bodies, [(backlog.number, debt) for backlog, debt in owed])
        for backlog in topic.backlogs.values():
            arrived = [debt for who, debt in owed if who is backlog]
            if arrived:
                backlog.arrived(arrived)
        return [message.message_id for message in messages]

    def sweep(self) -> None:
        """Drop what is older than its retention; reads only topics that may hold old messages."""
        now_us = self.now_us()
        aged = {topic.number for topic in self.topics.values() if topic.retention_us}
        with self.store.transaction():
            aged |= self.journal.forget_snapshots(now_us)
            for backlog in self.backlogs.values():
                if backlog.forget_before(now_us - duration_us(backlog.resource.message_retention_duration)):
                    aged.add(backlog.topic)
            for number in aged:
                self.journal.sweep(number, before=self.retained_since(number))

    def retained_since(self, topic: int) -> int:
        """Return the oldest message that a topic's own retention keeps."""
        for state in self.topics.values():
            if state.number == topic and state.retention_us:
                return self.now_us() - state.retention_us
        return self.journal.last_message + 1

    def _keeps_bodies(self, topic: int) -> bool:
        return any(state.number == topic and state.retention_us > 0 for state in self.topics.values())

    def _has_snapshot(self, topic: int) -> bool:
        row = self.store.execute("SELECT 1 FROM snapshots WHERE topic = ? LIMIT 1", (topic,)).fetchone()
        return row is not None

    def _attach(self, number: int, epoch: int, topic: int, resource: Raw) -> Backlog:
        backlog = Backlog(
            number=number,
            epoch=epoch,
            topic=topic,
            resource=resource,
            journal=self.journal,
            now_us=self.now_us,
            bury=self._bury,
            keeps_bodies=self._keeps_bodies,
            fates=self._chaos.fates(resource.name) if self._chaos is not None else None,
        )
        self.backlogs[resource.name] = backlog
        if resource.detached:
            backlog.end(detached(resource.name))
        elif resource.topic in self.topics:
            self.topics[resource.topic].backlogs[resource.name] = backlog
        return backlog

    def _bury(self, backlog: Backlog, message: Raw, attempts: int) -> bool:
        """Publish a dead letter as production does, with its origin in the attributes."""
        grave = backlog.resource.dead_letter_policy.dead_letter_topic
        if grave not in self.topics:
            log.warning("%s: dead letter topic %s does not exist. Redelivering.", backlog.name, grave)
            return False
        letter = PubsubMessage(data=message.data, ordering_key=message.ordering_key)
        letter.attributes.update(message.attributes)
        _, project, _, subscription = backlog.name.split("/", 3)
        letter.attributes.update(
            CloudPubSubDeadLetterSourceDeliveryCount=str(attempts),
            CloudPubSubDeadLetterSourceSubscription=subscription,
            CloudPubSubDeadLetterSourceSubscriptionProject=project,
            CloudPubSubDeadLetterSourceTopicPublishTime=message.publish_time.ToJsonString(),
        )
        self.publish(grave, [letter])
        return True


def detached(name: str) -> Refused:
    """Return the refusal of a pull from a detached subscription."""
    return Refused(
        grpc.StatusCode.FAILED_PRECONDITION,
        f"Subscription is detached from its topic (resource={name.rpartition('/')[2]}).",
    )
