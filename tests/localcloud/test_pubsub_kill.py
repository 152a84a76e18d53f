"""`kill -9` in the middle of everything: what was answered is kept."""

import os
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
from google.api_core import exceptions
from google.cloud import pubsub_v1
from google.pubsub_v1 import PublisherClient as GapicPublisherClient

from tests.clouds import CloudProcess

TOPIC = "projects/p-kill/topics/topic-a"
SUB = "projects/p-kill/subscriptions/sub-a"


class App:
    """Clients of one life of the process."""

    def __init__(self, address: str) -> None:
        with mock.patch.dict(os.environ, {"PUBSUB_EMULATOR_HOST": address}):
            self.publisher = pubsub_v1.PublisherClient()
            self.subscriber = pubsub_v1.SubscriberClient()

    def publish(self, bodies: list[bytes]) -> list[str]:
        messages = [{"data": body} for body in bodies]
        answer = GapicPublisherClient.publish(self.publisher, topic=TOPIC, messages=messages, retry=None, timeout=5)
        return list(answer.message_ids)

    def pull(self, limit: int) -> list[Any]:
        request = {"subscription": SUB, "max_messages": limit, "return_immediately": True}
        return list(self.subscriber.pull(request=request, retry=None, timeout=5).received_messages)

    def ack(self, received: list[Any]) -> None:
        ack_ids = [one.ack_id for one in received]
        self.subscriber.acknowledge(subscription=SUB, ack_ids=ack_ids, retry=None, timeout=5)

    def close(self) -> None:
        self.publisher.transport.close()
        self.subscriber.close()


@pytest.fixture
def cloud(tmp_path: Path) -> Iterator[CloudProcess]:
    with CloudProcess(tmp_path) as cloud:
        yield cloud


@pytest.mark.filterwarnings("ignore:The return_immediately flag is deprecated")
def test_every_answered_publish_is_delivered_after_a_kill(cloud: CloudProcess) -> None:
    app = App(str(cloud.addresses.pubsub))
    app.publisher.create_topic(name=TOPIC)
    app.subscriber.create_subscription(name=SUB, topic=TOPIC)
    answered: set[str] = set()
    enough = threading.Event()

    def publish_until_killed() -> None:
        number = 0
        try:
            while True:
                ids = app.publish([b"%d" % (number + n) for n in range(20)])
                answered.update(ids)
                number += 20
                if number >= 1000:
                    enough.set()
        except exceptions.GoogleAPICallError:
            pass  # Killed in the middle of a request: that one was not answered.

    publishing = threading.Thread(target=publish_until_killed)
    publishing.start()
    assert enough.wait(20)
    acknowledged: set[str] = set()
    leased = app.pull(100)
    app.ack(leased[:50])
    acknowledged.update(one.message.message_id for one in leased[:50])
    cloud.kill()
    publishing.join(20)
    app.close()

    app = App(str(cloud.start().pubsub))
    seen: dict[str, int] = {}
    while received := app.pull(1000):
        for one in received:
            seen[one.message.message_id] = seen.get(one.message.message_id, 0) + 1
        app.ack(received)
    app.close()
    assert answered - acknowledged <= set(seen), "an answered publish was lost"
    assert not acknowledged & set(seen), "an acknowledged message came again"
    assert len(seen) - len(answered - acknowledged) <= 20, "at most the request that was cut short"
    assert set(seen.values()) == {1}
