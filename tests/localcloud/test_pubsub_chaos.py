"""Deliveries made worse on purpose, as a real subscriber meets them."""

import os
import threading
from collections import Counter
from pathlib import Path
from typing import Any
from unittest import mock

from google.cloud import pubsub_v1

from localcloud.pubsub.chaos import Chaos
from tests.clouds import RunningCloud

TOPIC = "projects/p-chaos/topics/topic-a"
SUB = "projects/p-chaos/subscriptions/sub-a"
COUNT = 300


def test_a_subscriber_meets_duplicates_and_a_new_order_and_still_sees_everything(tmp_path: Path) -> None:
    with RunningCloud(tmp_path, chaos=Chaos(7, duplicate=0.4, reorder=0.4)) as cloud:
        with mock.patch.dict(os.environ, {"PUBSUB_EMULATOR_HOST": str(cloud.addresses.pubsub)}):
            publisher, subscriber = pubsub_v1.PublisherClient(), pubsub_v1.SubscriberClient()
        publisher.create_topic(name=TOPIC)
        subscriber.create_subscription(name=SUB, topic=TOPIC)
        sent = [publisher.publish(TOPIC, b"%d" % number) for number in range(COUNT)]
        ids = [future.result(timeout=10) for future in sent]
        seen: list[str] = []
        lock, done = threading.Lock(), threading.Event()

        def on_message(message: Any) -> None:
            with lock:
                seen.append(message.message_id)
                if len(set(seen)) == COUNT and len(seen) >= 1.2 * COUNT:
                    done.set()
            message.ack()

        streaming = subscriber.subscribe(SUB, on_message)
        assert done.wait(20), f"{len(set(seen))} of {COUNT} in {len(seen)} deliveries"
        streaming.cancel()
        streaming.result(timeout=10)
        subscriber.close()
        publisher.transport.close()
    assert set(seen) == set(ids)
    assert max(Counter(seen).values()) == 2
    assert list(dict.fromkeys(seen)) != ids
