"""Odd answers of an upstream, through the whole gateway, as both SDKs read them: every shape at every face."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from typing import Any

import anthropic
import httpx
import openai
import pytest

from tests.fakes import odd_answers
from tests.fakes.odd_answers import Odd
from tests.fakes.openai_like import Script
from tests.functions.conftest import API_KEY, Fakes

HELLO: Any = [{"role": "user", "content": "Hi"}]
PARAMETERS: Any = {"type": "object", "properties": {}}
TOOLS: Any = [{"type": "function", "function": {"name": name, "parameters": PARAMETERS}} for name in ("add", "now")]
CLAUDES_TOOLS: Any = [{"name": name, "input_schema": PARAMETERS} for name in ("add", "now")]
STOPS = {"stop": "end_turn", "length": "max_tokens", "content_filter": "refusal", "tool_calls": "tool_use"}
SERVED = [odd for odd in odd_answers.ALL if odd.content_type]


@pytest.fixture
def claude(url: str) -> Iterator[anthropic.Anthropic]:
    with anthropic.Anthropic(api_key=API_KEY, base_url=url, max_retries=0, timeout=20) as client:
        yield client


def each(fakes: Fakes, table: list[Odd], read: Callable[[Odd], tuple[Any, Any]]) -> None:
    """Read every answer of a table; `read` returns what it got and what it should have been."""
    wrong = {}
    for odd in table:
        fakes.llamacpp.script = Script(raw=odd.body, content_type=odd.content_type)
        try:
            got, wanted = read(odd)
        except (openai.OpenAIError, anthropic.AnthropicError, AssertionError, ValueError) as error:
            got, wanted = repr(error), None
        if got != wanted:
            wrong[odd.name] = (got, wanted)
    assert wrong == {}


def of_chat(answer: Any) -> tuple[Any, ...]:
    choice = answer.choices[0]
    calls = tuple((call.function.name, json.loads(call.function.arguments)) for call in choice.message.tool_calls or ())
    assert all(call.id and call.type == "function" for call in choice.message.tool_calls or ())
    thoughts = getattr(choice.message, "reasoning_content", None) or getattr(choice.message, "reasoning", None)
    return choice.message.content or "", thoughts or "", calls, choice.finish_reason, _counts(answer.usage)


def _counts(usage: Any) -> tuple[int, int]:
    assert usage.total_tokens == usage.prompt_tokens + usage.completion_tokens
    return usage.prompt_tokens, usage.completion_tokens


def wanted(odd: Odd, got: tuple[Any, ...]) -> tuple[Any, ...]:
    """What the OpenAI SDK should have read. Where we estimate, any count above zero is right."""
    counts = tuple(
        max(estimate, 1) if told is None else told
        for told, estimate in zip(odd.usage or (None, None), got[-1], strict=True)
    )
    return odd.text, odd.thoughts, odd.calls, odd.finish, counts


def test_the_openai_sdk_reads_a_whole_chat(client: openai.OpenAI, fakes: Fakes) -> None:
    def read(odd: Odd) -> tuple[Any, Any]:
        got = of_chat(client.chat.completions.create(model="tiny", messages=HELLO, tools=TOOLS))
        return got, wanted(odd, got)

    each(fakes, SERVED, read)


def test_the_openai_sdk_reads_a_streamed_chat(client: openai.OpenAI, fakes: Fakes) -> None:
    def read(odd: Odd) -> tuple[Any, Any]:
        options: Any = {"include_usage": True}
        if odd.finish in ("length", "content_filter"):
            return odd, odd  # The SDK's helper raises for these, rightly.
        with client.chat.completions.stream(
            model="tiny", messages=HELLO, tools=TOOLS, stream_options=options
        ) as stream:
            got = of_chat(stream.get_final_completion())
        return got, wanted(odd, got)

    each(fakes, SERVED, read)


def of_message(message: Any) -> tuple[Any, ...]:
    blocks = [(block.type, block) for block in message.content]
    text = "".join(block.text for kind, block in blocks if kind == "text")
    thoughts = "".join(block.thinking for kind, block in blocks if kind == "thinking")
    calls = tuple((block.name, block.input) for kind, block in blocks if kind == "tool_use")
    return text, thoughts, calls, message.stop_reason, (message.usage.input_tokens, message.usage.output_tokens)


def wanted_message(odd: Odd, got: tuple[Any, ...], asked: int | None = None) -> tuple[Any, ...]:
    text, thoughts, calls, finish, counts = wanted(odd, got)
    return text, thoughts, calls, STOPS[finish], counts if asked is None else (asked, counts[1])


def test_the_anthropic_sdk_reads_a_whole_message(claude: anthropic.Anthropic, fakes: Fakes) -> None:
    def read(odd: Odd) -> tuple[Any, Any]:
        got = of_message(claude.messages.create(model="tiny", max_tokens=50, messages=HELLO, tools=CLAUDES_TOOLS))
        return got, wanted_message(odd, got)

    each(fakes, SERVED, read)


def test_the_anthropic_sdk_reads_a_streamed_message(claude: anthropic.Anthropic, fakes: Fakes) -> None:
    def read(odd: Odd) -> tuple[Any, Any]:
        with claude.messages.stream(model="tiny", max_tokens=50, messages=HELLO, tools=CLAUDES_TOOLS) as stream:
            got = of_message(stream.get_final_message())
        return got, wanted_message(odd, got)

    each(fakes, SERVED, read)


@pytest.mark.parametrize("streamed", [False, True])
def test_the_openai_sdk_reads_a_completion(client: openai.OpenAI, fakes: Fakes, streamed: bool) -> None:
    def read(odd: Odd) -> tuple[Any, Any]:
        answer: Any = client.completions.create(model="tiny", prompt="Once", stream=streamed)
        if not streamed:
            return answer.choices[0].text, odd.text
        return "".join(choice.text for chunk in answer for choice in chunk.choices), odd.text

    each(fakes, [odd for odd in SERVED if not odd.calls], read)


def test_a_receipt_says_what_was_counted_and_what_was_estimated(client: openai.OpenAI, url: str, fakes: Fakes) -> None:
    def read(odd: Odd) -> tuple[Any, Any]:
        raw = client.chat.completions.with_raw_response.create(model="tiny", messages=HELLO)
        headers = {"authorization": f"Bearer {API_KEY}"}
        address = f"{url}/requests/{raw.headers['x-goblin-request-id']}"
        until = time.monotonic() + 10
        while (found := httpx.get(address, headers=headers, timeout=20)).status_code == 404:
            assert time.monotonic() < until
        receipt = found.json()
        assert raw.parse().usage is not None
        return receipt["usage_estimated"], odd.usage is None or None in odd.usage

    each(fakes, odd_answers.COUNTS, read)


REFUSALS: list[tuple[int, Any, str]] = [
    (400, {"object": "error", "message": "maximum context length is 8 tokens", "code": 400}, "maximum context length"),
    (400, {"detail": "prompt is too long: 9 tokens > 8 maximum"}, "prompt is too long"),
    (
        422,
        {"detail": [{"loc": ["body", "inputs"], "msg": "`inputs` must have less than 8 tokens. Given: 9"}]},
        "inputs",
    ),
    (
        413,
        [{"error": {"code": 400, "message": "The input token count (9) exceeds the maximum number of tokens"}}],
        "(9)",
    ),
    (500, {"error": "the input length exceeds the context length"}, "input length"),
]


@pytest.mark.parametrize(("status", "error", "words"), REFUSALS)
def test_a_prompt_that_is_too_long_is_told_in_openais_words(
    client: openai.OpenAI, claude: anthropic.Anthropic, fakes: Fakes, status: int, error: Any, words: str
) -> None:
    fakes.llamacpp.script = Script(status=status, error=error)
    with pytest.raises(openai.BadRequestError) as caught:
        client.chat.completions.create(model="tiny", messages=HELLO)
    assert caught.value.code == "context_length_exceeded"
    assert words in caught.value.message
    with pytest.raises(anthropic.BadRequestError):
        claude.messages.create(model="tiny", max_tokens=5, messages=HELLO)
