"""Which questions are the same, and which answers may be given twice."""

from __future__ import annotations

from typing import Any

import pytest

from goblin.gateway.policy import caching
from tests.gateway.policy.test_continuation import chat, text


@pytest.mark.parametrize(
    "request_", [chat(temperature=0), chat(seed=1), chat(goblin={"cache": True}), text(temperature=0)]
)
def test_answers_that_were_to_be_expected_may_be_given_again(request_: caching.AnyRequest) -> None:
    assert caching.why_skip(request_) is None


@pytest.mark.parametrize(
    "request_",
    [
        chat(),
        chat(temperature=0.1),
        chat(temperature=0, goblin={"cache": False}),
        chat(temperature=0, n=2),
        chat(temperature=0, logprobs=True),
        chat(temperature=0, modalities=["text", "audio"]),
        text(temperature=0, logprobs=1),
        text(temperature=0, echo=True),
    ],
)
def test_others_may_not_and_say_why(request_: caching.AnyRequest) -> None:
    assert caching.why_skip(request_)


SAME: list[tuple[dict[str, Any], dict[str, Any]]] = [
    ({"stream": True}, {"stream": False}),
    ({"stream": True, "stream_options": {"include_usage": True}}, {}),
    ({"user": "a"}, {"user": "b"}),
    ({"goblin": {"cache": True}}, {"goblin": {"strategy": "failover"}}),
    ({"seed": 1, "top_p": 1.0}, {"top_p": 1.0, "seed": 1}),
]
OTHER: list[tuple[dict[str, Any], dict[str, Any]]] = [
    ({"seed": 1}, {"seed": 2}),
    ({"goblin": {"provider": "a"}}, {"goblin": {"provider": "b"}}),
    ({"model": "m"}, {"model": "n"}),
    ({"stop": ["a"]}, {}),
    ({"a_field_nobody_knows_yet": 1}, {}),
    ({"messages": [{"role": "user", "content": "Hi"}]}, {"messages": [{"role": "system", "content": "Hi"}]}),
]


@pytest.mark.parametrize(("one", "two"), SAME)
def test_how_it_is_sent_does_not_matter(one: dict[str, Any], two: dict[str, Any]) -> None:
    assert caching.cache_key("t", chat(**one)) == caching.cache_key("t", chat(**two))


@pytest.mark.parametrize(("one", "two"), OTHER)
def test_what_is_asked_does(one: dict[str, Any], two: dict[str, Any]) -> None:
    assert caching.cache_key("t", chat(**one)) != caching.cache_key("t", chat(**two))


def test_tenants_and_routes_are_apart() -> None:
    keys = {caching.cache_key("t", chat()), caching.cache_key("u", chat()), caching.cache_key("t", text())}
    assert len(keys) == 3


@pytest.mark.parametrize(
    ("changed", "kept"),
    [
        ({}, True),
        ({"finish_reason": "length"}, True),
        ({"finish_reason": "tool_calls"}, False),
        ({"finish_reason": "content_filter"}, False),
        ({"plain": False}, False),
        ({"unbroken": False}, False),
        ({"text": ""}, False),
    ],
)
def test_only_whole_texts_of_one_hand_are_kept(changed: dict[str, Any], kept: bool) -> None:
    facts = {"finish_reason": "stop", "plain": True, "unbroken": True, "text": "Hello", **changed}
    assert caching.may_keep(**facts) is kept
