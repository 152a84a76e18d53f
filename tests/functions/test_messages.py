"""The gateway in Anthropic's words: the official `anthropic` SDK, unmodified, against the served function."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any

import anthropic
import httpx
import pytest

from tests.fakes.openai_like import Call, Script
from tests.functions.conftest import API_KEY, Fakes

HELLO: Any = [{"role": "user", "content": "Hi"}]
ADD: Any = {"name": "add", "description": "Adds.", "input_schema": {"type": "object", "properties": {}}}


@pytest.fixture
def client(url: str) -> Iterator[anthropic.Anthropic]:
    with anthropic.Anthropic(api_key=API_KEY, base_url=url, max_retries=0, timeout=20) as client:
        yield client


def ask(client: anthropic.Anthropic, **more: Any) -> Any:
    return client.messages.create(**{"model": "tiny", "max_tokens": 50, "messages": HELLO, **more})


def raw(url: str, body: Any, **headers: str) -> httpx.Response:
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    return httpx.post(f"{url}/v1/messages", content=content, headers={"x-api-key": API_KEY} | headers, timeout=20)


def events(response: httpx.Response) -> list[dict[str, Any]]:
    """Data of the events; each is named after its type."""
    found = []
    for block in response.text.split("\n\n"):
        if block:
            name, data = block.split("\n")
            found.append(json.loads(data.removeprefix("data: ")))
            assert name == f"event: {found[-1]['type']}"
    return found


class TestAnswers:
    def test_a_message(self, client: anthropic.Anthropic, fakes: Fakes) -> None:
        answer = ask(client, system="Be brief.", stop_sequences=["END"], metadata={"user_id": "u"})
        assert [block.text for block in answer.content] == ["Hello, Wörld 🌍"]
        assert (answer.type, answer.role, answer.model, answer.stop_reason) == (
            "message",
            "assistant",
            "tiny",
            "end_turn",
        )
        assert (answer.usage.input_tokens, answer.usage.output_tokens) == (11, 5)
        assert answer.id.startswith("msg_")
        sent = fakes.llamacpp.asked[-1]
        assert sent["messages"] == [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hi"}]
        assert (sent["max_tokens"], sent["stop"], sent["user"]) == (50, ["END"], "u")

    def test_a_stream(self, client: anthropic.Anthropic) -> None:
        with client.messages.stream(model="tiny", max_tokens=50, messages=HELLO) as stream:
            assert "".join(stream.text_stream) == "Hello, Wörld 🌍"
            whole = stream.get_final_message()
        assert whole.stop_reason == "end_turn"
        assert (whole.usage.input_tokens, whole.usage.output_tokens) == (11, 5)

    def test_the_events_come_in_their_order(self, url: str, fakes: Fakes) -> None:
        fakes.llamacpp.script = Script(
            deltas=[{"reasoning_content": "Hm."}, {"content": "Yes"}, {"content": "."}],
            calls=[Call("c1", "add", ['{"a":', "1}"]), Call("c2", "now", [])],
        )
        body = {"model": "tiny", "max_tokens": 9, "messages": HELLO, "stream": True, "tools": [ADD]}
        said = events(raw(url, body))
        assert [(event["type"], event.get("index")) for event in said] == [
            ("message_start", None),
            ("ping", None),
            ("content_block_start", 0),
            ("content_block_delta", 0),
            ("content_block_stop", 0),
            ("content_block_start", 1),
            ("content_block_delta", 1),
            ("content_block_delta", 1),
            ("content_block_stop", 1),
            ("content_block_start", 2),
            ("content_block_delta", 2),
            ("content_block_delta", 2),
            ("content_block_stop", 2),
            ("content_block_start", 3),
            ("content_block_stop", 3),
            ("message_delta", None),
            ("message_stop", None),
        ]
        assert said[-2]["delta"] == {"stop_reason": "tool_use", "stop_sequence": None}

    def test_tools_both_ways(self, client: anthropic.Anthropic, fakes: Fakes) -> None:
        fakes.llamacpp.script = Script(
            words=["Well."], calls=[Call("c1", "add", ['{"a":', "1}"]), Call("c2", "now", [])]
        )
        with client.messages.stream(model="tiny", max_tokens=9, messages=HELLO, tools=[ADD]) as stream:
            streamed = stream.get_final_message()
        whole = ask(client, tools=[ADD], tool_choice={"type": "any", "disable_parallel_tool_use": True})
        for answer in (streamed, whole):
            text, first, second = answer.content
            assert (text.type, text.text, answer.stop_reason) == ("text", "Well.", "tool_use")
            assert (first.id, first.name, first.input) == ("c1", "add", {"a": 1})
            assert (second.name, second.input) == ("now", {})
        sent = fakes.llamacpp.asked[-1]
        assert (sent["tool_choice"], sent["parallel_tool_calls"]) == ("required", False)
        assert sent["tools"] == [
            {"type": "function", "function": {"name": "add", "description": "Adds.", "parameters": ADD["input_schema"]}}
        ]
        results = [{"type": "tool_result", "tool_use_id": "c1", "content": "2"}]
        turns = [*HELLO, {"role": "assistant", "content": whole.content}, {"role": "user", "content": results}]
        ask(client, messages=turns, tools=[ADD])
        said = fakes.llamacpp.asked[-1]["messages"]
        assert said[1]["tool_calls"][0] == {
            "id": "c1",
            "type": "function",
            "function": {"name": "add", "arguments": '{"a":1}'},
        }
        assert said[2] == {"role": "tool", "tool_call_id": "c1", "content": "2"}

    def test_a_schema(self, client: anthropic.Anthropic, fakes: Fakes) -> None:
        schema = {"type": "object", "properties": {"city": {"type": "string"}}}
        fakes.llamacpp.script = Script(words=['{"city": ', '"Ulm"}'])
        answer = ask(client, output_config={"format": {"type": "json_schema", "schema": schema}})
        assert json.loads(answer.content[0].text) == {"city": "Ulm"}
        wanted = fakes.llamacpp.asked[-1]["response_format"]
        assert wanted == {"type": "json_schema", "json_schema": {"name": "answer", "schema": schema, "strict": True}}

    def test_a_model_that_cannot_see_is_told_of_the_picture_and_the_answer_says_so(
        self, client: anthropic.Anthropic, fakes: Fakes
    ) -> None:
        source = {"type": "base64", "media_type": "image/png", "data": "iVBORw0KGgo="}
        content: Any = [{"type": "image", "source": source}, {"type": "text", "text": "What?"}]
        answer = client.messages.with_raw_response.create(
            model="tiny", max_tokens=9, messages=[{"role": "user", "content": content}]
        )
        assert answer.headers["x-goblin-dropped"] == "images"
        told, asked = fakes.llamacpp.asked[-1]["messages"][0]["content"]
        assert "the model `tiny` cannot see images" in told["text"]
        assert asked == {"type": "text", "text": "What?"}

    @pytest.mark.parametrize(("finish", "stop_reason"), [("length", "max_tokens"), ("content_filter", "refusal")])
    def test_reasons_to_stop(self, client: anthropic.Anthropic, fakes: Fakes, finish: str, stop_reason: str) -> None:
        fakes.llamacpp.script = Script(finish=finish)
        assert ask(client).stop_reason == stop_reason

    def test_tokens_are_counted_without_asking_anybody(self, client: anthropic.Anthropic, fakes: Fakes) -> None:
        counted = client.messages.count_tokens(model="tiny", messages=[{"role": "user", "content": "x" * 400}])
        assert counted.input_tokens == 100
        assert fakes.llamacpp.asked == []

    def test_models(self, client: anthropic.Anthropic) -> None:
        assert [model.id for model in client.models.list()] == ["tiny"]
        found = client.models.retrieve("tiny")
        assert (found.display_name, found.max_input_tokens) == ("tiny", None)


def test_a_tool_that_anthropic_would_run_is_left_out_and_the_answer_says_so(url: str, fakes: Fakes) -> None:
    """As Claude Code sends it: tools of its own, one that the vendor runs, and fields of the vendor's."""
    searches = {"type": "web_search_20250305", "name": "web_search", "max_uses": 8}
    body = {
        "model": "tiny", "max_tokens": 9, "messages": HELLO, "tools": [ADD, searches], "service_tier": "auto",
        "mcp_servers": [{"type": "url", "url": "https://mcp.example.com", "name": "x", "authorization_token": "t"}],
    }  # fmt: skip
    answer = raw(url, body)
    assert answer.status_code == 200
    assert answer.headers["x-goblin-dropped"] == "service_tier, mcp_servers, tools[web_search_20250305]"
    sent = fakes.llamacpp.asked[-1]
    assert [tool["function"]["name"] for tool in sent["tools"]] == ["add"]
    assert not {"service_tier", "mcp_servers"} & set(sent)


