"""Push: what an endpoint receives, and how its answers acknowledge."""

import base64
from collections.abc import Iterator
from typing import Any

import pytest
from google.api_core import exceptions
from google.auth import jwt

from tests.contract.pubsub_words import Project, bodies
from tests.contract.receiver import Receiver, receiving


@pytest.fixture
def project(pubsub_cloud: Any) -> Project:
    return Project(pubsub_cloud)


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    with receiving() as receiver:
        yield receiver


def pushed(project: Project, receiver: Receiver, path: str = "/", **fields: Any) -> str:
    """A topic with a push subscription."""
    topic = project.topic()
    config = {"push_endpoint": receiver.url(path), **fields.pop("push_config", {})}
    project.subscription(topic, push_config=config, **fields)
    return topic


def test_a_message_arrives_wrapped(project: Project, receiver: Receiver) -> None:
    topic = pushed(project, receiver, "/fn/on_thing/?token=x")
    (message_id,) = project.publish(topic, b"hello", kind="greeting")
    (request,) = receiver.wait(1)
    message = request.json["message"]
    assert request.path == "/fn/on_thing/?token=x"
    assert request.headers["content-type"] == "application/json"
    assert request.json["subscription"] == project.path("subscriptions", "sub-a")
    assert base64.b64decode(message["data"]) == b"hello"
    assert message["attributes"] == {"kind": "greeting"}
    assert message["messageId"] == message["message_id"] == message_id
    assert message["publishTime"] == message["publish_time"]
    assert message["publishTime"].endswith("Z")
    assert "deliveryAttempt" not in request.json


@pytest.mark.parametrize(
    "status",
    [200, 201, pytest.param(202, marks=pytest.mark.not_on(google="treats 202 as a failure")), 204],
)
def test_success_acknowledges(project: Project, receiver: Receiver, status: int) -> None:
    receiver.script(status)
    topic = pushed(project, receiver)
    project.publish(topic, b"1")
    receiver.wait(1)
    project.publish(topic, b"2")
    assert [base64.b64decode(one.json["message"]["data"]) for one in receiver.wait(2)] == [b"1", b"2"]


@pytest.mark.parametrize("status", [400, 404, 500, 503])
def test_failure_tries_again(project: Project, receiver: Receiver, status: int) -> None:
    receiver.script(status)
    (message_id,) = project.publish(pushed(project, receiver), b"x")
    ids = [one.json["message"]["messageId"] for one in receiver.wait(2)]
    assert ids == [message_id, message_id]


def test_a_redirect_is_a_failure_and_is_not_followed(project: Project, receiver: Receiver) -> None:
    receiver.script(307)
    project.publish(pushed(project, receiver), b"x")
    assert len(receiver.wait(2)) == 2


def test_a_hung_endpoint_starves_nobody_else(project: Project, receiver: Receiver) -> None:
    topic = pushed(project, receiver)
    receiver.hold()
    with receiving() as healthy:
        project.subscription(topic, "sub-b", push_config={"push_endpoint": healthy.url()})
        project.publish(topic, *(b"%d" % n for n in range(20)))
        assert len(healthy.wait(20)) == 20


@pytest.mark.differs(google="has at most 2 requests in flight")
def test_fifty_requests_are_in_flight(project: Project, receiver: Receiver) -> None:
    topic = pushed(project, receiver)
    receiver.hold()
    project.publish(topic, *(b"%d" % n for n in range(60)))
    receiver.wait(50, timeout_s=3)
    assert receiver.at_work_max == 50
    receiver.release()
    assert len(receiver.wait(60)) == 60


def test_a_key_is_pushed_in_order_over_a_failure(project: Project, receiver: Receiver) -> None:
    receiver.script(204, 500)
    topic = pushed(project, receiver, enable_message_ordering=True)
    project.publish(topic, b"0", b"1", b"2", b"3", ordering_key="k")
    seen = [base64.b64decode(one.json["message"]["data"]) for one in receiver.wait(5)]
    assert seen == [b"0", b"1", b"1", b"2", b"3"]


