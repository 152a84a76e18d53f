"""What time and restarts do to messages, on the services themselves under a clock of our own."""

import time
from pathlib import Path

import pytest

from localcloud.pubsub.backlog import WINDOW
from localcloud.pubsub.chaos import Chaos
from localcloud.pubsub.errors import Refused
from localcloud.pubsub.wire import raw
from tests.localcloud.pubsub_desk import SUB, TOPIC, Desk, data, opened, retry

DAY_S = 24 * 3600


@pytest.fixture
def desk(tmp_path: Path) -> Desk:
    return Desk(tmp_path / "pubsub.db")


async def test_an_unacknowledged_message_comes_again_after_ten_seconds(desk: Desk) -> None:
    await opened(desk)
    await desk.publish(b"x")
    assert data(await desk.pull()) == [b"x"]
    desk.wait(9.999)
    assert await desk.pull() == []
    desk.wait(0.001)
    assert data(await desk.pull()) == [b"x"]


async def test_the_subscription_sets_the_deadline(desk: Desk) -> None:
    await opened(desk, ack_deadline_seconds=600)
    await desk.publish(b"x")
    await desk.pull()
    desk.wait(599)
    assert await desk.pull() == []
    desk.wait(1)
    assert data(await desk.pull()) == [b"x"]


async def test_a_lease_can_be_extended(desk: Desk) -> None:
    await opened(desk)
    await desk.publish(b"x")
    received = await desk.pull()
    await desk.nack(received, seconds=60)
    desk.wait(59)
    assert await desk.pull() == []
    await desk.ack(received)
    desk.wait(DAY_S)
    assert await desk.pull() == []


async def test_a_late_acknowledgement_still_counts(desk: Desk) -> None:
    await opened(desk)
    await desk.publish(b"x")
    first = await desk.pull()
    desk.wait(10)
    assert data(await desk.pull()) == [b"x"]
    await desk.ack(first)
    desk.wait(10)
    assert await desk.pull() == []


async def test_a_late_acknowledgement_is_refused_with_exactly_once_delivery(desk: Desk) -> None:
    await opened(desk, enable_exactly_once_delivery=True)
    await desk.publish(b"x")
    first = await desk.pull()
    desk.wait(10)
    with pytest.raises(Refused) as refused:
        await desk.ack(first)
    assert refused.value.code.name == "FAILED_PRECONDITION"
    assert refused.value.reasons == {first[0].ack_id: "PERMANENT_FAILURE_INVALID_ACK_ID"}
    assert data(await desk.pull()) == [b"x"]


async def test_the_retry_policy_spaces_nacks(desk: Desk) -> None:
    await opened(desk, retry_policy=retry(4, 10))
    await desk.publish(b"x")
    for pause_s in (4, 8, 10, 10):
        await desk.nack(await desk.pull())
        desk.wait(pause_s - 0.001)
        assert await desk.pull() == []
        desk.wait(0.001)
    assert data(await desk.pull()) == [b"x"]


async def test_a_pause_outlives_a_kill(desk: Desk) -> None:
    await opened(desk, retry_policy=retry(60, 600))
    await desk.publish(b"x")
    await desk.nack(await desk.pull())
    desk = desk.reopened()
    desk.wait(59)
    assert await desk.pull() == []
    desk.wait(1)
    assert data(await desk.pull()) == [b"x"]


async def with_dead_letters(desk: Desk, attempts: int = 5) -> str:
    grave = await desk.topic("projects/p/topics/topic-dead")
    await desk.topic()
    await desk.subscription(dead_letter_policy={"dead_letter_topic": grave, "max_delivery_attempts": attempts})
    return await desk.subscription("projects/p/subscriptions/sub-dead", topic=grave)


