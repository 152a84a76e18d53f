"""What Claude Code sends, through the gateway: as it came to Anthropic's API, translated to servers of OpenAI's wire.

The shapes of the requests are those that Claude Code 2.1.197 was seen to send. Both fakes refuse what the real APIs do.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import Any

import anthropic
import httpx
import pytest

from tests.fakes.anthropic import FakeAnthropic, signature_of
from tests.fakes.openai_like import Call, FakeOpenAI, Script
from tests.fakes.serving import serve
from tests.functions.conftest import API_KEY

CLAUDE, GPT = "claude-sonnet-4-6", "gpt-like"
PNG = {"type": "base64", "media_type": "image/png", "data": "iVBORw0KGgo="}
PDF = {"type": "base64", "media_type": "application/pdf", "data": "JVBERi0xLjQ="}
HEADERS = {
    "x-api-key": API_KEY,
    "anthropic-version": "2023-06-01",
    "anthropic-beta": "claude-code-20250219,interleaved-thinking-2025-05-14,context-management-2025-06-27",
    "user-agent": "claude-cli/2.1.197 (external, sdk-cli)",
    "x-app": "cli",
}
WRITE = {
    "name": "Write",
    "description": "Writes a file.",
    "input_schema": {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "type": "object",
        "properties": {"file_path": {"type": "string"}, "content": {"type": "string"}},
        "required": ["file_path", "content"],
        "additionalProperties": False,
    },
}
MARK = {"cache_control": {"type": "ephemeral"}}


def session(model: str, *turns: dict[str, Any], **more: Any) -> dict[str, Any]:
    """A request of a session, with the turns so far."""
    first = [
        {"type": "text", "text": "<system-reminder>\nAgents: none.\n</system-reminder>"},
        {"type": "text", "text": "Write the file.", **({} if turns else MARK)},
    ]
    return {
        "model": model,
        "messages": [{"role": "user", "content": first}, *turns],
        "system": [
            {"type": "text", "text": "x-anthropic-billing-header: cc_version=2.1.197.c04; cc_entrypoint=sdk-cli;"},
            {"type": "text", "text": "You are an agent.", **MARK},
            {"type": "text", "text": "\nYou help with software.", **MARK},
        ],
        "tools": [WRITE],
        "metadata": {"user_id": json.dumps({"device_id": "d" * 64, "account_uuid": "", "session_id": "s" * 36})},
        "max_tokens": 32000,
        "thinking": {"type": "adaptive"},
        "context_management": {"edits": [{"type": "clear_thinking_20251015", "keep": "all"}]},
        "output_config": {"effort": "high"},
        "stream": True,
        **more,
    }


def result(call_id: str, content: Any, **more: Any) -> dict[str, Any]:
    return {"role": "user", "content": [{"tool_use_id": call_id, "type": "tool_result", "content": content, **more}]}


FAKE_CLAUDE, FAKE_GPT = FakeAnthropic(models=[CLAUDE, "tiny"]), FakeOpenAI(models=[GPT])


@pytest.fixture(scope="module")
def upstreams() -> Iterator[dict[str, str]]:
    with ExitStack() as stack:
        yield {
            "ANTHROPIC_BASE_URL": stack.enter_context(serve(FAKE_CLAUDE.app)),
            "ANTHROPIC_API_KEY": "k",
            "OPENAI_BASE_URL": stack.enter_context(serve(FAKE_GPT.app)) + "/v1",
            "OPENAI_API_KEY": "k",
            "OPENAI_BILLS": "no",
        }


@pytest.fixture
def claude() -> FakeAnthropic:
    FAKE_CLAUDE.__dict__.update(FakeAnthropic(models=[CLAUDE]).__dict__)
    return FAKE_CLAUDE


@pytest.fixture
def gpt() -> FakeOpenAI:
    FAKE_GPT.__dict__.update(FakeOpenAI(models=[GPT]).__dict__)
    return FAKE_GPT


@pytest.fixture
def url(
    serve_function: Callable[[str], str],
    upstreams: dict[str, str],
    claude: FakeAnthropic,
    gpt: FakeOpenAI,
    api_keys: None,
    monkeypatch: pytest.MonkeyPatch,
) -> str:
    for name, value in upstreams.items():
        monkeypatch.setenv(name, value)
    return serve_function("gateway")


def post(url: str, body: dict[str, Any], **headers: str) -> httpx.Response:
    return httpx.post(f"{url}/v1/messages?beta=true", json=body, headers=HEADERS | headers, timeout=20)


def events(response: httpx.Response) -> list[dict[str, Any]]:
    assert response.status_code == 200, response.text
    return [json.loads(line.removeprefix("data: ")) for line in response.text.split("\n") if line.startswith("data: ")]


def message(response: httpx.Response) -> dict[str, Any]:
    """The message that a client makes of the events, as Anthropic's SDK does it."""
    whole: dict[str, Any] = {}
    for event in events(response):
        match event:
            case {"type": "message_start", "message": started}:
                whole = started
            case {"type": "content_block_start", "index": index, "content_block": block}:
                assert index == len(whole["content"])
                whole["content"].append({**block, "json": ""} if "input" in block else block)
            case {"type": "content_block_delta", "index": index, "delta": delta}:
                block = whole["content"][index]
                match delta["type"]:
                    case "input_json_delta":
                        block["json"] += delta["partial_json"]
                    case "citations_delta":
                        block.setdefault("citations", []).append(delta["citation"])
                    case "signature_delta":
                        block["signature"] = delta["signature"]
                    case _:
                        name = delta["type"].removesuffix("_delta")
                        block[name] += delta[name]
            case {"type": "message_delta", "delta": delta, "usage": usage}:
                whole |= delta
                whole["usage"] = {**whole["usage"], **usage}
            case {"type": "error"}:
                raise AssertionError(event)
    for block in whole["content"]:
        if "json" in block:
            block["input"] = json.loads(block.pop("json") or "{}")
    return whole


