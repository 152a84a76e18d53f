"""Ollama's words: what its requests mean in ours, and how answers are written."""

from __future__ import annotations

import base64
import json
from collections.abc import AsyncGenerator
from contextlib import suppress
from datetime import UTC, datetime
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from goblin.core.endpoints import Capability
from goblin.core.errors import InvalidRequest, StreamCut, Unauthenticated
from goblin.gateway.domain.chat import ChatChunk, ChunkChoice, Delta, FunctionDelta, ToolCallDelta, Usage
from goblin.gateway.domain.requests import ChatRequest, CompletionRequest, EmbeddingsRequest
from goblin.gateway.router import ServedModel
from goblin.web import ollama_requests, ollama_responses
from goblin.web.ollama_requests import Asked

HELLO: Any = [{"role": "user", "content": "Hi"}]
PNG = base64.b64encode(b"\x89PNG\r\n\x1a\n0000").decode()
JPEG = base64.b64encode(b"\xff\xd8\xff\xe0000000").decode()


def chat(**more: Any) -> Asked:
    return ollama_requests.parse_chat(json.dumps({"model": "m", "messages": HELLO} | more).encode())


def generate(**more: Any) -> Asked:
    return ollama_requests.parse_generate(json.dumps({"model": "m", "prompt": "Hi"} | more).encode())


def body(asked: Asked) -> dict[str, Any]:
    assert isinstance(asked.request, ChatRequest | CompletionRequest)
    return asked.request.body


@pytest.mark.parametrize(
    ("more", "sent"),
    [
        ({}, {"stream": True}),
        ({"stream": True}, {"stream": True}),
        ({"stream": False}, {"stream": False}),
        ({"format": "json"}, {"response_format": {"type": "json_object"}}),
        ({"format": ""}, {"response_format": None}),
        (
            {"format": {"type": "object"}},
            {
                "response_format": {
                    "type": "json_schema",
                    "json_schema": {"name": "answer", "schema": {"type": "object"}},
                }
            },
        ),
        ({"think": True}, {"reasoning_effort": "medium"}),
        ({"think": False}, {"reasoning_effort": "none"}),
        ({"think": "high"}, {"reasoning_effort": "high"}),
        ({"think": "max"}, {"reasoning_effort": "high"}),
        ({"options": {"num_predict": 7}}, {"max_tokens": 7}),
        ({"options": {"num_predict": -1}}, {"max_tokens": None}),
        ({"options": {"num_predict": -2}}, {"max_tokens": None}),
        (
            {"options": {"temperature": 0.1, "top_p": 0.2, "top_k": 3, "seed": 4, "stop": ["a"], "min_p": 0.1}},
            {"temperature": 0.1, "top_p": 0.2, "top_k": 3, "seed": 4, "stop": ["a"], "min_p": 0.1},
        ),
        ({"options": {"repeat_penalty": 1.1, "stop": "a"}}, {"repeat_penalty": 1.1, "stop": "a"}),
        ({"goblin": {"strategy": "failover"}}, {"goblin": {"strategy": "failover"}}),
        (
            {"tools": [{"type": "function", "function": {"name": "f"}}]},
            {"tools": [{"type": "function", "function": {"name": "f"}}]},
        ),
        ({"tools": [{"function": {"name": "f"}}]}, {"tools": [{"type": "function", "function": {"name": "f"}}]}),
    ],
)
def test_the_fields_of_a_chat(more: dict[str, Any], sent: dict[str, Any]) -> None:
    found = body(chat(**more))
    assert {name: found.get(name) for name in sent} == sent


def test_what_is_about_the_server_is_left_out_and_named() -> None:
    asked = chat(options={"num_ctx": 4096, "num_gpu": 1, "seed": 1}, keep_alive="5m", logprobs=True)
    assert isinstance(asked.request, ChatRequest)
    assert asked.request.left_out == ("options.num_ctx", "options.num_gpu", "keep_alive", "logprobs")
    assert not {"num_ctx", "options", "keep_alive"} & set(asked.request.body)


def test_a_conversation_with_tools_gets_ids() -> None:
    asked = chat(
        messages=[
            *HELLO,
            {"role": "assistant", "content": "", "thinking": "hm", "tool_calls": [
                {"function": {"name": "add", "arguments": {"a": 1}}}, {"function": {"name": "mul", "arguments": {}}},
                {"function": {"name": "add", "arguments": {"a": 2}}},
            ]},
            {"role": "tool", "tool_name": "mul", "content": "0"},
            {"role": "tool", "name": "add", "content": "1"},
            {"role": "tool", "content": "2"},
        ]
    )  # fmt: skip
    turns = body(asked)["messages"]
    calls = turns[1]["tool_calls"]
    assert [json.loads(call["function"]["arguments"]) for call in calls] == [{"a": 1}, {}, {"a": 2}]
    ids = [call["id"] for call in calls]
    assert len(set(ids)) == 3
    assert [turn["tool_call_id"] for turn in turns[2:]] == [ids[1], ids[0], ids[2]]
    assert isinstance(asked.request, ChatRequest)
    assert asked.request.left_out == ("messages.thinking",)


