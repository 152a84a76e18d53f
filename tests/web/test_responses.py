"""The Responses wire without a server: how items become messages, and that every answer is a well-formed stream."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from typing import Any

import msgspec
import pytest
from hypothesis import event as noted
from hypothesis import given
from hypothesis import strategies as st
from msgspec import UNSET

from goblin.core.endpoints import Endpoint, Price
from goblin.core.errors import GoblinError, StreamCut
from goblin.gateway.domain.chat import ChatChunk, ChunkChoice, Delta, FunctionDelta, ToolCallDelta, Usage
from goblin.gateway.policy.passed_fields import passed_fields
from goblin.gateway.router import ServedModel
from goblin.providers.common.responses_codec import read_event
from goblin.web import codex_models, responses_events, responses_items, responses_requests
from goblin.web.recent_items import RecentItems

NOW = datetime(2026, 12, 1, tzinfo=UTC)
PNG = "data:image/png;base64,iVBORw0KGgo="
IMAGE = {"type": "image_url", "image_url": {"url": PNG}}
USER = {"role": "user", "content": "Hi"}
CALL = {"type": "function_call", "call_id": "c1", "name": "add", "arguments": "{}"}
RESULT = {"type": "function_call_output", "call_id": "c1", "output": "2"}
CALLED = {"id": "c1", "type": "function", "function": {"name": "add", "arguments": "{}"}}
HEARD = {"role": "tool", "tool_call_id": "c1", "content": "2"}


def parse(**fields: Any) -> responses_requests.Asked:
    body = {"model": "m", "input": "Hi", **fields}
    return responses_requests.parse(json.dumps(body).encode(), lambda item_id: None)


def messages(items: Any, **fields: Any) -> Any:
    return parse(input=items, **fields).chat.body["messages"]


@pytest.mark.parametrize(
    ("items", "expected"),
    [
        ("Hi", [USER]),
        ([USER], [USER]),
        ([{"type": "message", "id": "msg_1", "status": None, **USER}], [USER]),
        ([{"role": "user", "content": [{"type": "input_text", "text": "Hi"}]}], [USER]),
        # Blocks of text alone are one text, which every server takes.
        (
            [{"role": "user", "content": [{"type": "input_text", "text": "a"}, {"type": "text", "text": "b"}]}],
            [{"role": "user", "content": "a\n\nb"}],
        ),
        # System messages at the beginning are one; a later one keeps its place.
        (
            [{"role": "developer", "content": "a"}, {"role": "system", "content": "b"}, USER],
            [{"role": "system", "content": "a\n\nb"}, USER],
        ),
        (
            [USER, {"role": "developer", "content": [{"type": "input_text", "text": "b"}]}],
            [USER, {"role": "system", "content": "b"}],
        ),
        ([USER, {"role": "assistant", "content": "Ho"}], [USER, {"role": "assistant", "content": "Ho"}]),
        (
            [
                {
                    "role": "assistant",
                    "content": [{"type": "output_text", "text": "Ho"}, {"type": "refusal", "refusal": "!"}],
                }
            ],
            [{"role": "assistant", "content": "Ho!"}],
        ),
        # Images and files stay parts.
        (
            [{"role": "user", "content": [{"type": "input_image", "image_url": PNG, "detail": "low"}]}],
            [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": PNG, "detail": "low"}}]}],
        ),
        (
            [{"role": "user", "content": [{"type": "input_file", "filename": "a.pdf", "file_data": "data:x"}]}],
            [{"role": "user", "content": [{"type": "file", "file": {"filename": "a.pdf", "file_data": "data:x"}}]}],
        ),
        # A call, its text and its thoughts are one message.
        (
            [{"type": "reasoning", "summary": [{"type": "summary_text", "text": "Hm"}]}, CALL, RESULT],
            [{"role": "assistant", "content": None, "reasoning_content": "Hm", "tool_calls": [CALLED]}, HEARD],
        ),
        (
            [{"type": "reasoning", "summary": [], "content": [{"type": "reasoning_text", "text": "Hm"}]}, CALL, RESULT],
            [{"role": "assistant", "content": None, "reasoning_content": "Hm", "tool_calls": [CALLED]}, HEARD],
        ),
        (
            [CALL, {"role": "assistant", "content": "Wait."}, RESULT],
            [{"role": "assistant", "content": "Wait.", "tool_calls": [CALLED]}, HEARD],
        ),
        # What others sealed says nothing here, and thoughts alone are no message.
        ([USER, {"type": "reasoning", "id": "rs_1", "summary": [], "encrypted_content": "gAAAAB"}], [USER]),
        # A result belongs after its call, wherever it stands.
        (
            [CALL, USER, RESULT],
            [{"role": "assistant", "content": None, "tool_calls": [CALLED]}, HEARD, USER],
        ),
        # What a tool message cannot hold comes after it, in the user's name.
        (
            [
                CALL,
                {**RESULT, "output": [{"type": "input_text", "text": "2"}, {"type": "input_image", "image_url": PNG}]},
            ],
            [
                {"role": "assistant", "content": None, "tool_calls": [CALLED]},
                HEARD,
                {"role": "user", "content": [IMAGE]},
            ],
        ),
        # Arguments may come parsed, and the same id may be used in two turns.
        (
            [{**CALL, "arguments": {"a": 1}}, RESULT, CALL, {**RESULT, "output": "3"}],
            [
                {
                    "role": "assistant",
                    "content": None,
                    "tool_calls": [{**CALLED, "function": {"name": "add", "arguments": '{"a":1}'}}],
                },
                HEARD,
                {"role": "assistant", "content": None, "tool_calls": [CALLED]},
                {**HEARD, "content": "3"},
            ],
        ),
        # Items of unknown kinds, and thoughts that are not there any more, are skipped.
        ([USER, {"type": "web_search_call", "id": "ws_1"}, {"type": "item_reference", "id": "rs_1"}], [USER]),
    ],
)
def test_items_become_messages(items: Any, expected: Any) -> None:
    assert messages(items) == expected


SAID = {"type": "output_text", "text": "I will.", "annotations": [], "logprobs": []}
SHAPES: dict[str, list[dict[str, Any]]] = {
    "Codex CLI 0.171": [
        {"type": "message", "id": "msg_1", "role": "user", "content": [{"type": "input_text", "text": "Hi"}]},
        {
            "type": "reasoning",
            "id": "rs_1",
            "summary": [{"type": "summary_text", "text": "Hm"}],
            "content": None,
            "encrypted_content": responses_items.sealed("Hm"),
        },
        {"type": "message", "id": "msg_2", "role": "assistant", "status": "completed", "content": [SAID]},
        {**CALL, "id": "fc_1", "status": "completed"},
        {**RESULT, "id": "fco_1"},
    ],
    "openai-agents 0.24": [
        USER,
        {
            "id": "rs_1",
            "type": "reasoning",
            "summary": [],
            "content": [{"type": "reasoning_text", "text": "Hm"}],
            "encrypted_content": responses_items.sealed("Hm"),
            "status": "completed",
        },
        {"id": "msg_2", "type": "message", "role": "assistant", "status": "completed", "content": [SAID]},
        {**CALL, "id": "fc_1", "status": "completed"},
        RESULT,
    ],
    "langchain-openai 1.7": [
        {"type": "message", **USER},
        {
            "id": "rs_1",
            "type": "reasoning",
            "summary": [],
            "content": [{"type": "reasoning_text", "text": "Hm"}],
            "status": "completed",
        },
        {"type": "message", "role": "assistant", "content": [SAID], "id": "msg_2"},
        {**CALL, "id": "fc_1", "status": "completed"},
        RESULT,
    ],
    "pydantic-ai 2.68": [
        USER,
        {
            "type": "reasoning",
            "id": "rs_1",
            "summary": [{"type": "summary_text", "text": "Hm"}],
            "encrypted_content": None,
            "content": [],
        },
        {"role": "assistant", "content": "I will."},
        CALL,
        RESULT,
    ],
    "AI SDK 6.0, store: false": [
        {"role": "user", "content": [{"type": "input_text", "text": "Hi"}]},
        {"type": "reasoning", "id": "rs_1", "encrypted_content": responses_items.sealed("Hm"), "summary": []},
        {"role": "assistant", "content": [{"type": "output_text", "text": "I will."}], "id": "msg_2"},
        CALL,
        RESULT,
    ],
}


@pytest.mark.parametrize("client", SHAPES)
def test_the_second_step_as_programs_send_it(client: str) -> None:
    said = {"role": "assistant", "content": "I will.", "reasoning_content": "Hm", "tool_calls": [CALLED]}
    assert messages(SHAPES[client]) == [USER, said, HEARD]


def test_instructions_come_first() -> None:
    assert messages("Hi", instructions="Be brief.") == [{"role": "system", "content": "Be brief."}, USER]
    said = [{"role": "developer", "content": "b"}, USER]
    assert messages(said, instructions="a") == [{"role": "system", "content": "a\n\nb"}, USER]
    assert messages("Hi", instructions=[{"role": "developer", "content": "a"}])[0]["content"] == "a"


@pytest.mark.parametrize(
    ("fields", "param", "words"),
    [
        ({"input": None}, "input", "input"),
        ({"input": []}, "input", "no message"),
        ({"model": ""}, "model", "model"),
        ({"max_output_tokens": 0}, "max_output_tokens", "max_output_tokens"),
        ({"temperature": 3}, "temperature", "temperature"),
        ({"metadata": {"a": 1}}, "metadata[]", "metadata"),
        ({"input": [{"role": "robot", "content": "x"}]}, "input[0].role", "robot"),
        ({"input": [USER, {"type": "function_call", "name": "x"}]}, "input[1].call_id", "call_id"),
        ({"input": [{"role": "user", "content": [{"type": "smell"}]}]}, "input[0].content[0]", "smell"),
        ({"input": [{"role": "user", "content": [{"type": "input_image", "file_id": "file-1"}]}]}, None, "file-1"),
        ({"input": [{"role": "system", "content": [{"type": "input_image", "image_url": PNG}]}]}, "input[0]", "images"),
        ({"input": [USER, RESULT]}, "input", "No tool call found for function call output with call_id c1."),
        ({"input": [USER, CALL]}, "input", "No tool output found for function call c1."),
        ({"input": [{"id": "msg_1"}]}, "input", "Item with id 'msg_1' not found."),
        ({"tools": [{"type": "function"}]}, "tools[0].name", "tools[0].name"),
        ({"tools": [], "tool_choice": {"type": "function", "name": "x"}}, "tool_choice", "not found in 'tools'"),
        ({"tool_choice": "perhaps"}, "tool_choice", "tool_choice"),
        ({"text": {"format": {"type": "grammar"}}}, "text.format.type", "text.format.type"),
        ({"previous_response_id": "resp_1"}, "previous_response_id", "Previous response with id 'resp_1' not found."),
        ({"conversation": {"id": "conv_1"}}, "conversation", "Conversation with id 'conv_1' not found."),
        ({"prompt": {"id": "pmpt_1"}}, "prompt", "Prompt with id 'pmpt_1' not found."),
        ({"goblin": {"strategy": "cheapest"}}, "goblin.strategy", "cheapest"),
    ],
)
def test_what_is_wrong_is_named(fields: dict[str, Any], param: str | None, words: str) -> None:
    with pytest.raises(GoblinError) as caught:
        parse(**fields)
    assert words in caught.value.message
    assert param is None or caught.value.param == param
    assert caught.value.status in (400, 404)


ADD = {"type": "function", "name": "add", "parameters": {"type": "object"}}
NOW_TOOL = {"type": "function", "function": {"name": "now"}}


@pytest.mark.parametrize(
    ("choice", "expected", "names"),
    [
        (None, None, ["add", "now"]),
        ("auto", "auto", ["add", "now"]),
        ("none", "none", ["add", "now"]),
        ("required", "required", ["add", "now"]),
        ({"type": "function", "name": "add"}, {"type": "function", "function": {"name": "add"}}, ["add", "now"]),
        ({"type": "web_search"}, None, ["add", "now"]),
        # No chat wire enforces a list of allowed tools: the others are not even sent.
        (
            {"type": "allowed_tools", "mode": "required", "tools": [{"type": "function", "name": "now"}]},
            "required",
            ["now"],
        ),
        ({"type": "allowed_tools", "mode": "auto", "tools": [{"type": "function", "name": "add"}]}, "auto", ["add"]),
    ],
)
def test_the_choice_of_a_tool(choice: Any, expected: Any, names: list[str]) -> None:
    chat = parse(tools=[ADD, NOW_TOOL], tool_choice=choice).chat
    assert chat.tool_choice == expected
    assert [tool["function"]["name"] for tool in chat.tools or ()] == names


def test_a_choice_without_tools_is_no_choice() -> None:
    asked = parse(tools=[{"type": "web_search"}], tool_choice="required", parallel_tool_calls=True)
    assert asked.chat.body["tools"] == [{"type": "web_search"}]
    assert not {"tool_choice", "parallel_tool_calls"} & set(asked.chat.body)
    assert asked.chat.left_out == ("tool_choice",)
    assert asked.echo["tool_choice"] == "auto"


WORDS = (
    "type role content text id call_id name output arguments tools function message reasoning user assistant custom c1"
    " function_call function_call_output input_text input_image image_url allowed_tools item_reference namespace"
)
words = st.sampled_from(WORDS.split())
anything = st.recursive(
    st.none() | st.booleans() | st.integers(-3, 3) | words,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(words, inner, max_size=5),
    max_leaves=25,
)
kinds = st.sampled_from([*responses_items.ITEMS, "custom", "function", "namespace", "item_reference", ["odd"], None])
objects = st.builds(
    lambda more, kind: {"role": "user", "call_id": "c1", "name": "c1", "output": "x"} | more | {"type": kind},
    st.dictionaries(words, anything, max_size=3),
    kinds,
)
bodies = st.fixed_dictionaries(
    {"input": st.lists(objects, max_size=4)},
    optional={
        "tools": st.lists(objects, max_size=3),
        "tool_choice": st.sampled_from(["auto", "required"]) | objects | anything,
        "reasoning": st.dictionaries(st.sampled_from(["effort", "summary", "mode"]), words),
        "service_tier": words,
        "odd": anything,
    },
)


@given(bodies)
def test_any_request_is_read_or_refused(fields: dict[str, Any]) -> None:
    """Never an error of ours, neither here nor where it is decided what an endpoint is sent."""
    try:
        asked = parse(**fields)
    except GoblinError as error:
        noted(type(error).__name__)
        return
    noted("read")
    for price in (Price(input_usd_micros_per_mtok=1, output_usd_micros_per_mtok=1), None):
        for speaks in ("yes", "no"):
            endpoint = Endpoint(name="e", provider="openai", url="http://x", price=price, options={"responses": speaks})
            passed_fields(asked.chat, endpoint)


@given(st.text())
def test_thoughts_survive_their_seal(thoughts: str) -> None:
    assert responses_items.unsealed(responses_items.sealed(thoughts)) == thoughts


@pytest.mark.parametrize("content", [None, "", "gAAAAB", "goblin:%", "goblin:/w==", "goblin:YQ=\n="])
def test_what_is_no_seal_of_ours_says_nothing(content: str | None) -> None:
    assert responses_items.unsealed(content) is None


maybe_text = st.sampled_from([UNSET, None, "", "a", "Ü🌍", "</think>"])
pieces = st.builds(
    ToolCallDelta,
    index=st.integers(0, 2),
    id=st.sampled_from([UNSET, None, "c1", "c2"]),
    function=st.one_of(
        st.just(UNSET),
        st.builds(
            FunctionDelta,
            name=st.sampled_from([UNSET, None, "", "add", "patch"]),
            arguments=st.sampled_from([UNSET, None, "", "{", '"input"', ":1}", "x"]),
        ),
    ),
)
deltas = st.builds(
    Delta,
    content=maybe_text,
    refusal=maybe_text,
    reasoning_content=maybe_text,
    reasoning=maybe_text,
    tool_calls=st.one_of(st.just(UNSET), st.none(), st.lists(pieces, max_size=3).map(tuple)),
)
choices = st.builds(
    ChunkChoice,
    index=st.sampled_from([0, 0, 0, 1]),
    delta=deltas,
    finish_reason=st.sampled_from([None, None, None, "stop", "length", "tool_calls", "content_filter", "odd"]),
    logprobs=st.sampled_from([None, {"content": None}, {"content": [{"token": "a", "logprob": -1.0}]}]),
)
usages = st.sampled_from([UNSET, None, Usage(prompt_tokens=3, completion_tokens=2)])
answers = st.lists(
    st.builds(
        ChatChunk,
        id=st.sampled_from(["", "chatcmpl-ab"]),
        choices=st.lists(choices, max_size=2).map(tuple),
        usage=usages,
    ),
    max_size=12,
)

DONE = {
    "response.output_text": ("text", "delta"),
    "response.refusal": ("refusal", "delta"),
    "response.reasoning_text": ("text", "delta"),
    "response.reasoning_summary_text": ("text", "delta"),
    "response.function_call_arguments": ("arguments", "delta"),
    "response.custom_tool_call_input": ("input", "delta"),
}


@given(answers, st.booleans(), st.booleans())
def test_every_answer_is_a_well_formed_stream(chunks: list[ChatChunk], breaks: bool, summarizes: bool) -> None:
    """Whatever comes: numbered without gaps, opened before written, and ended once; the end has all that was said."""
    fields = {"reasoning": {"summary": "auto"}} if summarizes else {}
    asked = parse(tools=[ADD, {"type": "custom", "name": "patch"}], **fields)
    writer = responses_events.ResponseWriter(asked, now=lambda: NOW)
    events = [event for chunk in chunks for event in writer.write(chunk)]
    events += writer.fail(StreamCut("It broke off.")) if breaks else writer.end()
    events = json.loads(msgspec.json.encode(events))

    assert [event["sequence_number"] for event in events] == list(range(len(events)))
    kinds = [event["type"] for event in events]
    assert kinds[:2] == ["response.created", "response.in_progress"]
    ends = {"response.completed", "response.incomplete", "response.failed"}
    assert [kind for kind in kinds if kind in ends] == [kinds[-1]]
    assert (kinds[-1] == "response.failed") == breaks == ("error" in kinds)
    final = events[-1]["response"]

    added: dict[int, dict[str, Any]] = {}
    open_parts: dict[str, str] = {}
    written: dict[tuple[str, str], str] = {}
    done: dict[int, dict[str, Any]] = {}
    for event in events:
        kind = event["type"]
        stream, _, step = kind.rpartition(".")
        if kind == "response.output_item.added":
            assert event["output_index"] == len(added)
            added[event["output_index"]] = event["item"]
            assert event["item"]["status"] == "in_progress"
        elif kind == "response.output_item.done":
            assert event["output_index"] not in done
            assert event["item"]["id"] not in open_parts
            done[event["output_index"]] = event["item"]
        elif "item_id" in event:
            item = added[event["output_index"]]
            assert item["id"] == event["item_id"]
            assert event["output_index"] not in done
            if step == "added":
                open_parts[event["item_id"]] = event["part"]["type"]
            elif stream in DONE and step == "delta":
                assert event["delta"]
                key = (event["item_id"], stream)
                written[key] = written.get(key, "") + event["delta"]
            elif stream in DONE:
                assert event[DONE[stream][0]] == written.get((event["item_id"], stream), "")
            else:
                assert open_parts.pop(event["item_id"]) == event["part"]["type"]

    ids = [item["id"] for item in added.values()]
    assert [item["id"] for item in final["output"]] == ids
    assert len(set(ids)) == len(ids)
    assert all(len(named) <= 64 for named in ids)
    if not breaks:
        assert final["output"] == [done[index] for index in sorted(added)]
        assert not open_parts
        statuses = [item["status"] for item in final["output"]]
        assert set(statuses[:-1]) <= {"completed"}
        assert statuses[-1:] in ([], ["completed" if final["status"] == "completed" else "incomplete"])
    said = [choice.delta for chunk in chunks for choice in chunk.choices if choice.index == 0]
    shown = [part for item in final["output"] if item["type"] == "message" for part in item["content"]]
    assert "".join(part.get("text", "") for part in shown) == "".join(delta.content or "" for delta in said)
    assert "".join(part.get("refusal", "") for part in shown) == "".join(delta.refusal or "" for delta in said)


def test_recent_items_are_bounded_and_each_owners_own() -> None:
    items = RecentItems(bytes_max=100)
    for number in range(10):
        items.keep("a", [{"id": f"msg_{number}", "text": "x" * 20}])
    assert items.find("a", "msg_0") is None
    assert items.find("a", "msg_9") == {"id": "msg_9", "text": "x" * 20}
    assert items.find("b", "msg_9") is None
    items.keep("a", [{"id": "msg_big", "text": "x" * 200}])
    assert items.find("a", "msg_big") is None


def test_codex_learns_only_of_models_whose_context_is_known() -> None:
    models = [
        ServedModel(id="a", endpoints=("x",)),
        ServedModel(id="b", endpoints=("x",), context_tokens=32768, sees=True),
        ServedModel(id="c", endpoints=("x",), context_tokens=8192),
    ]
    listed = codex_models.model_list(models)
    assert [(m["slug"], m["context_window"], m["input_modalities"]) for m in listed] == [
        ("b", 32768, ["text", "image"]),
        ("c", 8192, ["text"]),
    ]
    # Codex refuses the whole list if one of these is missing.
    required = (
        "slug display_name supported_reasoning_levels shell_type visibility supported_in_api priority base_instructions"
        " support_verbosity truncation_policy supports_parallel_tool_calls experimental_supported_tools"
    )
    assert set(required.split()) <= set(listed[0])


event_kinds = st.sampled_from(
    [
        "response.created",
        "response.in_progress",
        "response.output_item.added",
        "response.output_item.done",
        "response.output_text.delta",
        "response.function_call_arguments.delta",
        "response.reasoning_summary_text.delta",
        "response.web_search_call.searching",
        "keepalive",
    ]
)
native_events = st.builds(
    lambda kind, more: {**more, "type": kind},
    event_kinds,
    st.fixed_dictionaries(
        {},
        optional={
            "delta": anything,
            "item": st.dictionaries(st.sampled_from(["id", "type", "name", "call_id", "content"]), anything),
            "output_index": anything,
            "response": st.dictionaries(st.sampled_from(["id", "output", "usage", "model", "store"]), anything),
            "sequence_number": anything,
        },
    ),
)


@given(st.lists(native_events, max_size=8), st.booleans(), st.dictionaries(words, anything))
def test_an_endpoints_own_events_stay_well_formed(
    received: list[dict[str, Any]], breaks: bool, last: dict[str, Any]
) -> None:
    """Whatever an endpoint of this wire sends: what it says is kept, and our promises hold."""
    writer = responses_events.ResponseWriter(parse(), now=lambda: NOW)
    chunks = [read_event(one, called=False) for one in received]
    if not breaks:
        chunks.append(read_event({"type": "response.completed", "response": last}, called=False))
    written = [event for chunk in chunks for event in writer.write(chunk)]
    passed = len(written)
    written += writer.fail(StreamCut("It broke off.")) if breaks else writer.end()
    assert passed == len(received)
    assert [event["sequence_number"] for event in written] == list(range(len(written)))
    ends = [event for event in written if event["type"] in ("response.completed", "response.failed")]
    assert ends == written[-1:]
    if breaks:
        assert ends[0]["response"]["status"] == "failed"
    else:
        assert ends[0]["response"] == {**last, "model": "m", "store": False}
