"""Usage of one attempt: what a provider counts is believed, and what it leaves out is estimated, and said so."""

from __future__ import annotations

import pytest

from goblin.gateway.domain.chat import ChatChunk, ChunkChoice, Delta, Embeddings, Usage
from goblin.gateway.stream_usage import StreamUsage

PROMPT_BYTES = 400


def word(text: str, usage: Usage | None = None) -> ChatChunk:
    return ChatChunk(choices=(ChunkChoice(delta=Delta(content=text)),), usage=usage)


def counts(asked: int, answered: int) -> Usage:
    return Usage(prompt_tokens=asked, completion_tokens=answered, total_tokens=asked + answered)


@pytest.mark.parametrize(
    ("told", "counted", "estimated"),
    [
        ([counts(11, 5)], (11, 5), False),
        ([counts(11, 1), counts(11, 5)], (11, 5), False),
        ([counts(11, 5), counts(0, 0)], (11, 5), False),
        ([counts(11, 0), counts(0, 5)], (11, 5), False),
        ([counts(0, 0)], (100, 2), True),
        ([], (100, 2), True),
        ([counts(11, 0)], (11, 2), True),
        ([counts(0, 5)], (100, 5), True),
    ],
)
def test_a_zero_is_no_count_of_something(told: list[Usage], counted: tuple[int, int], estimated: bool) -> None:
    usage = StreamUsage()
    for item in [word("Hel"), word("lo"), *(ChatChunk(usage=one) for one in told)]:
        usage.add(item)
    found, is_estimate = usage.counted(lambda: PROMPT_BYTES)
    assert (found.prompt_tokens, found.completion_tokens) == counted
    assert found.total_tokens == sum(counted)
    assert is_estimate is estimated


def test_an_answer_without_words_has_no_tokens() -> None:
    usage = StreamUsage()
    usage.add(ChatChunk(choices=(ChunkChoice(finish_reason="stop"),), usage=counts(11, 0)))
    assert usage.counted(lambda: PROMPT_BYTES) == (counts(11, 0), False)


def test_details_are_kept() -> None:
    usage = StreamUsage()
    usage.add(word("Hi", Usage(prompt_tokens=11, prompt_tokens_details={"cached_tokens": 8})))
    found, _ = usage.counted(lambda: PROMPT_BYTES)
    assert found.prompt_tokens_details == {"cached_tokens": 8}


def test_vectors_are_counted_alike() -> None:
    usage = StreamUsage()
    usage.add(Embeddings(data=(), usage=counts(3, 0)))
    assert usage.counted(lambda: PROMPT_BYTES) == (counts(3, 0), False)