def test_images_by_their_first_bytes() -> None:
    asked = chat(messages=[{"role": "user", "content": "What?", "images": [PNG, JPEG]}])
    parts = body(asked)["messages"][0]["content"]
    assert [part["type"] for part in parts] == ["text", "image_url", "image_url"]
    assert [part["image_url"]["url"][:23] for part in parts[1:]] == [
        "data:image/png;base64," + PNG[0],
        "data:image/jpeg;base64,",
    ]
    assert Capability.VISION in asked.request.needs()


def test_generate_is_a_chat_of_one_turn_or_a_text_as_it_is() -> None:
    asked = generate(system="Be brief.", images=[PNG])
    roles = [turn["role"] for turn in body(asked)["messages"]]
    assert (type(asked.request), roles) == (ChatRequest, ["system", "user"])
    raw = generate(raw=True, options={"num_predict": 3}, format="json", think=True)
    assert isinstance(raw.request, CompletionRequest)
    assert (raw.request.prompt, raw.request.max_tokens, raw.request.stream) == ("Hi", 3, True)
    filled = generate(suffix="end")
    assert isinstance(filled.request, CompletionRequest)
    assert filled.request.suffix == "end"


@pytest.mark.parametrize(
    ("asked", "loads"),
    [
        (lambda: chat(messages=[]), "load"),
        (lambda: ollama_requests.parse_chat(b'{"model":"m"}'), "load"),
        (lambda: chat(messages=[], keep_alive=0), "unload"),
        (lambda: generate(prompt=""), "load"),
        (lambda: ollama_requests.parse_generate(b'{"model":"m","keep_alive":0}'), "unload"),
        (chat, ""),
    ],
)
def test_a_request_without_a_prompt_asks_for_the_model(asked: Any, loads: str) -> None:
    assert asked().loads == loads


def test_texts_to_embed() -> None:
    asked = ollama_requests.parse_embed(b'{"model":"m","input":["a","b"],"truncate":true,"dimensions":2}')
    assert isinstance(asked.request, EmbeddingsRequest)
    assert (asked.request.input, asked.request.dimensions) == (["a", "b"], 2)
    one = ollama_requests.parse_embeddings(b'{"model":"m","prompt":"a"}')
    assert isinstance(one.request, EmbeddingsRequest)
    assert one.request.input == "a"


def test_another_name_of_the_model_is_put_everywhere() -> None:
    asked = chat().named("n")
    assert (asked.model, asked.request.model, asked.request.body["model"]) == ("m", "n", "n")


@pytest.mark.parametrize(
    ("data", "param"),
    [
        (b'{"messages":[]}', "model"),
        (b'{"model":"m","messages":[{"role":"robot"}]}', "messages[0].role"),
        (b'{"model":"m","messages":[{"role":"user","images":["data:x"]}]}', "messages[0].images"),
        (b'{"model":"m","format":"xml","messages":[]}', "format"),
        (
            b'{"model":"m","messages":[{"role":"user","content":"x"}],"options":{"num_predict":"x"}}',
            "options.num_predict",
        ),
        (b'{"model":"m","messages":[{"role":"user","content":"x"}],"options":{"top_p":2}}', "top_p"),
        (b"[]", None),
        (b"{", None),
        (b"", None),
    ],
)
def test_what_makes_no_sense_is_named(data: bytes, param: str | None) -> None:
    with pytest.raises(InvalidRequest) as caught:
        ollama_requests.parse_chat(data)
    assert (caught.value.param or "").replace("[]", "[0]") == (param or "")


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)
FIELDS = st.sampled_from(
    ["model", "messages", "prompt", "options", "format", "think", "tools", "images", "stream", "raw"]
)


@given(st.dictionaries(FIELDS, JSON) | JSON)
def test_whatever_is_sent_is_understood_or_refused(said: Any) -> None:
    data = json.dumps(said).encode()
    for parse in (ollama_requests.parse_chat, ollama_requests.parse_generate, ollama_requests.parse_embed):
        with suppress(InvalidRequest):
            parse(data)


class Ticking:
    """A monotonic clock that goes on by half a second each time it is read."""

    def __init__(self) -> None:
        self._at = 10.0

    def __call__(self) -> float:
        self._at += 0.5
        return self._at


def writer(kind: ollama_responses.Kind = "chat") -> ollama_responses.AnswerWriter:
    at = datetime(2026, 12, 1, 10, 0, 0, 123456, tzinfo=UTC)
    return ollama_responses.AnswerWriter(chat(), kind, now=lambda: at, monotonic=Ticking(), began_s=10.0)


def chunk(finish: str | None = None, **delta: Any) -> ChatChunk:
    return ChatChunk(choices=(ChunkChoice(delta=Delta(**delta), finish_reason=finish),))


TOLD = ChatChunk(usage=Usage(prompt_tokens=11, completion_tokens=5, total_tokens=16))


async def stream(*chunks: ChatChunk, error: Exception | None = None) -> AsyncGenerator[ChatChunk, None]:
    for one in chunks:
        yield one
    if error is not None:
        raise error


