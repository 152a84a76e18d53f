"""Transactions over time: who waits, who goes first, and what becomes of the abandoned."""

import asyncio
from pathlib import Path

import grpc
import pytest

from localcloud.firestore.refusals import Refused
from localcloud.firestore.server import Firestore
from tests.localcloud.firestore_room import FakeClock, Room

DEADLINE_S = 8


async def until_waiting(room: Room, count: int = 1) -> None:
    """Let others run until so many wait for locks."""
    for _ in range(1000):
        if room.transactions.locks.waiting >= count:
            return
        await asyncio.sleep(0)
    raise AssertionError(f"{room.transactions.locks.waiting} wait, not {count}")


async def test_readers_of_one_document_stand_in_line() -> None:
    room = Room()
    await room.commit({"c/0": 0})
    order: list[int] = []

    async def add(number: int, transaction: bytes) -> None:
        n = await room.read("c/0", transaction)
        order.append(number)
        await room.commit({"c/0": (n or 0) + 1}, transaction)

    holder = room.begin()
    await room.read("c/0", holder)
    begun = [room.begin() for _ in range(5)]
    # They come in the wrong order and are served by age.
    adding = [asyncio.create_task(add(number, begun[number])) for number in (2, 4, 1, 3, 0)]
    await until_waiting(room, 5)
    await room.commit({}, holder)
    await asyncio.wait_for(asyncio.gather(*adding), DEADLINE_S)
    assert order == [0, 1, 2, 3, 4]
    assert await room.read("c/0") == 5


async def test_a_retry_keeps_its_place_in_line() -> None:
    room = Room()
    await room.commit({"c/0": 0})
    old = room.begin()
    holder, young = room.begin(), room.begin()
    await room.read("c/0", holder)
    room.transactions.rollback(old, room.documents.database("projects/p/databases/(default)"))
    waits = asyncio.create_task(room.read("c/0", young))
    await until_waiting(room)
    retried = room.begin(retry=old)
    first = asyncio.create_task(room.read("c/0", retried))
    await until_waiting(room, 2)
    await room.commit({}, holder)
    await asyncio.wait_for(first, DEADLINE_S)
    assert not waits.done()
    await room.commit({"c/0": 1}, retried)
    assert await asyncio.wait_for(waits, DEADLINE_S) == 1


async def test_naming_an_open_transaction_as_retried_leaves_it_alone() -> None:
    # Threads that share one decorated function do this to one another.
    room = Room()
    theirs = room.begin()
    await room.read("c/0", theirs)
    ours = room.begin(retry=theirs)
    await room.read("c/1", ours)
    await room.commit({"c/0": 1}, theirs)
    await room.commit({"c/1": 1}, ours)
    assert await room.query_above("c", 0) == {"c/0": 1, "c/1": 1}


async def test_who_waits_too_long_reads_on_and_aborts_at_its_commit() -> None:
    room = Room(wait_s=0.02)
    await room.commit({"c/0": 3})
    holder, other = room.begin(), room.begin()
    await room.read("c/0", holder)
    # Clients retry an ABORTED commit but no ABORTED read.
    assert await room.read("c/0", other) == 3
    with pytest.raises(Refused) as refused:
        await room.commit({"c/1": 1}, other)
    assert refused.value.code is grpc.StatusCode.ABORTED
    await room.commit({"c/0": 4}, holder)


async def test_a_plain_write_gives_up_after_a_while() -> None:
    room = Room(wait_s=0.02)
    await room.read("c/0", room.begin())
    with pytest.raises(Refused) as refused:
        await room.commit({"c/0": 1})
    assert refused.value.code is grpc.StatusCode.ABORTED
    await room.commit({"c/1": 1})


async def test_a_plain_write_passes_an_optimistic_transaction() -> None:
    room = Room("optimistic", wait_s=0.02)
    await room.read("c/0", room.begin())
    await room.commit({"c/0": 1})


async def test_an_abandoned_transaction_lets_go_after_a_minute() -> None:
    room = Room()
    transaction = room.begin()
    await room.read("c/0", transaction)
    write = asyncio.create_task(room.commit({"c/0": 1}))
    await until_waiting(room)
    room.clock.pass_s(59)
    room.transactions.expire()
    await asyncio.sleep(0)
    assert not write.done()
    room.clock.pass_s(1)
    room.transactions.expire()
    await asyncio.wait_for(write, DEADLINE_S)
    with pytest.raises(Refused, match="expired"):
        await room.commit({"c/0": 2}, transaction)


async def test_a_busy_transaction_ends_after_270_s() -> None:
    room = Room()
    transaction = room.begin()
    for _ in range(5):
        room.clock.pass_s(50)
        room.transactions.expire()
        await room.read("c/0", transaction)
    room.clock.pass_s(20)
    room.transactions.expire()
    with pytest.raises(Refused, match="expired"):
        await room.read("c/0", transaction)


async def test_waiting_is_not_idling() -> None:
    room = Room()
    holder, waiting = room.begin(), room.begin()
    await room.read("c/0", holder)
    read = asyncio.create_task(room.read("c/0", waiting))
    await until_waiting(room)
    for _ in range(2):
        room.clock.pass_s(40)
        await room.read("c/0", holder)
        room.transactions.expire()
    await room.commit({}, holder)
    await asyncio.wait_for(read, DEADLINE_S)
    await room.commit({"c/0": 1}, waiting)


async def test_who_is_cut_off_while_waiting_leaves_the_line() -> None:
    room = Room()
    holder = room.begin()
    await room.read("c/0", holder)
    write = asyncio.create_task(room.commit({"c/0": 1}))
    await until_waiting(room)
    write.cancel()
    with pytest.raises(asyncio.CancelledError):
        await write
    await room.commit({"c/0": 2}, holder)
    assert await room.read("c/0") == 2
    assert (room.transactions.locks.held, room.transactions.locks.waiting) == (0, 0)


async def test_a_transaction_from_before_a_restart_is_retried(tmp_path: Path) -> None:
    before = Room(path=tmp_path / "firestore.db")
    transaction = before.begin()
    await before.commit({"c/0": 1})
    before.documents.close()
    after = Room(path=tmp_path / "firestore.db")
    with pytest.raises(Refused) as refused:
        await after.commit({"c/0": 2}, transaction)
    assert refused.value.code is grpc.StatusCode.ABORTED
    retried = after.begin(retry=transaction)
    assert await after.read("c/0", retried) == 1
    after.documents.close()


async def test_times_increase_while_the_clock_stands_still_or_goes_back(tmp_path: Path) -> None:
    room = Room(path=tmp_path / "firestore.db")
    stamps = [(await room.commit({"c/0": n})).commit_time.ToMicroseconds() for n in range(3)]
    room.documents.close()
    room = Room(path=tmp_path / "firestore.db")
    room.clock.pass_s(-3600)
    stamps.append((await room.commit({"c/0": 9})).commit_time.ToMicroseconds())
    room.documents.close()
    assert stamps == sorted(set(stamps))


async def test_chores_run_by_themselves() -> None:
    clock = FakeClock()
    service = Firestore(None, clock=clock)
    await service.start()
    await asyncio.sleep(0)
    assert all(not chore.done() for chore in service._chores)
    await service.close()
    assert all(chore.done() for chore in service._chores)
