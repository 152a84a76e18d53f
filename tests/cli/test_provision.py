"""What `goblin up` creates of the declaration, in a Pub/Sub of the test's own."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from goblin.cli import paths, provision
from tests.clouds import RunningCloud, environment


def test_a_topic_for_apps_has_no_subscription_of_ours(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from google.cloud import pubsub_v1

    with RunningCloud(tmp_path, services=("pubsub",)) as cloud:
        for name, value in environment(cloud.addresses).items():
            monkeypatch.setenv(name, value)
        for _ in range(2):  # What exists is brought to what is declared.
            provision.topics(paths.declaration(), project="p", functions_url="http://127.0.0.1:9", invoker_email="i@x")
        publisher, subscriber = pubsub_v1.PublisherClient(), pubsub_v1.SubscriberClient()
        topics = {topic.name.rpartition("/")[2] for topic in publisher.list_topics(project="projects/p")}
        found = {one.name.rpartition("/")[2] for one in subscriber.list_subscriptions(project="projects/p")}
        publisher.transport.close()
        subscriber.close()
    said = json.loads(paths.declaration().read_text())["topics"]
    heard = {name for name, details in said.items() if "function" in details}
    assert "job-status-changed" in set(said) - heard
    assert topics == set(said) | {f"{name}-dead" for name in heard}
    assert found == {f"{name}-{what}" for name in heard for what in ("push", "dead")}
