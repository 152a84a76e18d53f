"""Requests and events of Anthropic's wire with odd values anywhere: refused in words or read, never an accident."""

from __future__ import annotations

import copy
import json
import random
from collections.abc import AsyncGenerator, Iterator
from contextlib import suppress
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from goblin.core.endpoints import Endpoint, Price
from goblin.core.errors import InvalidRequest
from goblin.gateway.domain.chat import ChatChunk, ChunkChoice, Delta
from goblin.gateway.domain.requests import ChatRequest
from goblin.gateway.policy import blind, worst_case
from goblin.gateway.policy.passed_fields import PassedFields, passed_fields
from goblin.gateway.policy.worst_case import CostBound
from goblin.providers.anthropic.codec import passed_on
from goblin.web import anthropic_requests, anthropic_responses
from tests.fakes.anthropic import block_events
from tests.fakes.openai_like import wrong_chat
from tests.functions.test_claude_code import BLOCKS, PDF, PNG, USAGE, result, session

JUNK: tuple[Any, ...] = (None, 1, -1, "", [], {}, "x", [1], {"a": 1}, True, 1.5, [None], [[]])
PRICE = Price(
    input_usd_micros_per_mtok=1, output_usd_micros_per_mtok=1, context_tokens=1000, server_tools={"web_search": 1}
)
NATIVE = Endpoint(name="a", provider="anthropic", url="http://x", price=PRICE, external=True)
OTHER = Endpoint(name="b", provider="openai", url="http://x", price=PRICE, external=True)
READ = [{"type": "image", "source": PNG}, {"type": "document", "source": PDF}, {"type": "tool_reference"}]
REQUEST = session(
    "m",
    {"role": "assistant", "content": BLOCKS},
    result("toolu_1", READ),
    {"role": "system", "content": "x"},
    tools=[{"name": "a", "input_schema": {}}, {"type": "web_search_20250305", "name": "w", "max_uses": 3}],
    tool_choice={"type": "auto"},
    stop_sequences=["a"],
)
EVENTS: list[dict[str, Any]] = [
    {"type": "message_start", "message": {"id": "x", "content": [], "usage": USAGE}},
    *(event for index, block in enumerate(BLOCKS) for event in block_events(index, block)),
    {"type": "message_delta", "delta": {"stop_reason": "tool_use"}, "usage": USAGE},
    {"type": "message_stop"},
]


def places(value: Any, place: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    yield place
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, one in inner:
        yield from places(one, (*place, key))


def mutated(value: Any, rng: random.Random, *, depth: int) -> Any:
    """A copy with one to three values dropped or replaced, none above `depth`."""
    made = copy.deepcopy(value)
    for _ in range(rng.randint(1, 3)):
        place = rng.choice([found for found in places(made) if len(found) >= depth])
        where = made
        for key in place[:-1]:
            where = where[key]
        if rng.random() < 0.3 and isinstance(where, dict):
            del where[place[-1]]
        else:
            where[place[-1]] = copy.deepcopy(rng.choice(JUNK))
    return made


@given(st.integers(0, 2**32))
def test_a_request_is_refused_in_words_or_read_everywhere(seed: int) -> None:
    body = mutated(REQUEST, random.Random(seed), depth=1)
    with suppress(InvalidRequest):
        checked(anthropic_requests.parse(json.dumps(body).encode(), {"anthropic-beta": "x"}))


def checked(asked: ChatRequest) -> None:
    """What becomes of a request at either kind of endpoint."""
    assert anthropic_responses.count_tokens(asked) >= 0
    anthropic_responses.MessageWriter(asked, lambda: 0)
    for request in (asked, *blind.without_pictures(asked)):
        for endpoint in (NATIVE, OTHER):
            sent = passed_fields(request, endpoint)
            if not isinstance(sent, PassedFields):
                continue
            assert all(name.isascii() for name in sent.dropped)
            assert isinstance(worst_case.worst_case(sent.request, endpoint), CostBound)
            if endpoint is OTHER:
                assert wrong_chat(sent.request.body) is None
            elif isinstance(sent.request, ChatRequest) and sent.request.original is not None:
                assert passed_on(sent.request.original, sent.request, "up")["model"] == "up"


@pytest.mark.filterwarnings("error")
@given(st.integers(0, 2**32))
async def test_events_are_passed_on_whatever_is_in_them(seed: int) -> None:
    asked = anthropic_requests.parse(
        json.dumps({"model": "m", "max_tokens": 9, "messages": [{"role": "user", "content": "Hi"}]}).encode()
    )
    odd = [event for event in mutated(EVENTS, random.Random(seed), depth=2) if isinstance(event.get("type"), str)]

    async def given_events() -> AsyncGenerator[ChatChunk, None]:
        for event in odd:
            yield ChatChunk(choices=(ChunkChoice(delta=Delta(event=event)),))

    said = [event async for event in anthropic_responses.message_events(given_events(), asked)]
    assert said[-1].startswith(b"event: message_stop")
    whole = json.loads(await anthropic_responses.whole_message(given_events(), asked))
    assert {"id", "type", "role", "usage"} <= whole.keys()
    assert isinstance(whole["content"], list)
