"""Receipts: one that comes alone is written at once, many in few writes, and none is lost while it waits."""

import asyncio
from dataclasses import replace
from datetime import UTC, datetime

import pytest

from goblin.core.errors import StoreUnavailable
from goblin.gateway import receipts
from goblin.gateway.ports import Receipt
from goblin.gateway.receipts import ReceiptWriter
from tests.fakes.inference import FakeClock
from tests.fakes.stores import MemoryReceipts

NOW = datetime(2026, 11, 23, tzinfo=UTC)
RECORD = Receipt(
    request_id="r",
    key_digest="d",
    key_name="k",
    operation="chat",
    model="m",
    stream=False,
    strategy="failover",
    outcome="ok",
    provider="p",
    cost_usd_micros=0,
    attempts=(),
    rejected={},
    prompt_tokens=1,
    completion_tokens=1,
    usage_estimated=False,
    first_token_ms=1,
    duration_ms=1,
    created_at=NOW,
    expires_at=NOW,
)


def numbered(number: int) -> Receipt:
    return replace(RECORD, request_id=f"r{number}")


class Here:
    """Batches over a store in memory; a pause lasts until the test says so."""

    def __init__(self) -> None:
        self.store, self.clock = MemoryReceipts(), FakeClock()
        self._over = asyncio.Semaphore(0)
        self.batches = ReceiptWriter(self.store, self.clock, pause=self._pause)

    async def _pause(self, seconds: float) -> None:
        await self._over.acquire()
        self.clock.forward(seconds)

    async def end_pause(self) -> None:
        self._over.release()
        for _ in range(10):  # The writer's turns; the store in memory takes none.
            await asyncio.sleep(0)


async def test_one_that_comes_alone_is_written_at_once() -> None:
    here = Here()
    for number in range(3):
        await here.batches.put(numbered(number))
        assert here.store.records[f"r{number}"] == numbered(number)
        here.clock.forward(receipts.EVERY_S)


async def test_many_are_written_together_and_found_before() -> None:
    here = Here()
    for number in range(50):
        await here.batches.put(numbered(number))
    assert here.store.batches == [1]
    assert await here.batches.get("r49") == numbered(49)
    assert await here.batches.get("r50") is None
    await here.end_pause()
    assert here.store.batches == [1, 49]
    assert len(here.store.records) == 50


async def test_a_store_that_is_down_loses_none_and_the_newest_word_holds() -> None:
    here = Here()
    here.store.down = True
    await here.batches.put(RECORD)
    await here.batches.put(replace(RECORD, outcome="cut"))
    here.store.down = False
    await here.end_pause()
    assert here.store.records == {"r": replace(RECORD, outcome="cut")}


async def test_what_waits_is_written_before_the_end_in_pieces_that_the_store_takes() -> None:
    here = Here()
    for number in range(501):
        await here.batches.put(numbered(number))
    await here.batches.close()
    assert here.store.batches == [1, 200, 200, 100]
    assert len(here.store.records) == 501


async def test_what_waits_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(receipts, "HELD_MAX", 2)
    here = Here()
    for number in range(3):
        await here.batches.put(numbered(number))
    with pytest.raises(StoreUnavailable):
        await here.batches.put(numbered(3))
    await here.batches.close()
    assert len(here.store.records) == 3
