"""The same request sent twice: one answer, for both, whenever the second comes."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from contextlib import aclosing
from datetime import timedelta
from typing import Any

import pytest

from goblin.core.errors import Conflict, InvalidRequest
from goblin.gateway.idempotency import CLAIM_LIFE, LIFE, AnswerProduction, AnswerSource, IdempotentRequests
from goblin.gateway.ports import HttpReply
from tests.fakes.inference import FakeClock
from tests.fakes.stores import MemoryReplies


class Kitchen:
    """Makes answers, and counts them."""

    def __init__(self, *parts: bytes, status: int = 200, whole: bool = True, streamed: bool = True) -> None:
        self.parts = parts
        self.status, self.whole, self.streamed = status, whole, streamed
        self.made = self.taken = self.settled = 0
        self.served = asyncio.Event()
        self.go_on = asyncio.Event()
        self.go_on.set()
        self.books = asyncio.Event()
        self.books.set()
        self.error: Exception | None = None

    async def _make(self) -> HttpReply:
        self.made += 1
        if not self.streamed:
            await self.go_on.wait()
            return HttpReply(status=self.status, content=b"".join(self.parts), headers={"x-goblin-request-id": "1"})
        return HttpReply(status=self.status, content=self._stream(), media_type="text/event-stream")

    async def _stream(self) -> AsyncGenerator[bytes, None]:
        for part in self.parts:
            yield part
            self.served.set()
            await self.go_on.wait()
        if self.error is not None:
            raise self.error

    async def _settle(self) -> None:
        await self.books.wait()
        self.settled += 1

    def _take(self, production: AnswerProduction) -> None:
        self.taken += 1

    @property
    def work(self) -> AnswerSource:
        return AnswerSource(make=self._make, settle=self._settle, is_whole=lambda: self.whole, taken=self._take)


class House:
    def __init__(self) -> None:
        self.clock, self.store = FakeClock(), MemoryReplies()
        self.once = IdempotentRequests(self.store, self.clock)

    async def ask(self, kitchen: Kitchen, *, key: str = "k", body: bytes = b"{}", tenant: str = "t") -> HttpReply:
        return await self.once.answer(tenant, "/v1/x", key, body, kitchen.work)


@pytest.fixture
def house() -> House:
    return House()


async def read(answer: HttpReply) -> bytes:
    if isinstance(answer.content, bytes):
        return answer.content
    async with aclosing(answer.content) as parts:
        return b"".join([part async for part in parts])


async def settle() -> None:
    for _ in range(10):
        await asyncio.sleep(0)


@pytest.mark.parametrize("streamed", [True, False])
async def test_a_second_time_the_same_answer_is_given_again(house: House, streamed: bool) -> None:
    kitchen = Kitchen(b"Hel", b"lo", streamed=streamed)
    first = await house.ask(kitchen)
    assert await read(first) == b"Hello"
    await settle()
    second = await house.ask(kitchen)
    assert await read(second) == b"Hello"
    assert (kitchen.made, kitchen.taken, kitchen.settled) == (1, 1, 1)
    assert "idempotent-replayed" not in first.headers
    assert second.headers["idempotent-replayed"] == "true"
    assert second.media_type == first.media_type


async def test_one_that_comes_meanwhile_joins_from_the_beginning(house: House) -> None:
    kitchen = Kitchen(b"a", b"b", b"c")
    kitchen.go_on.clear()
    first, second = await house.ask(kitchen), await house.ask(kitchen)
    reading = [asyncio.create_task(read(answer)) for answer in (first, second)]
    await kitchen.served.wait()
    kitchen.go_on.set()
    assert await asyncio.gather(*reading) == [b"abc", b"abc"]
    assert kitchen.made == 1


async def test_whoever_asked_first_may_leave_without_taking_it_from_the_other(house: House) -> None:
    kitchen = Kitchen(b"a", b"b")
    kitchen.go_on.clear()
    first, second = await house.ask(kitchen), await house.ask(kitchen)
    await first.content.aclose()  # type: ignore[union-attr]  Before it has read anything.
    await settle()
    assert kitchen.settled == 0
    kitchen.go_on.set()
    assert await read(second) == b"ab"


async def test_when_the_last_one_leaves_the_work_ends_and_the_next_starts_anew(house: House) -> None:
    kitchen = Kitchen(b"a", b"b")
    kitchen.go_on.clear()
    answer = await house.ask(kitchen)
    async for _ in answer.content:  # type: ignore[union-attr]
        break
    await answer.content.aclose()  # type: ignore[union-attr]
    await settle()
    assert kitchen.settled == 1
    assert house.store.claims == {}
    kitchen.go_on.set()
    assert await read(await house.ask(kitchen)) == b"ab"
    assert kitchen.made == 2


async def test_leaving_before_there_is_an_answer_ends_the_work_too(house: House) -> None:
    kitchen = Kitchen(b"a", streamed=False)
    kitchen.go_on.clear()
    asking = asyncio.create_task(house.ask(kitchen))
    await settle()
    asking.cancel()
    await asyncio.gather(asking, return_exceptions=True)
    await settle()
    assert (kitchen.made, kitchen.settled) == (1, 1)
    assert house.once._going == {}


async def test_the_same_key_for_something_else_is_a_conflict(house: House) -> None:
    await read(await house.ask(Kitchen(b"a")))
    with pytest.raises(Conflict) as caught:
        await house.ask(Kitchen(b"a"), body=b'{"other": 1}')
    assert (caught.value.status, caught.value.code) == (409, "idempotency_key_reused")


async def test_tenants_may_use_the_same_key(house: House) -> None:
    assert await read(await house.ask(Kitchen(b"a"), tenant="one")) == b"a"
    assert await read(await house.ask(Kitchen(b"b"), tenant="two")) == b"b"


@pytest.mark.parametrize(
    "kitchen_facts", [{"status": 503, "whole": False, "streamed": False}, {"whole": False}], ids=["error", "cut"]
)
async def test_what_failed_is_tried_anew(house: House, kitchen_facts: dict[str, Any]) -> None:
    bad, good = Kitchen(b"no", **kitchen_facts), Kitchen(b"yes")
    assert await read(await house.ask(bad)) == b"no"
    await settle()
    assert await read(await house.ask(good)) == b"yes"


async def test_who_joined_one_that_failed_hears_the_same(house: House) -> None:
    kitchen = Kitchen(b"no", status=503, whole=False, streamed=False)
    kitchen.go_on.clear()
    asking = [asyncio.create_task(house.ask(kitchen)) for _ in range(3)]
    await settle()
    kitchen.go_on.set()
    assert {(answer.status, answer.content) for answer in await asyncio.gather(*asking)} == {(503, b"no")}
    assert kitchen.made == 1


async def test_a_stream_that_breaks_for_a_reason_nobody_foresaw_breaks_for_its_readers(house: House) -> None:
    kitchen = Kitchen(b"a", whole=False)
    kitchen.error = RuntimeError("a bug")
    answer = await house.ask(kitchen)
    with pytest.raises(RuntimeError):
        await read(answer)
    assert kitchen.settled == 1


@pytest.mark.parametrize("streamed", [True, False])
async def test_readers_do_not_wait_for_the_books_and_do_not_stop_them(house: House, streamed: bool) -> None:
    kitchen = Kitchen(b"a", streamed=streamed)
    kitchen.books.clear()
    assert await read(await house.ask(kitchen)) == b"a"
    assert await read(await house.ask(kitchen)) == b"a"
    assert kitchen.settled == 0
    kitchen.books.set()
    await settle()
    assert (kitchen.made, kitchen.settled) == (1, 1)


@pytest.mark.parametrize("key", ["", "x" * 256, "a\nb", "a\x00"])
async def test_what_is_no_key_is_refused(house: House, key: str) -> None:
    with pytest.raises(InvalidRequest):
        await house.ask(Kitchen(b"a"), key=key)


async def test_another_instance_gives_the_answer_of_the_first(house: House) -> None:
    other = IdempotentRequests(house.store, house.clock)
    await read(await house.ask(Kitchen(b"data: 1\n\n", b"data: 2\n\n")))
    await settle()
    kitchen = Kitchen(b"never")
    again = await other.answer("t", "/v1/x", "k", b"{}", kitchen.work)
    assert (again.content, again.media_type) == (b"data: 1\n\ndata: 2\n\n", "text/event-stream")
    assert again.headers["idempotent-replayed"] == "true"
    assert (kitchen.made, kitchen.taken) == (0, 0)
    with pytest.raises(Conflict):
        await other.answer("t", "/v1/x", "k", b"[]", kitchen.work)


async def test_those_who_come_while_the_store_is_asked_get_what_it_has(house: House) -> None:
    await read(await house.ask(Kitchen(b"a")))
    await settle()
    other, never = IdempotentRequests(house.store, house.clock), Kitchen(b"never")
    asked = [other.answer("t", "/v1/x", "k", b"{}", never.work) for _ in range(3)]
    assert [await read(answer) for answer in await asyncio.gather(*asked)] == [b"a"] * 3
    house.store.down = True  # And it is not asked again.
    assert await read(await other.answer("t", "/v1/x", "k", b"{}", never.work)) == b"a"
    assert never.made == 0


async def test_another_instance_does_not_answer_what_the_first_works_on(house: House) -> None:
    kitchen, other = Kitchen(b"a"), IdempotentRequests(house.store, house.clock)
    kitchen.go_on.clear()
    await house.ask(kitchen)
    with pytest.raises(Conflict) as caught:
        await other.answer("t", "/v1/x", "k", b"{}", kitchen.work)
    assert caught.value.code == "idempotency_key_in_use"
    house.clock.forward(CLAIM_LIFE.total_seconds() + 1)  # By now the first is taken for dead.
    kitchen.go_on.set()
    assert await read(await other.answer("t", "/v1/x", "k", b"{}", kitchen.work)) == b"a"


async def test_without_the_store_this_instance_still_answers_once(house: House) -> None:
    house.store.down = True
    kitchen = Kitchen(b"a")
    assert await read(await house.ask(kitchen)) == b"a"
    await settle()
    assert await read(await house.ask(kitchen)) == b"a"
    assert kitchen.made == 1


async def test_after_a_day_it_is_a_new_request(house: House) -> None:
    kitchen = Kitchen(b"a")
    await read(await house.ask(kitchen))
    await settle()
    house.clock.forward((LIFE + timedelta(seconds=1)).total_seconds())
    await read(await house.ask(kitchen))
    assert kitchen.made == 2


async def test_memory_is_bounded() -> None:
    once = IdempotentRequests(MemoryReplies(), FakeClock(), bytes_max=8000)
    for number in range(50):
        await read(await once.answer("t", "/v1/x", str(number), b"{}", Kitchen(b"x" * 900, streamed=False).work))
        await settle()
    assert once._held <= 8000
    assert len(once._kept) == 8
    assert once._going == {}
