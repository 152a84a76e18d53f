"""What of a Responses request goes to an endpoint that speaks it, and what is reserved for it."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from goblin.core.endpoints import Endpoint, Price
from goblin.gateway.domain.requests import ChatRequest, parse
from goblin.gateway.policy.continuation import continued
from goblin.gateway.policy.passed_fields import PassedFields, passed_fields
from goblin.gateway.policy.passed_responses import passed_responses, speaks_responses
from goblin.gateway.policy.worst_case import CostBound, worst_case

PRICE = Price(input_usd_micros_per_mtok=1000, output_usd_micros_per_mtok=2000)
FREE = Price(input_usd_micros_per_mtok=0, output_usd_micros_per_mtok=0)
ADD = {"type": "function", "name": "add"}
SEARCH = {"type": "web_search"}


def endpoint(price: Price = PRICE, **fields: Any) -> Endpoint:
    said = {"name": "e", "provider": "openai", "url": "https://api.openai.com/v1", "price": price, **fields}
    return Endpoint(**said)


def request(**responses: Any) -> ChatRequest:
    body = b'{"model": "m", "messages": [{"role": "user", "content": "Hi"}], "max_tokens": 5}'
    return msgspec.structs.replace(parse(ChatRequest, body), responses={"model": "m", "input": "Hi", **responses})


@pytest.mark.parametrize(
    ("fields", "speaks"),
    [
        ({}, True),
        ({"url": "http://127.0.0.1:8000/v1"}, False),
        ({"url": "https://api.openai.com.example/v1"}, False),
        ({"url": "http://127.0.0.1:8000/v1", "options": {"responses": "yes"}}, True),
        ({"options": {"responses": "no"}}, False),
        ({"provider": "groq", "options": {"responses": "yes"}}, False),
    ],
)
def test_who_gets_it_as_it_came(fields: dict[str, Any], speaks: bool) -> None:
    assert speaks_responses(endpoint(**fields)) is speaks
    passed = passed_fields(request(), endpoint(**fields))
    assert isinstance(passed, PassedFields)
    assert isinstance(passed.request, ChatRequest)
    assert (passed.request.responses is not None) is speaks


@pytest.mark.parametrize(
    ("choice", "left"),
    [
        ("auto", "auto"),
        ("required", "required"),
        ({"type": "function", "name": "add"}, {"type": "function", "name": "add"}),
        (SEARCH, None),
        (
            {"type": "allowed_tools", "mode": "auto", "tools": [ADD, SEARCH]},
            {"type": "allowed_tools", "mode": "auto", "tools": [ADD]},
        ),
        ({"type": "allowed_tools", "mode": "auto", "tools": [SEARCH]}, None),
    ],
)
def test_a_choice_follows_its_tools(choice: Any, left: Any) -> None:
    body = {"model": "m", "input": "Hi", "tools": [ADD, SEARCH], "tool_choice": choice}
    sent, dropped = passed_responses(body, endpoint())
    assert (sent["tools"], sent.get("tool_choice"), dropped) == ([ADD], left, ["tools[web_search]"])
    assert passed_responses(body, endpoint(price=FREE, external=False))[0] == {**body, "store": False}


def test_without_tools_nothing_is_said_of_them() -> None:
    body = {"model": "m", "input": "Hi", "tools": [SEARCH], "tool_choice": "required", "parallel_tool_calls": True}
    assert passed_responses(body, endpoint())[0] == {"model": "m", "input": "Hi", "store": False}


def test_what_is_sent_is_what_is_reserved() -> None:
    """The request as it came may be longer than its translation: by thoughts that only the endpoint can read."""
    sealed = {"type": "reasoning", "id": "rs_1", "summary": [], "encrypted_content": "g" * 10_000}
    short, long = (worst_case(request(input=items), endpoint()) for items in ("Hi", [sealed]))
    assert isinstance(short, CostBound)
    assert isinstance(long, CostBound)
    assert long.input_tokens > short.input_tokens + 10_000


def test_a_tier_that_is_dropped_is_not_refused() -> None:
    asked = request(service_tier="priority")
    asked = msgspec.structs.replace(asked, body={**asked.body, "service_tier": "priority"})
    passed = passed_fields(asked, endpoint())
    assert isinstance(passed, PassedFields)
    assert passed.dropped == ("service_tier",)
    assert isinstance(worst_case(passed.request, endpoint()), CostBound)


def test_a_continuation_is_a_chat() -> None:
    rest = continued(request(), "Hel", tokens_written=1)
    assert isinstance(rest, ChatRequest)
    assert rest.responses is None


def test_nobody_can_send_it_beside_a_chat() -> None:
    asked = parse(ChatRequest, b'{"model": "m", "messages": [{"role": "user", "content": "x"}], "responses": {"a": 1}}')
    assert asked.responses is None