def thought(said: str) -> dict[str, Any]:
    return {"type": "thinking", "thinking": said, "signature": signature_of(said)}


CALL = {"type": "tool_use", "id": "toolu_1", "name": "Write", "input": {"file_path": "/f", "content": "one\n"}}
BLOCKS: list[dict[str, Any]] = [
    thought("First the file."),
    {"type": "redacted_thinking", "data": "c2VjcmV0"},
    {"type": "text", "text": "I write it.", "citations": [{"type": "char_location", "cited_text": "x"}]},
    {"type": "server_tool_use", "id": "srvtoolu_1", "name": "web_search", "input": {"query": "goblins"}},
    {"type": "web_search_tool_result", "tool_use_id": "srvtoolu_1", "content": [{"type": "web_search_result"}]},
    {"type": "block_of_next_year", "anything": {"a": [1]}},
    CALL,
]
USAGE = {
    "input_tokens": 3,
    "cache_creation_input_tokens": 20,
    "cache_read_input_tokens": 30,
    "cache_creation": {"ephemeral_5m_input_tokens": 15, "ephemeral_1h_input_tokens": 5},
    "service_tier": "standard",
    "field_of_next_year": 1,
}


class TestAsItCame:
    """To an endpoint of Anthropic's wire."""

    def test_the_request_and_its_headers_are_not_changed(self, url: str, claude: FakeAnthropic) -> None:
        claude.blocks = [thought("Hm."), CALL]
        body = session(CLAUDE)
        called = message(post(url, body))
        assert claude.asked[-1] == body
        body = session(CLAUDE, {"role": "assistant", "content": called["content"]}, result("toolu_1", "done", **MARK))
        assert post(url, body).status_code == 200
        assert claude.asked[-1] == body
        for name in ("anthropic-version", "anthropic-beta"):
            assert claude.headers[-1][name] == HEADERS[name]
        assert claude.headers[-1]["x-api-key"] == "k"

    @pytest.mark.parametrize("stream", [True, False])
    def test_every_block_comes_back_as_it_was(self, url: str, claude: FakeAnthropic, stream: bool) -> None:
        claude.blocks, claude.usage, claude.stop_reason = BLOCKS, USAGE, "tool_use"
        answer = post(url, session(CLAUDE, stream=stream))
        whole = message(answer) if stream else answer.json()
        assert whole["content"] == BLOCKS
        assert (whole["model"], whole["stop_reason"]) == (CLAUDE, "tool_use")
        assert {name: whole["usage"][name] for name in USAGE} == USAGE
        assert "x-goblin-dropped" not in answer.headers

    def test_the_first_event_has_the_endpoints_own_count(self, url: str, claude: FakeAnthropic) -> None:
        claude.usage = {"input_tokens": 2345}
        assert events(post(url, session(CLAUDE)))[0]["message"]["usage"]["input_tokens"] == 2345

    @pytest.mark.parametrize("stream", [True, False])
    def test_a_stop_sequence_is_reported(self, url: str, claude: FakeAnthropic, stream: bool) -> None:
        claude.stop_reason, claude.stop_sequence = "stop_sequence", "END"
        answer = post(url, session(CLAUDE, stream=stream, stop_sequences=["END"]))
        whole = message(answer) if stream else answer.json()
        assert (whole["stop_reason"], whole["stop_sequence"]) == ("stop_sequence", "END")

    def test_fields_and_blocks_of_next_year_pass_where_nothing_bills(
        self, url: str, claude: FakeAnthropic, gpt: FakeOpenAI
    ) -> None:
        said = {"role": "user", "content": [{"type": "block_of_next_year", "x": 1}, {"type": "text", "text": "Go."}]}
        body = session(CLAUDE, said)
        assert post(url, body).status_code == 200
        assert claude.asked[-1]["messages"] == body["messages"]

    @pytest.mark.parametrize(
        "more",
        [
            {"messages": [{"role": "user", "content": [{"type": "block_of_next_year", "x": 1}]}]},
            {"messages": [{"role": "user", "content": "Hi", "field_of_next_year": {"a": 1}}]},
            {"tools": [{"name": "tool_without_a_schema", "type": None}], "output_config": {"format": {"type": "xml"}}},
            {"tool_choice": {"type": "choice_of_next_year"}},
        ],
    )
    def test_what_has_no_translation_goes_to_those_who_need_none(
        self, url: str, claude: FakeAnthropic, gpt: FakeOpenAI, more: dict[str, Any]
    ) -> None:
        claude.strict = False
        assert post(url, session(CLAUDE, **more)).status_code == 200
        assert claude.asked[-1] == session(CLAUDE, **more)
        if "Hi" not in str(more):
            refused = post(url, session(GPT, **more))
            assert (refused.status_code, refused.json()["error"]["type"]) == (400, "invalid_request_error")
            assert gpt.asked == []

    def test_what_no_price_covers_is_dropped_and_named(self, url: str, claude: FakeAnthropic) -> None:
        tools = [WRITE, {"type": "code_execution_20260120", "name": "code_execution"}]
        more = {"speed": "fast", "container": "c", "inference_geo": "us", "field_of_next_year": 1}
        body = session(CLAUDE, tools=tools, tool_choice={"type": "tool", "name": "code_execution"}, **more)
        answer = post(url, body, **{"anthropic-beta": "fast-mode-2026-02-01,context-management-2025-06-27"})
        assert answer.status_code == 200
        assert answer.headers["x-goblin-dropped"] == (
            "speed, container, inference_geo, field_of_next_year, tools[code_execution_20260120], fast-mode-2026-02-01"
        )
        assert claude.asked[-1] == session(CLAUDE)
        assert claude.headers[-1]["anthropic-beta"] == "context-management-2025-06-27"

    def test_a_search_passes_where_its_price_is_known(self, url: str, claude: FakeAnthropic) -> None:
        search = {"type": "web_search_20250305", "name": "web_search", "max_uses": 8}
        answer = post(url, session(CLAUDE, tools=[search]))
        assert "x-goblin-dropped" not in answer.headers
        assert claude.asked[-1]["tools"] == [search]

    def test_thoughts_of_another_model_and_null_contents_are_mended(self, url: str, claude: FakeAnthropic) -> None:
        foreign = {"type": "thinking", "thinking": "From elsewhere.", "signature": ""}
        turns = [
            {"role": "assistant", "content": [foreign, CALL]},
            result("toolu_1", None),
            {"role": "assistant", "content": None},
            {"role": "user", "content": "Go on."},
        ]
        assert post(url, session(CLAUDE, *turns)).status_code == 200
        sent = claude.asked[-1]["messages"]
        assert sent[1]["content"] == [CALL]
        assert sent[2]["content"] == [{"tool_use_id": "toolu_1", "type": "tool_result"}]
        assert [turn["role"] for turn in sent] == ["user", "assistant", "user", "user"]

    def test_its_refusals_keep_their_words(self, url: str, claude: FakeAnthropic) -> None:
        said = "prompt is too long: 210118 tokens > 200000 maximum"
        error = {"type": "error", "error": {"type": "invalid_request_error", "message": said}}
        claude.script = Script(status=400, error=error)
        answer = post(url, session(CLAUDE))
        assert (answer.status_code, answer.json()["error"]) == (400, error["error"])

    def test_a_pdf_is_paid_for(self, url: str, claude: FakeAnthropic) -> None:
        read = [{"type": "document", "source": PDF}, {"type": "image", "source": PNG}]
        body = session(CLAUDE, {"role": "assistant", "content": [CALL]}, result("toolu_1", read))
        assert post(url, body).status_code == 200
        assert claude.asked[-1] == body

    def test_what_the_cache_saved_is_not_charged(self, url: str, claude: FakeAnthropic) -> None:
        claude.usage = {"input_tokens": 0, "cache_read_input_tokens": 1_000_000, "output_tokens": 5}
        answer = post(url, session(CLAUDE, stream=False))
        assert answer.headers["x-goblin-cost-usd"] == "0.300075"

    @pytest.mark.parametrize("stream", [True, False])
    def test_the_sdk_reads_it_strictly(self, url: str, claude: FakeAnthropic, stream: bool) -> None:
        claude.blocks, claude.stop_reason = [thought("Hm."), {"type": "text", "text": "Yes."}, CALL], "tool_use"
        claude.new_event = False
        with anthropic.Anthropic(
            api_key=API_KEY, base_url=url, max_retries=0, timeout=20, _strict_response_validation=True
        ) as client:
            said: Any = {"model": CLAUDE, "max_tokens": 100, "messages": [{"role": "user", "content": "Hi"}]}
            if stream:
                with client.messages.stream(**said) as streamed:
                    whole: Any = streamed.get_final_message()
            else:
                whole = client.messages.create(**said)
        assert [block.type for block in whole.content] == ["thinking", "text", "tool_use"]
        assert whole.content[0].signature == signature_of("Hm.")
        assert whole.content[2].input == CALL["input"]


