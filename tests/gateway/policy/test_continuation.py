"""What may be continued elsewhere, and what the next endpoint is asked."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from goblin.core.endpoints import Capability
from goblin.gateway.domain import requests
from goblin.gateway.policy import continuation

HELLO = [{"role": "user", "content": "Hi"}]
TOOL = {"type": "function", "function": {"name": "f"}}


def chat(**more: Any) -> requests.ChatRequest:
    return requests.parse(requests.ChatRequest, json.dumps({"model": "m", "messages": HELLO, **more}).encode())


def text(**more: Any) -> requests.CompletionRequest:
    return requests.parse(requests.CompletionRequest, json.dumps({"model": "m", "prompt": "Once", **more}).encode())


@pytest.mark.parametrize(
    "request_", [chat(), chat(n=1, temperature=1), chat(tools=[TOOL]), chat(logprobs=True), text(), text(stop=["."])]
)
def test_text_can_be_continued(request_: continuation.AnyRequest) -> None:
    assert continuation.why_not(request_) is None


@pytest.mark.parametrize(
    "request_",
    [
        chat(n=2),
        chat(response_format={"type": "json_object"}),
        chat(response_format={"type": "json_schema", "json_schema": {"schema": {}}}),
        chat(tools=[TOOL], tool_choice="required"),
        chat(tools=[TOOL], tool_choice={"type": "function", "function": {"name": "f"}}),
        chat(grammar='root ::= "x"'),
        chat(guided_json={}),
        text(n=2),
        text(prompt=["a"]),
        text(prompt=[1, 2]),
        text(suffix="end"),
        text(logprobs=0),
        text(echo=True),
        text(best_of=2),
        text(json_schema={}),
    ],
)
def test_what_would_not_be_sound_is_refused_with_a_reason(request_: continuation.AnyRequest) -> None:
    assert continuation.why_not(request_)


def test_a_chat_needs_an_endpoint_that_continues_messages() -> None:
    assert continuation.needed(chat()) is Capability.PREFILL
    assert continuation.needed(text()) is Capability.COMPLETIONS


def test_the_rest_of_a_chat_is_asked_with_the_text_so_far_as_the_assistants() -> None:
    rest = continuation.continued(chat(max_tokens=10, seed=7), "Hello", tokens_written=4)
    assert isinstance(rest, requests.ChatRequest)
    assert (rest.messages[-1].role, rest.messages[-1].content) == ("assistant", "Hello")
    assert (rest.max_tokens, rest.seed) == (6, 7)
    assert rest.body["messages"] == [*HELLO, {"role": "assistant", "content": "Hello"}]
    assert rest.body["max_tokens"] == 6


def test_the_callers_request_stays_as_it_was() -> None:
    asked = chat(max_completion_tokens=10)
    continuation.continued(asked, "Hello", tokens_written=4)
    assert asked == chat(max_completion_tokens=10)


def test_somebody_who_wrote_more_than_we_counted_leaves_room_for_one_token() -> None:
    rest = continuation.continued(chat(max_completion_tokens=3), "Hello", tokens_written=4)
    assert rest.output_tokens_max == 1


def test_without_a_word_so_far_the_request_is_the_same() -> None:
    rest = continuation.continued(chat(), "", tokens_written=1)
    assert rest == chat()


def test_the_rest_of_a_text_is_a_longer_prompt() -> None:
    rest = continuation.continued(text(), " upon", tokens_written=1)
    assert isinstance(rest, requests.CompletionRequest)
    assert (rest.prompt, rest.body["prompt"]) == ("Once upon", "Once upon")


@pytest.mark.parametrize(
    ("so_far", "rest", "whole"),
    [
        ("The ", " end", "The end"),
        ("The ", "end", "The end"),
        ("The\n\n", "\n\nend", "The\n\nend"),
        ("The\n\n", "\nend", "The\n\nend"),
        ("The", " end", "The end"),
        ("The ", "", "The "),
        (" \n", "Word", " \nWord"),
    ],
)
def test_white_space_at_the_seam_is_there_once(so_far: str, rest: str, whole: str) -> None:
    _, held = continuation.seam(so_far)
    assert so_far + continuation.Seam(held).trim(rest) == whole


@given(st.text(" \nab", max_size=6), st.lists(st.text(" \nab", min_size=1, max_size=3), max_size=5))
def test_how_a_continuation_is_cut_into_pieces_makes_no_difference(so_far: str, pieces: list[str]) -> None:
    kept, held = continuation.seam(so_far)
    assert kept + held == so_far
    assert not kept.endswith((" ", "\n"))
    seam = continuation.Seam(held)
    assert "".join(seam.trim(piece) for piece in pieces) == continuation.Seam(held).trim("".join(pieces))