@pytest.mark.differs(google="sends no orderingKey")
def test_the_ordering_key_is_told(project: Project, receiver: Receiver) -> None:
    topic = pushed(project, receiver, enable_message_ordering=True)
    project.publish(topic, b"x", ordering_key="k")
    assert receiver.wait(1)[0].json["message"]["orderingKey"] == "k"


@pytest.mark.differs(google="sends no deliveryAttempt")
def test_attempts_are_told_with_a_dead_letter_policy(project: Project, receiver: Receiver) -> None:
    receiver.script(500)
    policy = {"dead_letter_topic": project.topic("topic-dead"), "max_delivery_attempts": 5}
    project.publish(pushed(project, receiver, dead_letter_policy=policy), b"x")
    assert [one.json["deliveryAttempt"] for one in receiver.wait(2)] == [1, 2]


@pytest.mark.not_on(google="takes 4 s: its pauses are fixed at one second")
def test_a_message_is_buried_after_five_pushes(project: Project, receiver: Receiver) -> None:
    receiver.script(*[500] * 5)
    grave = project.topic("topic-dead")
    buried = project.subscription(grave, "sub-dead")
    policy = {"dead_letter_topic": grave, "max_delivery_attempts": 5}
    no_pause = {"minimum_backoff": {"seconds": 0}, "maximum_backoff": {"seconds": 0}}
    topic = pushed(project, receiver, dead_letter_policy=policy, retry_policy=no_pause)
    project.publish(topic, b"x")
    receiver.wait(5)
    (letter,) = project.pull(buried, 1)
    assert letter.message.attributes["CloudPubSubDeadLetterSourceDeliveryCount"] == "5"
    assert len(receiver.requests) == 5


@pytest.mark.differs(google="sends no Authorization header")
def test_an_authenticated_push_carries_a_token(project: Project, receiver: Receiver) -> None:
    token = {"service_account_email": "pusher@local.iam.gserviceaccount.com"}
    topic = pushed(project, receiver, push_config={"oidc_token": token})
    project.publish(topic, b"x")
    scheme, _, text = receiver.wait(1)[0].headers["authorization"].partition(" ")
    claims = jwt.decode(text, verify=False)
    assert scheme == "Bearer"
    assert (claims["aud"], claims["iss"]) == (receiver.url(), "https://accounts.google.com")
    assert (claims["email"], claims["email_verified"]) == (token["service_account_email"], True)


def test_without_wrapper_metadata_travels_in_headers(project: Project, receiver: Receiver) -> None:
    topic = pushed(project, receiver, push_config={"no_wrapper": {"write_metadata": True}})
    (message_id,) = project.publish(topic, b"\x00raw", kind="greeting")
    (request,) = receiver.wait(1)
    assert request.body == b"\x00raw"
    assert request.headers["kind"] == "greeting"
    assert request.headers["x-goog-pubsub-message-id"] == message_id
    assert request.headers["x-goog-pubsub-subscription-name"] == project.path("subscriptions", "sub-a")


@pytest.mark.differs(google="decodes the data as UTF-8 and replaces what is not")
def test_without_wrapper_the_body_is_the_data_to_the_byte(project: Project, receiver: Receiver) -> None:
    topic = pushed(project, receiver, push_config={"no_wrapper": {"write_metadata": False}})
    project.publish(topic, bytes(range(256)))
    assert receiver.wait(1)[0].body == bytes(range(256))


def test_an_empty_push_config_turns_push_into_pull(project: Project, receiver: Receiver) -> None:
    topic = pushed(project, receiver)
    name = project.path("subscriptions", "sub-a")
    project.publish(topic, b"pushed")
    receiver.wait(1)
    project.subscriber.modify_push_config(subscription=name, push_config={})
    project.publish(topic, b"pulled")
    assert bodies(project.pull(name, 1)) == [b"pulled"]
    assert len(receiver.requests) == 1


@pytest.mark.not_on(google="would try to reach it")
def test_other_machines_are_never_called(project: Project) -> None:
    topic = project.topic()
    with pytest.raises(exceptions.InvalidArgument, match="loopback"):
        project.subscription(topic, push_config={"push_endpoint": "https://example.com/"})
