"""What happens to objects, told to Pub/Sub: both through Google's clients."""

import json
import uuid
from collections.abc import Iterator
from typing import Any

import pytest
from google.api_core import exceptions

from tests.contract.conftest import Cloud


@pytest.fixture
def cloud(local_cloud: Any) -> Iterator[Cloud]:
    cloud = Cloud("localcloud", pubsub=local_cloud.addresses.pubsub)
    yield cloud
    cloud.close_clients()


@pytest.fixture
def bucket(local_cloud: Any) -> Any:
    return local_cloud.storage_client().create_bucket(f"bucket-{uuid.uuid4().hex}")


class Topic:
    def __init__(self, cloud: Cloud, project: str) -> None:
        self.project, self.name = project, f"topic-{uuid.uuid4().hex}"
        self._subscriber = cloud.subscriber()
        self._subscription = f"projects/{project}/subscriptions/{self.name}"
        path = f"projects/{project}/topics/{self.name}"
        cloud.publisher().create_topic(name=path)
        self._subscriber.create_subscription(name=self._subscription, topic=path)

    def next(self, count: int) -> list[Any]:
        messages: list[Any] = []
        while len(messages) < count:
            answer = self._subscriber.pull(subscription=self._subscription, max_messages=count, timeout=10)
            messages += [received.message for received in answer.received_messages]
            self._subscriber.acknowledge(
                subscription=self._subscription, ack_ids=[received.ack_id for received in answer.received_messages]
            )
        return sorted(messages, key=lambda message: (int(message.attributes["objectGeneration"]), message.message_id))


@pytest.fixture
def topic(cloud: Cloud, bucket: Any) -> Topic:
    return Topic(cloud, bucket.client.project)


def test_a_finished_object_is_told_with_productions_attributes(bucket: Any, topic: Topic) -> None:
    notification = bucket.notification(
        topic.name, topic.project, custom_attributes={"mine": "1"}, payload_format="JSON_API_V1"
    )
    notification.create()
    blob = bucket.blob("models/a b")
    blob.metadata = {"k": "v"}
    blob.upload_from_string("one")
    (message,) = topic.next(1)
    attributes = dict(message.attributes)
    assert attributes.pop("eventTime").endswith("Z")
    assert attributes == {
        "mine": "1",
        "notificationConfig": f"projects/_/buckets/{bucket.name}/notificationConfigs/{notification.notification_id}",
        "eventType": "OBJECT_FINALIZE",
        "payloadFormat": "JSON_API_V1",
        "bucketId": bucket.name,
        "objectId": "models/a b",
        "objectGeneration": str(blob.generation),
    }
    payload = json.loads(message.data)
    assert payload["kind"] == "storage#object"
    assert (payload["name"], payload["size"], payload["metadata"]) == ("models/a b", "3", {"k": "v"})
    assert payload["generation"] == str(blob.generation)


def test_replacing_changing_and_deleting_are_told_too(bucket: Any, topic: Topic) -> None:
    bucket.notification(topic.name, topic.project, payload_format="NONE").create()
    first = bucket.blob("x")
    first.upload_from_string("1")
    second = bucket.blob("x")
    second.upload_from_string("2")
    second.metadata = {"k": "v"}
    second.patch()
    second.delete()
    told = {
        (message.attributes["eventType"], int(message.attributes["objectGeneration"])): dict(message.attributes)
        for message in topic.next(5)
    }
    assert set(told) == {
        ("OBJECT_FINALIZE", first.generation),
        ("OBJECT_DELETE", first.generation),
        ("OBJECT_FINALIZE", second.generation),
        ("OBJECT_METADATA_UPDATE", second.generation),
        ("OBJECT_DELETE", second.generation),
    }
    assert told["OBJECT_FINALIZE", second.generation]["overwroteGeneration"] == str(first.generation)
    assert told["OBJECT_DELETE", first.generation]["overwrittenByGeneration"] == str(second.generation)
    assert "overwrittenByGeneration" not in told["OBJECT_DELETE", second.generation]


def test_only_what_was_asked_for_is_told(bucket: Any, topic: Topic) -> None:
    bucket.notification(
        topic.name,
        topic.project,
        event_types=["OBJECT_FINALIZE"],
        blob_name_prefix="models/",
        payload_format="NONE",
    ).create()
    bucket.blob("other/x").upload_from_string("1")
    bucket.blob("models/x").upload_from_string("1")
    bucket.blob("models/x").delete()
    bucket.blob("models/y").upload_from_string("1")
    assert [message.attributes["objectId"] for message in topic.next(2)] == ["models/x", "models/y"]


def test_a_bucket_that_keeps_versions_archives(bucket: Any, topic: Topic) -> None:
    bucket.versioning_enabled = True
    bucket.patch()
    bucket.notification(topic.name, topic.project, payload_format="NONE", event_types=["OBJECT_ARCHIVE"]).create()
    bucket.blob("x").upload_from_string("1")
    bucket.blob("x").upload_from_string("2")
    bucket.blob("x").delete()
    archived = [message.attributes.get("overwrittenByGeneration") is not None for message in topic.next(2)]
    assert archived == [True, False]


def test_configurations_are_listed_found_and_deleted(bucket: Any) -> None:
    assert list(bucket.list_notifications()) == []
    made = [bucket.notification(f"topic-{number}", "some-project", payload_format="NONE") for number in range(2)]
    for one in made:
        one.create()
    assert [one.topic_name for one in bucket.list_notifications()] == ["topic-0", "topic-1"]
    assert [one.topic_project for one in bucket.list_notifications()] == ["some-project"] * 2
    assert bucket.get_notification(made[0].notification_id).payload_format == "NONE"
    made[0].delete()
    assert [one.topic_name for one in bucket.list_notifications()] == ["topic-1"]
    with pytest.raises(exceptions.NotFound):
        bucket.get_notification(made[0].notification_id)
