"""Retention, seeking and snapshots, on the services themselves under a clock of our own."""

from pathlib import Path

import pytest

from localcloud.pubsub.errors import Refused
from localcloud.pubsub.wire import duration, raw
from tests.localcloud.pubsub_desk import SUB, Desk, data, opened

DAY_S = 24 * 3600


@pytest.fixture
def desk(tmp_path: Path) -> Desk:
    return Desk(tmp_path / "pubsub.db")


async def test_a_message_is_dropped_after_its_retention(desk: Desk) -> None:
    await opened(desk, message_retention_duration=duration(600))
    await desk.publish(b"old")
    desk.wait(500)
    await desk.publish(b"new")
    desk.wait(101)
    desk.state.sweep()
    assert data(await desk.pull()) == [b"new"]
    assert desk.stored("messages") == 1


async def test_seek_brings_back_retained_acknowledged_messages(desk: Desk) -> None:
    await opened(desk, retain_acked_messages=True)
    await desk.publish(b"1")
    desk.wait(10)
    await desk.publish(b"2")
    desk.wait(10)
    await desk.ack(await desk.pull())
    await desk.seek(seconds_ago=15)
    assert data(await desk.pull()) == [b"2"]
    await desk.seek(seconds_ago=25)
    assert data(await desk.pull()) == [b"1", b"2"]


async def test_seek_forwards_acknowledges(desk: Desk) -> None:
    await opened(desk)
    await desk.publish(b"1")
    desk.wait(10)
    await desk.seek(seconds_ago=0)
    assert await desk.pull() == []
    assert desk.stored("messages") == 0


async def test_a_retaining_topic_replays_what_came_before_the_subscription(desk: Desk) -> None:
    await desk.topic(message_retention_duration=duration(DAY_S))
    await desk.publish(b"1", kind="a")
    await desk.publish(b"2", kind="b")
    desk.wait(10)
    await desk.subscription(filter='attributes.kind = "a"')
    assert await desk.pull() == []
    await desk.seek(seconds_ago=60)
    assert data(await desk.pull()) == [b"1"]
    desk.wait(DAY_S)
    await desk.ack(await desk.pull())
    desk.state.sweep()
    assert desk.stored("messages") == 0


async def test_an_acknowledgement_from_before_a_seek_does_not_undo_it(desk: Desk) -> None:
    await opened(desk, retain_acked_messages=True)
    await desk.publish(b"x")
    before = await desk.pull()
    await desk.seek(seconds_ago=60)
    await desk.ack(before)
    assert data(await desk.pull()) == [b"x"]
    desk = desk.reopened()
    await desk.ack(before)
    assert data(await desk.pull()) == [b"x"]


async def snapshot(desk: Desk, name: str = "projects/p/snapshots/snap-a") -> str:
    await desk.snapshots.create_snapshot(raw("CreateSnapshotRequest")(name=name, subscription=SUB))
    return name


async def test_a_snapshot_keeps_its_backlog_and_all_that_follows(desk: Desk) -> None:
    await opened(desk)
    await desk.publish(b"done")
    await desk.ack(await desk.pull())
    await desk.publish(b"open")
    name = await snapshot(desk)
    await desk.publish(b"later")
    await desk.ack(await desk.pull())
    desk = desk.reopened()
    await desk.seek(snapshot=name)
    assert data(await desk.pull()) == [b"open", b"later"]


async def test_what_only_a_snapshot_kept_goes_with_it(desk: Desk) -> None:
    await opened(desk)
    await desk.publish(b"x")
    name = await snapshot(desk)
    await desk.ack(await desk.pull())
    assert desk.stored("messages") == 1
    await desk.snapshots.delete_snapshot(raw("DeleteSnapshotRequest")(snapshot=name))
    assert (desk.stored("messages"), desk.stored("snapshot_messages")) == (0, 0)


async def test_a_snapshot_expires_after_seven_days(desk: Desk) -> None:
    await opened(desk)
    await desk.publish(b"x")
    name = await snapshot(desk)
    await desk.ack(await desk.pull())
    desk.wait(7 * DAY_S)
    with pytest.raises(Refused, match="not found"):
        await desk.seek(snapshot=name)
    desk.state.sweep()
    assert (desk.stored("messages"), desk.stored("snapshots")) == (0, 0)