async def written(
    *chunks: ChatChunk, kind: ollama_responses.Kind = "chat", error: Exception | None = None
) -> list[Any]:
    text = b"".join([line async for line in ollama_responses.lines(stream(*chunks, error=error), writer(kind))])
    assert text.endswith(b"\n")
    return [json.loads(line) for line in text.splitlines()]


async def test_a_stream_of_lines() -> None:
    chunks = (
        chunk(role="assistant"),
        chunk(reasoning_content="Hm"),
        chunk(content="Hel"),
        chunk(content="lo"),
        chunk("stop"),
        TOLD,
    )
    first, second, third, last = await written(*chunks)
    assert first["message"] == {"role": "assistant", "content": "", "thinking": "Hm"}
    assert (second["message"]["content"], third["message"]["content"]) == ("Hel", "lo")
    assert (second["model"], second["created_at"], second["done"]) == ("m", "2026-12-01T10:00:00.123456Z", False)
    assert last["message"] == {"role": "assistant", "content": ""}
    counts = {name: last[name] for name in last if name not in ("model", "created_at", "message")}
    assert counts == {
        "done": True, "done_reason": "stop", "total_duration": 1_000_000_000, "load_duration": 0,
        "prompt_eval_count": 11, "prompt_eval_duration": 500_000_000, "eval_count": 5, "eval_duration": 500_000_000,
    }  # fmt: skip


async def test_calls_come_whole() -> None:
    def piece(index: int, **more: Any) -> ChatChunk:
        return chunk(tool_calls=(ToolCallDelta(index=index, **more),))

    chunks = (
        piece(0, id="c1", function=FunctionDelta(name="add", arguments="")),
        piece(0, function=FunctionDelta(arguments='{"a":')),
        piece(0, function=FunctionDelta(arguments="1}")),
        piece(1, id="c2", function=FunctionDelta(name="odd", arguments="[not json")),
        chunk("tool_calls"),
        TOLD,
    )
    calls, last = await written(*chunks)
    found = [call["function"] for call in calls["message"]["tool_calls"]]
    assert [(call["name"], call["arguments"]) for call in found] == [("add", {"a": 1}), ("odd", {"_": "[not json"})]
    assert last["done_reason"] == "stop"
    made = json.loads(await ollama_responses.whole(stream(*chunks), writer()))
    assert (made["message"]["tool_calls"], made["done"]) == (calls["message"]["tool_calls"], True)


async def test_whole_answers() -> None:
    chunks = chunk(reasoning="Hm"), chunk(content="Hel"), chunk("length", content="lo"), TOLD
    made = json.loads(await ollama_responses.whole(stream(*chunks), writer()))
    assert made["message"] == {"role": "assistant", "content": "Hello", "thinking": "Hm"}
    assert (made["done"], made["done_reason"], made["eval_count"]) == (True, "length", 5)
    text = json.loads(await ollama_responses.whole(stream(*chunks), writer("generate")))
    assert (text["response"], text["thinking"], text["done_reason"]) == ("Hello", "Hm", "length")
    assert "message" not in text


async def test_a_cut_stream_ends_with_an_error_and_without_done() -> None:
    first, last = await written(chunk(content="Hel"), error=StreamCut("It broke off."))
    assert first["message"]["content"] == "Hel"
    assert last == {"error": "It broke off."}
    with pytest.raises(StreamCut):
        await ollama_responses.whole(stream(error=StreamCut("It broke off.")), writer())


def test_errors_are_one_sentence_and_a_missing_key_is_explained() -> None:
    status, said = ollama_responses.refusal(Unauthenticated("A key is missing."))
    assert status == 401
    assert "OLLAMA_API_KEY" in json.loads(said)["error"]
    status, said = ollama_responses.refusal(ValueError("secret"))
    assert (status, b"secret" in said) == (500, False)


def test_lists_of_models() -> None:
    models = [
        ServedModel(id="llama3", endpoints=("a",)), ServedModel(id="llama3:latest", endpoints=("a",)),
        ServedModel(id="org/big:q4", endpoints=("a",), loaded=True, context_tokens=8),
        ServedModel(id="host:1/x", endpoints=("a",)),
    ]  # fmt: skip
    rows = ollama_responses.model_list(models)["models"]
    assert [row["name"] for row in rows] == ["llama3:latest", "org/big:q4", "host:1/x:latest"]
    assert all(len(row["digest"]) == 64 and row["name"] == row["model"] for row in rows)
    (row,) = ollama_responses.loaded_list(models)["models"]
    assert (row["name"], row["context_length"]) == ("org/big:q4", 8)


def test_details_of_a_model() -> None:
    can = frozenset({Capability.CHAT, Capability.TOOLS, Capability.VISION, Capability.LOGPROBS})
    shown = ollama_responses.model_details(ServedModel(id="m", endpoints=("a",), context_tokens=4096, capabilities=can))
    assert shown["capabilities"] == ["completion", "tools", "vision"]
    assert shown["model_info"][f"{shown['model_info']['general.architecture']}.context_length"] == 4096
