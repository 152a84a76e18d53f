"""Subscriptions as resources: what may be said of them, what comes back, what is refused."""

from typing import Any

import pytest
from google.api_core import exceptions

from tests.contract.pubsub_words import Project, bodies

OTHER_CODE = "answers OUT_OF_RANGE where production documents INVALID_ARGUMENT"


@pytest.fixture
def project(pubsub_cloud: Any) -> Project:
    return Project(pubsub_cloud)


def update(project: Project, name: str, *paths: str, **fields: Any) -> Any:
    return project.subscriber.update_subscription(
        request={"subscription": {"name": name, **fields}, "update_mask": {"paths": paths}}
    )


def test_defaults_are_filled_in(project: Project) -> None:
    name = project.subscription(project.topic())
    said = project.subscriber.get_subscription(subscription=name)
    assert said.topic == project.path("topics", "topic-a")
    assert said.ack_deadline_seconds == 10
    assert said.message_retention_duration.total_seconds() == 7 * 24 * 3600
    assert said.push_config.push_endpoint == ""
    assert not said.enable_message_ordering
    assert "retry_policy" not in said
    assert "dead_letter_policy" not in said


def test_policies_are_completed(project: Project) -> None:
    topic = project.topic()
    name = project.subscription(
        topic, retry_policy={}, dead_letter_policy={"dead_letter_topic": project.topic("topic-dead")}
    )
    said = project.subscriber.get_subscription(subscription=name)
    assert said.retry_policy.minimum_backoff.total_seconds() == 10
    assert said.retry_policy.maximum_backoff.total_seconds() == 600
    assert said.dead_letter_policy.max_delivery_attempts == 5


def test_subscriptions_are_listed_and_deleted(project: Project) -> None:
    topic = project.topic()
    names = [project.subscription(topic, f"sub-{letter}") for letter in "abc"]
    listed = project.subscriber.list_subscriptions(project=f"projects/{project.name}")
    assert [one.name for one in listed] == names
    project.subscriber.delete_subscription(subscription=names[0])
    with pytest.raises(exceptions.NotFound):
        project.subscriber.get_subscription(subscription=names[0])
    assert list(project.publisher.list_topic_subscriptions(topic=topic)) == names[1:]


def test_a_name_is_taken_once(project: Project) -> None:
    topic = project.topic()
    project.subscription(topic)
    with pytest.raises(exceptions.AlreadyExists):
        project.subscription(topic)


def test_a_subscription_needs_its_topics(project: Project) -> None:
    nowhere = project.path("topics", "nowhere")
    with pytest.raises(exceptions.NotFound):
        project.subscription(nowhere)
    with pytest.raises(exceptions.NotFound):
        project.subscription(project.topic(), dead_letter_policy={"dead_letter_topic": nowhere})


@pytest.mark.parametrize(
    "fields",
    [
        pytest.param({"ack_deadline_seconds": 9}, marks=pytest.mark.differs(google="takes shorter deadlines")),
        {"ack_deadline_seconds": 601},
        {"message_retention_duration": {"seconds": 599}},
        {"message_retention_duration": {"seconds": 31 * 24 * 3600 + 1}},
        {"push_config": {"push_endpoint": "nonsense"}},
        pytest.param({"filter": "attributes.lang = "}, marks=pytest.mark.differs(google="reads no filters")),
        pytest.param({"filter": f'attributes:"{"a" * 256}"'}, marks=pytest.mark.differs(google="reads no filters")),
        pytest.param(
            {"expiration_policy": {"ttl": {"seconds": 3600}}},
            marks=pytest.mark.differs(google="checks no expiration policy"),
        ),
        pytest.param(
            {
                "enable_exactly_once_delivery": True,
                "push_config": {"push_endpoint": "http://127.0.0.1:1/"},
            },
            marks=pytest.mark.differs(google="takes exactly-once delivery for push"),
        ),
        pytest.param({"labels": {"Upper": "x"}}, marks=pytest.mark.differs(google="checks no labels")),
    ],
    ids=lambda fields: "+".join(fields),
)
def test_impossible_wishes_are_refused(project: Project, fields: dict[str, Any]) -> None:
    topic = project.topic()
    with pytest.raises(exceptions.InvalidArgument):
        project.subscription(topic, **fields)


