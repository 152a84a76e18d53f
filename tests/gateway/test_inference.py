"""One request from arrival to settlement: what the caller sees, who was asked, what is counted."""

from __future__ import annotations

import asyncio
import json
from contextlib import aclosing
from dataclasses import replace
from typing import Any

import pytest

from goblin.core.endpoints import Capability
from goblin.core.errors import (
    Fault,
    GoblinError,
    InvalidRequest,
    ProviderUnavailable,
    RateLimited,
    StreamCut,
    Unauthenticated,
    UnknownModel,
)
from goblin.gateway import inference
from goblin.gateway.domain import requests
from goblin.gateway.domain.catalog import Routing, Strategy
from goblin.gateway.domain.chat import ChatChunk, Delta, Usage
from goblin.gateway.domain.endpoint_health import EndpointHealth, Status
from tests.fakes.inference import HANG, KEY, ScriptedProvider, Step, Words, World, chunk, says, world


def asked(*, stream: bool = True, **more: Any) -> requests.ChatRequest:
    body = {"model": "m", "messages": [{"role": "user", "content": "Hi there"}], "stream": stream, **more}
    return requests.parse(requests.ChatRequest, json.dumps(body).encode())


def scripted(*steps: Step) -> ScriptedProvider:
    return ScriptedProvider(steps=list(steps))


def failing(fault: Fault, retry_after_s: float | None = None) -> ScriptedProvider:
    return scripted(ProviderUnavailable(f"It is {fault}.", fault=fault, retry_after_s=retry_after_s))


class Heard:
    """What the caller got."""

    def __init__(self) -> None:
        self.chunks: list[ChatChunk] = []
        self.error: GoblinError | None = None
        self.refused = False
        """The error came instead of an answer, so it has an HTTP status of its own."""

    @property
    def text(self) -> str:
        return "".join(choice.delta.text for c in self.chunks for choice in c.choices)

    @property
    def usage(self) -> Usage | None:
        return self.chunks[-1].usage or None if self.chunks and not self.chunks[-1].choices else None


async def ask(here: World, request: requests.ChatRequest | None = None, strategy: str | None = None) -> Heard:
    heard, call = Heard(), inference.InferenceCall(here.deps, "chat")
    try:
        await call.authenticate(f"Bearer {KEY}")
        await call.admit()
        chunks = await call.chat(request or asked(), strategy=strategy)
    except GoblinError as error:
        heard.error, heard.refused = error, True
    else:
        try:
            async with aclosing(chunks):
                async for item in chunks:
                    heard.chunks.append(item)
        except GoblinError as error:
            heard.error = error
    finally:
        await call.settle()
    return heard


def receipt(here: World) -> Any:
    (found,) = here.receipts.records.values()
    return found


async def test_an_answer_ends_with_its_usage_and_leaves_a_receipt() -> None:
    here = world(a=ScriptedProvider())
    heard = await ask(here)
    assert heard.text == "Hello"
    assert heard.usage == Usage(prompt_tokens=11, completion_tokens=2, total_tokens=13)
    assert {c.model for c in heard.chunks} == {"m"}
    assert len({c.id for c in heard.chunks}) == 1
    written = receipt(here)
    assert heard.chunks[0].id == f"chatcmpl-{written.request_id}"
    assert (written.outcome, written.provider, written.key_name, written.strategy) == ("ok", "a", "tests", "failover")
    assert (written.prompt_tokens, written.completion_tokens, written.usage_estimated) == (11, 2, False)
    assert written.expires_at > written.created_at
    assert here.meter.requests == {("a", "m", "ok"): 1}


async def test_usage_that_nobody_told_is_counted_and_marked() -> None:
    here = world(a=ScriptedProvider(steps=says("12345678", "9", usage=None)))
    heard = await ask(here)
    assert heard.usage == Usage(prompt_tokens=2, completion_tokens=3, total_tokens=5)
    assert receipt(here).usage_estimated


# What the first endpoint does wrong, before the caller has seen anything, and what becomes of it.
BEFORE = {
    "refused": [ProviderUnavailable("no")],
    "rate limited": [ProviderUnavailable("no", fault=Fault.RATE)],
    "rate limited, wait": [ProviderUnavailable("no", fault=Fault.RATE, retry_after_s=9)],
    "out of money": [ProviderUnavailable("no", fault=Fault.MONEY)],
    "bad key": [ProviderUnavailable("no", fault=Fault.AUTH)],
    "loading": [ProviderUnavailable("no", fault=Fault.LOADING)],
    "full": [ProviderUnavailable("no", fault=Fault.CAPACITY)],
    "model gone": [ProviderUnavailable("no", fault=Fault.MISSING)],
    "cannot": [ProviderUnavailable("no", fault=Fault.UNSUPPORTED)],
    "silent": [HANG],
    "role, then silent": [chunk(Delta(role="assistant", content="")), HANG],
    "role, then broken": [chunk(Delta(role="assistant", content="")), ProviderUnavailable("no")],
    "empty": [],
}
AFTER = {
    "broken": [Words("Hel"), ProviderUnavailable("no")],
    "silent": [Words("Hel"), HANG],
}


