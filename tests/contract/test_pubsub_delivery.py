"""Pull, streaming pull, acknowledgements, order, dead letters: as an app meets them."""

import queue
import threading
from typing import Any

import pytest
from google.api_core import exceptions
from google.cloud.pubsub_v1.subscriber.exceptions import AcknowledgeError, AcknowledgeStatus
from google.cloud.pubsub_v1.types import FlowControl
from google.pubsub_v1.types import StreamingPullRequest

from tests.contract.pubsub_words import Project, bodies

NO_WINDOW = "sends a stream more than its max_outstanding_messages"


@pytest.fixture
def project(pubsub_cloud: Any) -> Project:
    return Project(pubsub_cloud)


def test_every_subscription_gets_every_message(project: Project) -> None:
    topic = project.topic()
    names = [project.subscription(topic, f"sub-{letter}") for letter in "ab"]
    project.publish(topic, b"1", b"2", kind="test")
    for name in names:
        received = project.pull(name, 2)
        assert sorted(bodies(received)) == [b"1", b"2"]
        assert [dict(one.message.attributes) for one in received] == [{"kind": "test"}] * 2


def test_a_subscription_starts_with_what_is_published_after_it(project: Project) -> None:
    topic = project.topic()
    project.publish(topic, b"before")
    name = project.subscription(topic)
    project.publish(topic, b"after")
    assert bodies(project.pull(name, 1)) == [b"after"]
    assert project.pull_now(name) == []


def test_a_leased_message_goes_to_nobody_else(project: Project) -> None:
    topic = project.topic()
    name = project.subscription(topic)
    project.publish(topic, b"x")
    project.pull(name, 1)
    assert project.pull_now(name) == []


def test_a_nack_delivers_at_once(project: Project) -> None:
    topic = project.topic()
    name = project.subscription(topic)
    project.publish(topic, b"x")
    first = project.pull(name, 1)
    project.nack(name, first)
    again = project.pull(name, 1)
    assert again[0].message.message_id == first[0].message.message_id
    assert again[0].ack_id != first[0].ack_id


def test_an_acknowledged_message_never_comes_again(project: Project) -> None:
    topic = project.topic()
    name = project.subscription(topic)
    project.publish(topic, b"x")
    received = project.pull(name, 1)
    project.ack(name, received)
    project.ack(name, received)
    project.nack(name, received)
    assert project.pull_now(name) == []


def test_pull_waits_for_a_message(project: Project) -> None:
    topic = project.topic()
    name = project.subscription(topic)
    answers: queue.Queue[Any] = queue.Queue()
    waiting = threading.Thread(target=lambda: answers.put(project.pull(name, 1)))
    waiting.start()
    project.publish(topic, b"x")
    assert bodies(answers.get(timeout=10)) == [b"x"]
    waiting.join()


def test_an_idle_pull_answers_empty_before_its_caller_gives_up(project: Project) -> None:
    name = project.subscription(project.topic())
    answer = project.subscriber.pull(subscription=name, max_messages=1, timeout=2, retry=None)
    assert list(answer.received_messages) == []


@pytest.mark.not_on(google="takes any ack id")
def test_an_ack_id_that_is_none_is_refused(project: Project) -> None:
    name = project.subscription(project.topic())
    with pytest.raises(exceptions.InvalidArgument):
        project.subscriber.acknowledge(subscription=name, ack_ids=["nonsense"])


@pytest.mark.parametrize(
    "request_",
    [
        pytest.param(("pull", {"max_messages": 0}), id="pull nothing"),
        pytest.param(
            ("pull", {"max_messages": -1}),
            id="pull less than nothing",
            marks=pytest.mark.not_on(google="waits for ever"),
        ),
        pytest.param(("acknowledge", {"ack_ids": []}), id="acknowledge nothing"),
        pytest.param(("modify_ack_deadline", {"ack_ids": [], "ack_deadline_seconds": 10}), id="extend nothing"),
    ],
)
def test_malformed_requests_are_refused(project: Project, request_: tuple[str, dict[str, Any]]) -> None:
    method, fields = request_
    name = project.subscription(project.topic())
    with pytest.raises(exceptions.InvalidArgument):
        getattr(project.subscriber, method)(request={"subscription": name, **fields}, timeout=5, retry=None)


@pytest.mark.parametrize("seconds", [-1, pytest.param(601, marks=pytest.mark.differs(google="takes longer deadlines"))])
def test_a_deadline_is_0_to_600_seconds(project: Project, seconds: int) -> None:
    topic = project.topic()
    name = project.subscription(topic)
    project.publish(topic, b"x")
    ack_ids = [one.ack_id for one in project.pull(name, 1)]
    with pytest.raises(exceptions.InvalidArgument):
        project.subscriber.modify_ack_deadline(subscription=name, ack_ids=ack_ids, ack_deadline_seconds=seconds)


