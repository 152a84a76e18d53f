"""Starting what sleeps: once, beside the request, and paid for."""

from __future__ import annotations

import asyncio

import pytest

from goblin.domain import requests
from goblin.errors import ProviderUnavailable
from goblin.services import waking
from goblin.services.waking import Wakes
from tests.fakes.inference import ScriptedProvider, world
from tests.policy.test_continuation import chat, text


async def settle() -> None:
    for _ in range(5):
        await asyncio.sleep(0)


@pytest.mark.parametrize("fails", [True, False])
async def test_one_start_at_a_time_and_it_ends(fails: bool) -> None:
    here = world(a=ScriptedProvider())
    endpoint = here.deps.router.catalog.endpoints[0]
    wakes, asked, go_on = Wakes(here.deps.router.live), 0, asyncio.Event()

    async def ask() -> None:
        nonlocal asked
        asked += 1
        await go_on.wait()
        if fails:
            raise ProviderUnavailable("no machine to be had")

    for _ in range(3):
        wakes.begin(endpoint, "m", ask)
    await settle()
    assert asked == 1
    assert here.deps.router.live._life("a", "m").waking_s is not None
    wakes.begin(endpoint, "other", ask)
    go_on.set()
    await settle()
    assert asked == 2
    assert wakes._going == {}
    assert here.deps.router.live._life("a", "m").waking_s is None
    assert (here.deps.router.live._life("a", "m").heard_s is None) == fails


@pytest.mark.parametrize("like", [chat(max_tokens=100), text(max_tokens=100)])
def test_a_nudge_is_as_small_as_a_request_can_be(like: requests.ChatRequest | requests.CompletionRequest) -> None:
    small = waking.nudge(like)
    assert type(small) is type(like)
    assert (small.model, small.output_tokens_max, small.prompt_bytes()) == ("m", 1, 1)
    again = requests.parse(type(small), requests.msgspec.json.encode(small.body))
    assert again.output_tokens_max == 1
