"""What queue workers write oddly: the table of odd answers as outputs of a job, and shapes of the workers' own."""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import Any

import httpx
import pytest

from goblin.core.errors import InvalidRequest, ProviderUnavailable
from goblin.gateway.domain.chat import ChatChunk, Usage
from goblin.providers.common.http import Upstream
from goblin.providers.runpod.worker_outputs import OutputReader
from tests.fakes import odd_answers
from tests.fakes.odd_answers import Odd
from tests.providers.common.test_odd_answers import Answers, expected, meant

EVENTS = [*odd_answers.TEXTS, *odd_answers.REASONS, *odd_answers.COUNTS, *odd_answers.CALLS]
CLIENT = httpx.AsyncClient(transport=Answers([]))
FRAMED = [odd for odd in EVENTS if odd.body.startswith(b"data:") and odd.name != "bytes in two chunks"]


def read(outputs: Iterable[Any]) -> list[ChatChunk]:
    reader = OutputReader(Upstream("e", "http://host", None, CLIENT), tools={"add", "now"})
    chunks = [chunk for output in outputs for chunk in reader.read(output)]
    return [*chunks, *reader.end()]


@pytest.mark.parametrize("odd", FRAMED, ids=lambda odd: odd.name)
def test_events_as_text(odd: Odd) -> None:
    text = odd.body.decode()
    assert meant(read([text])) == expected(odd)
    assert meant(read(f"{event}\n\n" for event in text.split("\n\n") if event)) == expected(odd)
    assert meant(read([text[:50], text[50:60], text[60:]])) == expected(odd)


@pytest.mark.parametrize("odd", [odd for odd in FRAMED if "two events" not in odd.name], ids=lambda odd: odd.name)
def test_chunks_as_objects(odd: Odd) -> None:
    data = [event.removeprefix("data: ") for event in odd.body.decode().split("\n\n") if event]
    values = [json.loads(text) for text in data if text != "[DONE]"]
    if all(isinstance(value, dict) and ("choices" in value or "usage" in value) for value in values):
        assert meant(read(values)) == expected(odd)
        assert meant(read([values])) == expected(odd)


@pytest.mark.parametrize(
    ("outputs", "text"),
    [
        (["Hel", "lo"], "Hello"),
        ([":", ")"], ":)"),
        ([{"text": "Hel"}, {"text": "lo"}], "Hello"),
        ([None, "Hello", None], "Hello"),
        ([["Hel", ["lo"]]], "Hello"),
        ([{"choices": [{"tokens": ["Hel", "lo"]}]}], "Hello"),
        ([{"choices": [{"tokens": "Hello"}], "usage": {"input": "11", "output": 5.0}}], "Hello"),
        ([{"choices": [{"tokens": None}]}, {"choices": [{"tokens": ["Hello"]}]}], "Hello"),
        ([{"choices": [{"message": {"content": ["Hel", {"text": "lo"}]}, "finish_reason": "eos"}]}], "Hello"),
        ([{"choices": [{"text": "Hello", "finish_reason": "STOP", "logprobs": []}]}], "Hello"),
        ([{"choices": {"message": {"content": "Hello"}, "finish_reason": "stop"}}], "Hello"),
        (["Hello", {"usage": {"input": 11}}], "Hello"),
        ([{"text": "Hello", "error": None}], "Hello"),
        (["event: message\ndata: " + json.dumps(odd_answers.WHOLE)], odd_answers.TEXT),
    ],
)  # fmt: skip
def test_shapes_of_workers(outputs: list[Any], text: str) -> None:
    assert meant(read(outputs)) == {"text": text, "thoughts": "", "calls": (), "reasons": ["stop"]}


def test_a_workers_own_counters_are_read() -> None:
    chunks = read([{"choices": [{"tokens": ["Hi"]}], "usage": {"input": 11, "output": 5}}])
    told = [chunk.usage for chunk in chunks if isinstance(chunk.usage, Usage)]
    assert [(usage.prompt_tokens, usage.completion_tokens) for usage in told] == [(11, 5)]


@pytest.mark.parametrize(
    "refused",
    [
        {"error": "This model's maximum context length is 8 tokens"},
        {"error": {"message": "bad", "code": 400}},
        {"object": "error", "message": "bad", "type": "BadRequestError", "code": 400},
        "data: " + json.dumps({"error": {"message": "bad", "type": "invalid_request_error"}}) + "\n\n",
        {"detail": [{"loc": ["body", "n"], "msg": "bad"}], "status": 422},
    ],
)
def test_an_error_before_and_after_the_first_word(refused: Any) -> None:
    with pytest.raises(InvalidRequest):
        read([refused])
    with pytest.raises(ProviderUnavailable):
        read(["Hel", refused])


@pytest.mark.parametrize("outputs", [[], [7], [{"unknown": 1}], [{"choices": []}], ["data: {oh}\n\n"], [True]])
def test_what_has_no_answer_in_it_is_none(outputs: list[Any]) -> None:
    with pytest.raises(ProviderUnavailable):
        read(outputs)