class TestTranslated:
    """To a server of OpenAI's wire."""

    def test_a_tool_loop(self, url: str, gpt: FakeOpenAI) -> None:
        gpt.script = Script(
            deltas=[{"reasoning_content": "Hm."}, {"content": "I write it."}],
            calls=[Call("functions.Write:0", "Write", ['{"file_path": "/f", ', '"content": "one"}'])],
        )
        answer = post(url, session(GPT))
        called = message(answer)
        assert [block["type"] for block in called["content"]] == ["thinking", "text", "tool_use"]
        assert called["content"][2]["input"] == {"file_path": "/f", "content": "one"}
        assert called["stop_reason"] == "tool_use"
        assert answer.headers["x-goblin-dropped"] == "thinking, context_management, output_config.effort"
        gpt.script = Script(words=["Done."])
        call_id = called["content"][2]["id"]
        body = session(
            GPT,
            {"role": "assistant", "content": called["content"]},
            result(call_id, "No such folder.", is_error=True, **MARK),
            {"role": "system", "content": "The date has changed."},
        )
        assert message(post(url, body))["content"] == [{"type": "text", "text": "Done."}]
        sent = gpt.asked[-1]
        assert [turn["role"] for turn in sent["messages"]] == ["system", "user", "assistant", "tool", "system"]
        assert sent["messages"][0]["content"] == "You are an agent.\n\n\nYou help with software."
        assert sent["messages"][3]["content"] == "Error: No such folder."
        assert len(sent["user"]) == 64
        assert not {"thinking", "context_management", "output_config", "metadata", "system"} & set(sent)

    def test_an_id_that_the_conversation_has_already_is_not_given_again(self, url: str, gpt: FakeOpenAI) -> None:
        gpt.script = Script(words=[], calls=[Call("toolu_1", "Write", ["{}"]), Call("", "Write", ["{}"])])
        body = session(GPT, {"role": "assistant", "content": [CALL]}, result("toolu_1", "done"))
        ids = [block["id"] for block in message(post(url, body))["content"]]
        assert len({*ids, "toolu_1"}) == 3

    def test_a_long_name_comes_back_whole(self, url: str, gpt: FakeOpenAI) -> None:
        name = "mcp__" + "a" * 100
        assert post(url, session(GPT, tools=[{**WRITE, "name": name}])).status_code == 200
        sent = gpt.asked[-1]["tools"][0]["function"]["name"]
        gpt.script = Script(words=[], calls=[Call("c", sent, ["{}"])])
        whole = message(post(url, session(GPT, tools=[{**WRITE, "name": name}])))
        assert whole["content"][0]["name"] == name

    @pytest.mark.parametrize("stream", [True, False])
    def test_a_stop_sequence_is_reported_where_the_server_tells(self, url: str, gpt: FakeOpenAI, stream: bool) -> None:
        end = {"index": 0, "delta": {}, "finish_reason": "stop", "stop_reason": "END"}
        chunks: list[Any] = [{"choices": [{"index": 0, "delta": {"content": "Hi"}}]}, {"choices": [end]}]
        gpt.script = Script(raw=b"".join(b"data: " + json.dumps(chunk).encode() + b"\n\n" for chunk in chunks))
        answer = post(url, session(GPT, stream=stream, stop_sequences=["END", "\n"]))
        whole = message(answer) if stream else answer.json()
        assert (whole["stop_reason"], whole["stop_sequence"]) == ("stop_sequence", "END")

    def test_the_first_event_has_the_servers_count_where_it_came_first(self, url: str, gpt: FakeOpenAI) -> None:
        usage = {"prompt_tokens": 4321, "completion_tokens": 1, "total_tokens": 4322}
        chunks: list[Any] = [
            {"choices": [{"index": 0, "delta": {"content": "Hi"}}], "usage": usage},
            {"choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}], "usage": usage},
        ]
        gpt.script = Script(raw=b"".join(b"data: " + json.dumps(chunk).encode() + b"\n\n" for chunk in chunks))
        assert events(post(url, session(GPT)))[0]["message"]["usage"]["input_tokens"] == 4321

    def test_a_search_is_skipped_with_a_note(self, url: str, gpt: FakeOpenAI) -> None:
        search = {"type": "web_search_20250305", "name": "web_search", "max_uses": 8}
        answer = post(url, session(GPT, tools=[search], tool_choice={"type": "tool", "name": "web_search"}))
        assert answer.status_code == 200
        assert "tools[web_search_20250305]" in answer.headers["x-goblin-dropped"]
        assert "tools" not in gpt.asked[-1]
        assert "web_search_20250305" in gpt.asked[-1]["messages"][0]["content"]

    def test_a_conversation_that_is_too_long_is_said_so_that_it_is_compacted(self, url: str, gpt: FakeOpenAI) -> None:
        said = "This model's maximum context length is 8192 tokens. However, your messages resulted in 9000 tokens."
        error = {"message": said, "type": "invalid_request_error", "code": "context_length_exceeded"}
        gpt.script = Script(status=400, error={"error": error})
        answer = post(url, session(GPT))
        assert (answer.status_code, answer.json()["error"]) == (
            400,
            {"type": "invalid_request_error", "message": "prompt is too long: 9000 tokens > 8192 maximum"},
        )


class TestBlind:
    """Where no endpoint of the model sees: `goblin.toml` says of llama.cpp that it does not."""

    @pytest.fixture
    def blind(
        self,
        serve_function: Callable[[str], str],
        upstreams: dict[str, str],
        gpt: FakeOpenAI,
        api_keys: None,
        monkeypatch: pytest.MonkeyPatch,
    ) -> str:
        monkeypatch.setenv("LLAMACPP_URL", upstreams["OPENAI_BASE_URL"].removesuffix("/v1"))
        return serve_function("gateway")

    @pytest.mark.parametrize(
        ("blocks", "dropped"),
        [
            ([{"type": "image", "source": PNG}], "images"),
            ([{"type": "document", "source": PDF}], "files"),
            ([{"type": "document", "source": PDF}, {"type": "image", "source": PNG}], "files, images"),
        ],
    )
    def test_the_session_goes_on_and_the_model_knows(
        self, blind: str, gpt: FakeOpenAI, blocks: list[Any], dropped: str
    ) -> None:
        body = session(GPT, {"role": "assistant", "content": [CALL]}, result("toolu_1", blocks))
        answer = post(blind, body)
        assert message(answer)["stop_reason"] == "end_turn"
        assert answer.headers["x-goblin-dropped"].endswith(dropped)
        parts = gpt.asked[-1]["messages"][-1]["content"]
        assert [part["type"] for part in parts] == ["text"] * len(blocks)
        assert f"the model `{GPT}` cannot" in parts[0]["text"]