@pytest.mark.parametrize("strategy", list(Strategy))
@pytest.mark.parametrize("stream", [True, False], ids=["stream", "whole"])
@pytest.mark.parametrize("steps", BEFORE.values(), ids=BEFORE.keys())
async def test_what_fails_before_the_first_token_is_never_seen(
    steps: list[Step], stream: bool, strategy: Strategy
) -> None:
    here = world(a=scripted(*steps), b=ScriptedProvider())
    heard = await ask(here, asked(stream=stream), strategy=strategy)
    assert heard.error is None
    assert heard.text == "Hello"
    made = receipt(here).attempts
    assert made[-1].endpoint == "b"
    assert [m.outcome for m in made][:-1] == [m.outcome for m in made if m.endpoint == "a"]
    assert receipt(here).provider == "b"
    assert here.providers["a"].closed == here.providers["a"].requests


@pytest.mark.parametrize("steps", AFTER.values(), ids=AFTER.keys())
async def test_a_stream_that_breaks_after_the_first_token_says_so(steps: list[Step]) -> None:
    here = world(a=scripted(*steps), b=ScriptedProvider())
    heard = await ask(here)
    assert heard.text == "Hel"
    assert isinstance(heard.error, StreamCut)
    assert not heard.refused
    assert here.providers["b"].requests == 0
    written = receipt(here)
    assert (written.outcome, written.attempts[0].outcome) == ("cut", "cut")
    assert (written.completion_tokens, written.usage_estimated) == (1, True)
    assert here.meter.requests == {("a", "m", "cut"): 1}
    assert here.meter.errors == {("a", "m", "cut"): 1}


@pytest.mark.parametrize("steps", AFTER.values(), ids=AFTER.keys())
async def test_an_answer_that_is_not_streamed_may_start_over_elsewhere(steps: list[Step]) -> None:
    here = world(a=scripted(*steps), b=ScriptedProvider())
    heard = await ask(here, asked(stream=False))
    assert heard.text == "Hello"
    assert [m.endpoint for m in receipt(here).attempts] == ["a", "b"]


async def test_the_callers_mistake_is_not_tried_elsewhere() -> None:
    here = world(a=scripted(InvalidRequest("too hot", param="temperature")), b=ScriptedProvider())
    heard = await ask(here)
    assert isinstance(heard.error, InvalidRequest)
    assert heard.error.param == "temperature"
    assert here.providers["b"].requests == 0
    assert here.meter.errors == {}
    outlook = here.deps.router.stats.outlook(here.deps.router.catalog.endpoints[0], "m")
    assert outlook.open_until is None


@pytest.mark.parametrize(
    ("faults", "error", "status", "wait_s", "made"),
    [
        ([(Fault.RATE, 9.0), (Fault.RATE, 4.0)], RateLimited, 429, 4.0, "ab"),
        ([(Fault.RATE, 9.0), (Fault.TRANSIENT, None)], ProviderUnavailable, 503, 9.0, "abb"),
        ([(Fault.RATE, 1.0)], RateLimited, 429, 1.0, "aaa"),
        ([(Fault.LOADING, None)], ProviderUnavailable, 503, None, "aaa"),
        ([(Fault.MISSING, None)], UnknownModel, 404, None, "a"),
        ([(Fault.AUTH, None)], ProviderUnavailable, 503, None, "a"),
        ([(Fault.MONEY, None)], ProviderUnavailable, 503, None, "a"),
        ([(Fault.UNSUPPORTED, None)] * 2, InvalidRequest, 400, None, "ab"),
    ],
)
async def test_what_the_caller_hears_when_nobody_answers(
    faults: list[tuple[Fault, float | None]], error: type[GoblinError], status: int, wait_s: float | None, made: str
) -> None:
    here = world(**{name: failing(*fault) for name, fault in zip("ab", faults, strict=False)})
    heard = await ask(here)
    assert type(heard.error) is error
    assert heard.error.status == status
    assert getattr(heard.error, "retry_after_s", None) == wait_s
    assert heard.refused
    assert "".join(attempt.endpoint for attempt in receipt(here).attempts) == made


async def test_no_more_attempts_than_allowed() -> None:
    routing = Routing(strategy=Strategy.FAILOVER, attempts_max=2)
    here = world(routing=routing, a=failing(Fault.TRANSIENT), b=failing(Fault.TRANSIENT), c=ScriptedProvider())
    assert isinstance((await ask(here)).error, ProviderUnavailable)
    assert here.providers["c"].requests == 0


