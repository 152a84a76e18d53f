"""Two real llama.cpp servers; one dies in the middle of an answer, and the caller does not notice."""

from __future__ import annotations

import json
import signal
from collections.abc import AsyncIterator, Iterator
from dataclasses import replace

import httpx
import pytest

from goblin.core.endpoints import ORDINARY, Capability
from goblin.gateway import inference
from goblin.gateway.domain import requests
from goblin.gateway.domain.catalog import Routing, Strategy
from goblin.web import openai_responses
from goblin.wiring import endpoints
from tests.fakes.inference import KEY, World, world
from tests.llamacpp.conftest import Running, running

TOKENS = 600
BODY = {
    "model": "goblin-tiny",
    "messages": [{"role": "user", "content": "What is Goblin?"}],
    "temperature": 0,
    "ignore_eos": True,
    "max_tokens": TOKENS,
    "stream": True,
    "goblin": {"cache": False},
}


@pytest.fixture
def servers() -> Iterator[tuple[Running, Running]]:
    with running("--grace-s", "0.05") as first, running() as second:
        yield first, second


@pytest.fixture
async def here(servers: tuple[Running, Running]) -> AsyncIterator[World]:
    able = ORDINARY | {Capability.PREFILL}
    facts = {
        name: {"provider": "llamacpp", "url": server.url, "models": ("goblin-tiny",), "capabilities": able}
        for name, server in zip(("first", "second"), servers, strict=True)
    }
    built = world(
        endpoints=facts,
        routing=Routing(strategy=Strategy.FAILOVER),
        **dict.fromkeys(facts),  # type: ignore[arg-type]
    )
    async with httpx.AsyncClient(trust_env=False) as client:
        providers = {e.name: endpoints.connect(e, client)[1] for e in built.deps.router.catalog.endpoints}
        built.deps = replace(built.deps, providers=providers)
        yield built


@pytest.mark.parametrize("end", [signal.SIGKILL, signal.SIGTERM], ids=["killed", "told to go"])
async def test_a_server_that_goes_in_the_middle_is_not_noticed(
    here: World, servers: tuple[Running, Running], end: signal.Signals
) -> None:
    call = inference.InferenceCall(here.deps, "chat")
    await call.authenticate(f"Bearer {KEY}")
    asked = requests.parse(requests.ChatRequest, json.dumps(BODY).encode())
    events: list[bytes] = []
    async for event in openai_responses.chat_events(await call.chat(asked), include_usage=True):
        events.append(event)
        if len(events) == 5:
            servers[0].process.send_signal(end)
    await call.settle()

    *chunks, last, done = [event.removeprefix(b"data: ").strip() for event in events]
    assert done == b"[DONE]"
    (receipt,) = here.receipts.records.values()
    assert [(attempt.endpoint, attempt.outcome) for attempt in receipt.attempts] == [("first", "cut"), ("second", "ok")]
    assert json.loads(last)["usage"]["completion_tokens"] == pytest.approx(TOKENS, rel=0.2)
    text = "".join(json.loads(chunk)["choices"][0]["delta"].get("content") or "" for chunk in chunks)
    alone = (
        servers[1]
        .client()
        .chat.completions.create(
            model="goblin-tiny",
            messages=BODY["messages"],
            temperature=0,
            max_tokens=TOKENS,
            extra_body={"ignore_eos": True},
        )
    )  # type: ignore[call-overload]
    whole = alone.choices[0].message.content
    # The same model goes on as if it had written the beginning itself.
    assert text[:400] == whole[:400]
