"""Answers that stop when nobody listens, without taking the request's body for the news that somebody left."""

import asyncio
from collections.abc import AsyncGenerator
from typing import Any

import pytest
from starlette.requests import Request

from goblin.gateway.ports import HttpReply
from goblin.web import asgi

SCOPE: dict[str, Any] = {"type": "http", "method": "POST", "path": "/", "headers": [], "query_string": b""}


class Caller:
    """The other side of one request: its body comes once, then it listens until it leaves."""

    def __init__(self, body: bytes) -> None:
        self._coming = [{"type": "http.request", "body": body, "more_body": False}]
        self._left = asyncio.Event()
        self.got = b""

    async def receive(self) -> dict[str, Any]:
        if self._coming:
            return self._coming.pop()
        await self._left.wait()
        return {"type": "http.disconnect"}

    async def send(self, message: Any) -> None:
        self.got += message.get("body", b"")

    def leave(self) -> None:
        self._left.set()


async def test_a_body_read_late_is_not_taken_for_a_hang_up() -> None:
    caller, heard, settled = Caller(b"hello"), asyncio.Event(), asyncio.Event()
    request = Request(SCOPE, caller.receive)

    async def produce() -> HttpReply:
        for _ in range(20):  # Authentication takes its time: everything else has long run.
            await asyncio.sleep(0)
        body = await asgi.read_body(request)
        heard.set()
        return HttpReply(content=body)

    async def settle() -> None:
        settled.set()

    async with asyncio.timeout(5):
        await asgi.HttpDelivery(produce, settle, heard=heard)(SCOPE, caller.receive, caller.send)
    assert caller.got == b"hello"
    assert settled.is_set()


async def test_a_caller_that_leaves_cancels_the_work_and_it_is_settled() -> None:
    caller, heard, working = Caller(b"hello"), asyncio.Event(), asyncio.Event()
    request = Request(SCOPE, caller.receive)
    ended: list[str] = []

    async def produce() -> HttpReply:
        await asgi.read_body(request)
        heard.set()
        working.set()
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            ended.append("cancelled")
            raise
        return HttpReply()

    async def settle() -> None:
        ended.append("settled")

    delivered = asyncio.create_task(asgi.HttpDelivery(produce, settle, heard=heard)(SCOPE, caller.receive, caller.send))
    await working.wait()
    caller.leave()
    async with asyncio.timeout(5):
        await asyncio.gather(delivered, return_exceptions=True)
    assert ended == ["cancelled", "settled"]


async def test_parts_that_come_together_are_sent_together_and_none_waits_for_the_next() -> None:
    sent: list[bytes] = []
    more = asyncio.Event()

    async def parts() -> AsyncGenerator[bytes, None]:
        yield b"a"
        yield b"b"
        assert not sent
        await more.wait()
        yield b"c"
        await asyncio.sleep(0)
        yield b"d"
        yield b"x" * asgi.TOGETHER_BYTES_MAX
        yield b"e"

    async def send(message: Any) -> None:
        await asyncio.sleep(0)
        if body := message.get("body"):
            sent.append(body)
            more.set()

    caller, heard = Caller(b""), asyncio.Event()
    heard.set()
    async with asyncio.timeout(5):
        await asgi.HttpDelivery(lambda: answer(parts()), nothing, heard=heard)(SCOPE, caller.receive, send)
    assert sent == [b"ab", b"c", b"d" + b"x" * asgi.TOGETHER_BYTES_MAX, b"e"]


async def answer(parts: AsyncGenerator[bytes, None]) -> HttpReply:
    return HttpReply(content=parts)


async def nothing() -> None:
    pass


@pytest.mark.parametrize("sending", [True, False])
async def test_a_stream_hears_that_its_caller_left(sending: bool) -> None:
    caller, heard, waiting, ended = Caller(b""), asyncio.Event(), asyncio.Event(), asyncio.Event()
    caller._coming.clear()
    heard.set()

    async def parts() -> AsyncGenerator[bytes, None]:
        try:
            yield b"a"
            waiting.set()
            await asyncio.Event().wait()
        finally:
            ended.set()

    async def send(message: Any) -> None:
        if sending and message.get("body"):
            await asyncio.Event().wait()  # It reads no more.

    async with asyncio.timeout(5):
        response = asgi.HttpDelivery(lambda: answer(parts()), nothing, heard=heard)
        delivering = asyncio.create_task(response(SCOPE, caller.receive, send))
        await waiting.wait()
        await asyncio.sleep(0)
        caller.leave()
        await delivering
    assert ended.is_set()


@pytest.mark.parametrize(
    ("kind", "line"),
    [("ping", b"ping"), ("response.output_text.delta", b"response.output_text.delta"), ("a\n\ndata: {}\n", b"adata")],
)
def test_no_type_of_an_event_begins_another_line(kind: str, line: bytes) -> None:
    event = asgi.server_event({"type": kind})
    assert event.split(b"\n")[0] == b"event: " + line
    assert event.count(b"\n") == 3
