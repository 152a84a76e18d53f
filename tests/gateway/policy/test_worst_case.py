"""The most that an attempt can cost, before it is sent."""

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from goblin.billing.policy import prices
from goblin.core.endpoints import Endpoint, Price
from goblin.gateway.domain import requests
from goblin.gateway.policy import worst_case
from goblin.gateway.policy.worst_case import CostBound, Unpriced

PRICE = Price(input_usd_micros_per_mtok=1_000_000, output_usd_micros_per_mtok=4_000_000)
PAID = Endpoint(name="paid", provider="openai", url="http://x", price=PRICE)


def chat(content: Any = "Hi", **more: Any) -> requests.ChatRequest:
    body = {"model": "m", "messages": [{"role": "user", "content": content}], **more}
    return requests.parse(requests.ChatRequest, json.dumps(body).encode())


def bound(request: Any, endpoint: Endpoint = PAID) -> CostBound:
    found = worst_case.worst_case(request, endpoint)
    assert isinstance(found, CostBound)
    return found


@given(st.text(max_size=200), st.integers(1, 5000), st.integers(1, 4))
def test_no_prompt_has_more_tokens_than_it_is_bounded_by(text: str, most: int, choices: int) -> None:
    found = bound(chat(text, max_tokens=most, n=choices))
    assert found.input_tokens >= len(text.encode())
    assert found.output_tokens == most
    assert found.cost_usd_micros == found.input_tokens + 4 * most * choices


@pytest.mark.parametrize(
    ("said", "sent"),
    [
        ({}, {"max_completion_tokens": 4096}),
        ({"max_tokens": 7}, {"max_tokens": 7}),
        ({"max_completion_tokens": 9000}, {"max_completion_tokens": 8000}),
        ({"max_tokens": 9000, "max_completion_tokens": 5}, {"max_tokens": 8000, "max_completion_tokens": 5}),
    ],
)
def test_what_bounds_a_request_is_sent_with_it(said: dict[str, int], sent: dict[str, int]) -> None:
    price = Price(input_usd_micros_per_mtok=1, output_usd_micros_per_mtok=1, output_tokens_max=8000)
    request = chat(**said)
    limited = worst_case.limited(request, bound(request, Endpoint(name="p", provider="openai", url="u", price=price)))
    assert {name: limited.body[name] for name in worst_case.LIMITS if name in limited.body} == sent
    assert limited.output_tokens_max == (sent.get("max_completion_tokens") or sent["max_tokens"])


def test_tools_schemas_and_whatever_else_is_read_count_as_prompt() -> None:
    plain = bound(chat()).input_tokens
    big = {"type": "function", "function": {"name": "f", "parameters": {"image_url": "x" * 5000}}}
    assert bound(chat(tools=[big])).input_tokens >= plain + 5000
    schema = {"type": "json_schema", "json_schema": {"name": "s", "schema": {"title": "y" * 5000}}}
    assert bound(chat(response_format=schema)).input_tokens >= plain + 5000


def test_an_image_counts_by_itself_and_not_by_its_bytes() -> None:
    def seen(url: str) -> int:
        return bound(chat([{"type": "image_url", "image_url": {"url": url}}])).input_tokens

    assert seen("data:image/png;base64," + "A" * 100_000) - seen("http://x") < 10
    assert seen("http://x") > PRICE.image_tokens_max


def test_writing_into_a_cache_costs_more() -> None:
    part = {"type": "text", "text": "Hi", "cache_control": {"type": "ephemeral"}}
    found = bound(chat([part], max_tokens=1))
    assert found.cost_usd_micros == 2 * found.input_tokens + 4


@pytest.mark.parametrize(
    "more",
    [
        {"service_tier": "priority"},
        {"web_search_options": {}},
        {"modalities": ["text", "audio"], "audio": {"voice": "v"}},
        {"prediction": {"type": "content", "content": "x"}},
    ],
)
def test_what_no_token_price_covers_is_refused(more: dict[str, Any]) -> None:
    assert isinstance(worst_case.worst_case(chat(**more), PAID), Unpriced)
    assert isinstance(worst_case.worst_case(chat(modalities=["text"], service_tier="auto"), PAID), CostBound)


def test_sounds_and_files_are_refused() -> None:
    for part in ({"type": "input_audio", "input_audio": {}}, {"type": "file", "file": {"file_id": "f"}}):
        assert isinstance(worst_case.worst_case(chat([part]), PAID), Unpriced)


def test_an_unknown_price_is_refused_and_a_model_has_its_own() -> None:
    unknown = Endpoint(name="u", provider="openai", url="http://x")
    found = worst_case.worst_case(chat(), unknown)
    assert isinstance(found, Unpriced)
    assert "not free" in found.reason
    assert not prices.is_free(unknown)
    assert worst_case.price_of({("openai", "m"): PRICE}, unknown, "m") == PRICE
    assert worst_case.price_of({("openai", "m"): PRICE}, unknown, "n") is None


def test_every_prompt_of_a_completion_is_answered() -> None:
    def output(prompt: Any) -> int:
        body = json.dumps({"model": "m", "prompt": prompt, "n": 2}).encode()
        request = requests.parse(requests.CompletionRequest, body)
        found = bound(request)
        assert worst_case.limited(request, found).body["max_tokens"] == 16
        return (found.cost_usd_micros - found.input_tokens) // 4

    assert [output("a"), output(["a", "b"]), output([1, 2, 3]), output([[1], [2], [3]])] == [32, 64, 32, 96]


def test_embeddings_have_no_answer_to_pay() -> None:
    request = requests.parse(requests.EmbeddingsRequest, b'{"model": "m", "input": ["a", "b"]}')
    found = bound(request)
    assert (found.output_tokens, found.cost_usd_micros) == (0, found.input_tokens)
    assert worst_case.limited(request, found) is request


@given(st.text(min_size=1, max_size=50), st.lists(st.text(max_size=50), min_size=1, max_size=20))
def test_a_query_is_read_with_each_document(query: str, documents: list[str]) -> None:
    body = json.dumps({"model": "m", "query": query, "documents": documents}).encode()
    found = bound(requests.parse(requests.RerankRequest, body))
    read = sum(len(query.encode()) + len(document.encode()) for document in documents)
    assert found.input_tokens >= read
    assert (found.output_tokens, found.cost_usd_micros) == (0, found.input_tokens)


def test_images_that_are_made_have_no_price() -> None:
    request = requests.parse(requests.ImagesRequest, b'{"model":"m","prompt":"x"}')
    found = worst_case.worst_case(request, PAID)
    assert isinstance(found, Unpriced)
    assert "images that are made" in found.reason
