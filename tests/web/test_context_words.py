"""What endpoints say of a conversation that is too long, in the words that Claude Code looks for."""

import re

import pytest

from goblin.web.context_words import CODE, too_long

PROMPT = re.compile(r"prompt is too long[^0-9]*(\d+)\s*tokens?\s*>\s*(\d+)", re.IGNORECASE)
"""The pattern of Claude Code: what is asked, and what is allowed."""
OUTPUT = re.compile(r"input length and `max_tokens` exceed context limit: (\d+) \+ (\d+) > (\d+)")


@pytest.mark.parametrize(
    ("said", "asked", "limit"),
    [
        ("prompt is too long: 210118 tokens > 200000 maximum", 210118, 200000),
        (
            "This model's maximum context length is 8192 tokens. However, your messages resulted in 9000 tokens "
            "(7000 in the messages, 2000 in the functions). Please reduce the length of the messages or functions.",
            9000,
            8192,
        ),
        (
            "This model's maximum context length is 8192 tokens. However, your messages resulted in 9100 tokens. "
            "Please reduce the length of the messages.",
            9100,
            8192,
        ),
        (
            "This model's maximum context length is 32768 tokens. However, you requested 43000 tokens (42000 in the "
            "messages, 1000 in the completion). Please reduce the length of the messages or completion.",
            42000,
            32768,
        ),
        ("The decoder prompt (length 40000) is longer than the maximum model length of 32768.", 40000, 32768),
        (
            "You passed 40001 input tokens and requested 100 output tokens. However, the model's context length is "
            "only 32768 tokens, resulting in a maximum input length of 32668 tokens.",
            40001,
            32768,
        ),
        (
            "This model's context is 32768 tokens per request, but the prompt has 58878; shorten the prompt so that at "
            "least one token can be generated.",
            58878,
            32768,
        ),
        ("request (9000 tokens) exceeds the available context size (8192 tokens), try increasing it", 9000, 8192),
        ("the request exceeds the available context size (1024 tokens), try increasing it", 1025, 1024),
        (
            "This endpoint's maximum context length is 262,144 tokens. However, you requested about 284,283 tokens.",
            284283,
            262144,
        ),
        (
            "No endpoint of `m` can serve this request. a: context: at least 9000 prompt tokens, the limit is 8192.",
            9000,
            8192,
        ),
        ("The input (40000 tokens) is longer than the model's context length (32768 tokens).", 32769, 32768),
    ],
)
def test_a_prompt_that_is_too_long(said: str, asked: int, limit: int) -> None:
    found = PROMPT.search(too_long(said, CODE) or "")
    assert found is not None
    assert (int(found[1]), int(found[2])) == (asked, limit)


@pytest.mark.parametrize(
    ("said", "numbers"),
    [
        (
            "This model's maximum context length is 32768 tokens. However, you requested 38933 tokens (6933 in the "
            "messages, 32000 in the completion). Please reduce the length of the messages or completion.",
            (6933, 32000, 32768),
        ),
        (
            "'max_tokens' or 'max_completion_tokens' is too large: 32000. This model's maximum context length is 32768 "
            "tokens and your request has 6933 input tokens (32000 > 32768 - 6933).",
            (6933, 32000, 32768),
        ),
        (
            "You passed 6000 input tokens and requested 32000 output tokens. However, the model's context length is "
            "only 32768 tokens.",
            (6000, 32000, 32768),
        ),
    ],
)
def test_an_answer_that_would_be_too_long_asks_for_a_shorter_one(said: str, numbers: tuple[int, int, int]) -> None:
    found = OUTPUT.search(too_long(said, CODE) or "")
    assert found is not None
    assert tuple(map(int, found.groups())) == numbers


def test_what_anthropic_says_of_it_stays_as_it_is() -> None:
    for said in (
        "prompt is too long: 210118 tokens > 200000 maximum",
        "input length and `max_tokens` exceed context limit: 187254 + 20000 > 204798, decrease input length or "
        "`max_tokens` and try again",
    ):
        assert too_long(said, None) == said


@pytest.mark.parametrize("said", ["Please reduce the length of the messages or completion.", ""])
def test_without_numbers_the_words_are_there_at_least(said: str) -> None:
    assert (too_long(said, CODE) or "").startswith("prompt is too long")


@pytest.mark.parametrize(
    "said",
    [
        "Rate limit reached for requests: limit of 5 tokens per minute.",
        "max_tokens: Field required",
        "Invalid 'messages[0].role'.",
        "The body is longer than 10 MB, the limit is 10485760.",
        "messages.0: image exceeds 5 MB maximum: 6000000 bytes > 5242880 bytes",
    ],
)
def test_other_errors_keep_their_words(said: str) -> None:
    assert too_long(said, "invalid_value") is None
