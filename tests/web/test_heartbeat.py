"""Heartbeats by a clock that the test turns: between chunks, before the first, and never inside an event."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncGenerator, Callable
from typing import Any

import pytest

from goblin.core.errors import BudgetExhausted, GoblinError, InvalidRequest, StreamCut
from goblin.gateway.ports import HttpReply
from goblin.web import asgi, heartbeat
from goblin.web.heartbeat import ANTHROPIC, OPENAI, RESPONSES, Heartbeat, StreamWords

SCOPE: dict[str, Any] = {"type": "http", "method": "POST", "path": "/", "headers": [], "query_string": b""}


class Clock:
    """An event loop's clock, turned by hand."""

    def __init__(self) -> None:
        self._now = 0.0
        self.due: list[tuple[float, Callable[[], None]]] = []

    def time(self) -> float:
        return self._now

    def call_later(self, delay: float, callback: Callable[[], None], /) -> Any:
        entry = (self._now + delay, callback)
        self.due.append(entry)
        clock = self

        class Cancelling:
            def cancel(self) -> None:
                if entry in clock.due:
                    clock.due.remove(entry)

        return Cancelling()

    async def turn(self, seconds: float) -> None:
        self._now += seconds
        for entry in [one for one in self.due if one[0] <= self._now]:
            self.due.remove(entry)
            entry[1]()
        await settle()


async def settle() -> None:
    for _ in range(20):
        await asyncio.sleep(0)


class Stand:
    """One delivery: what is produced comes when the test says so."""

    def __init__(self, words: StreamWords = OPENAI, **choices: Any) -> None:
        self.clock = Clock()
        self.sent: list[Any] = []
        self.parts: asyncio.Queue[bytes | GoblinError | None] = asyncio.Queue()
        self.reply: asyncio.Future[HttpReply] = asyncio.get_running_loop().create_future()
        self.left = asyncio.Event()
        heard = asyncio.Event()
        heard.set()
        beat = Heartbeat(words, timers=self.clock, **choices)

        async def produce() -> HttpReply:
            self.delivery.expect_stream(beat, lambda: {"x-goblin-request-id": "r"})
            return await self.reply

        self.delivery = asgi.HttpDelivery(produce, self._settle, heard=heard)
        self.running = asyncio.create_task(self.delivery(SCOPE, self._receive, self._send))

    async def _settle(self) -> None:
        pass

    async def _receive(self) -> Any:
        await self.left.wait()
        return {"type": "http.disconnect"}

    async def _send(self, message: Any) -> None:
        self.sent.append(message)

    async def stream(self) -> AsyncGenerator[bytes, None]:
        while (part := await self.parts.get()) is not None:
            if isinstance(part, GoblinError):
                raise part
            yield part

    def begins(self) -> None:
        self.reply.set_result(HttpReply(content=self.stream(), media_type=asgi.EVENTS))

    @property
    def text(self) -> bytes:
        return b"".join(message.get("body", b"") for message in self.sent)

    @property
    def starts(self) -> list[Any]:
        return [message for message in self.sent if message["type"] == "http.response.start"]


async def test_pings_fill_silence_between_chunks_and_only_silence() -> None:
    stand = Stand()
    stand.begins()
    stand.parts.put_nowait(b"data: 1\n\n")
    await settle()
    for _ in range(4):  # A chunk every ten seconds: no silence of fifteen.
        await stand.clock.turn(10)
        stand.parts.put_nowait(b"data: 2\n\n")
        await settle()
    assert stand.text == b"data: 1\n\n" + b"data: 2\n\n" * 4
    await stand.clock.turn(14)
    assert b"ping" not in stand.text
    await stand.clock.turn(1)
    await stand.clock.turn(15)
    assert stand.text.endswith(b"data: 2\n\n: ping\n\n: ping\n\n")
    stand.parts.put_nowait(b"data: 3\n\n")
    stand.parts.put_nowait(None)
    await stand.running
    assert stand.text.endswith(b": ping\n\n: ping\n\ndata: 3\n\n")
    assert stand.clock.due == []
    assert stand.sent[-1]["more_body"] is False


async def test_without_being_asked_no_status_goes_out_before_the_first_token() -> None:
    stand = Stand()
    await settle()
    await stand.clock.turn(100)
    assert stand.sent == []
    stand.reply.set_result(asgi.error_answer(BudgetExhausted("No.")))
    await stand.running
    assert [start["status"] for start in stand.starts] == [402]


