"""Several requests to one endpoint as one answer: order, bounds, failures, hang-ups, usage and money."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from goblin.billing.domain.accounts import Limit, Period
from goblin.core.endpoints import ORDINARY, Capability, Price
from goblin.core.errors import BudgetExhausted, Fault, ProviderUnavailable, StreamCut
from goblin.gateway import inference
from goblin.gateway.domain import requests
from goblin.gateway.domain.catalog import Routing, Strategy
from goblin.gateway.domain.chat import ChatChunk, ChunkChoice, Delta, Usage
from goblin.gateway.fan_out import FanOut
from goblin.gateway.policy import fan_out
from tests.fakes.inference import KEY, ScriptedProvider, World, world
from tests.gateway.policy.test_fan_out import chat, completion, endpoint
from tests.gateway.test_inference import ask, receipt

ONE = ORDINARY - {Capability.CHOICES, Capability.PROMPTS}
PRICE = Price(input_usd_micros_per_mtok=1_000_000, output_usd_micros_per_mtok=1_000_000)


class Echo(ScriptedProvider):
    """Answers each request with its prompt and its number, letter by letter, and stops where the test says."""

    def __init__(self, *, at: dict[int, str | Exception] | None = None, usage: bool = True, gap: int = 0) -> None:
        super().__init__()
        self.at = at or {}
        """By the request's number: `hang` in the middle, or the error that it ends in; `refuse:` before the start."""
        self.usage = usage
        self.gap = gap
        self.going = self.most = 0

    def chat(self, request: requests.ChatRequest, *, model: str) -> AsyncGenerator[ChatChunk, None]:
        return self._echo(request, request.messages[-1].text)

    def complete(self, request: requests.CompletionRequest, *, model: str) -> AsyncGenerator[ChatChunk, None]:
        return self._echo(request, str(request.prompt))

    async def _echo(self, request: Any, said: str) -> AsyncGenerator[ChatChunk, None]:
        self.asked.append(request)
        number, self.requests = self.requests, self.requests + 1
        self.going += 1
        self.most = max(self.most, self.going)
        try:
            for _ in range(self.gap):
                await asyncio.sleep(0)
            if isinstance(fault := self.at.get(number), ProviderUnavailable) and fault.fault is Fault.RATE:
                raise fault
            yield ChatChunk(choices=(ChunkChoice(delta=Delta(role="assistant", content="")),))
            for letter in said:
                yield ChatChunk(choices=(ChunkChoice(delta=Delta(content=letter)),))
                await asyncio.sleep(0)
            if fault == "hang":
                await asyncio.Event().wait()
            if isinstance(fault, Exception):
                raise fault
            yield ChatChunk(choices=(ChunkChoice(finish_reason="stop"),))
            if self.usage:
                yield ChatChunk(usage=Usage(prompt_tokens=10, completion_tokens=len(said), total_tokens=10 + len(said)))
        finally:
            self.going -= 1
            self.closed += 1


def here(provider: ScriptedProvider, *others: ScriptedProvider, **more: Any) -> World:
    rows = {name: {"capabilities": ONE, "parallel": 2, **more} for name in "ab"}
    slow = Routing(strategy=Strategy.FAILOVER, first_token_timeout_s=5, between_tokens_timeout_s=5)
    return world(endpoints=rows, routing=slow, **dict(zip("ab", (provider, *others), strict=False)))


async def complete(at: World, **more: Any) -> tuple[dict[int, str], Usage | None, inference.InferenceCall]:
    """The texts by index."""
    call = inference.InferenceCall(at.deps, "completions")
    texts: dict[int, str] = {}
    usage = None
    try:
        await call.authenticate(f"Bearer {KEY}")
        await call.admit()
        async with aclosing(await call.complete(completion(**more))) as chunks:
            async for chunk in chunks:
                usage = chunk.usage or usage
                for choice in chunk.choices:
                    texts[choice.index] = texts.get(choice.index, "") + choice.delta.text
    finally:
        await call.settle()
    return texts, usage or None, call


