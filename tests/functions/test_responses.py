"""The gateway in the words of OpenAI's Responses API: the `openai` SDK, which validates strictly, and the events."""

from __future__ import annotations

import gzip
import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest
from openai.types.responses import Response

from tests.fakes.openai_like import Call, Script
from tests.functions.conftest import API_KEY, OTHER_KEY, Fakes

AUTHORIZED = {"authorization": f"Bearer {API_KEY}"}
ADD: Any = {
    "type": "function",
    "name": "add",
    "description": "Adds.",
    "parameters": {"type": "object", "properties": {"a": {"type": "integer"}}},
    "strict": True,
}
SCHEMA: Any = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}
SUM: Any = [
    {"type": "function_call", "call_id": "c1", "name": "add", "arguments": '{"a":1}'},
    {"type": "function_call_output", "call_id": "c1", "output": "2"},
]


@pytest.fixture
def client(url: str) -> Iterator[openai.OpenAI]:
    """The SDK as it validates: by default it accepts whatever comes."""
    made = openai.OpenAI(
        api_key=API_KEY, base_url=f"{url}/v1", max_retries=0, timeout=20, _strict_response_validation=True
    )
    with made as client:
        yield client


def post(url: str, body: Any, **headers: str) -> httpx.Response:
    content = body if isinstance(body, bytes) else json.dumps({"model": "tiny"} | body).encode()
    return httpx.post(f"{url}/v1/responses", content=content, headers=AUTHORIZED | headers, timeout=20)


def events(response: httpx.Response) -> list[dict[str, Any]]:
    """Data of the events: each named after its type, numbered without gaps, and `[DONE]` after the last."""
    assert response.status_code == 200
    *blocks, done, rest = response.text.split("\n\n")
    assert (done, rest) == ("data: [DONE]", "")
    found = []
    for block in blocks:
        name, data = block.split("\n")
        found.append(json.loads(data.removeprefix("data: ")))
        assert name == f"event: {found[-1]['type']}"
    assert [event["sequence_number"] for event in found] == list(range(len(found)))
    return found


def both_ways(client: openai.OpenAI, **asked: Any) -> Response:
    """Ask for the answer whole and streamed; both must be the same but for ids and times."""
    whole = client.responses.create(model="tiny", **asked)
    with client.responses.stream(model="tiny", **asked) as stream:
        for event in stream:
            assert event.type != "error"
        streamed = stream.get_final_response()
    assert normal(streamed) == normal(whole)
    return whole


def normal(response: Response) -> Any:
    said = response.to_dict(mode="json")
    ours = re.compile(r"(resp|msg|fc|rs|ctc)_[0-9a-f]{32}")
    for item in said["output"]:
        for part in item.get("content") or []:
            part.pop("parsed", None)
        item.pop("parsed_arguments", None)
    text = json.dumps(said | {"created_at": 0, "completed_at": 0}, sort_keys=True)
    return json.loads(ours.sub(r"\1_", text))