@pytest.mark.differs(google=OTHER_CODE)
@pytest.mark.parametrize("attempts", [4, 101])
def test_a_dead_letter_policy_allows_5_to_100_attempts(project: Project, attempts: int) -> None:
    topic = project.topic()
    with pytest.raises(exceptions.InvalidArgument) as refused:
        project.subscription(topic, dead_letter_policy={"dead_letter_topic": topic, "max_delivery_attempts": attempts})
    assert type(refused.value) is exceptions.InvalidArgument


def test_an_update_changes_what_its_mask_names(project: Project) -> None:
    name = project.subscription(project.topic(), ack_deadline_seconds=20)
    said = update(project, name, "ack_deadline_seconds", ack_deadline_seconds=30, retain_acked_messages=True)
    assert (said.ack_deadline_seconds, said.retain_acked_messages) == (30, False)


@pytest.mark.differs(google="knows an older Subscription: labels cannot be updated")
def test_labels_are_updated(project: Project) -> None:
    name = project.subscription(project.topic(), labels={"a": "1"})
    assert update(project, name, "labels", labels={"b": "2"}).labels == {"b": "2"}


def test_an_update_without_a_value_clears(project: Project) -> None:
    name = project.subscription(project.topic(), retry_policy={})
    assert "retry_policy" not in update(project, name, "retry_policy")


@pytest.mark.parametrize("path", ["nonsense", "name", "topic", "filter", "enable_message_ordering"])
def test_what_cannot_change_is_refused(project: Project, path: str) -> None:
    name = project.subscription(project.topic())
    with pytest.raises(exceptions.InvalidArgument):
        update(project, name, path, topic=project.path("topics", "topic-a"), filter="attributes:x")


def test_an_update_needs_a_mask(project: Project) -> None:
    name = project.subscription(project.topic())
    with pytest.raises(exceptions.InvalidArgument):
        update(project, name, ack_deadline_seconds=20)


def test_push_is_switched_on_and_off(project: Project) -> None:
    name = project.subscription(project.topic())
    config = {"push_endpoint": "http://127.0.0.1:1/never"}
    project.subscriber.modify_push_config(subscription=name, push_config=config)
    said = project.subscriber.get_subscription(subscription=name)
    assert said.push_config.push_endpoint == config["push_endpoint"]
    project.subscriber.modify_push_config(subscription=name, push_config={})
    assert project.subscriber.get_subscription(subscription=name).push_config.push_endpoint == ""


@pytest.mark.differs(google="does not implement DetachSubscription")
def test_a_detached_subscription_delivers_nothing(project: Project) -> None:
    topic = project.topic()
    name = project.subscription(topic)
    project.publish(topic, b"x")
    project.publisher.detach_subscription(request={"subscription": name})
    with pytest.raises(exceptions.FailedPrecondition):
        project.subscriber.pull(subscription=name, max_messages=1, timeout=5)
    assert project.subscriber.get_subscription(subscription=name).detached
    assert list(project.publisher.list_topic_subscriptions(topic=topic)) == []


FILTERED = [
    ("attributes:lang", {"en", "de"}),
    ('attributes.lang = "en"', {"en"}),
    ('attributes.lang != "en"', {"de", ""}),
    ('hasPrefix(attributes.lang, "d")', {"de"}),
    ("NOT attributes:lang", {""}),
    ('attributes:lang AND -attributes.lang = "de"', {"en"}),
    ('attributes.lang = "en" OR attributes.lang = "de"', {"en", "de"}),
]


@pytest.mark.differs(google="filters nothing")
@pytest.mark.parametrize(("text", "expected"), FILTERED)
def test_a_filter_selects_messages(project: Project, text: str, expected: set[str]) -> None:
    topic = project.topic()
    name = project.subscription(topic, filter=text)
    for lang in ("en", "de", ""):
        project.publish(topic, lang.encode() or b"-", **({"lang": lang} if lang else {}))
    assert {body.decode().strip("-") for body in bodies(project.pull_now(name))} == expected