@pytest.mark.parametrize("stream", [False, True])
async def test_a_list_of_prompts_is_one_answer_one_receipt_and_one_attempt(stream: bool) -> None:
    echo = Echo()
    at = here(echo)
    texts, usage, _ = await complete(at, prompt=["one", "two", "three"], n=2, stream=stream)
    assert texts == dict(enumerate(["one", "one", "two", "two", "three", "three"]))
    # Each prompt once, all answers: 3 * 10 and 2 * (3 + 3 + 5).
    assert usage == Usage(prompt_tokens=30, completion_tokens=22, total_tokens=52)
    written = receipt(at)
    assert (written.outcome, len(written.attempts), written.usage_estimated) == ("ok", 1, False)
    assert (echo.requests, echo.closed, echo.most) == (6, 6, 2)


async def test_an_endpoint_that_can_gets_it_as_it_is() -> None:
    echo = Echo()
    at = here(echo, capabilities=ORDINARY)
    await complete(at, prompt=["one", "two"], n=2)
    (sent,) = echo.asked
    assert (sent.body["prompt"], sent.body["n"]) == (["one", "two"], 2)


async def test_a_chat_has_as_many_choices_as_it_asked_for() -> None:
    at = here(Echo())
    heard = await ask(at, chat(n=3, stream=True))
    finished = [c.index for chunk in heard.chunks for c in chunk.choices if c.finish_reason]
    assert sorted(finished) == [0, 1, 2]
    assert len({chunk.id for chunk in heard.chunks}) == 1


async def test_all_requests_are_paid_and_the_caller_is_told_one_prompt() -> None:
    at = here(Echo(), price=PRICE)
    _, usage, call = await complete(at, prompt="four", n=3)
    assert usage is not None
    assert usage.prompt_tokens == 10
    assert call.cost_usd_micros() == 3 * (10 + 4)
    assert [entry.amount_usd_micros for entry in at.ledger.settled()] == [42]


async def test_one_reservation_covers_the_worst_of_all() -> None:
    echo = Echo()
    at = here(echo, price=PRICE)
    # The answers alone may cost 15.
    await at.ledger.limit("total", Period.LIFETIME, Limit(period=Period.LIFETIME, limit_usd_micros=3 * (64 + 5)))
    with pytest.raises(BudgetExhausted):
        await complete(at, prompt="four", n=3)
    assert echo.requests == 0


async def test_when_one_fails_all_fail_and_the_others_are_cancelled() -> None:
    echo = Echo(at={0: "hang", 1: ProviderUnavailable("It broke.")})
    at = here(echo)
    with pytest.raises(StreamCut, match="It broke"):
        await complete(at, prompt=["one", "two", "three"], stream=True)
    assert echo.going == 0
    assert echo.closed == echo.requests == 2
    assert receipt(at).outcome == "cut"


async def test_a_whole_answer_starts_over_as_a_whole() -> None:
    echo = Echo(at={1: ProviderUnavailable("It broke.")})
    at = here(echo)
    texts, _, _ = await complete(at, prompt=["one", "two"])
    assert texts == {0: "one", 1: "two"}
    assert [attempt.outcome for attempt in receipt(at).attempts] == ["transient", "ok"]
    assert echo.requests == 4


async def test_a_whole_answer_starts_over_elsewhere() -> None:
    second = Echo()
    at = here(Echo(at={1: ProviderUnavailable("It broke.")}), second)
    texts, _, _ = await complete(at, prompt=["one", "two"])
    assert texts == {0: "one", 1: "two"}
    assert second.requests == 2
    assert [attempt.endpoint for attempt in receipt(at).attempts] == ["a", "b"]


async def test_what_was_refused_costs_nothing_and_what_was_cancelled_does() -> None:
    full = ProviderUnavailable("full", fault=Fault.RATE, retry_after_s=600)
    at = here(Echo(at={0: full}), price=PRICE)
    with pytest.raises(Exception, match="full"):
        await complete(at, prompt="four", n=1, stream=True)
    assert not at.ledger.settled()


async def test_a_hang_up_stops_all_and_starts_no_more() -> None:
    echo = Echo(at={0: "hang", 1: "hang"})
    at = here(echo, price=PRICE)
    call = inference.InferenceCall(at.deps, "completions")
    await call.authenticate(f"Bearer {KEY}")
    chunks = await call.complete(completion(prompt=["one"] * 8, stream=True))
    await anext(chunks)
    await chunks.aclose()
    await call.settle()
    assert (echo.requests, echo.closed, echo.going) == (2, 2, 0)
    (entry,) = at.ledger.settled()
    # Two of eight prompts were sent, of three bytes each.
    assert 2 <= entry.amount_usd_micros <= 2 * (3 + 3)


