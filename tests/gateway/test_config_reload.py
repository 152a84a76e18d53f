"""A configuration that changes, breaks and is mended while requests go on."""

from __future__ import annotations

import asyncio
import logging

import pytest

from goblin.core.errors import Broken
from goblin.gateway.config_reload import LOOK_EVERY_S, ConfigReloader
from tests.fakes.inference import FakeClock


class File:
    def __init__(self) -> None:
        self.text = "one"
        self.reads = 0
        self.in_force = ["one"]
        self.clock = FakeClock()
        self.reloader = ConfigReloader(text="one", read=self.read, apply=self.apply, clock=self.clock)

    def read(self) -> str:
        self.reads += 1
        if self.text == "gone":
            raise Broken("it is gone")
        return self.text

    def apply(self, text: str) -> None:
        if "bad" in text:
            raise Broken(f"there is a mistake in {text}")
        self.in_force.append(text)

    async def poke(self) -> None:
        self.clock.forward(LOOK_EVERY_S)
        self.reloader.poke()
        await asyncio.gather(*(task for task in asyncio.all_tasks() if task is not asyncio.current_task()))


async def test_a_change_is_put_in_force_once() -> None:
    file = File()
    file.text = "two"
    await file.poke()
    await file.poke()
    assert file.in_force == ["one", "two"]


async def test_it_is_looked_at_seldom_however_many_ask() -> None:
    file = File()
    for _ in range(100):
        file.reloader.poke()
    assert file.reads == 0
    await file.poke()
    for _ in range(100):
        file.reloader.poke()
    assert file.reads == 1


@pytest.mark.parametrize(("broken", "fault"), [("bad", "there is a mistake in bad"), ("gone", "it is gone")])
async def test_a_bad_file_leaves_the_old_one_in_force_and_says_so_once(
    broken: str, fault: str, caplog: pytest.LogCaptureFixture
) -> None:
    file = File()
    file.text = broken
    with caplog.at_level(logging.ERROR):
        await file.poke()
        await file.poke()
    assert file.in_force == ["one"]
    assert file.reloader.fault == fault
    assert [record.getMessage() for record in caplog.records] == [
        f"goblin.toml was not applied; the previous configuration stays in force: {fault}"
    ]


@pytest.mark.parametrize("mended", ["one", "three"])
async def test_a_mended_file_is_no_fault_any_more(mended: str) -> None:
    file = File()
    file.text = "bad"
    await file.poke()
    file.text = mended
    await file.poke()
    assert file.reloader.fault == ""
    assert file.in_force[-1] == mended
