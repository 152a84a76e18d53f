"""How OpenAI's words become Ollama's, and back."""

from __future__ import annotations

import json
from typing import Any

import pytest
from msgspec import json as wire

from goblin.core.endpoints import Endpoint
from goblin.core.errors import Fault, InvalidRequest, ProviderUnavailable
from goblin.gateway.domain import requests
from goblin.gateway.domain.chat import Usage
from goblin.providers.ollama import inference as ollama

ENDPOINT = Endpoint(name="o", provider="ollama", url="http://o", context_tokens=8192)
PIXEL = "iVBORw0KGgo="


def body(messages: list[dict[str, Any]] | None = None, **more: Any) -> dict[str, Any]:
    asked = {"model": "m", "messages": messages or [{"role": "user", "content": "Hi"}], **more}
    request = requests.parse(requests.ChatRequest, json.dumps(asked).encode())
    return ollama.chat_body(request, "m", ENDPOINT)


def line(**fields: Any) -> ollama.OllamaLine:
    return wire.decode(json.dumps(fields).encode(), type=ollama.OllamaLine)


def test_settings_become_options() -> None:
    options = body(max_completion_tokens=9, temperature=0.1, top_p=0.2, seed=3, stop="x")["options"]
    assert options == {"num_ctx": 8192, "num_predict": 9, "temperature": 0.1, "top_p": 0.2, "seed": 3, "stop": ["x"]}


@pytest.mark.parametrize(
    ("wanted", "format_"),
    [
        ({"type": "text"}, None),
        ({"type": "json_object"}, "json"),
        ({"type": "json_schema", "json_schema": {"name": "n", "schema": {"type": "object"}}}, {"type": "object"}),
    ],
)
def test_a_response_format_becomes_a_format(wanted: dict[str, Any], format_: Any) -> None:
    assert body(response_format=wanted).get("format") == format_


def test_parts_become_text_and_images() -> None:
    parts = [
        {"type": "text", "text": "What is "},
        {"type": "text", "text": "this?"},
        {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{PIXEL}"}},
    ]
    assert body([{"role": "user", "content": parts}])["messages"] == [
        {"role": "user", "content": "What is this?", "images": [PIXEL]}
    ]


@pytest.mark.parametrize(
    "url", ["http://169.254.169.254/", "https://x/y.png", "data:image/png,raw", "file:///etc/passwd"]
)
def test_a_link_to_an_image_is_never_followed(url: str) -> None:
    parts = [{"type": "image_url", "image_url": {"url": url}}]
    with pytest.raises(InvalidRequest, match="base64"):
        body([{"role": "user", "content": parts}])


def test_a_tool_result_finds_the_name_of_its_tool() -> None:
    call = {"id": "c1", "type": "function", "function": {"name": "weather", "arguments": '{"city":"Ulm"}'}}
    messages = body(
        [
            {"role": "developer", "content": "Be brief."},
            {"role": "assistant", "content": None, "tool_calls": [call]},
            {"role": "tool", "tool_call_id": "c1", "content": "rain"},
        ]
    )["messages"]
    assert messages == [
        {"role": "system", "content": "Be brief."},
        {
            "role": "assistant",
            "content": "",
            "tool_calls": [{"function": {"name": "weather", "arguments": {"city": "Ulm"}}}],
        },
        {"role": "tool", "content": "rain", "tool_name": "weather"},
    ]


def test_tools_pass_and_cannot_be_forced() -> None:
    tools = [{"type": "function", "function": {"name": "f"}}]
    assert body(tools=tools)["tools"] == tools
    assert "tools" not in body(tools=tools, tool_choice="none")
    with pytest.raises(ProviderUnavailable) as caught:
        body(tools=tools, tool_choice="required")
    assert caught.value.fault is Fault.UNSUPPORTED


def test_tool_calls_get_ids_numbers_and_the_reason_to_finish() -> None:
    function = {"name": "f", "arguments": {"a": 1}}
    first = ollama.parse_line(line(message={"tool_calls": [{"function": function}]}), calls_before=0)
    second = ollama.parse_line(line(message={"tool_calls": [{"function": function}]}), calls_before=1)
    calls = [call for chunk in (first, second) for call in chunk.choices[0].delta.tool_calls or ()]
    assert [call.index for call in calls] == [0, 1]
    assert len({call.id for call in calls}) == 2
    assert all(call.function and call.function.arguments == '{"a":1}' for call in calls)
    last = ollama.parse_line(line(message={"content": ""}, done=True, done_reason="stop"), calls_before=2)
    assert last.choices[0].finish_reason == "tool_calls"


@pytest.mark.parametrize(
    ("reason", "finish"), [("stop", "stop"), ("length", "length"), ("load", "stop"), (None, "stop")]
)
def test_the_last_line_has_the_reason_and_the_usage(reason: str | None, finish: str) -> None:
    last = line(message={"content": ""}, done=True, done_reason=reason, prompt_eval_count=3, eval_count=4)
    chunk = ollama.parse_line(last, calls_before=0)
    assert chunk.choices[0].finish_reason == finish
    assert chunk.usage == Usage(prompt_tokens=3, completion_tokens=4, total_tokens=7)


def test_a_text_is_continued_without_a_template_unless_it_has_a_suffix() -> None:
    def generate(**more: Any) -> dict[str, Any]:
        asked = {"model": "m", "prompt": "def f(", **more}
        return ollama.generate_body(
            requests.parse(requests.CompletionRequest, json.dumps(asked).encode()), "m", ENDPOINT
        )

    assert generate()["raw"] is True
    assert "raw" not in generate(suffix="return 1")
    with pytest.raises(InvalidRequest):
        generate(prompt=[1, 2])


def test_a_latest_tag_may_be_left_out() -> None:
    listed = wire.decode(b'{"models":[{"name":"llama3:latest"},{"name":"q:7b"}]}', type=ollama.OllamaModels)
    assert ollama.model_names(listed) == ("llama3:latest", "llama3", "q:7b")
    assert ollama.model_names(wire.decode(b'{"models":null}', type=ollama.OllamaModels)) == ()