async def test_a_drained_answer_starts_no_more_after_its_reader_left() -> None:
    echo = Echo(gap=3)
    at = here(echo, price=PRICE, cancel_stops_bill=False)
    call = inference.InferenceCall(at.deps, "completions")
    await call.authenticate(f"Bearer {KEY}")
    chunks = await call.complete(completion(prompt=["one"] * 8, stream=True))
    await anext(chunks)
    begun = echo.requests
    await chunks.aclose()
    await call.settle()
    for active in call._active_attempts:
        assert active.drain is not None
        await active.drain.wait()
    assert echo.requests <= begun + 2
    assert echo.closed == echo.requests < 8


async def test_usage_that_one_did_not_tell_is_estimated_and_said() -> None:
    at = here(Echo(usage=False))
    _, usage, _ = await complete(at, prompt=["one", "two"])
    assert usage is not None
    assert receipt(at).usage_estimated


async def test_an_empty_answer_among_others_is_a_failure() -> None:
    class Mute(Echo):
        async def _echo(self, request: Any, said: str) -> AsyncGenerator[ChatChunk, None]:
            if said == "two":
                return
            async for chunk in super()._echo(request, said):
                yield chunk

    with pytest.raises(ProviderUnavailable, match="empty answer"):
        await complete(here(Mute()), prompt=["one", "two"])


async def test_the_load_of_all_requests_is_seen_by_the_router() -> None:
    at = here(Echo(at={0: "hang", 1: "hang"}))
    call = inference.InferenceCall(at.deps, "completions")
    await call.authenticate(f"Bearer {KEY}")
    chunks = await call.complete(completion(prompt=["one"] * 8, stream=True))
    (row, _) = (*at.deps.router.catalog.endpoints, None)
    assert row is not None
    demand = call.attempts[0].forecast.demand
    assert at.deps.router.stats.outlook(row, "m", demand).in_flight == 2
    await chunks.aclose()
    await call.settle()
    assert at.deps.router.stats.outlook(row, "m", demand).in_flight == 0


@settings(max_examples=60, deadline=None)
@given(
    prompts=st.lists(st.text(alphabet="abc", min_size=1, max_size=6), min_size=2, max_size=6),
    n=st.integers(1, 4),
    parallel=st.integers(1, 9),
    fails=st.none() | st.integers(0, 11),
    takes=st.none() | st.integers(0, 20),
    gap=st.integers(0, 3),
)
def test_any_merge_is_whole_or_an_error(
    prompts: list[str], n: int, parallel: int, fails: int | None, takes: int | None, gap: int
) -> None:
    """Every index has exactly its own text, in order, unless a request failed or the reader left."""

    async def run() -> None:
        total = len(prompts) * n
        breaks = fails is not None and fails < total
        echo = Echo(at={} if fails is None else {fails: ProviderUnavailable("It broke.")}, gap=gap)
        asked = completion(prompt=prompts, n=n)
        several = FanOut(
            fan_out.split(asked, endpoint(frozenset())),
            lambda request: echo.complete(request, model="m"),  # type: ignore[arg-type]
            parallel=parallel,
            name="a",
        )
        texts = dict.fromkeys(range(total), "")
        ended: list[int] = []
        failed = False
        told = None
        try:
            async with aclosing(several.stream()) as chunks:
                count = 0
                async for chunk in chunks:
                    told = chunk.usage or told
                    for choice in chunk.choices:
                        texts[choice.index] += choice.delta.text
                        ended += [choice.index] if choice.finish_reason else []
                    count += 1
                    if count == takes:
                        break
        except ProviderUnavailable:
            failed = True
        assert echo.going == 0
        assert echo.closed == echo.requests <= total
        assert echo.most <= min(parallel, total) == several.width
        expected = [prompt for prompt in prompts for _ in range(n)]
        assert all(expected[index].startswith(text) for index, text in texts.items())
        if not failed and takes is None:
            assert not breaks
            assert sorted(ended) == list(range(total))
            assert list(texts.values()) == expected
            assert told is not None
            assert told.prompt_tokens == 10 * len(prompts)
            spent = several.spent()
            assert spent is not None
            assert (spent.usage.prompt_tokens, spent.estimated) == (10 * total, False)
            assert told.completion_tokens == spent.usage.completion_tokens == sum(map(len, expected))
        if breaks and takes is None:
            assert failed

    asyncio.run(run())
