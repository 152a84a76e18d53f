"""What a request needs of an endpoint, and how long its prompt is."""

from __future__ import annotations

import json
from contextlib import suppress
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from goblin.core.endpoints import Capability
from goblin.core.errors import InvalidRequest
from goblin.gateway.domain import requests

C = Capability
TOOLS = [{"type": "function", "function": {"name": "f"}}]


def chat(**more: Any) -> requests.ChatRequest:
    body = {"model": "m", "messages": [{"role": "user", "content": "Hi"}], **more}
    return requests.parse(requests.ChatRequest, json.dumps(body).encode())


def parts(*rows: dict[str, Any]) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": list(rows)}]}


@pytest.mark.parametrize(
    ("more", "needs"),
    [
        ({}, set()),
        ({"tools": TOOLS}, {C.TOOLS}),
        ({"tools": TOOLS, "tool_choice": "none"}, set()),
        ({"tools": []}, set()),
        ({"response_format": {"type": "text"}}, set()),
        ({"response_format": {"type": "json_object"}}, {C.JSON_OBJECT}),
        ({"response_format": {"type": "json_schema", "json_schema": {"name": "n"}}}, {C.JSON_SCHEMA}),
        ({"n": 1}, set()),
        ({"n": 2}, set()),
        ({"logprobs": True}, {C.LOGPROBS}),
        (parts({"type": "text", "text": "x"}), set()),
        (parts({"type": "image_url", "image_url": {"url": "https://x/y.png"}}), {C.VISION}),
        (parts({"type": "input_audio", "input_audio": {"data": "", "format": "wav"}}), {C.AUDIO}),
        (parts({"type": "file", "file": {"file_id": "f"}}), {C.VISION, C.FILES}),
    ],
)
def test_what_a_chat_needs(more: dict[str, Any], needs: set[Capability]) -> None:
    assert chat(**more).needs() == {C.CHAT, *needs}


@pytest.mark.parametrize(
    ("prompt", "count", "longest"),
    [("abc", 1, 3), (["a"], 1, 1), ([1, 2, 3], 1, 12), (["a", "bé"], 2, 3), ([[1], [2, 3]], 2, 8)],
)
def test_several_prompts_are_served_anywhere_and_measured_one_by_one(prompt: Any, count: int, longest: int) -> None:
    found = completion(prompt=prompt, n=2)
    assert found.needs() == {C.COMPLETIONS}
    assert len(requests.prompts_of(found)) == count
    assert requests.longest_prompt_bytes(found) == longest


def test_documents_are_read_one_by_one_with_the_query() -> None:
    body = json.dumps({"model": "m", "query": "abc", "documents": ["a", {"text": "bé"}]}).encode()
    asked = requests.parse(requests.RerankRequest, body)
    assert (requests.longest_prompt_bytes(asked), asked.prompt_bytes()) == (6, 10)


def completion(**more: Any) -> requests.CompletionRequest:
    return requests.parse(requests.CompletionRequest, json.dumps({"model": "m", "prompt": "a", **more}).encode())


def test_the_best_of_several_is_chosen_by_the_endpoint() -> None:
    assert completion(n=2, best_of=4).needs() == {C.COMPLETIONS, C.CHOICES}
    assert completion(n=1, best_of=4).needs() == completion(n=2, best_of=1).needs() == {C.COMPLETIONS}