async def test_a_dead_letter_says_where_it_came_from(desk: Desk) -> None:
    grave = await with_dead_letters(desk)
    await desk.publish(b"x", kind="test")
    for attempt in range(1, 6):
        received = await desk.pull()
        assert [one.delivery_attempt for one in received] == [attempt]
        published_at = received[0].message.publish_time.ToJsonString()
        await desk.nack(received)
    assert await desk.pull() == []
    (letter,) = await desk.pull(grave)
    assert letter.message.data == b"x"
    assert dict(letter.message.attributes) == {
        "kind": "test",
        "CloudPubSubDeadLetterSourceDeliveryCount": "5",
        "CloudPubSubDeadLetterSourceSubscription": "sub-a",
        "CloudPubSubDeadLetterSourceSubscriptionProject": "p",
        "CloudPubSubDeadLetterSourceTopicPublishTime": published_at,
    }


async def test_attempts_outlive_kills(desk: Desk) -> None:
    grave = await with_dead_letters(desk)
    await desk.publish(b"x")
    for attempt in range(1, 6):
        assert [one.delivery_attempt for one in await desk.pull()] == [attempt]
        desk = desk.reopened()
    assert await desk.pull() == []
    assert data(await desk.pull(grave)) == [b"x"]


async def test_a_deadline_that_passes_counts_as_an_attempt(desk: Desk) -> None:
    grave = await with_dead_letters(desk)
    await desk.publish(b"x")
    for _ in range(5):
        assert len(await desk.pull()) == 1
        desk.wait(10)
    assert data(await desk.pull(grave)) == [b"x"]


async def test_without_a_dead_letter_topic_the_message_keeps_coming(desk: Desk) -> None:
    await with_dead_letters(desk)
    await desk.publisher.delete_topic(raw("DeleteTopicRequest")(topic="projects/p/topics/topic-dead"))
    await desk.publish(b"x")
    for _ in range(8):
        await desk.nack(await desk.pull())
    assert data(await desk.pull()) == [b"x"]


async def test_attempts_are_shown_only_with_a_dead_letter_policy(desk: Desk) -> None:
    await opened(desk)
    await desk.publish(b"x")
    assert [one.delivery_attempt for one in await desk.pull()] == [0]


async def test_acknowledgements_are_durable_and_everything_else_comes_again(desk: Desk) -> None:
    await opened(desk)
    await desk.publish(*(b"%d" % n for n in range(10)))
    received = await desk.pull()
    await desk.ack(received[:4])
    desk = desk.reopened()
    assert data(await desk.pull()) == [b"%d" % n for n in range(4, 10)]


async def test_an_ack_id_from_before_a_kill_still_counts(desk: Desk) -> None:
    await opened(desk)
    await desk.publish(b"x")
    received = await desk.pull()
    desk = desk.reopened()
    await desk.ack(received)
    assert await desk.pull() == []


async def test_an_ack_id_of_a_deleted_subscription_means_nothing_to_its_successor(desk: Desk) -> None:
    await opened(desk)
    await desk.publish(b"x")
    old = await desk.pull()
    await desk.subscriber.delete_subscription(raw("DeleteSubscriptionRequest")(subscription=SUB))
    await desk.subscription()
    await desk.publish(b"y")
    await desk.ack(old)
    assert data(await desk.pull()) == [b"y"]


async def test_what_is_acknowledged_by_everyone_leaves_the_disk(desk: Desk) -> None:
    await opened(desk)
    await desk.subscription("projects/p/subscriptions/sub-b")
    await desk.publish(b"x")
    await desk.ack(await desk.pull())
    assert (desk.stored("messages"), desk.stored("deliveries")) == (1, 1)
    other = await desk.pull("projects/p/subscriptions/sub-b")
    await desk.ack(other, "projects/p/subscriptions/sub-b")
    assert (desk.stored("messages"), desk.stored("deliveries")) == (0, 0)


async def test_a_message_nobody_wants_is_not_kept(desk: Desk) -> None:
    await opened(desk, filter="attributes:wanted")
    await desk.publish(b"x")
    assert desk.stored("messages") == 0
    await desk.publish(b"y", wanted="yes")
    assert data(await desk.pull()) == [b"y"]


