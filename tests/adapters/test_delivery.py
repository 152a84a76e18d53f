"""Answers that stop when nobody listens, without taking the request's body for the news that somebody left."""

import asyncio
from typing import Any

from starlette.requests import Request

from goblin.adapters import asgi

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

    async def produce() -> asgi.Answer:
        for _ in range(20):  # Authentication takes its time: everything else has long run.
            await asyncio.sleep(0)
        body = await asgi.read_body(request)
        heard.set()
        return asgi.Answer(content=body)

    async def settle() -> None:
        settled.set()

    async with asyncio.timeout(5):
        await asgi.Delivery(produce, settle, heard=heard)(SCOPE, caller.receive, caller.send)
    assert caller.got == b"hello"
    assert settled.is_set()


async def test_a_caller_that_leaves_cancels_the_work_and_it_is_settled() -> None:
    caller, heard, working = Caller(b"hello"), asyncio.Event(), asyncio.Event()
    request = Request(SCOPE, caller.receive)
    ended: list[str] = []

    async def produce() -> asgi.Answer:
        await asgi.read_body(request)
        heard.set()
        working.set()
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            ended.append("cancelled")
            raise
        return asgi.Answer()

    async def settle() -> None:
        ended.append("settled")

    delivered = asyncio.create_task(asgi.Delivery(produce, settle, heard=heard)(SCOPE, caller.receive, caller.send))
    await working.wait()
    caller.leave()
    async with asyncio.timeout(5):
        await asyncio.gather(delivered, return_exceptions=True)
    assert ended == ["cancelled", "settled"]
