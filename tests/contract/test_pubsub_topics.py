"""Topics and publishing, through Google's unmodified client."""

from collections.abc import Iterator
from typing import Any

import pytest
from google.api_core import exceptions
from google.protobuf import field_mask_pb2

from tests.contract.pubsub_words import Project, bodies

OLD_MASKS = "knows an older Topic: labels cannot be updated"


@pytest.fixture
def project(pubsub_cloud: Any) -> Iterator[Project]:
    return Project(pubsub_cloud)


def test_a_topic_is_created_read_listed_and_deleted(project: Project) -> None:
    name = project.topic("topic-a", labels={"team": "ml"})
    assert project.publisher.get_topic(topic=name).labels == {"team": "ml"}
    project.topic("topic-b")
    listed = project.publisher.list_topics(project=f"projects/{project.name}")
    assert [topic.name.rpartition("/")[2] for topic in listed] == ["topic-a", "topic-b"]
    project.publisher.delete_topic(topic=name)
    with pytest.raises(exceptions.NotFound):
        project.publisher.get_topic(topic=name)


def test_lists_come_in_pages(project: Project) -> None:
    names = [project.topic(f"topic-{letter}") for letter in "abcde"]
    request = {"project": f"projects/{project.name}", "page_size": 2}
    pager = project.publisher.list_topics(request=request)
    pages = [[topic.name for topic in page.topics] for page in pager.pages]
    assert [len(page) for page in pages] == [2, 2, 1]
    assert [name for page in pages for name in page] == names


def test_a_name_is_taken_once(project: Project) -> None:
    name = project.topic()
    with pytest.raises(exceptions.AlreadyExists):
        project.publisher.create_topic(name=name)


@pytest.mark.parametrize("name", ["ab", "goog-thing", "1abc", "-abc", "has space", "a" * 256, "a/b", "schön", "abc!"])
def test_bad_names_are_refused(project: Project, name: str) -> None:
    with pytest.raises(exceptions.InvalidArgument):
        project.publisher.create_topic(name=project.path("topics", name))


@pytest.mark.parametrize("name", ["abc", "A-b_c.d~e+f%g", "a" * 255])
def test_unusual_names_are_taken(project: Project, name: str) -> None:
    assert project.topic(name) == project.path("topics", name)


@pytest.mark.differs(google="checks no labels")
@pytest.mark.parametrize("labels", [{"Upper": "x"}, {"key": "Upper"}, {"1": "x"}, {"k" * 64: "x"}])
def test_bad_labels_are_refused(project: Project, labels: dict[str, str]) -> None:
    with pytest.raises(exceptions.InvalidArgument):
        project.topic(labels=labels)


@pytest.mark.differs(google=OLD_MASKS)
def test_an_update_changes_what_its_mask_names(project: Project) -> None:
    name = project.topic(labels={"a": "1"})
    updated = project.publisher.update_topic(
        request={
            "topic": {"name": name, "labels": {"b": "2"}, "message_retention_duration": {"seconds": 900}},
            "update_mask": {"paths": ["labels"]},
        }
    )
    assert updated.labels == {"b": "2"}
    assert "message_retention_duration" not in updated


@pytest.mark.parametrize("paths", [[], ["nonsense"], ["name"]])
def test_bad_masks_are_refused(project: Project, paths: list[str]) -> None:
    name = project.topic()
    with pytest.raises(exceptions.InvalidArgument):
        project.publisher.update_topic(topic={"name": name}, update_mask=field_mask_pb2.FieldMask(paths=paths))


def test_what_does_not_exist_is_not_found(project: Project) -> None:
    nowhere = project.path("topics", "nowhere")
    calls = [
        lambda: project.publisher.get_topic(topic=nowhere),
        lambda: project.publisher.delete_topic(topic=nowhere),
        lambda: project.publish_at_once(nowhere, [{"data": b"x"}]),
    ]
    for call in calls:
        with pytest.raises(exceptions.NotFound):
            call()


@pytest.mark.differs(google="lists nothing of a topic that does not exist")
def test_subscriptions_of_a_topic_that_does_not_exist_are_not_found(project: Project) -> None:
    with pytest.raises(exceptions.NotFound):
        list(project.publisher.list_topic_subscriptions(topic=project.path("topics", "nowhere")))


