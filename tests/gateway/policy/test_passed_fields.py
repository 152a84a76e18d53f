"""What of a request an endpoint is sent: nothing that could make a vendor run and bill something else."""

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from goblin.core.endpoints import Endpoint, Price
from goblin.gateway.domain import requests
from goblin.gateway.policy.passed_fields import NAMES_MAX, NothingLeft, PassedFields, passed_fields

PRICE = Price(input_usd_micros_per_mtok=1_000_000, output_usd_micros_per_mtok=4_000_000)
NOTHING = Price(input_usd_micros_per_mtok=0, output_usd_micros_per_mtok=0)
PAID = Endpoint(name="paid", provider="openai", url="http://x", price=PRICE, external=True)
FREE_OF_A_VENDOR = Endpoint(name="promo", provider="groq", url="http://x", price=NOTHING, external=True)
UNPRICED = Endpoint(name="new", provider="llamacpp", url="http://x")
OWN = Endpoint(name="own", provider="llamacpp", url="http://x", price=NOTHING)
BY_THE_HOUR = Endpoint(
    name="hourly", provider="llamacpp", url="http://x", price_usd_micros_per_hour=500_000, sleeps_after_s=60
)
BILLS = [PAID, FREE_OF_A_VENDOR, UNPRICED]
ADD = {"type": "function", "function": {"name": "add", "parameters": {"type": "object"}}}
PATCH = {"type": "custom", "custom": {"name": "patch"}}


def chat(**more: Any) -> requests.ChatRequest:
    body = {"model": "m", "messages": [{"role": "user", "content": "Hi"}], **more}
    return requests.parse(requests.ChatRequest, json.dumps(body).encode())


def passed(request: Any, endpoint: Endpoint = PAID) -> PassedFields:
    found = passed_fields(request, endpoint)
    assert isinstance(found, PassedFields)
    return found


BILLED: dict[str, Any] = {
    "service_tier": "priority",
    "web_search_options": {},
    "prediction": {"type": "content", "content": "x"},
    "store": True,
    "plugins": [{"id": "web"}],
    "search_parameters": {"mode": "on"},
    "compound_custom": {"tools": {"enabled_tools": ["web_search"]}},
    "mcp_servers": [{"url": "https://x"}],
    "models": ["a dearer one"],
    "n_predict": -1,
    "use_beam_search": True,
    "speed": "fast",
    "something_of_next_year": {"a": 1},
}


@pytest.mark.parametrize("endpoint", BILLS, ids=lambda endpoint: endpoint.name)
@pytest.mark.parametrize("name", BILLED)
def test_what_a_vendor_may_bill_is_dropped_and_named(name: str, endpoint: Endpoint) -> None:
    found = passed(chat(temperature=0.5, **{name: BILLED[name]}), endpoint)
    assert found.dropped == (name,)
    assert found.request.body == chat(temperature=0.5).body


@pytest.mark.parametrize("endpoint", [OWN, BY_THE_HOUR], ids=lambda endpoint: endpoint.name)
def test_a_machine_of_ours_gets_what_it_alone_may_understand(endpoint: Endpoint) -> None:
    request = chat(**BILLED)
    assert passed(request, endpoint) == PassedFields(request=request)


def test_what_only_changes_the_answer_passes() -> None:
    request = chat(
        temperature=1, top_p=1, n=2, seed=1, stop=["x"], logit_bias={"1": 2}, logprobs=True, top_logprobs=2,
        max_tokens=5, max_completion_tokens=5, presence_penalty=0, frequency_penalty=0, user="u", tools=[ADD, PATCH],
        tool_choice="required", parallel_tool_calls=False, response_format={"type": "json_object"}, stream=True,
        stream_options={"include_usage": True}, reasoning_effort="low", verbosity="low", safety_identifier="s",
        prompt_cache_key="k", metadata={"a": "b"}, store=False, service_tier="flex", modalities=["text"], top_k=1,
        min_p=0.1, repetition_penalty=1.1, functions=[{"name": "f"}], function_call="auto", web_search_options=None,
        thinking={"type": "enabled", "budget_tokens": 1024}, goblin={"cache": False},
    )  # fmt: skip
    assert passed(request) == PassedFields(request=request)


@pytest.mark.parametrize(
    "more", [{"modalities": ["text", "audio"], "audio": {"voice": "v"}}, {"best_of": 3}], ids=["audio", "best_of"]
)
def test_what_would_make_another_answer_of_it_is_not_dropped(more: dict[str, Any]) -> None:
    """`worst_case` refuses these: the caller asked for something else than would come."""
    assert passed(chat(**more)).dropped == ()


@pytest.mark.parametrize("said", [True, 1, "true", {"a": 1}])
def test_a_field_of_which_one_value_is_harmless_passes_with_that_one_alone(said: Any) -> None:
    found = passed(chat(store=said, metadata={"a": "b"}))
    assert found.dropped == ("store", "metadata")  # OpenAI refuses metadata of what is not stored.