async def test_a_failing_endpoint_is_left_alone_until_its_pause_is_over() -> None:
    here = world(a=failing(Fault.RATE, 30.0), b=ScriptedProvider())
    for _ in range(3):
        assert (await ask(here)).text == "Hello"
    assert here.providers["a"].requests == 1
    here.clock.forward(31)
    here.providers["a"].steps = says("back")
    assert (await ask(here)).text == "back"


async def test_a_404_for_one_model_does_not_close_the_endpoint_for_others() -> None:
    here = world(endpoints={"a": {"models": ("m", "other")}}, a=failing(Fault.MISSING))
    await ask(here)
    endpoint = here.deps.router.catalog.endpoints[0]
    assert here.deps.router.stats.outlook(endpoint, "m").open_until is not None
    assert here.deps.router.stats.outlook(endpoint, "other").open_until is None


async def test_the_last_endpoint_is_tried_even_when_all_are_paused() -> None:
    here = world(a=failing(Fault.RATE, 30.0))
    await ask(here)
    here.providers["a"].steps = says("here after all")
    assert (await ask(here)).text == "here after all"


async def test_only_one_trial_goes_to_an_endpoint_that_may_be_back() -> None:
    here = world(a=failing(Fault.RATE, 30.0), b=ScriptedProvider())
    await ask(here)
    here.clock.forward(31)
    here.providers["a"].steps = [HANG]
    answers = await asyncio.gather(*(ask(here) for _ in range(8)))
    assert [heard.text for heard in answers] == ["Hello"] * 8
    assert here.providers["a"].requests == 2


async def test_a_caller_who_leaves_stops_the_generation_and_is_settled_once() -> None:
    here = world(routing=Routing(between_tokens_timeout_s=60), a=scripted(Words("Hello"), HANG))
    call = inference.InferenceCall(here.deps, "chat")
    await call.authenticate(f"Bearer {KEY}")
    chunks = await call.chat(asked())
    async with aclosing(chunks):
        assert (await anext(chunks)).choices[0].delta.content == "Hello"
        reading = asyncio.ensure_future(anext(chunks))
        await asyncio.sleep(0)
        reading.cancel()
        await asyncio.gather(reading, return_exceptions=True)
    await call.settle()
    await call.settle()
    assert here.providers["a"].closed == 1
    written = receipt(here)
    assert (written.outcome, written.attempts[0].outcome, written.completion_tokens) == ("left", "left", 2)
    assert here.meter.requests == {("a", "m", "left"): 1}
    assert here.deps.router.stats.outlook(here.deps.router.catalog.endpoints[0], "m").open_until is None


async def test_a_caller_who_leaves_before_the_first_token_stops_it_too() -> None:
    here = world(routing=Routing(first_token_timeout_s=60), a=scripted(HANG))
    call = inference.InferenceCall(here.deps, "chat")
    await call.authenticate(f"Bearer {KEY}")
    asking = asyncio.ensure_future(call.chat(asked()))
    for _ in range(100):
        if here.providers["a"].requests:
            break
        await asyncio.sleep(0)
    asking.cancel()
    await asyncio.gather(asking, return_exceptions=True)
    await call.settle()
    assert (here.providers["a"].requests, here.providers["a"].closed) == (1, 1)
    assert receipt(here).outcome == "left"


async def test_an_answer_nobody_reads_is_closed_all_the_same() -> None:
    here = world(a=scripted(Words("Hello"), HANG))
    call = inference.InferenceCall(here.deps, "chat")
    await call.authenticate(f"Bearer {KEY}")
    await call.chat(asked())
    await call.settle()
    assert here.providers["a"].closed == 1
    assert here.deps.router.stats.outlook(here.deps.router.catalog.endpoints[0], "m").first_token_ms < 1000


async def test_a_store_that_fails_does_not_take_the_answer_back() -> None:
    here = world(a=ScriptedProvider())
    await ask(here)
    here.receipts.down = here.health.down = here.keys.down = True
    assert (await ask(here)).text == "Hello"
    assert len(here.receipts.records) == 1


async def test_without_a_store_a_stranger_is_not_let_in() -> None:
    here = world(a=ScriptedProvider())
    here.keys.down = True
    heard = await ask(here)
    assert heard.error is not None
    assert heard.error.status == 503
    assert here.providers["a"].requests == 0


async def test_a_stranger_leaves_no_receipt_and_no_label() -> None:
    here = world(a=ScriptedProvider())
    call = inference.InferenceCall(here.deps, "chat")
    with pytest.raises(Unauthenticated):
        await call.authenticate("Bearer sk-stranger")
    await call.settle()
    assert here.receipts.records == {}
    assert here.meter.requests == {("none", "unknown", "invalid_api_key"): 1}


