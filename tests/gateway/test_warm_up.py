"""Starting what sleeps: once, beside the request, and paid for."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from typing import Any

import pytest

from goblin.core.endpoints import Price
from goblin.core.errors import ProviderUnavailable
from goblin.gateway import warm_up
from goblin.gateway.domain import requests
from goblin.gateway.domain.chat import Usage
from goblin.gateway.policy.route import NoRoute, Route
from goblin.gateway.router import Router
from goblin.gateway.warm_up import WarmUps
from tests.fakes.inference import ScriptedProvider, says, world
from tests.gateway.policy.test_continuation import chat, text
from tests.gateway.test_inference import ask, receipt


async def settle() -> None:
    for _ in range(5):
        await asyncio.sleep(0)


@pytest.mark.parametrize("fails", [True, False])
async def test_one_start_at_a_time_and_it_ends(fails: bool) -> None:
    here = world(a=ScriptedProvider())
    endpoint = here.deps.router.catalog.endpoints[0]
    warm_ups, asked, go_on = WarmUps(here.deps.router.stats), 0, asyncio.Event()

    async def ask() -> None:
        nonlocal asked
        asked += 1
        await go_on.wait()
        if fails:
            raise ProviderUnavailable("no machine to be had")

    for _ in range(3):
        warm_ups.begin(endpoint, "m", ask)
    await settle()
    assert asked == 1
    assert here.deps.router.stats._warmth_of("a", "m").waking_s is not None
    warm_ups.begin(endpoint, "other", ask)
    go_on.set()
    await settle()
    assert asked == 2
    assert warm_ups._going == {}
    assert here.deps.router.stats._warmth_of("a", "m").waking_s is None
    assert (here.deps.router.stats._warmth_of("a", "m").heard_s is None) == fails


@pytest.mark.parametrize("like", [chat(max_tokens=100), text(max_tokens=100)])
def test_a_nudge_is_as_small_as_a_request_can_be(like: requests.ChatRequest | requests.CompletionRequest) -> None:
    small = warm_up.warm_up_request(like)
    assert type(small) is type(like)
    assert (small.model, small.output_tokens_max, small.prompt_bytes()) == ("m", 1, 1)
    again = requests.parse(type(small), requests.msgspec.json.encode(small.body))
    assert again.output_tokens_max == 1


async def test_a_request_wakes_whom_its_route_says_and_does_not_wait() -> None:
    here = world(
        endpoints={"b": {"price": Price(input_usd_micros_per_mtok=0, output_usd_micros_per_mtok=1_000_000)}},
        a=ScriptedProvider(),
        b=ScriptedProvider(steps=says("x", usage=Usage(prompt_tokens=1, completion_tokens=1, total_tokens=2))),
    )
    here.deps.router.stats.arrived("m")
    choose = here.deps.router.choose

    async def choosing(request: requests.InferenceRequest, header: str | None) -> Route | NoRoute:
        route = await choose(request, header)
        assert isinstance(route, Route)
        return replace(route, candidates=route.candidates[:1], wake=route.candidates[1:])

    here.deps = replace(here.deps, router=Steered(here.deps.router, choosing))  # type: ignore[arg-type]
    heard = await ask(here)
    assert (heard.text, heard.error) == ("Hello", None)
    for _ in range(50):
        await asyncio.sleep(0)
    (nudge,) = here.providers["b"].asked
    assert nudge.output_tokens_max == 1
    assert here.providers["b"].closed == 1
    assert [attempt.endpoint for attempt in receipt(here).attempts] == ["a"]
    # What it cost is in the ledger all the same.
    assert [entry.amount_usd_micros for entry in here.ledger.settled()] == [1]


class Steered:
    """A router whose choice the test makes."""

    def __init__(self, router: Router, choose: Any) -> None:
        self._router = router
        self.choose = choose

    def __getattr__(self, name: str) -> Any:
        return getattr(self._router, name)