async def test_early_beats_send_the_status_and_then_the_answer() -> None:
    stand = Stand(early=True)
    await settle()
    await stand.clock.turn(14)
    assert stand.sent == []
    await stand.clock.turn(1)
    (start,) = stand.starts
    assert start["status"] == 200
    assert dict(start["headers"])[b"content-type"] == asgi.EVENTS.encode()
    assert dict(start["headers"])[b"x-goblin-request-id"] == b"r"
    assert b"content-length" not in dict(start["headers"])
    await stand.clock.turn(15)
    stand.begins()
    stand.parts.put_nowait(b"data: 1\n\n")
    stand.parts.put_nowait(None)
    await stand.running
    assert stand.text == b": ping\n\n: ping\n\ndata: 1\n\n"
    assert len(stand.starts) == 1


async def test_a_quick_error_keeps_its_status_though_early_beats_were_chosen() -> None:
    stand = Stand(early=True)
    await settle()
    await stand.clock.turn(14)
    stand.reply.set_result(asgi.error_answer(BudgetExhausted("No.")))
    await stand.running
    assert [start["status"] for start in stand.starts] == [402]
    assert json.loads(stand.text)["error"]["code"] == "budget_exhausted"
    assert stand.clock.due == []


@pytest.mark.parametrize("words", [OPENAI, RESPONSES, ANTHROPIC])
@pytest.mark.parametrize("raised", [False, True])
async def test_an_error_after_the_status_is_an_event_and_never_silence(words: StreamWords, raised: bool) -> None:
    stand = Stand(words, early=True)
    await settle()
    await stand.clock.turn(15)
    error = BudgetExhausted("The budget is used up.")
    if raised:
        stand.reply.set_exception(error)
    else:
        stand.reply.set_result(asgi.error_answer(error))
    await stand.running
    assert len(stand.starts) == 1
    *_, last, empty = stand.text.split(b"\n\n")
    assert empty == b""
    data = json.loads(last.split(b"data: ")[1])
    assert data.get("error", data)["message"] == "The budget is used up."
    assert data.get("error", data)["code"] == "budget_exhausted"
    assert stand.sent[-1] == {"type": "http.response.body", "body": b"", "more_body": False}


async def test_a_cut_stream_still_ends_with_what_its_face_says() -> None:
    stand = Stand()
    stand.begins()
    stand.parts.put_nowait(b"data: 1\n\n")
    await stand.clock.turn(15)
    stand.parts.put_nowait(StreamCut("It broke off."))
    with pytest.raises(StreamCut):
        await stand.running
    assert stand.clock.due == []


async def test_a_caller_who_leaves_hears_no_more() -> None:
    stand = Stand(early=True)
    await settle()
    await stand.clock.turn(15)
    stand.left.set()
    await stand.running
    assert stand.clock.due == []
    pings = stand.text.count(b"ping")
    await stand.clock.turn(100)
    assert stand.text.count(b"ping") == pings


async def test_a_caller_who_does_not_read_is_written_one_beat() -> None:
    clock, taken, written = Clock(), asyncio.Event(), []

    async def send(message: Any) -> None:
        written.append(message)
        await taken.wait()

    beat = Heartbeat(OPENAI, timers=clock)
    beat.begin(send)
    for _ in range(10):
        await clock.turn(15)
    assert len(written) == 1
    taken.set()
    await settle()
    await clock.turn(15)
    assert len(written) == 2
    beat.stop()


@pytest.mark.parametrize(
    ("header", "early", "every_s"),
    [(None, False, 15), ("", False, 15), ("early", True, 15), ("Early ", True, 15), ("5", True, 5)],
)
async def test_the_header(header: str | None, early: bool, every_s: int) -> None:
    found = heartbeat.chosen(header, OPENAI)
    assert found is not None
    assert (found.early, found._every_s) == (early, every_s)
    assert heartbeat.chosen("off", OPENAI) is None


@pytest.mark.parametrize("header", ["0", "61", "-1", "1.5", "x", "9" * 5000, "٣"])
async def test_a_header_that_makes_no_sense_is_named(header: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        heartbeat.chosen(header, OPENAI)
    assert caught.value.param == "x-goblin-heartbeat"
