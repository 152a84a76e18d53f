"""Snapshots and seeking."""

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from google.api_core import exceptions

from tests.contract.pubsub_words import Project, bodies


@pytest.fixture
def project(pubsub_cloud: Any) -> Project:
    return Project(pubsub_cloud)


def snapshot(project: Project, subscription: str, name: str = "snap-a", **fields: Any) -> Any:
    request = {"name": project.path("snapshots", name), "subscription": subscription, **fields}
    return project.subscriber.create_snapshot(request=request)


def seek(project: Project, subscription: str, **target: Any) -> None:
    project.subscriber.seek(request={"subscription": subscription, **target})


def test_a_seek_into_the_past_replays_retained_messages(project: Project) -> None:
    topic = project.topic()
    name = project.subscription(topic, retain_acked_messages=True)
    project.publish(topic, b"1", b"2")
    project.ack(name, project.pull(name, 2))
    seek(project, name, time=datetime.now(UTC) - timedelta(minutes=5))
    assert sorted(bodies(project.pull(name, 2))) == [b"1", b"2"]


def test_a_seek_to_now_drops_the_backlog(project: Project) -> None:
    topic = project.topic()
    name = project.subscription(topic)
    project.publish(topic, b"1", b"2")
    seek(project, name, time=datetime.now(UTC) + timedelta(seconds=1))
    assert project.pull_now(name) == []


def test_a_snapshot_brings_back_what_was_open_and_what_came_after(project: Project) -> None:
    topic = project.topic()
    name = project.subscription(topic)
    project.publish(topic, b"done")
    project.ack(name, project.pull(name, 1))
    project.publish(topic, b"open")
    saved = snapshot(project, name)
    assert saved.topic == topic
    project.publish(topic, b"later")
    project.ack(name, project.pull(name, 2))
    seek(project, name, snapshot=saved.name)
    assert sorted(bodies(project.pull(name, 2))) == [b"later", b"open"]
    assert project.pull_now(name) == []


@pytest.mark.not_on(google="keeps a snapshot for the subscription that it was made of")
def test_another_subscription_of_the_topic_may_seek_to_it(project: Project) -> None:
    topic = project.topic()
    name = project.subscription(topic)
    project.publish(topic, b"x")
    saved = snapshot(project, name)
    other = project.subscription(topic, "sub-b")
    assert project.pull_now(other) == []
    seek(project, other, snapshot=saved.name)
    assert bodies(project.pull(other, 1)) == [b"x"]


def test_snapshots_are_read_listed_and_deleted(project: Project) -> None:
    topic = project.topic()
    name = project.subscription(topic)
    saved = snapshot(project, name)
    subscriber = project.subscriber
    assert subscriber.get_snapshot(snapshot=saved.name).name == saved.name
    assert [one.name for one in subscriber.list_snapshots(project=f"projects/{project.name}")] == [saved.name]
    assert list(project.publisher.list_topic_snapshots(topic=topic)) == [saved.name]
    with pytest.raises(exceptions.AlreadyExists):
        snapshot(project, name)
    subscriber.delete_snapshot(snapshot=saved.name)
    with pytest.raises(exceptions.NotFound):
        subscriber.get_snapshot(snapshot=saved.name)
    with pytest.raises(exceptions.NotFound):
        seek(project, name, snapshot=saved.name)


@pytest.mark.differs(google="does not implement UpdateSnapshot")
def test_labels_of_a_snapshot_are_updated(project: Project) -> None:
    saved = snapshot(project, project.subscription(project.topic()))
    updated = project.subscriber.update_snapshot(
        request={"snapshot": {"name": saved.name, "labels": {"a": "1"}}, "update_mask": {"paths": ["labels"]}}
    )
    assert updated.labels == {"a": "1"}


def test_a_snapshot_of_another_topic_is_refused(project: Project) -> None:
    saved = snapshot(project, project.subscription(project.topic("topic-a")))
    other = project.subscription(project.topic("topic-b"), "sub-b")
    with pytest.raises((exceptions.InvalidArgument, exceptions.FailedPrecondition)):
        seek(project, other, snapshot=saved.name)


def test_a_seek_needs_a_target(project: Project) -> None:
    name = project.subscription(project.topic())
    with pytest.raises(exceptions.InvalidArgument):
        seek(project, name)
