"""Short sentences for the Pub/Sub tests: a topic, its subscriptions, what was received."""

import time
import warnings
from typing import Any

from google.cloud import pubsub_v1
from google.pubsub_v1 import PublisherClient as GapicPublisherClient


class Project:
    """A fresh project on one cloud, with the clients to fill it."""

    def __init__(self, cloud: Any) -> None:
        self.cloud = cloud
        self.name = cloud.project()
        self.publisher = cloud.publisher(
            publisher_options=pubsub_v1.types.PublisherOptions(enable_message_ordering=True)
        )
        self.subscriber = cloud.subscriber()

    def path(self, collection: str, name: str) -> str:
        return f"projects/{self.name}/{collection}/{name}"

    def topic(self, name: str = "topic-a", **fields: Any) -> str:
        return self.publisher.create_topic(request={"name": self.path("topics", name), **fields}).name

    def subscription(self, topic: str, name: str = "sub-a", **fields: Any) -> str:
        request = {"name": self.path("subscriptions", name), "topic": topic, **fields}
        return self.subscriber.create_subscription(request=request).name

    def publish(self, topic: str, *bodies: bytes, ordering_key: str = "", **attributes: str) -> list[str]:
        """Through the batching client; answers the ids."""
        futures = [self.publisher.publish(topic, body, ordering_key=ordering_key, **attributes) for body in bodies]
        return [future.result(timeout=10) for future in futures]

    def publish_at_once(self, topic: str, messages: list[dict[str, Any]]) -> list[str]:
        """One request as it stands, past the checks and batches of the client."""
        answer = GapicPublisherClient.publish(self.publisher, topic=topic, messages=messages)
        return list(answer.message_ids)

    def pull(self, subscription: str, count: int, *, timeout_s: float = 10) -> list[Any]:
        """Exactly this many messages, however many answers they take."""
        received: list[Any] = []
        ends_at = time.monotonic() + timeout_s
        while len(received) < count:
            left_s = ends_at - time.monotonic()
            assert left_s > 0, f"only {len(received)} of {count} messages came"
            answer = self.subscriber.pull(
                subscription=subscription, max_messages=count - len(received), timeout=max(left_s, 1.5)
            )
            received += answer.received_messages
        return received

    def pull_now(self, subscription: str) -> list[Any]:
        """What is there, without waiting for more."""
        request = {"subscription": subscription, "max_messages": 100, "return_immediately": True}
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="The return_immediately flag is deprecated")
            return list(self.subscriber.pull(request=request).received_messages)

    def ack(self, subscription: str, received: list[Any]) -> None:
        self.subscriber.acknowledge(subscription=subscription, ack_ids=[one.ack_id for one in received])

    def nack(self, subscription: str, received: list[Any]) -> None:
        self.subscriber.modify_ack_deadline(
            subscription=subscription, ack_ids=[one.ack_id for one in received], ack_deadline_seconds=0
        )


def bodies(received: list[Any]) -> list[bytes]:
    return [one.message.data for one in received]