@pytest.mark.parametrize(
    "tool",
    [
        {"type": "web_search"},
        {"type": "browser_search"},
        {"type": "code_interpreter", "container": {"type": "auto"}},
        {"type": "mcp", "server_label": "x", "server_url": "https://x"},
        {"type": "web_search_20250305", "name": "web_search"},
        {"type": "computer_20250124", "name": "computer"},
        {"type": "namespace", "name": "n", "tools": [ADD]},
        {"type": "builtin_function", "function": {"name": "$web_search"}},
        {"type": "Function", "function": {"name": "f"}},
        {"google_search": {}},
        {"type": ["function"]},
        {"type": 7, "function": {"name": "f"}},
    ],
    ids=lambda tool: str(tool.get("type")),
)
@pytest.mark.parametrize("endpoint", [*BILLS, OWN], ids=lambda endpoint: endpoint.name)
def test_a_tool_that_the_caller_does_not_run_is_dropped_everywhere(tool: dict[str, Any], endpoint: Endpoint) -> None:
    found = passed(chat(tools=[ADD, tool], tool_choice="auto", parallel_tool_calls=True), endpoint)
    (name,) = found.dropped
    assert name.startswith("tools[")
    assert found.request == chat(tools=[ADD], tool_choice="auto", parallel_tool_calls=True)
    alone = passed(chat(tools=[tool], tool_choice="auto", parallel_tool_calls=True), endpoint)
    assert alone.request.body == chat().body  # OpenAI refuses both without tools.


@pytest.mark.parametrize(
    ("choice", "left"),
    [
        ("none", "none"),
        ("required", "required"),
        ({"type": "function", "function": {"name": "add"}}, None),
        ({"type": "function", "function": {"name": "web_search"}}, NothingLeft),
        ({"type": "web_search"}, NothingLeft),
        ({"type": "allowed_tools", "allowed_tools": {"mode": "required", "tools": [{"type": "mcp"}]}}, NothingLeft),
        ({"type": "allowed_tools", "allowed_tools": {"mode": "auto", "tools": [{"type": "mcp"}]}}, "none"),
        (
            {"type": "allowed_tools", "allowed_tools": {"mode": "auto", "tools": [{"type": "mcp"}, ADD]}},
            {"type": "allowed_tools", "allowed_tools": {"mode": "auto", "tools": [ADD]}},
        ),
    ],
)
def test_a_choice_of_what_was_dropped(choice: Any, left: Any) -> None:
    found = passed_fields(chat(tools=[ADD, {"type": "web_search"}], tool_choice=choice), PAID)
    if left is NothingLeft:
        assert isinstance(found, NothingLeft)
        assert (found.error.status, found.error.param) == (400, "tool_choice")
    else:
        assert isinstance(found, PassedFields)
        assert found.request.body["tool_choice"] == (choice if left is None else left)


@pytest.mark.parametrize("choice", ["required", {"type": "function", "function": {"name": "x"}}, {"type": "mcp"}])
def test_a_demand_for_a_tool_when_none_is_left_is_refused(choice: Any) -> None:
    assert isinstance(passed_fields(chat(tools=[{"type": "mcp"}], tool_choice=choice), PAID), NothingLeft)


def test_a_request_with_vendors_tools_alone_needs_no_endpoint_with_tools() -> None:
    assert chat(tools=[{"type": "web_search"}]).needs() == chat().needs()
    assert chat(tools=[{"type": "web_search"}, ADD]).needs() == chat(tools=[ADD]).needs() != chat().needs()


@pytest.mark.parametrize(
    ("kind", "body", "kept"),
    [
        (requests.CompletionRequest, {"prompt": "a", "echo": True, "suffix": "s", "top_k": 3}, True),
        (requests.CompletionRequest, {"prompt": "a", "tools": []}, False),
        (requests.EmbeddingsRequest, {"input": "a", "dimensions": 3, "encoding_format": "float"}, True),
        (requests.EmbeddingsRequest, {"input": "a", "service_tier": "priority"}, False),
        (requests.EmbeddingsRequest, {"input": "a", "plugins": []}, False),
    ],
)
def test_the_other_routes_have_their_own_fields(kind: Any, body: dict[str, Any], kept: bool) -> None:
    request = requests.parse(kind, json.dumps({"model": "m", **body}).encode())
    found = passed(request)
    assert (found.request == request) is kept
    assert (found.dropped == ()) is kept


JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-5, 5) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=5,
)


@given(st.dictionaries(st.text(max_size=12), JSON, max_size=40), st.sampled_from(BILLS))
def test_nothing_unknown_passes_whatever_it_is_called_and_what_is_said_fits_in_a_header(
    more: dict[str, Any], endpoint: Endpoint
) -> None:
    unknown = {f"new_{name}": value for name, value in more.items() if value is not None}
    found = passed(chat(**unknown), endpoint)
    assert set(found.request.body) <= {"model", "messages"}
    assert bool(found.dropped) == bool(unknown)
    assert len(found.dropped) <= NAMES_MAX + 1
    said = ", ".join(found.dropped)
    assert said.isascii()
    assert said.isprintable()
    assert len(said) < 2000


def test_a_caller_cannot_say_what_was_dropped() -> None:
    assert passed(chat(left_out=["a\r\nset-cookie: b"]), OWN).dropped == ()
