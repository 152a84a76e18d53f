"""A slow first token: somebody else is asked beside it, the first to speak wins, the other is settled."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from goblin.core.errors import Fault, InvalidRequest, ProviderUnavailable
from goblin.gateway import inference
from goblin.gateway.domain.catalog import Routing, Strategy
from goblin.gateway.failover import ActiveAttempt, RetryBudget
from goblin.gateway.policy import retries
from tests.fakes.inference import HANG, KEY, ScriptedProvider, Step, Words, World, says, world
from tests.gateway.test_inference import asked, scripted

AT_ONCE = 0.001
LATE = 60.0


def slow(**providers: ScriptedProvider) -> World:
    return world(routing=Routing(strategy=Strategy.FAILOVER, first_token_timeout_s=LATE), **providers)


async def begin(
    here: World, hedge_after_s: float, *, stream: bool = True
) -> tuple[inference.InferenceCall, ActiveAttempt[Any]]:
    call = inference.InferenceCall(here.deps, "chat")
    await call.authenticate(f"Bearer {KEY}")
    request = asked(stream=stream)
    route = await call._choose(request, None)
    return call, await call._dispatch().answer(request).begin(route.candidates, hedge_after_s=hedge_after_s)


def outcomes(call: inference.InferenceCall) -> list[tuple[str, str]]:
    return [(record.endpoint, record.outcome) for record in (attempt.record() for attempt in call.attempts)]


@pytest.mark.parametrize("stream", [True, False])
async def test_the_second_answers_while_the_first_is_silent(stream: bool) -> None:
    here = slow(a=scripted(HANG), b=ScriptedProvider())
    call, winner = await begin(here, AT_ONCE, stream=stream)
    assert winner.attempt.endpoint.name == "b"
    assert here.providers["a"].closed == 1
    assert outcomes(call)[0] == ("a", "lost")
    # The loser took the prompt, and nobody says what it did with it.
    assert call.spent()[0].usage.prompt_tokens == 2
    await call.settle()
    assert here.meter.errors == {}


async def test_a_quick_first_is_not_hedged() -> None:
    here = slow(a=ScriptedProvider(), b=ScriptedProvider())
    call, winner = await begin(here, LATE)
    assert winner.attempt.endpoint.name == "a"
    assert here.providers["b"].requests == 0
    await call.settle()


async def test_the_first_may_still_win() -> None:
    spoken = asyncio.Event()

    class Late(ScriptedProvider):
        async def _play(self) -> Any:
            await spoken.wait()
            async for item in super()._play():
                yield item

    class Rival(ScriptedProvider):
        async def _play(self) -> Any:
            spoken.set()
            async for item in super()._play():
                yield item

    here = slow(a=Late(), b=Rival(steps=[HANG]))
    call, winner = await begin(here, AT_ONCE)
    assert winner.attempt.endpoint.name == "a"
    assert ("b", "lost") in outcomes(call)
    assert here.providers["b"].closed == 1
    await call.settle()


async def test_a_first_that_fails_at_once_is_followed_not_hedged() -> None:
    here = slow(a=scripted(ProviderUnavailable("no", fault=Fault.AUTH)), b=ScriptedProvider())
    call, winner = await begin(here, LATE)
    assert winner.attempt.endpoint.name == "b"
    assert outcomes(call)[0] == ("a", "auth")
    await call.settle()


async def test_when_the_hedge_fails_the_first_goes_on_and_the_third_is_left() -> None:
    opened = asyncio.Event()

    class Late(ScriptedProvider):
        async def _play(self) -> Any:
            await opened.wait()
            async for item in super()._play():
                yield item

    class Fails(ScriptedProvider):
        async def _play(self) -> Any:
            opened.set()
            raise ProviderUnavailable("no")
            yield

    here = slow(a=Late(), b=Fails(), c=ScriptedProvider())
    call, winner = await begin(here, AT_ONCE)
    assert winner.attempt.endpoint.name == "a"
    assert here.providers["c"].requests == 0
    await call.settle()


async def test_the_callers_mistake_ends_both() -> None:
    here = slow(a=scripted(HANG), b=scripted(InvalidRequest("too hot")))
    with pytest.raises(InvalidRequest):
        await begin(here, AT_ONCE)
    assert (here.providers["a"].closed, here.providers["b"].closed) == (1, 1)


async def test_a_caller_who_leaves_ends_both() -> None:
    asked_too = asyncio.Event()

    class Silent(ScriptedProvider):
        async def _play(self) -> Any:
            asked_too.set()
            async for item in super()._play():
                yield item

    here = slow(a=scripted(HANG), b=Silent(steps=[HANG]))
    asking = asyncio.create_task(begin(here, AT_ONCE))
    async with asyncio.timeout(5):
        await asked_too.wait()
    await asyncio.sleep(0)
    asking.cancel()
    await asyncio.gather(asking, return_exceptions=True)
    assert (here.providers["a"].closed, here.providers["b"].closed) == (1, 1)


async def test_hedges_are_a_small_share_of_all_requests() -> None:
    steps: list[Step] = [HANG]
    here = world(a=scripted(*steps), b=scripted(Words("x"), *says()))
    here.deps.retry_budget.hedge = retries.RetryAllowance(share=0.05, saved=1.0)
    _, winner = await begin(here, AT_ONCE)
    assert winner.attempt.endpoint.name == "b"
    call, winner = await begin(here, AT_ONCE)  # No hedge is left: it waits until `a` is given up.
    assert winner.attempt.endpoint.name == "b"
    assert outcomes(call)[0] == ("a", "transient")


def test_retries_and_hedges_are_paid_for_apart() -> None:
    retry_budget = RetryBudget(
        retry=retries.RetryAllowance(share=0.2, saved=1.0), hedge=retries.RetryAllowance(share=0.05, saved=0.0)
    )
    assert retry_budget.may_retry()
    assert not retry_budget.may_retry()
    assert not retry_budget.may_hedge()