class TestErrors:
    def test_a_wrong_key_in_either_header(self, url: str) -> None:
        with pytest.raises(anthropic.AuthenticationError) as caught:
            ask(anthropic.Anthropic(api_key="sk-wrong", base_url=url, max_retries=0))
        assert caught.value.body["error"]["type"] == "authentication_error"  # type: ignore[index,call-overload]
        body = {"model": "tiny", "max_tokens": 9, "messages": HELLO}
        assert raw(url, body, **{"x-api-key": "sk-wrong", "authorization": f"Bearer {API_KEY}"}).status_code == 401
        answer = httpx.post(f"{url}/v1/messages", json=body, headers={"authorization": f"Bearer {API_KEY}"}, timeout=20)
        assert answer.status_code == 200

    def test_an_unknown_model(self, client: anthropic.Anthropic) -> None:
        with pytest.raises(anthropic.NotFoundError) as caught:
            ask(client, model="made-up")
        assert caught.value.request_id is not None

    @pytest.mark.parametrize(
        ("change", "named"),
        [
            ({"max_tokens": None}, "max_tokens"),
            ({"max_tokens": 0}, "max_tokens"),
            ({"messages": []}, "messages"),
            ({"messages": [{"role": "system", "content": "x"}]}, r"messages\[0\].role"),
            ({"messages": [{"role": "user", "content": [{"type": "smell"}]}]}, r"messages\[0\].content\[0\].type"),
            ({"temperature": 2}, "temperature"),
            ({"tools": [{"name": "add"}]}, r"tools\[0\].input_schema"),
            ({"tool_choice": {"type": "tool"}, "tools": [ADD]}, "tool_choice.name"),
            ({"goblin": {"strategy": "cheapest"}}, "goblin.strategy"),
        ],
    )
    def test_a_field_that_makes_no_sense_is_named(self, url: str, change: dict[str, Any], named: str) -> None:
        answer = raw(url, {"model": "tiny", "max_tokens": 9, "messages": HELLO} | change)
        assert answer.status_code == 400
        body = answer.json()
        assert (body["type"], body["error"]["type"]) == ("error", "invalid_request_error")
        assert re.search(named, body["error"]["message"])

    @pytest.mark.parametrize("body", [b"", b"{", b"[]", b"\xff", b"[" * 100_000])
    def test_what_is_not_a_json_object_is_400(self, url: str, body: bytes) -> None:
        assert raw(url, body).status_code == 400
        counted = httpx.post(f"{url}/v1/messages/count_tokens", content=body, headers={"x-api-key": API_KEY})
        assert (counted.status_code, counted.json()["type"]) == (400, "error")

    def test_a_limit_reached_everywhere(self, client: anthropic.Anthropic, fakes: Fakes) -> None:
        fakes.llamacpp.script = Script(status=429, error={"error": {"message": "slow"}}, headers={"retry-after": "7"})
        with pytest.raises(anthropic.RateLimitError) as caught:
            ask(client)
        assert caught.value.response.headers["retry-after"] == "7"

    def test_nobody_who_can_answer_is_an_overload(self, client: anthropic.Anthropic, fakes: Fakes) -> None:
        fakes.llamacpp.script = Script(status=500, error={"error": {"message": "secret sk-123"}})
        with pytest.raises(anthropic.InternalServerError) as caught:
            ask(client)
        assert caught.value.status_code == 529
        assert "secret" not in str(caught.value)

    def test_a_cut_stream_ends_with_an_error_and_never_with_a_stop(
        self, client: anthropic.Anthropic, url: str, fakes: Fakes
    ) -> None:
        fakes.llamacpp.script = Script(break_after=2)
        heard = []
        with (
            pytest.raises(anthropic.APIError),
            client.messages.stream(model="tiny", max_tokens=9, messages=HELLO) as stream,
        ):
            heard.extend(stream.text_stream)
        assert "".join(heard).startswith("Hello")
        said = events(raw(url, {"model": "tiny", "max_tokens": 9, "messages": HELLO, "stream": True}))
        assert said[-1]["type"] == "error"
        assert "message_stop" not in {event["type"] for event in said}

    def test_a_caller_who_hangs_up_stops_the_generation(self, client: anthropic.Anthropic, fakes: Fakes) -> None:
        fakes.llamacpp.script = Script(silent_after=1)
        with client.messages.stream(model="tiny", max_tokens=9, messages=HELLO) as stream:
            next(iter(stream.text_stream))
        assert fakes.llamacpp.left.wait(10), "the provider still generates"
