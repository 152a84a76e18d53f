"""The Listen stream, message by message: targets, resume tokens, refusals."""

import asyncio
from collections import deque
from collections.abc import AsyncIterator
from typing import Any

import pytest

from localcloud.firestore import protos
from localcloud.firestore.listen import Listening
from tests.localcloud.firestore_room import DATABASE, ROOT, Room, above

DEADLINE_S = 8
TARGET = 7


class Stream:
    """One Listen call: what is sent, and what comes back in words."""

    def __init__(self, room: Room) -> None:
        self._requests: asyncio.Queue[Any] = asyncio.Queue()
        self._responses = Listening(room.documents, ()).answer(self._sent())
        self.token = b""

    async def _sent(self) -> AsyncIterator[Any]:
        while (request := await self._requests.get()) is not None:
            yield request

    def send(self, **fields: Any) -> None:
        self._requests.put_nowait(protos.ListenRequest(database=DATABASE, **fields))

    async def heard(self) -> list[str]:
        """Every response up to the next consistent view."""
        words = []
        async with asyncio.timeout(DEADLINE_S):
            async for response in self._responses:
                words.append(self._words(response))
                if words[-1] == "NO_CHANGE":
                    return words[:-1]
        return [*words, "end"]

    def _words(self, response: Any) -> str:
        kind = response.WhichOneof("response_type")
        if kind == "target_change":
            change = response.target_change
            self.token = change.resume_token or self.token
            code = f" {change.cause.code}" if change.HasField("cause") else ""
            return protos.TargetChange.TargetChangeType.Name(change.target_change_type) + code
        message = getattr(response, kind)
        name = message.document.name if kind == "document_change" else message.document
        return f"{kind.removeprefix('document_')} {name.removeprefix(ROOT + '/')}"

    async def hang_up(self) -> None:
        self._requests.put_nowait(None)
        assert (await self.heard())[-1:] == ["end"]


def query_target(**fields: Any) -> Any:
    return {"target_id": TARGET, "query": {"parent": ROOT, "structured_query": above("c", 5)}, **fields}


async def first_view(room: Room) -> Stream:
    stream = Stream(room)
    stream.send(add_target=query_target())
    await stream.heard()
    return stream


async def test_says_what_is_there_and_then_what_changes() -> None:
    room = Room()
    await room.commit({"c/0": 9, "c/1": 1})
    stream = Stream(room)
    stream.send(add_target=query_target())
    assert await stream.heard() == ["ADD", "change c/0", "CURRENT"]
    await room.commit({"c/1": 8, "c/0": 7, "d/0": 9})
    assert await stream.heard() == ["change c/0", "change c/1"]
    await room.commit({"c/1": 0})
    assert await stream.heard() == ["remove c/1"]
    await room.commit({"c/0": None})
    assert await stream.heard() == ["delete c/0"]
    await stream.hang_up()


async def test_comes_back_to_what_changed_meanwhile() -> None:
    room = Room()
    await room.commit({"c/0": 9, "c/1": 9, "c/2": 9, "c/3": 9})
    stream = await first_view(room)
    await stream.hang_up()
    await room.commit({"c/0": 8, "c/1": None, "c/2": 0, "c/new": 9, "c/low": 1})
    again = Stream(room)
    again.send(add_target=query_target(resume_token=stream.token))
    heard = await again.heard()
    assert heard[0] == "ADD"
    assert heard[-1] == "CURRENT"
    assert set(heard[1:-1]) == {"change c/0", "change c/new", "delete c/1", "remove c/2", "remove c/low"}
    await room.commit({"c/3": 7})
    assert await again.heard() == ["change c/3"]
    await again.hang_up()


async def test_starts_afresh_after_a_restart(tmp_path: Any) -> None:
    room = Room(path=tmp_path / "firestore.db")
    await room.commit({"c/0": 9})
    stream = await first_view(room)
    await stream.hang_up()
    await room.commit({"c/1": 9, "c/0": None})
    room.documents.close()
    room = Room(path=tmp_path / "firestore.db")
    again = Stream(room)
    again.send(add_target=query_target(resume_token=stream.token))
    assert await again.heard() == ["ADD", "RESET", "change c/1", "CURRENT"]
    await again.hang_up()
    room.documents.close()


async def test_starts_afresh_when_away_for_too_many_changes() -> None:
    room = Room()
    room.documents.changes = deque(maxlen=4)
    await room.commit({"c/0": 9})
    stream = await first_view(room)
    await stream.hang_up()
    for n in range(5):
        await room.commit({"c/1": n})
    again = Stream(room)
    again.send(add_target=query_target(resume_token=stream.token))
    assert (await again.heard())[:2] == ["ADD", "RESET"]
    await again.hang_up()


async def test_names_what_is_missing_among_documents() -> None:
    room = Room()
    await room.commit({"c/0": 9})
    stream = Stream(room)
    stream.send(add_target={"target_id": 1, "documents": {"documents": [f"{ROOT}/c/0", f"{ROOT}/c/1"]}})
    assert await stream.heard() == ["ADD", "change c/0", "delete c/1", "CURRENT"]
    await room.commit({"c/1": 1, "c/2": 2})
    assert await stream.heard() == ["change c/1"]
    await stream.hang_up()


async def test_a_target_is_removed_when_asked_and_after_once() -> None:
    room = Room()
    stream = Stream(room)
    stream.send(add_target=query_target(once=True))
    assert await stream.heard() == ["ADD", "CURRENT", "REMOVE"]
    stream.send(add_target=query_target())
    await stream.heard()
    stream.send(remove_target=TARGET)
    assert await stream.heard() == ["REMOVE"]
    await room.commit({"c/0": 9})
    stream.send(add_target={"target_id": 1, "documents": {"documents": [f"{ROOT}/c/9"]}})
    assert await stream.heard() == ["ADD", "delete c/9", "CURRENT"]
    await stream.hang_up()


async def test_a_refused_target_leaves_the_others() -> None:
    room = Room()
    stream = await first_view(room)
    needs_index = above("c", 5)
    needs_index.order_by.add().field.field_path = "m"
    stream.send(add_target={"target_id": 8, "query": {"parent": ROOT, "structured_query": needs_index}})
    assert await stream.heard() == ["REMOVE 9"]
    await room.commit({"c/0": 9})
    assert await stream.heard() == ["change c/0"]
    await stream.hang_up()


async def test_a_flood_of_changes_is_told_once_each(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("localcloud.firestore.listen.DIRTY_MAX", 3)
    room = Room()
    stream = await first_view(room)
    for n in range(6, 20):
        await room.commit({f"c/{n % 7}": n})
    assert sorted(await stream.heard()) == [f"change c/{n}" for n in range(7)]
    await stream.hang_up()