async def test_a_key_keeps_its_order_over_nacks_and_kills(desk: Desk) -> None:
    await opened(desk, enable_message_ordering=True)
    await desk.publish(b"1", b"2", b"3", key="k")
    await desk.publish(b"other")
    received = await desk.pull()
    await desk.ack([received[0], received[3]])
    await desk.nack([received[1]])
    assert data(await desk.pull()) == [b"2", b"3"]
    desk = desk.reopened()
    assert data(await desk.pull()) == [b"2", b"3"]


async def test_keys_mean_nothing_where_order_was_not_asked_for(desk: Desk) -> None:
    await opened(desk)
    await desk.publish(b"1", b"2", key="k")
    assert data(await desk.pull(limit=1)) == [b"1"]
    assert data(await desk.pull(limit=1)) == [b"2"]


async def test_a_large_backlog_stays_on_disk_and_every_operation_stays_quick(desk: Desk) -> None:
    await opened(desk)
    count = 100_000
    for start in range(0, count, 1000):
        await desk.publish(*(b"%d" % n for n in range(start, start + 1000)))
    queue = desk.state.backlog(SUB)._queue
    assert len(queue.entries) <= 2 * WINDOW
    began_at = time.process_time()
    for _ in range(20):
        await desk.publish(b"one more")
        await desk.ack(await desk.pull(limit=10))
        desk.wait(0.001)
        desk.state.sweep()
    # Processor time: a scan of the backlog would take 0.1 s for each operation, which take 0.01 s altogether.
    assert time.process_time() - began_at < 1.0
    assert len(queue.entries) <= 3 * WINDOW
    reopened = desk.reopened()
    assert data(await reopened.pull(limit=1)) == [b"200"]


async def test_every_message_of_a_large_backlog_arrives_once(desk: Desk) -> None:
    await opened(desk)
    count = 5 * WINDOW + 7
    for start in range(0, count, 1000):
        await desk.publish(*(b"%d" % n for n in range(start, min(start + 1000, count))))
    seen: list[bytes] = []
    while received := await desk.pull(limit=333):
        seen += data(received)
        await desk.ack(received)
    assert seen == [b"%d" % n for n in range(count)]


async def test_an_answer_stays_below_what_clients_read(desk: Desk) -> None:
    await opened(desk)
    await desk.publish(*(b"x" * 1_000_000 for _ in range(8)))
    sizes = []
    while received := await desk.pull(limit=1000):
        sizes.append(sum(len(one.message.data) for one in received))
    assert sum(sizes) == 8_000_000
    assert max(sizes) < 4 << 20


async def test_chaos_duplicates_and_moves_the_same_messages_for_the_same_seed() -> None:
    async def told(seed: int) -> list[bytes]:
        desk = await opened(Desk(chaos=Chaos(seed, duplicate=0.5, reorder=0.5)))
        await desk.publish(*(b"%d" % n for n in range(50)))
        seen: list[bytes] = []
        while received := await desk.pull(limit=7):
            seen += data(received)
            await desk.ack(received)
        return seen

    first = await told(1)
    assert set(first) == {b"%d" % n for n in range(50)}
    assert len(first) > 60
    assert first == await told(1)
    assert first != await told(2)


async def test_chaos_never_breaks_the_order_of_a_key() -> None:
    desk = Desk(chaos=Chaos(3, duplicate=0.5, reorder=0.5))
    await opened(desk, enable_message_ordering=True)
    await desk.publish(*(b"%02d" % n for n in range(40)), key="k")
    newest = -1
    while received := await desk.pull(limit=5):
        for one in received:
            number = int(one.message.data)
            assert number <= newest + 1, "a message was skipped"
            newest = max(newest, number)
        await desk.ack(received)
    assert newest == 39


async def test_a_topic_keeps_its_subscription_running_after_it_is_deleted(desk: Desk) -> None:
    await opened(desk)
    await desk.publish(b"x")
    await desk.publisher.delete_topic(raw("DeleteTopicRequest")(topic=TOPIC))
    desk = desk.reopened()
    assert desk.state.backlog(SUB).resource.topic == "_deleted-topic_"
    assert data(await desk.pull()) == [b"x"]
