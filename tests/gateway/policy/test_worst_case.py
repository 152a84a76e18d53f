"""The most that an attempt can cost, before it is sent."""

import json
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from goblin.billing.policy import prices
from goblin.core.endpoints import Endpoint, Price
from goblin.gateway.domain import requests
from goblin.gateway.policy import worst_case
from goblin.gateway.policy.worst_case import CostBound, Unpriced
from goblin.web import anthropic_requests

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


def test_sounds_are_refused() -> None:
    assert isinstance(worst_case.worst_case(chat([{"type": "input_audio", "input_audio": {}}]), PAID), Unpriced)


FILE = {"type": "file", "file": {"filename": "a.pdf", "file_data": "data:application/pdf;base64," + "A" * 4000}}


def test_a_file_is_bounded_by_the_models_context_whatever_is_in_it() -> None:
    assert bound(chat([FILE])).input_tokens == worst_case.CONTEXT_TOKENS
    known = replace(PAID, price=replace(PRICE, context_tokens=128_000))
    found = worst_case.worst_case(chat([FILE, FILE], max_tokens=1), known)
    assert isinstance(found, CostBound)
    assert (found.input_tokens, found.cost_usd_micros) == (128_000, 128_000 + 4)


def messages(content: Any, **more: Any) -> Any:
    """A request of Anthropic's wire."""
    body = {"model": "m", "max_tokens": 10, "messages": [{"role": "user", "content": content}], **more}
    return anthropic_requests.parse(json.dumps(body).encode())


CLAUDE = Endpoint(
    name="claude",
    provider="anthropic",
    url="http://x",
    external=True,
    price=Price(
        input_usd_micros_per_mtok=1_000_000,
        output_usd_micros_per_mtok=5_000_000,
        context_tokens=200_000,
        image_tokens_max=5000,
        cache_read_usd_micros_per_mtok=100_000,
        cache_write_usd_micros_per_mtok=1_250_000,
        cache_write_1h_usd_micros_per_mtok=2_000_000,
        server_tools={"web_search": 10_000},
    ),
)
IMAGE = {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": "A" * 100_000}}
PDF = {"type": "document", "source": {"type": "base64", "media_type": "application/pdf", "data": "A" * 100_000}}


def claude(content: Any, **more: Any) -> CostBound:
    found = worst_case.worst_case(messages(content, **more), CLAUDE)
    assert isinstance(found, CostBound)
    return found


def test_what_is_sent_in_anthropics_wire_is_what_is_bounded() -> None:
    plain = claude("x" * 1000).input_tokens
    thought = {"role": "assistant", "content": [{"type": "thinking", "thinking": "y" * 5000, "signature": "s"}]}
    turns = [{"role": "user", "content": "x" * 1000}, thought, {"role": "user", "content": "z"}]
    assert 1000 < plain < 1400
    found = worst_case.worst_case(messages("", messages=turns), CLAUDE)
    assert isinstance(found, CostBound)
    assert found.input_tokens > plain + 5000
    assert claude("x", system="s" * 3000).input_tokens > 3000


@pytest.mark.parametrize(
    "content",
    [
        [IMAGE],
        [{"type": "tool_result", "tool_use_id": "t", "content": [IMAGE]}],
        [{"type": "document", "source": {"type": "content", "content": [IMAGE]}}],
    ],
)
def test_an_image_counts_as_the_vendor_counts_it_wherever_it_stands(content: Any) -> None:
    assert 5000 < claude(content).input_tokens < 5700


@pytest.mark.parametrize(
    "content",
    [
        [PDF],
        [{"type": "tool_result", "tool_use_id": "t", "content": [PDF]}],
        [{"type": "document", "source": {"type": "url", "url": "https://x/a.pdf"}}],
        [{"type": "document", "source": {"type": "file", "file_id": "f"}}],
        [{"type": "container_upload", "file_id": "f"}],
        [{"type": "video_of_next_year", "file_id": "f"}],
        [{"type": "web_fetch_tool_result", "content": {"type": "web_fetch_result", "content": PDF}}],
    ],
)
def test_a_file_of_anthropics_wire_is_bounded_by_the_context(content: Any) -> None:
    assert claude(content).input_tokens == 200_000


def test_what_only_looks_like_an_image_counts_as_text() -> None:
    call = {"type": "tool_use", "id": "t", "name": "n", "input": IMAGE}
    turns = [{"role": "user", "content": "x"}, {"role": "assistant", "content": [call]}]
    found = worst_case.worst_case(messages("", messages=turns), CLAUDE)
    assert isinstance(found, CostBound)
    assert found.input_tokens > 100_000


def test_a_prompt_for_the_cache_is_reserved_at_the_dearest_price() -> None:
    marked = [{"type": "text", "text": "Hi", "cache_control": {"type": "ephemeral", "ttl": "1h"}}]
    found = claude(marked, max_tokens=1)
    assert found.cost_usd_micros == 2 * found.input_tokens + 5


def test_a_search_may_read_the_whole_context_before_each_use() -> None:
    tools = [{"type": "web_search_20250305", "name": "web_search", "max_uses": 3}]
    found = claude("Hi", tools=tools, max_tokens=100)
    assert found.cost_usd_micros == 4 * 200_000 + 4 * 100 * 5 + 3 * 10_000


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
