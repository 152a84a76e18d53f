"""The fault matrix: every way an endpoint fails, with every strategy, streamed and whole, over real sockets.

For each: what the client gets on the wire, which attempts were made, and what of it is billed.
"""

from __future__ import annotations

import asyncio
import json
import socket
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field, replace
from typing import Any

import httpx
import pytest

from goblin.core.endpoints import ORDINARY, Capability, Price
from goblin.core.errors import GoblinError
from goblin.gateway import inference
from goblin.gateway.domain import requests
from goblin.gateway.domain.catalog import Routing, Strategy
from goblin.web import asgi, openai_responses
from goblin.wiring import endpoints
from tests.fakes.inference import KEY, World, world
from tests.fakes.openai_like import FakeOpenAI, Script
from tests.fakes.serving import closed_port, serve

SILENCE_S = 1.0
"""After which somebody is taken for silent; only where somebody is, or a slow machine would decide the test."""
PATIENCE_S = 20.0
PROMPT_TOKENS = 2
"""Of `Hi there`, by our own count."""
ERROR = {"error": {"message": "no", "type": "server_error", "code": None}}


@dataclass(frozen=True, kw_only=True)
class Fault:
    """One way in which the preferred endpoint fails."""

    script: Script | None = None
    connect: str = "open"
    """`refused` or `slow`: nobody answers there at all."""
    outcome: str = "transient"
    """Of the attempt, in the receipt."""
    status: int = 503
    """What a client gets when nobody else is there."""
    asked: int = 3
    """How often the endpoint is asked then."""
    waits: bool = False
    """The client is told when to come back."""
    heard: str = ""
    """What the client has before it happens."""
    billed: int | None = None
    """Tokens of the failed attempt, asked and answered, by our own count; None: it costs nothing."""

    @property
    def silent(self) -> bool:
        return self.connect == "slow" or (self.script is not None and self.script.silent_after is not None)


def half(**how: int) -> Script:
    return Script(words=["Hel", "lo ", "never"], **how)  # type: ignore[arg-type]


BEFORE = {
    "refused": Fault(connect="refused"),
    "slow connect": Fault(connect="slow", asked=1, billed=PROMPT_TOKENS),
    "429": Fault(script=Script(status=429, error=ERROR), outcome="rate", status=429),
    "429, wait 1 s": Fault(
        script=Script(status=429, error=ERROR, headers={"retry-after": "1"}), outcome="rate", status=429, waits=True
    ),
    "429, wait 60 s": Fault(
        script=Script(status=429, error=ERROR, headers={"retry-after": "60"}),
        outcome="rate",
        status=429,
        asked=1,
        waits=True,
    ),
    "500": Fault(script=Script(status=500, error=ERROR)),
    "503 loading": Fault(
        script=Script(status=503, error={"error": {"message": "Loading model", "code": 503}}), outcome="loading"
    ),
    "bad JSON": Fault(script=Script(raw=b'data: {"choices": [{"index": 0, "del\n\ndata: [DONE]\n\n')),
    "silence": Fault(script=Script(silent_after=0), asked=1, billed=PROMPT_TOKENS),
    "a page": Fault(script=Script(content_type="text/html", raw=b"<html><title>Welcome</title></html>")),
    "nothing": Fault(script=Script(raw=b"")),
}
BEGUN = b'data: {"choices": [{"index": 0, "delta": {"role": "assistant", "content": "Hello "}}]}\n\n'
MIDDLE = {
    "hang": Fault(script=half(silent_after=2), outcome="cut", heard="Hello ", billed=PROMPT_TOKENS + 2),
    "cut": Fault(script=half(break_after=2), outcome="cut", heard="Hello ", billed=PROMPT_TOKENS + 2),
    "error event": Fault(script=half(error_after=2), outcome="cut", heard="Hello ", billed=PROMPT_TOKENS + 2),
    "truncated SSE": Fault(
        script=Script(raw=BEGUN + b'data: {"choi'),
        outcome="cut",
        heard="Hello ",
        billed=PROMPT_TOKENS + 2,
    ),
    "no finish reason": Fault(script=Script(words=["Hel", "lo "], finish=None), outcome="cut", heard="Hello "),
    "server goes away": Fault(
        script=Script(
            raw=BEGUN
            + b'data: {"choices": [{"index": 0, "delta": {}, "finish_reason": "length"}], "cut_short": "shutting_down"}'
            + b"\n\ndata: [DONE]\n\n"
        ),
        outcome="cut",
        heard="Hello ",
        billed=PROMPT_TOKENS + 2,
    ),
}


@dataclass
class Stage:
    """Two real servers, and two addresses where nobody answers."""

    fakes: dict[str, FakeOpenAI]
    urls: dict[str, str]
    client: httpx.AsyncClient