class TestAnswers:
    def test_a_text(self, client: openai.OpenAI, fakes: Fakes) -> None:
        answer = both_ways(
            client,
            input="Hi",
            instructions="Be brief.",
            max_output_tokens=50,
            temperature=0.5,
            top_p=0.9,
            metadata={"a": "b"},
            user="u",
            parallel_tool_calls=False,
        )
        assert (answer.output_text, answer.status, answer.model) == ("Hello, Wörld 🌍", "completed", "tiny")
        assert answer.usage is not None
        counts = (answer.usage.input_tokens, answer.usage.output_tokens, answer.usage.total_tokens)
        assert counts == (11, 5, 16)
        (message,) = answer.output
        assert (message.type, message.status) == ("message", "completed")
        assert (answer.instructions, answer.max_output_tokens, answer.metadata) == ("Be brief.", 50, {"a": "b"})
        assert (answer.temperature, answer.top_p, answer.parallel_tool_calls) == (0.5, 0.9, False)
        assert (answer.store, answer.previous_response_id, answer.error) == (False, None, None)
        assert answer.completed_at is not None
        sent = fakes.llamacpp.asked[-1]
        assert sent["messages"] == [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hi"}]
        assert (sent["max_tokens"], sent["temperature"], sent["top_p"], sent["user"]) == (50, 0.5, 0.9, "u")
        # Without tools OpenAI refuses it, and without `store` the metadata.
        assert not {"parallel_tool_calls", "metadata", "store", "include"} & set(sent)

    def test_every_required_field_of_the_specification_is_there(self, url: str) -> None:
        answer = post(url, {"input": "Hi"}).json()
        required = (
            "id object created_at completed_at status incomplete_details model previous_response_id instructions output"
            " error tools tool_choice truncation parallel_tool_calls text top_p presence_penalty frequency_penalty"
            " top_logprobs temperature reasoning user usage max_output_tokens max_tool_calls store background"
            " service_tier metadata safety_identifier prompt_cache_key"
        )
        assert set(required.split()) <= set(answer)

    def test_the_events_of_a_text(self, url: str) -> None:
        said = events(post(url, {"input": "Hi", "stream": True}))
        assert [event["type"].removeprefix("response.") for event in said] == [
            "created",
            "in_progress",
            "output_item.added",
            "content_part.added",
            *["output_text.delta"] * 5,
            "output_text.done",
            "content_part.done",
            "output_item.done",
            "completed",
        ]
        assert said[0]["response"]["status"] == said[1]["response"]["status"] == "in_progress"
        assert said[2]["item"] | {"id": ""} == {
            "id": "",
            "type": "message",
            "role": "assistant",
            "content": [],
            "status": "in_progress",
        }
        named = said[2]["item"]["id"]
        assert {event["item_id"] for event in said if "item_id" in event} == {named}
        assert {(e["output_index"], e["content_index"]) for e in said if "content_index" in e} == {(0, 0)}
        assert said[-1]["response"]["output"] == [said[-2]["item"]]
        assert said[-2]["item"]["content"][0]["text"] == "Hello, Wörld 🌍"
        assert said[-1]["response"]["usage"]["total_tokens"] == 16

    def test_tools(self, client: openai.OpenAI, url: str, fakes: Fakes) -> None:
        fakes.llamacpp.script = Script(
            words=["Well."], calls=[Call("c1", "add", ['{"a":', "1}"]), Call("c2", "now", [])]
        )
        tool: Any = [ADD, {"type": "function", "name": "now", "parameters": None, "strict": None}]
        answer = both_ways(client, input="Hi", tools=tool, tool_choice="required", parallel_tool_calls=True)
        text, first, second = answer.output
        assert (text.type, first.type, second.type) == ("message", "function_call", "function_call")
        assert isinstance(first, openai.types.responses.ResponseFunctionToolCall)
        assert (first.call_id, first.name, first.arguments, first.status) == ("c1", "add", '{"a":1}', "completed")
        assert isinstance(second, openai.types.responses.ResponseFunctionToolCall)
        assert (second.name, second.arguments) == ("now", "{}")
        sent = fakes.llamacpp.asked[-1]
        assert (sent["tool_choice"], sent["parallel_tool_calls"]) == ("required", True)
        function = {name: value for name, value in ADD.items() if name != "type"}
        assert sent["tools"][0] == {"type": "function", "function": function}
        assert sent["tools"][1]["function"] == {"name": "now", "parameters": {"type": "object", "properties": {}}}

        said = events(post(url, {"input": "Hi", "tools": [ADD], "stream": True}))
        kinds = [event["type"].removeprefix("response.") for event in said if event.get("output_index") == 1]
        assert kinds == [
            "output_item.added",
            *["function_call_arguments.delta"] * 2,
            "function_call_arguments.done",
            "output_item.done",
        ]
        # The text ends where the call begins.
        order = [(event["type"], event["output_index"]) for event in said if "output_item" in event["type"]]
        assert order[:3] == [
            ("response.output_item.added", 0),
            ("response.output_item.done", 0),
            ("response.output_item.added", 1),
        ]

    def test_a_custom_tool_stands_as_a_function(self, client: openai.OpenAI, url: str, fakes: Fakes) -> None:
        fakes.llamacpp.script = Script(words=[], calls=[Call("c1", "patch", ['{"input": "*** Be', 'gin\\n"}'])])
        tool: Any = {"type": "custom", "name": "patch", "description": "Patches.", "format": {"type": "text"}}
        answer = both_ways(client, input="Hi", tools=[tool])
        (call,) = answer.output
        assert isinstance(call, openai.types.responses.ResponseCustomToolCall)
        assert (call.call_id, call.name, call.input) == ("c1", "patch", "*** Begin\n")
        said = events(post(url, {"input": "Hi", "tools": [tool], "stream": True}))
        assert [event["type"] for event in said if "custom" in event["type"]] == [
            "response.custom_tool_call_input.delta",
            "response.custom_tool_call_input.done",
        ]
        result = {"type": "custom_tool_call_output", "call_id": "c1", "output": "Done!"}
        post(url, {"input": ["Hi", call.to_dict(), result][1:], "tools": [tool]}).raise_for_status()
        assert fakes.llamacpp.asked[-1]["messages"][0]["tool_calls"][0]["function"] == {
            "name": "patch",
            "arguments": '{"input":"*** Begin\\n"}',
        }

    @pytest.mark.parametrize("field", ["reasoning_content", "reasoning"])
    def test_reasoning(self, client: openai.OpenAI, fakes: Fakes, field: str) -> None:
        fakes.llamacpp.script = Script(deltas=[{field: "Hm"}, {field: "."}, {"content": "Yes"}])
        answer = both_ways(client, input="Hi", reasoning={"effort": "low"})
        thoughts, text = answer.output
        assert thoughts.type == "reasoning"
        assert thoughts.content is not None
        assert (thoughts.content[0].text, thoughts.summary) == ("Hm.", [])
        assert (text.type, answer.output_text) == ("message", "Yes")
        assert fakes.llamacpp.asked[-1]["reasoning_effort"] == "low"

    def test_reasoning_as_a_summary_and_back(self, client: openai.OpenAI, url: str, fakes: Fakes) -> None:
        fakes.llamacpp.script = Script(deltas=[{"reasoning_content": "Hm."}], calls=[Call("c1", "add", ['{"a":1}'])])
        asked: Any = {"tools": [ADD], "reasoning": {"summary": "auto"}, "include": ["reasoning.encrypted_content"]}
        answer = both_ways(client, input="Hi", **asked)
        thoughts = answer.output[0]
        assert thoughts.type == "reasoning"
        assert [part.text for part in thoughts.summary] == ["Hm."]
        said = events(post(url, {"input": "Hi", "stream": True, **asked}))
        assert [event["type"].removeprefix("response.") for event in said if event.get("output_index") == 0] == [
            "output_item.added",
            "reasoning_summary_part.added",
            "reasoning_summary_text.delta",
            "reasoning_summary_text.done",
            "reasoning_summary_part.done",
            "output_item.done",
        ]
        # Some clients send back only what is sealed, others only what is shown.
        shown = thoughts.to_dict()
        for change in ({"summary": []}, {"encrypted_content": None}, {"encrypted_content": "gAAA"}):
            sent = shown | change
            turn = [{"role": "user", "content": "Hi"}, sent, *SUM]
            post(url, {"input": turn, "tools": [ADD]}).raise_for_status()
            assert fakes.llamacpp.asked[-1]["messages"][1]["reasoning_content"] == "Hm."

    def test_a_refusal(self, client: openai.OpenAI, fakes: Fakes) -> None:
        fakes.llamacpp.script = Script(deltas=[{"refusal": "No"}, {"refusal": "."}])
        answer = both_ways(client, input="Hi")
        (message,) = answer.output
        assert message.type == "message"
        assert message.content[0].to_dict() == {"type": "refusal", "refusal": "No."}

    def test_a_schema(self, client: openai.OpenAI, fakes: Fakes) -> None:
        fakes.llamacpp.script = Script(words=['{"city": ', '"Ulm"}'])
        form: Any = {"type": "json_schema", "name": "place", "schema": SCHEMA, "strict": True}
        answer = both_ways(client, input="Hi", text={"format": form})
        assert json.loads(answer.output_text) == {"city": "Ulm"}
        assert answer.text is not None
        assert answer.text.format is not None
        assert answer.text.format.type == "json_schema"
        wanted = {"name": "place", "schema": SCHEMA, "strict": True}
        assert fakes.llamacpp.asked[-1]["response_format"] == {"type": "json_schema", "json_schema": wanted}
        both_ways(client, input="Hi", text={"format": {"type": "json_object"}})
        assert fakes.llamacpp.asked[-1]["response_format"] == {"type": "json_object"}

    def test_log_probabilities(self, client: openai.OpenAI, url: str, fakes: Fakes) -> None:
        row = {"token": "Hi", "logprob": -0.5, "bytes": None, "top_logprobs": [{"token": "Ho", "logprob": -1.0}]}
        choice = {"index": 0, "delta": {"content": "Hi"}, "logprobs": {"content": [row]}, "finish_reason": "stop"}
        raw = f"data: {json.dumps({'id': 'x', 'choices': [choice]})}\n\ndata: [DONE]\n\n".encode()
        fakes.llamacpp.script = Script(raw=raw)
        answer = both_ways(client, input="Hi", include=["message.output_text.logprobs"], top_logprobs=1)
        (message,) = answer.output
        assert message.type == "message"
        (part,) = message.content
        assert part.type == "output_text"
        assert part.logprobs is not None
        (read,) = part.logprobs
        assert (read.token, read.logprob, read.bytes) == ("Hi", -0.5, [72, 105])
        assert (read.top_logprobs[0].token, read.top_logprobs[0].bytes) == ("Ho", [72, 111])
        sent = fakes.llamacpp.asked[-1]
        assert (sent["logprobs"], sent["top_logprobs"]) == (True, 1)

    @pytest.mark.parametrize(
        ("finish", "reason"), [("length", "max_output_tokens"), ("content_filter", "content_filter")]
    )
    def test_an_answer_that_is_cut_short(
        self, client: openai.OpenAI, url: str, fakes: Fakes, finish: str, reason: str
    ) -> None:
        fakes.llamacpp.script = Script(finish=finish)
        answer = client.responses.create(model="tiny", input="Hi")
        assert (answer.status, answer.completed_at, answer.output_text) == ("incomplete", None, "Hello, Wörld 🌍")
        assert answer.incomplete_details is not None
        assert answer.incomplete_details.reason == reason
        said = events(post(url, {"input": "Hi", "stream": True}))
        assert said[-1]["type"] == "response.incomplete"
        assert said[-2]["item"]["status"] == "incomplete"

    def test_the_same_engine_as_every_other_route(self, client: openai.OpenAI, url: str) -> None:
        raw = client.responses.with_raw_response.create(model="tiny", input="Hi")
        named = raw.headers["x-goblin-request-id"]
        assert raw.parse().id == f"resp_{named}"
        assert raw.headers["x-goblin-provider"] == "gcp_llamacpp"
        assert "x-goblin-cost-usd" in raw.headers
        receipt = httpx.get(f"{url}/requests/{named}", headers=AUTHORIZED, timeout=20).json()
        assert (receipt["operation"], receipt["outcome"], receipt["completion_tokens"]) == ("chat", "ok", 5)

    def test_an_idempotent_request_is_answered_once(self, url: str, fakes: Fakes) -> None:
        for stream in (False, True):
            key = {"idempotency-key": f"k{stream}"}
            first, second = (post(url, {"input": "Hi", "stream": stream}, **key) for _ in range(2))
            assert first.content == second.content
        assert len(fakes.llamacpp.asked) == 2

    @pytest.mark.parametrize("packed", [gzip.compress, None], ids=["gzip", "zstd"])
    def test_packed_bodies(self, url: str, packed: Any) -> None:
        if packed is None:
            packed = pytest.importorskip("backports.zstd").compress
        body = packed(json.dumps({"model": "tiny", "input": "Hi"}).encode())
        answer = post(url, body, **{"content-encoding": "gzip" if packed is gzip.compress else "zstd"})
        assert answer.json()["output"][0]["content"][0]["text"] == "Hello, Wörld 🌍"


class TestConversations:
    """The next turn, as the clients send it."""

    def test_the_output_of_one_turn_is_the_input_of_the_next(self, client: openai.OpenAI, fakes: Fakes) -> None:
        fakes.llamacpp.script = Script(
            deltas=[{"reasoning_content": "Hm."}, {"content": "Well."}],
            calls=[Call("c1", "add", ['{"a":1}']), Call("c2", "add", ['{"a":2}'])],
        )
        first = client.responses.create(model="tiny", input="Hi", tools=[ADD])
        results = [{"type": "function_call_output", "call_id": f"c{n}", "output": str(n)} for n in (2, 1)]
        turn: Any = [{"role": "user", "content": "Hi"}, *first.output, *results]
        client.responses.create(model="tiny", input=turn, tools=[ADD])
        _, said, *heard = fakes.llamacpp.asked[-1]["messages"]
        assert (said["role"], said["content"], said["reasoning_content"]) == ("assistant", "Well.", "Hm.")
        assert [call["id"] for call in said["tool_calls"]] == ["c1", "c2"]
        assert heard == [{"role": "tool", "tool_call_id": f"c{n}", "content": str(n)} for n in (1, 2)]

    @pytest.mark.parametrize("stream", [False, True])
    def test_an_item_may_be_named_instead_of_sent(self, client: openai.OpenAI, url: str, stream: bool) -> None:
        if stream:
            said = events(post(url, {"input": "Hi", "stream": True}))[-1]["response"]
        else:
            said = post(url, {"input": "Hi"}).json()
        turn = [
            {"role": "user", "content": "Hi"},
            {"type": "item_reference", "id": said["output"][0]["id"]},
            {"role": "user", "content": "More"},
        ]
        assert post(url, {"input": turn}).status_code == 200
        stranger = {"authorization": f"Bearer {OTHER_KEY}"}
        refused = post(url, {"input": turn}, **stranger)
        assert refused.status_code == 404
        assert "Items are not persisted when `store` is set to false." in refused.json()["error"]["message"]

    def test_a_model_that_cannot_see_is_told_so(self, client: openai.OpenAI, fakes: Fakes) -> None:
        picture: Any = {"type": "input_image", "image_url": "data:image/png;base64,iVBORw0KGgo=", "detail": "auto"}
        asked: Any = [{"role": "user", "content": [picture, {"type": "input_text", "text": "What?"}]}]
        raw = client.responses.with_raw_response.create(model="tiny", input=asked)
        assert raw.headers["x-goblin-dropped"] == "images"
        told, text = fakes.llamacpp.asked[-1]["messages"][0]["content"]
        assert text == {"type": "text", "text": "What?"}
        assert "`tiny` cannot see images" in told["text"]


class TestLeftOut:
    def test_what_has_no_place_in_a_chat_is_left_out_and_named(
        self, client: openai.OpenAI, url: str, fakes: Fakes
    ) -> None:
        tools: Any = [
            ADD,
            {"type": "namespace", "name": "agents", "description": "d", "tools": [{"type": "function", "name": "x"}]},
            {"type": "web_search", "external_web_access": False},
            {"type": "made_up"},
        ]
        more = {"client_metadata": {"a": "b"}, "prompt_cache_key": "k", "x\r\ny": 1}
        names = "tools[namespace], tools[web_search], tools[made_up]"
        for stream in (False, True):
            answer = post(url, {"input": "Hi", "tools": tools, "stream": stream, "background": True, **more})
            told = answer.headers["x-goblin-dropped"]
            assert set(told.split(", ")) == {"client_metadata", "x??y", "background", *names.split(", ")}
            said = events(answer)[-1]["response"] if stream else answer.json()
            assert said["goblin"]["dropped"] == told.split(", ")
            assert [tool["name"] for tool in said["tools"]] == ["add"]
            assert (said["background"], said["prompt_cache_key"]) == (False, "k")
        sent = fakes.llamacpp.asked[-1]
        assert [tool["function"]["name"] for tool in sent["tools"]] == ["add"]
        assert not {"client_metadata", "background", "prompt_cache_key", "x\r\ny"} & set(sent)
        whole = both_ways(client, input="Hi", tools=tools[1:3])
        assert whole.tools == []
        assert "tools" not in fakes.llamacpp.asked[-1]
        assert "x-goblin-dropped" not in post(url, {"input": "Hi", "tools": [ADD]}).headers

    def test_storing_is_answered_and_not_done(self, client: openai.OpenAI) -> None:
        assert both_ways(client, input="Hi", store=True).store is False


class TestErrors:
    def test_a_previous_response_in_openais_words(self, client: openai.OpenAI) -> None:
        with pytest.raises(openai.BadRequestError) as caught:
            client.responses.create(model="tiny", input="Hi", previous_response_id="resp_1")
        assert caught.value.code == "previous_response_not_found"
        assert caught.value.param == "previous_response_id"
        assert "Previous response with id 'resp_1' not found." in str(caught.value)

    def test_an_unknown_model_or_key(self, client: openai.OpenAI, url: str) -> None:
        with pytest.raises(openai.NotFoundError, match="made-up"):
            client.responses.create(model="made-up", input="Hi")
        assert post(url, {"input": "Hi"}, authorization="Bearer sk-wrong").status_code == 401

    @pytest.mark.parametrize("body", [b"", b"{", b"[]", b"\xff", b"[" * 100_000])
    def test_what_is_not_a_json_object_is_400(self, url: str, body: bytes) -> None:
        assert post(url, body).status_code == 400

    def test_an_endpoint_that_cannot_answer_is_an_error_of_http(self, url: str, fakes: Fakes) -> None:
        fakes.llamacpp.script = Script(status=500, error={"error": {"message": "secret sk-123"}})
        answer = post(url, {"input": "Hi", "stream": True})
        assert answer.status_code == 503
        assert "secret" not in answer.text
        fakes.llamacpp.script = Script(status=429, error={"error": {"message": "slow"}}, headers={"retry-after": "7"})
        assert (limited := post(url, {"input": "Hi", "stream": True})).status_code == 429
        assert limited.headers["retry-after"] == "7"

    @pytest.mark.parametrize("script", [Script(break_after=2), Script(error_after=2)], ids=["cut", "error"])
    def test_a_stream_that_breaks_off_fails(
        self, client: openai.OpenAI, url: str, fakes: Fakes, script: Script
    ) -> None:
        fakes.llamacpp.script = script
        answer = post(url, {"input": "Hi", "stream": True})
        said = events(answer)
        assert [event["type"] for event in said[-2:]] == ["error", "response.failed"]
        assert said[-2]["code"] == "stream_cut"
        failed = said[-1]["response"]
        assert (failed["status"], failed["error"]["code"]) == ("failed", "server_error")
        assert failed["output"][0]["content"][0]["text"].startswith("Hello")
        assert failed["output"][0]["status"] == "incomplete"
        assert "secret" not in answer.text
        assert not {"response.completed", "response.output_item.done"} & {event["type"] for event in said}
        ends = [event.type for event in client.responses.create(model="tiny", input="Hi", stream=True)][-2:]
        assert ends == ["error", "response.failed"]
        with pytest.raises(openai.APIError):
            client.responses.create(model="tiny", input="Hi")

    def test_a_broken_call_is_not_done(self, url: str, fakes: Fakes) -> None:
        fakes.llamacpp.script = Script(words=[], calls=[Call("c1", "add", ['{"a"', ":1}"])], break_after=2)
        said = events(post(url, {"input": "Hi", "tools": [ADD], "stream": True}))
        assert said[-1]["type"] == "response.failed"
        assert "response.output_item.done" not in {event["type"] for event in said}
        assert said[-1]["response"]["output"][0]["arguments"] == '{"a"'

    def test_a_caller_who_hangs_up_stops_the_generation(self, client: openai.OpenAI, fakes: Fakes) -> None:
        fakes.llamacpp.script = Script(silent_after=1)
        with client.responses.create(model="tiny", input="Hi", stream=True) as stream:
            # The first piece of text has come, and no other will.
            assert [next(iter(stream)).type for _ in range(5)][-1] == "response.output_text.delta"
        assert fakes.llamacpp.left.wait(10), "the provider still generates"

    def test_a_websocket_is_told_to_use_http(self, url: str) -> None:
        refused = httpx.get(f"{url}/v1/responses", headers={"connection": "Upgrade", "upgrade": "websocket"})
        assert refused.status_code == 426
        assert httpx.get(f"{url}/v1/responses").status_code == 405


def test_an_answer_goes_on_at_another_endpoint(
    serve_function: Callable[[str], str],
    served_fakes: tuple[Fakes, dict[str, str]],
    fakes: Fakes,
    api_keys: None,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """One response, with one message, whoever wrote it."""
    rows = "".join(
        f"""
[[endpoints]]
name = "{name}"
provider = "{name}"
url = "{served_fakes[1][variable]}"
price_input_usd_micros_per_mtok = 0
price_output_usd_micros_per_mtok = 0
models = ["tiny"]
capabilities = ["chat", "prefill"]
"""
        for name, variable in (("openai", "OPENAI_BASE_URL"), ("llamacpp", "LLAMACPP_URL"))
    )
    config = tmp_path / "goblin.toml"
    config.write_text(f'[routing]\nstrategy = "failover"\n{rows}')
    monkeypatch.setenv("GOBLIN_CONFIG", str(config))
    url = serve_function("gateway")
    fakes.openai.script = Script(break_after=2)
    fakes.llamacpp.script = Script(words=[" there"])
    said = events(post(url, {"input": "Hi", "stream": True}))
    final = said[-1]["response"]
    assert (said[-1]["type"], final["status"]) == ("response.completed", "completed")
    (message,) = final["output"]
    assert message["content"][0]["text"] == "Hello there"
    assert fakes.llamacpp.asked[-1]["messages"][-1] == {"role": "assistant", "content": "Hello"}


class TestCodexModels:
    def test_the_list_has_both_shapes(self, url: str) -> None:
        plain = httpx.get(f"{url}/v1/models", headers=AUTHORIZED, timeout=20).json()
        assert set(plain) == {"object", "data"}
        both = httpx.get(f"{url}/v1/models?client_version=0.171.0", headers=AUTHORIZED, timeout=20).json()
        assert both["data"] == plain["data"]
        # The context of this endpoint is not declared: Codex keeps its own idea of the model.
        assert both["models"] == []
