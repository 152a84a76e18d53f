"""Answers that break off in the middle: who goes on, what the caller sees of it, and what it costs."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest

from goblin.core.endpoints import ORDINARY, Capability, Price
from goblin.core.errors import Fault, ProviderUnavailable, StreamCut
from goblin.gateway import inference as chat
from goblin.gateway import stream_usage
from goblin.gateway.domain import requests
from goblin.gateway.domain.chat import ChatChunk, Delta, FunctionDelta, ToolCallDelta, Usage
from goblin.gateway.stream_usage import TOOL_CALLS_MAX
from tests.fakes.inference import HANG, KEY, ScriptedProvider, Step, Words, World, chunk, says, world
from tests.gateway.test_inference import ask, asked, receipt, scripted

PREFILLS = {"capabilities": ORDINARY | {Capability.PREFILL}}
CUT = ProviderUnavailable("It broke.")
PRICE = Price(input_usd_micros_per_mtok=1_000_000, output_usd_micros_per_mtok=1_000_000)


def pair(first: list[Step], second: list[Step], **more: Any) -> World:
    """`a` breaks, `b` can continue."""
    return world(endpoints={"b": {**PREFILLS, **more}}, a=scripted(*first), b=scripted(*second))


@pytest.mark.parametrize("ending", [CUT, HANG], ids=["broken", "silent"])
async def test_the_caller_sees_one_unbroken_stream(ending: Step) -> None:
    here = pair([chunk(Delta(role="assistant", content="")), Words("The cap"), ending], says("ital", " is Rome."))
    heard = await ask(here)
    assert heard.error is None
    assert heard.text == "The capital is Rome."
    assert len({c.id for c in heard.chunks}) == 1
    assert [c.choices[0].delta.role for c in heard.chunks if c.choices and c.choices[0].delta.role] == ["assistant"]
    assert [c.choices[0].finish_reason for c in heard.chunks if c.choices][-1] == "stop"
    (rest,) = here.providers["b"].asked
    assert isinstance(rest, requests.ChatRequest)
    assert (rest.messages[-1].role, rest.messages[-1].content) == ("assistant", "The cap")
    written = receipt(here)
    assert (written.outcome, written.provider) == ("ok", "b")
    assert [(m.endpoint, m.outcome) for m in written.attempts] == [("a", "cut"), ("b", "ok")]
    assert here.providers["a"].closed == 1


async def test_usage_is_the_callers_and_the_bill_is_everybodys() -> None:
    paid = {"price": PRICE}
    here = world(
        endpoints={"a": paid, "b": {**PREFILLS, **paid, "provider": "llamacpp"}},
        a=scripted(Words("The "), Words("cap"), CUT),
        b=scripted(*says("ital", usage=Usage(prompt_tokens=9, completion_tokens=3, total_tokens=12))),
    )
    heard = await ask(here)
    # `b` read the two tokens of `a` as a part of its prompt; for the caller they are answer.
    assert heard.usage == Usage(prompt_tokens=7, completion_tokens=5, total_tokens=12)
    assert receipt(here).usage_estimated
    booked = {entry.account.split("/")[0]: entry.amount_usd_micros for entry in here.ledger.settled()}
    assert booked == {"openai": 2 + 2, "llamacpp": 12}


async def test_white_space_at_the_seam_comes_once() -> None:
    here = pair([Words("The capital "), CUT], says(" ", "is", " Rome."))
    heard = await ask(here)
    assert heard.text == "The capital is Rome."
    assert here.providers["b"].asked[0].messages[-1].content == "The capital"  # type: ignore[union-attr]


async def test_an_answer_may_break_more_than_once() -> None:
    here = world(
        endpoints={"b": PREFILLS, "c": PREFILLS},
        a=scripted(Words("one"), CUT),
        b=scripted(Words(" two"), CUT),
        c=scripted(*says(" three")),
    )
    heard = await ask(here)
    assert heard.text == "one two three"
    assert here.providers["c"].asked[0].messages[-1].content == "one two"  # type: ignore[union-attr]


async def test_the_only_endpoint_may_go_on_itself() -> None:
    class Recovers(ScriptedProvider):
        def chat(self, request: requests.ChatRequest, *, model: str) -> Any:
            self.steps = says("ital") if self.asked else [Words("The cap"), CUT]
            return super().chat(request, model=model)

    here = world(endpoints={"a": PREFILLS}, a=Recovers())
    assert (await ask(here)).text == "The capital"


async def test_an_endpoint_that_always_breaks_does_not_go_on_for_ever() -> None:
    here = world(endpoints={"a": PREFILLS}, a=scripted(Words("x"), CUT))
    heard = await ask(here)
    assert isinstance(heard.error, StreamCut)
    assert heard.text == "xxxx"
    assert receipt(here).completion_tokens == 4


async def test_a_text_goes_on_wherever_texts_are_continued() -> None:
    here = world(a=scripted(Words("upon"), CUT), b=scripted(*says(" a time")))
    call = chat.InferenceCall(here.deps, "completions")
    await call.authenticate(f"Bearer {KEY}")
    body = {"model": "m", "prompt": "Once ", "stream": True, "max_tokens": 9}
    chunks = await call.complete(requests.parse(requests.CompletionRequest, json.dumps(body).encode()))
    text = "".join([choice.delta.text async for c in chunks for choice in c.choices])
    await call.settle()
    assert text == "upon a time"
    assert here.providers["b"].asked[0].prompt == "Once upon"  # type: ignore[union-attr]


CALL = chunk(Delta(tool_calls=(ToolCallDelta(index=0, id="c", function=FunctionDelta(name="f", arguments="{")),)))
TOOLS = {"tools": [{"type": "function", "function": {"name": "f"}}]}


@pytest.mark.parametrize(
    ("steps", "more"),
    [
        ([CALL, CUT], TOOLS),
        ([Words("text first"), CALL, CUT], TOOLS),
        ([chunk(Delta(reasoning_content="hm")), CUT], {}),
        ([Words('{"a":'), CUT], {"response_format": {"type": "json_object"}}),
    ],
    ids=["tool call", "text, then tool call", "reasoning", "json"],
)
async def test_where_going_on_would_not_be_sound_the_cut_is_said(steps: list[Step], more: dict[str, Any]) -> None:
    here = pair(steps, says("never"))
    heard = await ask(here, asked(**more))
    assert isinstance(heard.error, StreamCut)
    assert here.providers["b"].requests == 0
    assert receipt(here).outcome == "cut"


async def test_when_nobody_can_go_on_after_all_the_cut_is_said() -> None:
    here = pair([Words("The cap"), CUT], [ProviderUnavailable("full", fault=Fault.AUTH)])
    heard = await ask(here)
    assert isinstance(heard.error, StreamCut)
    assert heard.text == "The cap"
    assert [m.outcome for m in receipt(here).attempts] == ["cut", "auth"]
    assert receipt(here).completion_tokens == 2


async def test_a_pin_holds_for_the_continuation_too() -> None:
    here = pair([Words("The cap"), CUT], says("never"))
    heard = await ask(here, asked(goblin={"provider": "a"}))
    assert isinstance(heard.error, StreamCut)
    assert here.providers["b"].requests == 0


class TestHangingUp:
    """`a` goes on costing when nobody listens."""

    def world(self, *steps: Step) -> World:
        return world(endpoints={"a": {"cancel_stops_bill": False, "price": PRICE}}, a=scripted(*steps))

    async def begin(self, here: World) -> tuple[chat.InferenceCall, Any]:
        call = chat.InferenceCall(here.deps, "chat")
        await call.authenticate(f"Bearer {KEY}")
        return call, await call.chat(asked())

    async def test_an_answer_that_is_read_is_like_any_other(self) -> None:
        here = self.world(*says("Hel", "lo"))
        heard = await ask(here)
        assert (heard.text, heard.error) == ("Hello", None)
        assert [entry.amount_usd_micros for entry in here.ledger.settled()] == [13]

    async def test_it_is_read_to_its_end_and_billed(self) -> None:
        more = asyncio.Event()

        class Slow(ScriptedProvider):
            async def _play(self) -> Any:
                yield chunk(Delta(content="Hel"))
                await more.wait()
                for step in says("lo", *["x"] * 200):
                    yield chunk(Delta(content=str(step))) if isinstance(step, Words) else step
                self.closed += 1

        here = world(endpoints={"a": {"cancel_stops_bill": False, "price": PRICE}}, a=Slow())
        call, chunks = await self.begin(here)
        await anext(chunks)
        await chunks.aclose()
        await call.settle()
        assert here.receipts.records == {}
        more.set()
        for _ in range(1000):
            if here.receipts.records:
                break
            await asyncio.sleep(0)
        assert here.providers["a"].closed == 1
        written = receipt(here)
        assert (written.outcome, written.completion_tokens, written.usage_estimated) == ("left", 2, False)
        assert [entry.amount_usd_micros for entry in here.ledger.settled()] == [13]

    async def test_one_too_many_is_cut_and_its_cost_estimated(self) -> None:
        here = self.world(Words("Hello"), HANG)
        here.deps.drains._most = 0
        call, chunks = await self.begin(here)
        await anext(chunks)
        await chunks.aclose()
        await call.settle()
        assert here.providers["a"].closed == 1
        assert [entry.amount_usd_micros for entry in here.ledger.settled()] == [2 + 2]

    async def test_an_error_reaches_the_reader(self) -> None:
        here = self.world(Words("Hello"), CUT)
        assert isinstance((await ask(here)).error, StreamCut)
        here = self.world(ProviderUnavailable("no", fault=Fault.AUTH))
        assert (await ask(here)).refused


@pytest.mark.parametrize("whole", [True, False])
async def test_more_tool_calls_than_any_answer_has_are_a_broken_answer(whole: bool) -> None:
    def call(index: int) -> ChatChunk:
        called = FunctionDelta(name="f", arguments="{}")
        return chunk(Delta(tool_calls=(ToolCallDelta(index=index, id="c", type="function", function=called),)))

    steps = [call(index) for index in range(TOOL_CALLS_MAX + 1)]
    here = world(a=ScriptedProvider(steps=[*steps, *says()]), b=ScriptedProvider(steps=says("Hi")))
    heard = await ask(here, asked(stream=not whole), strategy="failover")
    if whole:
        assert heard.text == "Hi"  # The next endpoint answers.
    else:
        assert isinstance(heard.error, StreamCut)
        assert len(heard.chunks) <= TOOL_CALLS_MAX
    few = world(a=ScriptedProvider(steps=[*steps[:-1], chunk(Delta(), "tool_calls")]))
    assert (await ask(few)).error is None


async def test_chunks_without_end_are_a_broken_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stream_usage, "ITEMS_MAX", 50)
    here = world(a=ScriptedProvider(steps=[chunk(Delta()) for _ in range(200)]), b=ScriptedProvider(steps=says("Hi")))
    heard = await ask(here, strategy="failover")
    assert heard.text == "Hi"
    (first, _) = receipt(here).attempts
    assert "50 chunks" in first.error