@pytest.mark.parametrize(
    ("more", "message", "param"),
    [
        (
            {"prompt": ["a"] * 129},
            "Invalid 'prompt': array too long. Expected an array with maximum length 128, but got an array with "
            "length 129 instead.",
            "prompt",
        ),
        (
            {"prompt": ["a"] * 65, "n": 2},
            "Too many parallel completions requested. You submitted 65 prompts with n=2, but you can currently "
            "request up to at most a total of 128.",
            "n",
        ),
    ],
)
def test_too_many_answers_are_refused_in_openais_words(more: dict[str, Any], message: str, param: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        completion(**more)
    assert (caught.value.message, caught.value.param) == (message, param)
    assert len(requests.prompts_of(completion(prompt=[[1]] * 64, n=2))) == 64
    assert completion(prompt=list(range(500)), n=128).n == 128


@pytest.mark.parametrize("value", [[], [1, "a"], [True], [[]], [["a"]], [None], {}, 7])
def test_inputs_are_texts_or_token_ids_and_not_a_mixture(value: Any) -> None:
    with pytest.raises(InvalidRequest) as caught:
        requests.parse(requests.EmbeddingsRequest, json.dumps({"model": "m", "input": value}).encode())
    assert (caught.value.param or "").startswith("input")


@pytest.mark.parametrize(("value", "ids"), [("a", False), (["a", "b"], False), ([1, 2], True), ([[1], [2, 3]], True)])
def test_token_ids_need_an_endpoint_that_reads_them(value: Any, ids: bool) -> None:
    asked = requests.parse(requests.EmbeddingsRequest, json.dumps({"model": "m", "input": value}).encode())
    assert asked.needs() == {C.EMBEDDINGS, *({C.TOKEN_IDS} if ids else set())}


@pytest.mark.parametrize(
    ("change", "param", "code", "said"),
    [
        ({"temperature": 3}, "temperature", "decimal_above_max_value", "Expected a value <= 2."),
        ({"temperature": -1}, "temperature", "decimal_below_min_value", "Expected a value >= 0."),
        ({"max_tokens": 0}, "max_tokens", "integer_below_min_value", "integer below minimum value"),
        ({"n": 129}, "n", "integer_above_max_value", "Expected a value <= 128."),
        ({"n": "x"}, "n", "invalid_type", "expected an integer, but got a string instead."),
        ({"stream": "yes"}, "stream", "invalid_type", "expected a boolean"),
        ({"messages": []}, "messages", "empty_array", "empty array"),
        ({"messages": "x"}, "messages", "invalid_type", "expected an array, but got a string"),
        ({"messages": None}, "messages", "invalid_type", "but got null"),
        ({"messages": [{"role": "robot"}]}, "messages[0].role", "invalid_value", "'robot'"),
        ({"messages": [{"role": "user"}, {}]}, "messages[1].role", "missing_required_parameter", "messages[1].role"),
        (parts({"type": "smell"}), "messages[0].content[0].type", "invalid_value", "'smell'"),
        (parts({}), "messages[0].content[0].type", "missing_required_parameter", "Missing required parameter"),
        ({"messages": [{"role": "user", "content": 5}]}, "messages[0].content", "invalid_type", "a string or an array"),
        ({"model": ""}, "model", "empty_string", "empty string"),
        ({"model": "m" * 300}, "model", "string_above_max_length", "at most 256"),
        ({"stop": [1]}, "stop[0]", "invalid_type", "expected a string"),
        ({"response_format": {"type": "xml"}}, "response_format.type", "invalid_value", "'xml'"),
        ({"goblin": {"x": 1}}, "goblin", "unknown_parameter", "unknown field"),
        ({"goblin": {"strategy": "x"}}, "goblin.strategy", "invalid_value", "'x'"),
    ],
)
def test_errors_have_openais_codes_and_name_the_field(change: dict[str, Any], param: str, code: str, said: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        chat(**change)
    assert (caught.value.param, caught.value.code) == (param, code)
    assert said in caught.value.message
    assert caught.value.message.endswith(".")


def test_a_missing_field_is_named() -> None:
    with pytest.raises(InvalidRequest) as caught:
        requests.parse(requests.EmbeddingsRequest, b'{"model":"m"}')
    assert (caught.value.param, caught.value.code) == ("input", "missing_required_parameter")


def test_a_prompt_is_measured_in_bytes_with_its_tools() -> None:
    assert chat().prompt_bytes() == 2
    assert chat(**parts({"type": "text", "text": "é"}, {"type": "text", "text": "x"})).prompt_bytes() == 3
    assert chat(tools=TOOLS).prompt_bytes() > 2


def test_unknown_fields_are_kept_for_the_provider() -> None:
    assert chat(made_up={"x": 1}).body["made_up"] == {"x": 1}


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)
FIELDS = st.sampled_from(["model", "messages", "n", "stop", "tools", "stream_options", "response_format", "goblin"])


@given(st.dictionaries(FIELDS, JSON) | JSON)
def test_whatever_is_sent_is_understood_or_refused(body: Any) -> None:
    with suppress(InvalidRequest):
        requests.parse(requests.ChatRequest, json.dumps(body).encode())


@given(st.binary(max_size=50))
def test_so_are_bytes(data: bytes) -> None:
    with pytest.raises(InvalidRequest):
        requests.parse(requests.ChatRequest, data)


@pytest.mark.parametrize(
    ("function", "param"),
    [
        (None, "tools[1].function"),
        ([], "tools[1].function"),
        ("f", "tools[1].function"),
        ({}, "tools[1].function"),
        ({"name": 1}, "tools[1].function"),
        ({"name": "f", "parameters": False}, "tools[1].function.parameters"),
        ({"name": "f", "parameters": []}, "tools[1].function.parameters"),
    ],
)
def test_a_malformed_function_is_refused_before_an_endpoint_could_fail_at_it(function: Any, param: str) -> None:
    with pytest.raises(InvalidRequest) as refused:
        chat(tools=[*TOOLS, {"type": "function", "function": function}])
    assert refused.value.param == param


@pytest.mark.parametrize(
    "tool", [{"type": "function", "function": {"name": "f", "parameters": None}}, {"type": "custom"}]
)
def test_other_tools_are_passed_on(tool: dict[str, Any]) -> None:
    assert chat(tools=[tool]).tools == [tool]