def test_nowhere_is_not_found(project: Project) -> None:
    nowhere = project.path("subscriptions", "nowhere")
    calls = [
        lambda: project.subscriber.pull(subscription=nowhere, max_messages=1),
        lambda: project.subscriber.acknowledge(subscription=nowhere, ack_ids=["x"]),
        lambda: project.subscriber.delete_subscription(subscription=nowhere),
        lambda: Stream(project, nowhere).read(1),
    ]
    for call in calls:
        with pytest.raises(exceptions.NotFound):
            call()


# Order.


def test_a_key_comes_in_order_and_is_blocked_until_acknowledged(project: Project) -> None:
    topic = project.topic()
    name = project.subscription(topic, enable_message_ordering=True)
    project.publish(topic, *(b"%d" % n for n in range(20)), ordering_key="k")
    seen = []
    while len(seen) < 20:
        received = project.pull(name, 1)
        assert project.pull_now(name) == [] or len(received) > 1
        seen += bodies(received)
        project.ack(name, received)
    assert seen == [b"%d" % n for n in range(20)]


def test_a_nacked_run_comes_again_in_order(project: Project) -> None:
    topic = project.topic()
    name = project.subscription(topic, enable_message_ordering=True)
    project.publish_at_once(topic, [{"data": b"%d" % n, "ordering_key": "k"} for n in range(5)])
    received = project.pull(name, 5)
    assert bodies(received) == [b"%d" % n for n in range(5)]
    assert {one.message.ordering_key for one in received} == {"k"}
    project.ack(name, received[:2])
    project.nack(name, received[2:])
    assert bodies(project.pull(name, 3)) == [b"2", b"3", b"4"]


# Dead letters.


def test_a_message_is_buried_after_five_deliveries(project: Project) -> None:
    topic, grave = project.topic("topic-a"), project.topic("topic-dead")
    buried = project.subscription(grave, "sub-dead")
    name = project.subscription(topic, dead_letter_policy={"dead_letter_topic": grave, "max_delivery_attempts": 5})
    (message_id,) = project.publish(topic, b"x", kind="test")
    for attempt in range(1, 6):
        received = project.pull(name, 1)
        assert (received[0].message.message_id, received[0].delivery_attempt) == (message_id, attempt)
        project.nack(name, received)
    assert project.pull_now(name) == []  # Google's emulator buries when it is asked for more.
    (letter,) = project.pull(buried, 1)
    assert letter.message.data == b"x"
    attributes = dict(letter.message.attributes)
    assert attributes.pop("CloudPubSubDeadLetterSourceTopicPublishTime").startswith("20")
    assert attributes == {
        "kind": "test",
        "CloudPubSubDeadLetterSourceDeliveryCount": "5",
        "CloudPubSubDeadLetterSourceSubscription": "sub-a",
        "CloudPubSubDeadLetterSourceSubscriptionProject": project.name,
    }


@pytest.mark.differs(google="ignores the retry policy on nack")
def test_a_retry_policy_delays_a_nacked_message(project: Project) -> None:
    topic = project.topic()
    name = project.subscription(topic, retry_policy={})
    project.publish(topic, b"x")
    project.nack(name, project.pull(name, 1))
    answer = project.subscriber.pull(subscription=name, max_messages=1, timeout=2, retry=None)
    assert list(answer.received_messages) == []


# Streaming pull.


def opening(subscription: str, **fields: Any) -> StreamingPullRequest:
    return StreamingPullRequest(subscription=subscription, stream_ack_deadline_seconds=10, **fields)


class Stream:
    """A bare stream, for what the client library never sends."""

    def __init__(self, project: Project, subscription: str, **fields: Any) -> None:
        self._says: queue.Queue[StreamingPullRequest | None] = queue.Queue()
        self.say(opening(subscription, **fields))
        self.call = project.subscriber.streaming_pull(iter(self._says.get, None), timeout=20)

    def say(self, request: StreamingPullRequest) -> None:
        self._says.put(request)

    def read(self, count: int) -> list[Any]:
        received: list[Any] = []
        while len(received) < count:
            received += next(self.call).received_messages
        return received

    def close(self) -> None:
        self._says.put(None)
        self.call.cancel()


def test_five_thousand_messages_stream(project: Project) -> None:
    topic = project.topic()
    name = project.subscription(topic)
    count = 5000
    sent = set(project.publish(topic, *(b"%d" % n for n in range(count))))
    seen: set[str] = set()
    done = threading.Event()

    def on_message(message: Any) -> None:
        message.ack()
        seen.add(message.message_id)
        if len(seen) == count:
            done.set()

    streaming = project.subscriber.subscribe(name, on_message)
    try:
        assert done.wait(30), f"{len(seen)} of {count}"
    finally:
        streaming.cancel()
        streaming.result(timeout=10)
    assert seen == sent


def test_a_stream_gets_what_is_published_while_it_waits(project: Project) -> None:
    topic = project.topic()
    stream = Stream(project, project.subscription(topic))
    project.publish(topic, b"1")
    assert bodies(stream.read(1)) == [b"1"]
    project.publish(topic, b"2")
    assert bodies(stream.read(1)) == [b"2"]
    stream.close()


