"""Chat over the Messages wire: what the API's rules make of a request, and its events of an answer."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Iterator
from typing import Any

import httpx
import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from goblin.core.endpoints import Endpoint
from goblin.core.errors import Fault, InvalidRequest, ProviderUnavailable
from goblin.gateway.domain import requests
from goblin.gateway.domain.chat import ChatChunk, Usage
from goblin.gateway.ports import ChatProvider
from goblin.providers.anthropic.codec import messages_body
from goblin.wiring import endpoints
from tests.fakes.anthropic import NEW, OLD, FakeAnthropic, check
from tests.fakes.openai_like import Call, Script
from tests.fakes.serving import serve

FAKE = FakeAnthropic()
PNG = "data:image/png;base64,iVBORw0KGgo="
ADD = {"type": "function", "function": {"name": "add", "description": "Adds.", "parameters": {"type": "object"}}}
SCHEMA = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    with serve(FAKE.app) as base:
        yield base


@pytest.fixture
def fake() -> FakeAnthropic:
    FAKE.__dict__.update(FakeAnthropic().__dict__)
    return FAKE


@pytest.fixture
async def provider(fake: FakeAnthropic, url: str) -> AsyncIterator[ChatProvider]:
    async with httpx.AsyncClient() as client:
        yield endpoints.connect(endpoint(url), client)[1]


def endpoint(url: str = "http://x", **options: str) -> Endpoint:
    return Endpoint(name="claude", provider="anthropic", url=url, api_key="k", options=options)


def asked(**more: Any) -> requests.ChatRequest:
    body = {"model": "tiny", "messages": [{"role": "user", "content": "Hi"}], **more}
    return requests.parse(requests.ChatRequest, json.dumps(body).encode())


def body(version: str = NEW, **more: Any) -> dict[str, Any]:
    made = messages_body(asked(**more), "tiny", endpoint(version=version))
    check(made, version)
    return made


async def answer(provider: ChatProvider, **more: Any) -> list[ChatChunk]:
    return [chunk async for chunk in provider.chat(asked(**more), model="tiny")]


def text(chunks: list[ChatChunk]) -> str:
    return "".join(c.delta.content or "" for chunk in chunks for c in chunk.choices)


def finish(chunks: list[ChatChunk]) -> list[str]:
    return [c.finish_reason for chunk in chunks for c in chunk.choices if c.finish_reason]


_SAID = st.sampled_from(["", " ", "a", " b \n"])
_CALLS = st.lists(
    st.builds(
        lambda call_id: {"id": call_id, "type": "function", "function": {"name": "f", "arguments": "{}"}},
        st.uuids().map(lambda found: f"functions.f:{found}"),
    ),
    max_size=2,
)
_MESSAGES = st.one_of(
    st.builds(
        lambda role, said: {"role": role, "content": said}, st.sampled_from(["system", "user", "assistant"]), _SAID
    ),
    st.builds(lambda said, calls: {"role": "assistant", "content": said, "tool_calls": calls}, _SAID, _CALLS),
    st.builds(lambda said: {"role": "tool", "tool_call_id": "c", "content": said}, _SAID),
)


class TestRequests:
    def test_the_systems_words_stand_beside_the_turns(self) -> None:
        said = [
            {"role": "system", "content": "Be brief."},
            {"role": "user", "content": "Hi"},
            {"role": "developer", "content": [{"type": "text", "text": "In rhyme."}]},
        ]
        made = body(messages=said)
        assert made["system"] == [{"type": "text", "text": "Be brief."}, {"type": "text", "text": "In rhyme."}]
        assert made["messages"] == [{"role": "user", "content": [{"type": "text", "text": "Hi"}]}]

    def test_a_limit_is_always_sent(self) -> None:
        assert body()["max_tokens"] == 8192
        assert body(max_tokens=5)["max_tokens"] == 5
        assert body(max_tokens=5, max_completion_tokens=6)["max_tokens"] == 6
        assert messages_body(asked(), "tiny", endpoint(max_tokens="100"))["max_tokens"] == 100

    def test_the_new_version_takes_no_sampling_parameters_and_the_old_takes_one(self) -> None:
        warm = {"temperature": 1.7, "top_p": 0.5, "seed": 7, "presence_penalty": 1, "logit_bias": {}}
        assert not {"temperature", "top_p"} & body(**warm).keys()
        old = body(OLD, **warm)
        assert (old["temperature"], "top_p" in old) == (1.0, False)
        assert body(OLD, top_p=0.5)["top_p"] == 0.5

    def test_tools_both_ways_with_results_first_in_their_turn(self) -> None:
        calls = [
            {"id": "c1", "type": "function", "function": {"name": "add", "arguments": '{"a":1}'}},
            {"id": "c2", "type": "function", "function": {"name": "add", "arguments": "not json"}},
        ]
        made = body(
            messages=[
                {"role": "user", "content": "Add"},
                {"role": "assistant", "content": "Well.", "tool_calls": calls},
                {"role": "tool", "tool_call_id": "c1", "content": "2"},
                {"role": "tool", "tool_call_id": "c2", "content": ""},
                {"role": "user", "content": "And?"},
            ],
            tools=[ADD],
            tool_choice="required",
            parallel_tool_calls=False,
        )
        assert made["tools"] == [{"name": "add", "description": "Adds.", "input_schema": {"type": "object"}}]
        assert made["tool_choice"] == {"type": "any", "disable_parallel_tool_use": True}
        said, results = made["messages"][1:]
        assert said["content"] == [
            {"type": "text", "text": "Well."},
            {"type": "tool_use", "id": "c1", "name": "add", "input": {"a": 1}},
            {"type": "tool_use", "id": "c2", "name": "add", "input": {"_": "not json"}},
        ]
        assert results == {
            "role": "user",
            "content": [
                {"type": "tool_result", "tool_use_id": "c1", "content": [{"type": "text", "text": "2"}]},
                {"type": "tool_result", "tool_use_id": "c2"},
                {"type": "text", "text": "And?"},
            ],
        }

    @pytest.mark.parametrize(
        ("choice", "said"),
        [
            ("auto", {"type": "auto"}),
            ("none", {"type": "none"}),
            ("required", {"type": "any"}),
            ({"type": "function", "function": {"name": "add"}}, {"type": "tool", "name": "add"}),
        ],
    )
    def test_choices_of_a_tool(self, choice: Any, said: dict[str, str]) -> None:
        assert body(tools=[ADD], tool_choice=choice)["tool_choice"] == said

    def test_a_tool_without_parameters_has_an_empty_schema(self) -> None:
        made = body(tools=[{"type": "function", "function": {"name": "now", "strict": True}}])
        assert made["tools"] == [{"name": "now", "input_schema": {"type": "object", "properties": {}}, "strict": True}]

    def test_images_and_documents(self) -> None:
        pdf = {"type": "file", "file": {"filename": "a.pdf", "file_data": "data:application/pdf;base64,JVBE"}}
        parts = [
            {"type": "text", "text": "What?"},
            {"type": "image_url", "image_url": {"url": PNG}},
            {"type": "image_url", "image_url": {"url": "https://host/a.png"}},
            pdf,
        ]
        (turn,) = body(messages=[{"role": "user", "content": parts}])["messages"]
        png = {"type": "base64", "media_type": "image/png", "data": "iVBORw0KGgo="}
        assert turn["content"][1:] == [
            {"type": "image", "source": png},
            {"type": "image", "source": {"type": "url", "url": "https://host/a.png"}},
            {"type": "document", "source": {"type": "base64", "media_type": "application/pdf", "data": "JVBE"}},
        ]

    def test_a_schema_is_enforced_by_a_tool_that_must_be_called(self) -> None:
        wanted = {"type": "json_schema", "json_schema": {"name": "place", "schema": SCHEMA}}
        made = body(response_format=wanted)
        (tool,) = made["tools"]
        assert (tool["name"], tool["input_schema"]) == ("answer", SCHEMA)
        assert made["tool_choice"] == {"type": "tool", "name": "answer", "disable_parallel_tool_use": True}

    @pytest.mark.parametrize(
        "more",
        [
            {"response_format": {"type": "json_schema", "json_schema": {"schema": SCHEMA}}, "tools": [ADD]},
            {"response_format": {"type": "json_schema", "json_schema": {"schema": {"type": "array"}}}},
            {"tools": [ADD], "tool_choice": {"type": "allowed_tools"}},
        ],
    )
    def test_what_another_endpoint_might_do_is_left_to_it(self, more: dict[str, Any]) -> None:
        with pytest.raises(ProviderUnavailable) as caught:
            body(**more)
        assert caught.value.fault is Fault.UNSUPPORTED

    @pytest.mark.parametrize(
        "content",
        [
            [{"type": "input_audio", "input_audio": {"data": "", "format": "wav"}}],
            [{"type": "file", "file": {"file_id": "f"}}],
            [{"type": "file", "file": {"file_data": "data:text/csv;base64,YQ=="}}],
            [{"type": "image_url", "image_url": {"url": "data:image/png,raw"}}],
        ],
    )
    def test_what_cannot_be_said_is_the_callers_to_mend(self, content: Any) -> None:
        with pytest.raises(InvalidRequest):
            body(messages=[{"role": "user", "content": content}])

    def test_empty_words_are_left_out(self) -> None:
        made = body(messages=[{"role": "user", "content": ""}, {"role": "user", "content": "Hi"}])
        assert made["messages"] == [{"role": "user", "content": [{"type": "text", "text": "Hi"}]}]

    def test_a_conversation_begins_with_the_user_and_is_never_empty(self) -> None:
        for said in ([{"role": "system", "content": "Greet."}], [{"role": "user", "content": " \n"}]):
            (turn,) = body(messages=said)["messages"]
            assert turn["role"] == "user"
        made = body(messages=[{"role": "assistant", "content": "Hello! "}])["messages"]
        assert [turn["role"] for turn in made] == ["user", "assistant"]
        assert made[-1]["content"] == [{"type": "text", "text": "Hello!"}]

    def test_each_call_has_its_result_and_each_result_its_call(self) -> None:
        call = {"id": "functions.add:0", "type": "function", "function": {"name": "add", "arguments": "{}"}}
        made = body(
            messages=[
                {"role": "user", "content": "Add"},
                {"role": "tool", "tool_call_id": "gone", "content": "old"},
                {"role": "assistant", "content": None, "tool_calls": [call, {**call, "id": "c2"}]},
                {"role": "user", "content": "Wait."},
                {"role": "tool", "tool_call_id": "c2", "content": "2"},
                {"role": "assistant", "content": "So."},
            ]
        )["messages"]
        assert [turn["role"] for turn in made] == ["user", "assistant", "user", "assistant"]
        assert [block["type"] for block in made[0]["content"]] == ["text", "text", "text"]
        assert [block["type"] for block in made[2]["content"]] == ["tool_result", "tool_result", "text"]
        assert {b["tool_use_id"] for b in made[2]["content"][:2]} == {b["id"] for b in made[1]["content"]}

    @pytest.mark.parametrize(
        ("schema", "sent"),
        [
            ({}, {"type": "object", "properties": {}}),
            ({"properties": {"a": {}}}, {"type": "object", "properties": {"a": {}}}),
            ({"type": None}, {"type": "object"}),
            (
                {
                    "anyOf": [{"properties": {"a": {}}, "required": ["a"]}, {"properties": {"b": {}}}],
                    "description": "x",
                },
                {"type": "object", "properties": {"a": {}, "b": {}}, "description": "x"},
            ),
        ],
    )
    def test_a_tools_schema_is_an_objects(self, schema: Any, sent: Any) -> None:
        made = body(tools=[{"type": "function", "function": {"name": "a", "parameters": schema}}])
        assert made["tools"][0]["input_schema"] == sent

    def test_what_is_wider_at_openai_is_narrowed(self) -> None:
        made = body(user="u" * 300, stop=["\n", "END", " "])
        assert len(made["metadata"]["user_id"]) == 64
        assert made["stop_sequences"] == ["END"]

    @given(st.lists(_MESSAGES, min_size=1, max_size=8))
    def test_whatever_was_said_the_api_takes_it(self, messages: list[dict[str, Any]]) -> None:
        body(messages=messages)

    def test_stops_user_and_thinking(self) -> None:
        thinking = {"type": "enabled", "budget_tokens": 1024}
        made = body(stop="END", user="u1", thinking=thinking)
        assert made["stop_sequences"] == ["END"]
        assert made["metadata"] == {"user_id": "u1"}
        assert made["thinking"] == thinking


class TestAnswers:
    async def test_the_key_and_version_are_sent_as_the_api_wants_them(
        self, fake: FakeAnthropic, provider: ChatProvider
    ) -> None:
        fake.api_key = "k"
        await answer(provider)
        (sent,) = fake.headers
        assert (sent["x-api-key"], sent["anthropic-version"]) == ("k", NEW)
        assert "authorization" not in sent

    async def test_cached_tokens_are_part_of_the_prompt(self, fake: FakeAnthropic, provider: ChatProvider) -> None:
        fake.cached = (6, 2)
        chunks = await answer(provider)
        (usage,) = [chunk.usage for chunk in chunks if isinstance(chunk.usage, Usage)]
        assert (usage.prompt_tokens, usage.completion_tokens, usage.total_tokens) == (11, 5, 16)
        assert usage.prompt_tokens_details == {"cached_tokens": 6, "cache_creation_tokens": 2}

    async def test_thoughts_come_as_reasoning(self, fake: FakeAnthropic, provider: ChatProvider) -> None:
        fake.thinking = ["Hm", "m."]
        chunks = await answer(provider)
        thoughts = [c.delta.reasoning_content for chunk in chunks for c in chunk.choices]
        assert [thought for thought in thoughts if thought] == ["Hm", "m."]
        assert text(chunks) == "Hello, Wörld 🌍"

    async def test_the_answer_tools_arguments_are_the_answer(self, fake: FakeAnthropic, provider: ChatProvider) -> None:
        fake.script = Script(words=["Sure: "], calls=[Call("c1", "answer", ['{"city"', ': "Ulm"}'])])
        wanted = {"type": "json_schema", "json_schema": {"name": "place", "schema": SCHEMA}}
        chunks = await answer(provider, response_format=wanted)
        assert json.loads(text(chunks)) == {"city": "Ulm"}
        assert finish(chunks) == ["stop"]
        assert not [c for chunk in chunks for c in chunk.choices if c.delta.tool_calls]

    async def test_a_call_without_arguments_has_empty_ones(self, fake: FakeAnthropic, provider: ChatProvider) -> None:
        fake.script = Script(words=[], calls=[Call("c1", "now", [])])
        chunks = await answer(provider, tools=[ADD])
        said = [msgspec.to_builtins(p) for chunk in chunks for c in chunk.choices for p in c.delta.tool_calls or ()]
        assert said[-1] == {"index": 0, "function": {"arguments": "{}"}}

    @pytest.mark.parametrize(
        ("stop_reason", "finish_reason"),
        [
            ("end_turn", "stop"),
            ("stop_sequence", "stop"),
            ("max_tokens", "length"),
            ("model_context_window_exceeded", "length"),
            ("tool_use", "tool_calls"),
            ("refusal", "content_filter"),
            ("pause_turn", "stop"),
            ("a_new_one", "stop"),
        ],
    )
    async def test_reasons_to_stop(
        self, fake: FakeAnthropic, provider: ChatProvider, stop_reason: str, finish_reason: str
    ) -> None:
        fake.stop_reason = stop_reason
        assert finish(await answer(provider)) == [finish_reason]


class TestFaults:
    @pytest.mark.parametrize(
        ("status", "error", "fault"),
        [
            (400, {"type": "invalid_request_error", "message": "Your credit balance is too low to go on"}, Fault.MONEY),
            (402, {"type": "billing_error", "message": "pay"}, Fault.MONEY),
            (429, {"type": "rate_limit_error", "message": "slow"}, Fault.RATE),
            (429, {"type": "rate_limit_error", "details": {"error_code": "enforced_spend_limit_reached"}}, Fault.MONEY),
            (429, {"type": "rate_limit_error", "details": {"error_code": "contract_spend_limit_reached"}}, Fault.MONEY),
            (429, {"type": "rate_limit_error", "details": {"error_code": "ramp_limit_exceeded"}}, Fault.RATE),
            (529, {"type": "overloaded_error", "message": "Overloaded"}, Fault.CAPACITY),
            (504, {"type": "timeout_error", "message": "late"}, Fault.TRANSIENT),
        ],
    )
    async def test_a_refusal_says_whose_fault_it_is(
        self, fake: FakeAnthropic, provider: ChatProvider, status: int, error: dict[str, Any], fault: Fault
    ) -> None:
        fake.script = Script(status=status, error={"type": "error", "error": error}, headers={"retry-after": "9"})
        with pytest.raises(ProviderUnavailable) as caught:
            await answer(provider)
        assert (caught.value.fault, caught.value.retry_after_s) == (fault, 9.0)

    @pytest.mark.parametrize(
        ("kind", "fault"),
        [("overloaded_error", Fault.CAPACITY), ("api_error", Fault.TRANSIENT), ("rate_limit_error", Fault.RATE)],
    )
    async def test_an_error_under_way(
        self, fake: FakeAnthropic, provider: ChatProvider, kind: str, fault: Fault
    ) -> None:
        fake.stream_error = kind
        fake.script = Script(error_after=2)
        with pytest.raises(ProviderUnavailable) as caught:
            await answer(provider)
        assert caught.value.fault is fault

    async def test_a_prompt_that_is_too_long_is_told_in_openais_words(
        self, fake: FakeAnthropic, provider: ChatProvider
    ) -> None:
        said = {"type": "invalid_request_error", "message": "prompt is too long: 9 tokens > 8 maximum"}
        fake.script = Script(status=400, error={"type": "error", "error": said})
        with pytest.raises(InvalidRequest) as caught:
            await answer(provider)
        assert caught.value.code == "context_length_exceeded"