def test_subscriptions_of_a_topic_are_listed(project: Project) -> None:
    topic, other = project.topic("topic-a"), project.topic("topic-b")
    names = [project.subscription(topic, f"sub-{letter}") for letter in "ab"]
    project.subscription(other, "sub-c")
    assert list(project.publisher.list_topic_subscriptions(topic=topic)) == names


def test_a_deleted_topic_leaves_its_subscriptions_and_their_messages(project: Project) -> None:
    topic = project.topic()
    subscription = project.subscription(topic)
    project.publish(topic, b"x")
    project.publisher.delete_topic(topic=topic)
    assert project.subscriber.get_subscription(subscription=subscription).topic == "_deleted-topic_"
    assert bodies(project.pull(subscription, 1)) == [b"x"]
    project.topic()
    assert project.subscriber.get_subscription(subscription=subscription).topic == "_deleted-topic_"


def test_ids_are_distinct_numbers_and_times_are_set(project: Project) -> None:
    topic = project.topic()
    subscription = project.subscription(topic)
    ids = project.publish(topic, b"1", b"2", b"3")
    assert len(set(ids)) == 3
    assert all(one.isdigit() for one in ids)
    received = project.pull(subscription, 3)
    assert {one.message.message_id for one in received} == set(ids)
    assert all(one.message.publish_time.year >= 2026 for one in received)


@pytest.mark.parametrize(
    "message",
    [
        pytest.param({"data": b""}, id="empty"),
        pytest.param(
            {"attributes": {f"k{n}": "v" for n in range(101)}},
            id="101 attributes",
            marks=pytest.mark.differs(google="checks no attributes"),
        ),
        pytest.param(
            {"attributes": {"k" * 257: "v"}},
            id="long key",
            marks=pytest.mark.differs(google="checks no attributes"),
        ),
        pytest.param(
            {"attributes": {"k": "v" * 1025}},
            id="long value",
            marks=pytest.mark.differs(google="checks no attributes"),
        ),
        pytest.param(
            {"attributes": {"googclient": "v"}},
            id="reserved key",
            marks=pytest.mark.differs(google="checks no attributes"),
        ),
        pytest.param(
            {"data": b"x", "ordering_key": "k" * 1025},
            id="long ordering key",
            marks=pytest.mark.differs(google="checks no ordering keys"),
        ),
    ],
)
def test_bad_messages_are_refused_with_their_whole_request(project: Project, message: dict) -> None:
    topic = project.topic()
    subscription = project.subscription(topic)
    with pytest.raises(exceptions.InvalidArgument):
        project.publish_at_once(topic, [{"data": b"fine"}, message])
    assert project.pull_now(subscription) == []


def test_a_request_holds_1_to_1000_messages(project: Project) -> None:
    topic = project.topic()
    assert len(project.publish_at_once(topic, [{"data": b"x"}] * 1000)) == 1000
    for count in (0, 1001):
        with pytest.raises(exceptions.InvalidArgument):
            project.publish_at_once(topic, [{"data": b"x"}] * count)


def test_a_request_may_have_almost_ten_megabytes(project: Project) -> None:
    assert project.publish_at_once(project.topic(), [{"data": b"x" * 9_999_000}])


@pytest.mark.differs(google="leaves the limit to its clients")
def test_a_request_has_at_most_ten_megabytes(project: Project) -> None:
    topic = project.topic()
    with pytest.raises(exceptions.InvalidArgument):
        project.publish_at_once(topic, [{"data": b"x" * 10_000_001}])


def test_an_unknown_method_is_said_to_be_unimplemented(pubsub_cloud: Any) -> None:
    channel = pubsub_cloud.channel("pubsub")
    call = channel.unary_unary("/google.pubsub.v1.Publisher/MakeCoffee")
    with pytest.raises(Exception, match=r"(?i)unimplemented") as refused:
        call(b"", timeout=5)
    assert refused.value.code().name == "UNIMPLEMENTED"


def test_projects_do_not_see_each_other(pubsub_cloud: Any) -> None:
    one, other = Project(pubsub_cloud), Project(pubsub_cloud)
    one.topic()
    assert list(other.publisher.list_topics(project=f"projects/{other.name}")) == []
