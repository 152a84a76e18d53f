"""An awaitable that is begun before it is known whether it waits."""

import asyncio
from collections.abc import AsyncGenerator

import pytest

from goblin.gateway.failover import EagerAwait


async def at_once() -> int:
    return 7


async def test_what_is_there_needs_no_waiting() -> None:
    step = EagerAwait(at_once())
    assert not step.waits
    assert await step == 7


async def test_what_is_not_there_is_waited_for() -> None:
    async def later() -> int:
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        return 7

    step = EagerAwait(later())
    assert step.waits
    assert await step == 7


@pytest.mark.parametrize("waits", [True, False])
async def test_errors_and_ends_come_through(waits: bool) -> None:
    async def items() -> AsyncGenerator[int, None]:
        yield 1
        if waits:
            await asyncio.sleep(0)

    async def broken() -> int:
        if waits:
            await asyncio.sleep(0)
        raise ValueError

    stream = items()
    assert await EagerAwait(anext(stream)) == 1
    with pytest.raises(StopAsyncIteration):
        await EagerAwait(anext(stream))
    with pytest.raises(ValueError):
        await EagerAwait(broken())


async def test_a_timeout_cancels_it_and_its_stream_can_be_closed() -> None:
    ended = asyncio.Event()

    async def items() -> AsyncGenerator[int, None]:
        try:
            await asyncio.Event().wait()
            yield 1
        finally:
            await asyncio.sleep(0)
            ended.set()

    stream = items()
    step = EagerAwait(anext(stream))
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.01):
            await step
    assert ended.is_set()
    await stream.aclose()