@pytest.fixture(scope="module")
def served() -> Iterator[tuple[dict[str, FakeOpenAI], dict[str, str]]]:
    fakes = {name: FakeOpenAI(models=["m"]) for name in "ab"}
    with ExitStack() as stack:
        urls = {name: f"{stack.enter_context(serve(fake.app))}/v1" for name, fake in fakes.items()}
        urls["refused"] = f"{closed_port()}/v1"
        urls["slow"] = f"{stack.enter_context(unanswered())}/v1"
        yield fakes, urls


class unanswered:  # noqa: N801  It reads as what it gives.
    """An address whose queue of connections is full: the next one waits, and nobody will take it."""

    def __enter__(self) -> str:
        self._open = [socket.socket()]
        self._open[0].bind(("127.0.0.1", 0))
        self._open[0].listen(0)
        address = self._open[0].getsockname()
        for _ in range(8):
            filler = socket.socket()
            filler.setblocking(False)
            with suppress(BlockingIOError):
                filler.connect(address)
            self._open.append(filler)
        return f"http://127.0.0.1:{address[1]}"

    def __exit__(self, *_: object) -> None:
        for one in self._open:
            one.close()


@pytest.fixture
async def stage(served: tuple[dict[str, FakeOpenAI], dict[str, str]]) -> AsyncIterator[Stage]:
    fakes, urls = served
    for fake in fakes.values():
        fake.script = Script()
        fake.asked.clear()
        fake.left.clear()
    async with httpx.AsyncClient(trust_env=False) as client:
        yield Stage(fakes, urls, client)


def build(stage: Stage, fault: Fault, *, alone: bool = False, prefill: bool = True) -> World:
    """`a` is everybody's favourite, and fails; `b` is well."""
    price = Price(input_usd_micros_per_mtok=1_000_000, output_usd_micros_per_mtok=1_000_000)
    able = ORDINARY | ({Capability.PREFILL} if prefill else set())
    facts: dict[str, dict[str, Any]] = {
        "a": {"url": stage.urls[fault.connect if fault.connect != "open" else "a"], "weight": 9, "price": price},
        "b": {
            "url": stage.urls["b"],
            "price": replace(price, output_usd_micros_per_mtok=2_000_000),
            "first_token_prior_ms": 5000,
            "capabilities": able,
        },
    }
    if alone:
        del facts["b"]
    if fault.script is not None:
        stage.fakes["a"].script = fault.script
    stage.fakes["b"].script = Script(words=["wor", "ld"])
    wait_s = SILENCE_S if fault.silent else PATIENCE_S
    routing = Routing(strategy=Strategy.FAILOVER, first_token_timeout_s=wait_s, between_tokens_timeout_s=wait_s)
    here = world(endpoints=facts, routing=routing, **dict.fromkeys(facts))  # type: ignore[arg-type]
    providers = {}
    for endpoint in here.deps.router.catalog.endpoints:
        _, providers[endpoint.name] = endpoints.connect(endpoint, stage.client)
    here.deps = replace(here.deps, providers=providers)
    return here


@dataclass
class Seen:
    """What one client got on the wire."""

    status: int
    body: bytes
    headers: dict[str, str] = field(default_factory=dict)

    @property
    def events(self) -> list[Any]:
        data = [part.removeprefix(b"data: ") for part in self.body.split(b"\n\n") if part]
        return [one.decode() if one == b"[DONE]" else json.loads(one) for one in data]

    @property
    def text(self) -> str:
        return "".join(
            choice["delta"].get("content") or ""
            for event in self.events
            if isinstance(event, dict)
            for choice in event.get("choices", ())
        )


async def ask(here: World, *, stream: bool, strategy: Strategy) -> tuple[Seen, inference.InferenceCall]:
    body: dict[str, Any] = {"model": "m", "messages": [{"role": "user", "content": "Hi there"}], "stream": stream}
    asked = requests.parse(requests.ChatRequest, json.dumps(body).encode())
    call = inference.InferenceCall(here.deps, "chat")
    try:
        await call.authenticate(f"Bearer {KEY}")
        chunks = await call.chat(asked, strategy=strategy)
        if stream:
            parts = openai_responses.chat_events(chunks, include_usage=True)
            seen = Seen(200, b"".join([part async for part in parts]))
        else:
            seen = Seen(200, await openai_responses.whole_chat(chunks))
    except GoblinError as error:
        call.failed(error)
        answer = asgi.error_answer(error)
        assert isinstance(answer.content, bytes)
        seen = Seen(answer.status, answer.content, dict(answer.headers))
    finally:
        await call.settle()
    return seen, call


def made(call: inference.InferenceCall) -> list[tuple[str, str]]:
    return [(record.endpoint, record.outcome) for record in (attempt.record() for attempt in call.attempts)]


def billed(call: inference.InferenceCall) -> list[tuple[str, int, bool]]:
    return [(spent.endpoint.name, spent.usage.total_tokens, spent.estimated) for spent in call.spent()]


strategies = pytest.mark.parametrize("strategy", list(Strategy))
streams = pytest.mark.parametrize("stream", [True, False], ids=["stream", "whole"])