@pytest.mark.differs(google=NO_WINDOW)
def test_acknowledgements_inside_the_stream_open_its_window(project: Project) -> None:
    topic = project.topic()
    name = project.subscription(topic)
    project.publish(topic, *(b"%d" % n for n in range(5)))
    stream = Stream(project, name, max_outstanding_messages=2)
    seen: list[Any] = []
    while len(seen) < 5:
        received = stream.read(1)
        assert len(received) <= 2
        seen += received
        stream.say(StreamingPullRequest(ack_ids=[one.ack_id for one in received]))
    stream.close()
    assert sorted(bodies(seen)) == [b"%d" % n for n in range(5)]


@pytest.mark.differs(google=NO_WINDOW)
def test_a_full_window_stays_shut(project: Project) -> None:
    topic = project.topic()
    name = project.subscription(topic)
    project.publish(topic, b"1", b"2", b"3")
    stream = Stream(project, name, max_outstanding_messages=2)
    stream.read(2)
    assert len(project.pull_now(name)) == 1  # Nobody holds the third one.
    stream.close()


def test_nacks_inside_the_stream(project: Project) -> None:
    topic = project.topic()
    name = project.subscription(topic)
    project.publish(topic, b"x")
    stream = Stream(project, name)
    (first,) = stream.read(1)
    stream.say(StreamingPullRequest(modify_deadline_ack_ids=[first.ack_id], modify_deadline_seconds=[0]))
    (again,) = stream.read(1)
    assert again.message.message_id == first.message.message_id
    stream.close()


def test_the_client_s_flow_control_is_kept(project: Project) -> None:
    topic = project.topic()
    name = project.subscription(topic)
    project.publish(topic, *(b"%d" % n for n in range(30)))
    at_work, most, done = 0, 0, threading.Event()
    lock, seen = threading.Lock(), []

    def on_message(message: Any) -> None:
        nonlocal at_work, most
        with lock:
            at_work += 1
            most = max(most, at_work)
        message.ack()
        with lock:
            at_work -= 1
            seen.append(message.data)
        if len(seen) >= 30:
            done.set()

    streaming = project.subscriber.subscribe(name, on_message, flow_control=FlowControl(max_messages=3))
    assert done.wait(20)
    streaming.cancel()
    streaming.result(timeout=10)
    assert sorted(seen) == sorted(b"%d" % n for n in range(30))
    assert most <= 3


@pytest.mark.parametrize("fields", [{"stream_ack_deadline_seconds": 9}, {"stream_ack_deadline_seconds": 601}, {}])
def test_a_stream_needs_a_deadline(project: Project, fields: dict[str, int]) -> None:
    name = project.subscription(project.topic())
    request = StreamingPullRequest(subscription=name, **fields)
    with pytest.raises(exceptions.InvalidArgument):
        next(iter(project.subscriber.streaming_pull(iter([request]), timeout=5)))


def test_a_stream_ends_with_its_subscription(project: Project) -> None:
    topic = project.topic()
    name = project.subscription(topic)
    stream = Stream(project, name)
    project.publish(topic, b"x")
    stream.read(1)
    project.subscriber.delete_subscription(subscription=name)
    with pytest.raises(exceptions.NotFound):
        stream.read(1)
    stream.close()


# Exactly once.


@pytest.mark.differs(google="keeps the flag and nothing else of exactly-once delivery")
def test_exactly_once_tells_whether_an_acknowledgement_counted(project: Project) -> None:
    topic = project.topic()
    name = project.subscription(topic, enable_exactly_once_delivery=True)
    project.publish(topic, b"1")
    outcomes: queue.Queue[Any] = queue.Queue()

    def on_message(message: Any) -> None:
        outcomes.put((message.ack_with_response(), message.ack_id))

    streaming = project.subscriber.subscribe(name, on_message)
    first, ack_id = outcomes.get(timeout=10)
    try:
        assert first.result(timeout=10) is AcknowledgeStatus.SUCCESS
        with pytest.raises(exceptions.FailedPrecondition):
            project.subscriber.acknowledge(subscription=name, ack_ids=[ack_id])
    finally:
        streaming.cancel()
        streaming.result(timeout=10)


def test_exactly_once_refuses_an_acknowledgement_whose_lease_was_given_back(project: Project) -> None:
    topic = project.topic()
    name = project.subscription(topic, enable_exactly_once_delivery=True)
    project.publish(topic, b"1")
    outcomes: queue.Queue[Any] = queue.Queue()

    def on_message(message: Any) -> None:
        if outcomes.empty():
            project.subscriber.modify_ack_deadline(subscription=name, ack_ids=[message.ack_id], ack_deadline_seconds=0)
            outcomes.put(message.ack_with_response())

    streaming = project.subscriber.subscribe(name, on_message)
    with pytest.raises(AcknowledgeError) as failed:
        outcomes.get(timeout=10).result(timeout=10)
    streaming.cancel()
    streaming.result(timeout=10)
    assert failed.value.error_code is AcknowledgeStatus.INVALID_ACK_ID