async def test_a_place_is_taken_when_the_body_is_there_and_given_back_once() -> None:
    here = world(a=ScriptedProvider())
    control = here.deps.admission
    control.limits = replace(control.limits, running_max=1, waiting_max=0)
    slow, quick = inference.InferenceCall(here.deps, "chat"), inference.InferenceCall(here.deps, "chat")
    await slow.authenticate(f"Bearer {KEY}")  # Its body is under way and holds no place.
    await quick.authenticate(f"Bearer {KEY}")
    await quick.admit()
    with pytest.raises(RateLimited):
        await slow.admit()
    await slow.settle()
    await quick.settle()
    await quick.settle()
    await control.enter(next(iter(here.keys.keys.values())))


async def test_a_made_up_model_is_404_and_no_label() -> None:
    here = world(a=ScriptedProvider())
    heard = await ask(here, asked(model="made-up"))
    assert isinstance(heard.error, UnknownModel)
    assert heard.error.param == "model"
    assert here.meter.requests == {("none", "unknown", "model_not_found"): 1}


async def test_an_ability_nobody_has_is_the_callers_error_with_reasons() -> None:
    here = world(endpoints={"a": {"lacks": {Capability.TOOLS: "it has no hands"}}}, a=ScriptedProvider())
    heard = await ask(here, asked(tools=[{"type": "function", "function": {"name": "f"}}]))
    assert isinstance(heard.error, InvalidRequest)
    assert "a: tools: it has no hands" in heard.error.message


async def test_the_callers_word_on_routing_counts() -> None:
    here = world(endpoints={"b": {"weight": 9}}, a=scripted(*says("a")), b=scripted(*says("b")))
    assert (await ask(here)).text == "a"
    assert (await ask(here, strategy="weighted_random")).text == "b"
    assert (await ask(here, asked(goblin={"provider": "b"}))).text == "b"
    assert (await ask(here, asked(goblin={"strategy": "failover"}), strategy="weighted_random")).text == "a"
    wrong = await ask(here, strategy="cheapest")
    assert isinstance(wrong.error, InvalidRequest)
    assert wrong.error.param == "x-goblin-strategy"


async def test_round_robin_takes_turns() -> None:
    here = world(a=scripted(*says("a")), b=scripted(*says("b")), c=scripted(*says("c")))
    texts = [(await ask(here, strategy="round_robin")).text for _ in range(6)]
    assert texts == ["a", "b", "c"] * 2


async def test_stored_health_steers_requests() -> None:
    here = world(a=scripted(*says("a")), b=scripted(*says("b")))
    here.health.judged["a"] = EndpointHealth(
        endpoint="a", provider="openai", status=Status.UNHEALTHY, reason="no answer", checked_at=here.clock.now()
    )
    assert (await ask(here)).text == "b"
    assert receipt(here).rejected == {"a": "unhealthy: no answer"}


async def test_a_model_the_schedule_has_not_seen_yet_is_looked_for_once() -> None:
    here = world(endpoints={"a": {"models": None}}, a=ScriptedProvider())
    assert (await ask(here)).text == "Hello"
    assert here.providers["a"].probes == 1
    answers = await asyncio.gather(*(ask(here, asked(model="made-up")) for _ in range(5)))
    assert all(isinstance(heard.error, UnknownModel) for heard in answers)
    assert here.providers["a"].probes == 1
    here.clock.forward(60)
    await ask(here, asked(model="made-up"))
    assert here.providers["a"].probes == 2


async def test_vectors_are_routed_and_counted_like_answers() -> None:
    here = world(a=failing(Fault.TRANSIENT), b=ScriptedProvider())
    call = inference.InferenceCall(here.deps, "embeddings")
    await call.authenticate(f"Bearer {KEY}")
    request = requests.parse(requests.EmbeddingsRequest, b'{"model":"m","input":["12345678"]}')
    answer = await call.embed(request)
    await call.settle()
    assert answer.data[0].embedding == [1.0, 2.0]
    assert answer.usage == Usage(prompt_tokens=2, completion_tokens=0, total_tokens=2)
    assert (receipt(here).outcome, receipt(here).provider, receipt(here).usage_estimated) == ("ok", "b", True)


async def test_whoever_traces_is_told_of_the_request_and_its_attempts_once() -> None:
    told: list[tuple[Any, str | None, str]] = []

    class Tracing:
        def request(self, record: Any, *, traceparent: str | None, model_label: str) -> None:
            told.append((record, traceparent, model_label))

    here = world(a=failing(Fault.AUTH), b=ScriptedProvider())
    here.deps = replace(here.deps, tracer=Tracing())
    await ask(here)
    await ask(here, asked(model="made-up"))
    (record, traceparent, label), (_, _, unknown) = told
    assert [(attempt.endpoint, attempt.outcome) for attempt in record.attempts] == [("a", "auth"), ("b", "ok")]
    assert (traceparent, label, unknown) == (None, "m", "unknown")