def faults(table: dict[str, Fault]) -> Callable[[Any], Any]:
    return pytest.mark.parametrize("fault", table.values(), ids=table.keys())


@strategies
@streams
@faults(BEFORE)
async def test_before_the_first_token_the_next_one_answers_unseen(
    stage: Stage, fault: Fault, stream: bool, strategy: Strategy
) -> None:
    seen, call = await ask(build(stage, fault), stream=stream, strategy=strategy)
    assert made(call) == [("a", fault.outcome), ("b", "ok")]
    check_whole(seen, "world", stream=stream, tokens=13)
    own = [] if fault.billed is None else [("a", fault.billed, True)]
    assert billed(call) == [*own, ("b", 13, False)]


@strategies
@faults(MIDDLE)
async def test_in_the_middle_of_a_stream_the_next_one_goes_on_unseen(
    stage: Stage, fault: Fault, strategy: Strategy
) -> None:
    seen, call = await ask(build(stage, fault), stream=True, strategy=strategy)
    assert made(call) == [("a", "cut"), ("b", "ok")]
    assert stage.fakes["b"].asked[-1]["messages"][-1] == {"role": "assistant", "content": "Hello"}
    # What `a` wrote is answer for the client, and a part of the prompt that `b` was billed for.
    check_whole(seen, "Hello world", stream=True, tokens=13)
    (first, second) = billed(call)
    assert (first[0], second) == ("a", ("b", 13, False))
    if fault.billed is not None:
        assert first == ("a", fault.billed, True)
    if fault.silent:
        assert await asyncio.to_thread(stage.fakes["a"].left.wait, 1), "the silent one was not let go within a second"


@strategies
@faults(MIDDLE)
async def test_in_the_middle_of_an_answer_that_is_not_streamed_the_next_one_starts_over(
    stage: Stage, fault: Fault, strategy: Strategy
) -> None:
    seen, call = await ask(build(stage, fault), stream=False, strategy=strategy)
    assert [name for name, _ in made(call)] == ["a", "b"]
    check_whole(seen, "world", stream=False, tokens=13)
    assert [name for name, _, _ in billed(call)] == ["a", "b"]


@strategies
@faults(MIDDLE)
async def test_a_stream_nobody_can_continue_ends_with_an_error_and_never_with_done(
    stage: Stage, fault: Fault, strategy: Strategy
) -> None:
    seen, call = await ask(build(stage, fault, prefill=False), stream=True, strategy=strategy)
    assert seen.text == fault.heard
    assert seen.events[-1]["error"]["code"] == "stream_cut"
    assert "[DONE]" not in seen.events
    assert made(call) == [("a", "cut")]
    assert [name for name, _, _ in billed(call)] == ["a"]


@streams
@faults(BEFORE)
async def test_with_nobody_else_the_client_hears_why_and_when_to_come_back(
    stage: Stage, fault: Fault, stream: bool
) -> None:
    here = build(stage, fault, alone=True)
    began = here.clock.now()
    seen, call = await ask(here, stream=stream, strategy=Strategy.FAILOVER)
    assert seen.status == fault.status
    assert set(json.loads(seen.body)["error"]) == {"message", "type", "param", "code"}
    assert ("retry-after" in seen.headers) == fault.waits
    assert made(call) == [("a", fault.outcome)] * fault.asked
    assert billed(call) == ([] if fault.billed is None else [("a", fault.billed, True)])
    # It waited between the attempts, on the clock of the test.
    assert (here.clock.now() > began) == (fault.asked > 1)


@strategies
@streams
async def test_usage_that_is_missing_is_counted_and_marked(stage: Stage, stream: bool, strategy: Strategy) -> None:
    here = build(stage, Fault(script=Script(words=["Hel", "lo"], usage=False)))
    seen, call = await ask(here, stream=stream, strategy=strategy)
    check_whole(seen, "Hello", stream=stream, tokens=PROMPT_TOKENS + 2)
    assert call.usage_estimated
    assert billed(call) == [("a", PROMPT_TOKENS + 2, True)]


def check_whole(seen: Seen, text: str, *, stream: bool, tokens: int) -> None:
    """A good answer to the letter, with usage that adds up."""
    assert seen.status == 200, seen.body
    if not stream:
        answer = json.loads(seen.body)
        assert (answer["choices"][0]["message"]["content"], answer["choices"][0]["finish_reason"]) == (text, "stop")
        usage = answer["usage"]
    else:
        *chunks, last, done = seen.events
        assert done == "[DONE]"
        assert seen.text == text
        assert [c["choices"][0]["finish_reason"] for c in chunks if c["choices"][0]["finish_reason"]] == ["stop"]
        assert [c["choices"][0]["delta"].get("role") for c in chunks].count("assistant") == 1
        assert len({chunk["id"] for chunk in [*chunks, last]}) == 1
        assert last["choices"] == []
        usage = last["usage"]
    assert usage["prompt_tokens"] + usage["completion_tokens"] == usage["total_tokens"] == tokens
    assert usage["prompt_tokens"] > 0
