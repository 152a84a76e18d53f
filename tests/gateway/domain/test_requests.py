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
        ({"n": 2}, {C.CHOICES}),
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
    ("prompt", "needs"),
    [("a", set()), (["a"], set()), ([1, 2, 3], set()), (["a", "b"], {C.CHOICES}), ([[1], [2]], {C.CHOICES})],
)
def test_several_prompts_are_several_answers(prompt: Any, needs: set[Capability]) -> None:
    body = json.dumps({"model": "m", "prompt": prompt}).encode()
    assert requests.parse(requests.CompletionRequest, body).needs() == {C.COMPLETIONS, *needs}


@pytest.mark.parametrize("value", [[], [1, "a"], [True], [[]], [["a"]], [None], {}, 7])
def test_inputs_are_texts_or_token_ids_and_not_a_mixture(value: Any) -> None:
    with pytest.raises(InvalidRequest) as caught:
        requests.parse(requests.EmbeddingsRequest, json.dumps({"model": "m", "input": value}).encode())
    assert (caught.value.param or "").startswith("input")


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
