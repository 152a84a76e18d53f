"""Words for a conversation that is too long, as programs of Anthropic's wire look for them.

Claude Code compacts a conversation, or asks for a shorter answer, when it reads one of two sentences; of any other it
makes an error that its user has to mend. So whatever an endpoint says about its context is said in one of them. Source:
the patterns in Claude Code 2.1.197; the errors of OpenAI, vLLM, llama.cpp, SGLang, Groq and Ollama; read 2026-12-01.
"""

from __future__ import annotations

import re

CODE = "context_length_exceeded"

_NUMBER = r"(\d[\d,]*)"
_LIMITS = tuple(
    re.compile(pattern.replace("N", _NUMBER), re.IGNORECASE)
    for pattern in (
        r"(?:maximum|model's|max(?:imum)? model) context (?:length|window|size) (?:is|of)(?: only)?:? N",
        r"context (?:length|size|window)(?: is| of)?(?: only)?:? \(?N",
        r"model's context is N tokens",
        r"context limit: \d+ \+ \d+ > N",
        r"maximum (?:model|input) length of N",
        r"(?:the|context) limit (?:is|of) N",
        r"limit of N tokens",
        r"tokens? > N maximum",
        r"exceeds? (?:the )?(?:max(?:imum)? )?(?:context|limit)[^0-9]{0,40}N",
    )
)
_INPUTS = tuple(
    re.compile(pattern.replace("N", _NUMBER), re.IGNORECASE)
    for pattern in (
        r"resulted in N tokens",
        r"\(N in the messages",
        r"\(N (?:of|from) (?:the )?(?:text )?input",
        r"N in the messages",
        r"(?:has|passed|contains|with|used) (?:at least )?N (?:input|prompt) tokens",
        r"N input tokens",
        r"request \(N tokens\)",
        r"(?:prompt|input)(?: \(?length)? N[,)]",
        r"at least N prompt tokens",
        r"prompt (?:is too long: |token count of |has )N",
        r"(?:input|prompt) (?:length|tokens)[^0-9]{0,20}N",
        r"too long: N tokens",
        r"requested (?:about )?N tokens",
    )
)
_OUTPUTS = tuple(
    re.compile(pattern.replace("N", _NUMBER), re.IGNORECASE)
    for pattern in (
        r"N in the completion",
        r"requested N output tokens",
        r"tokens'? is too large: N",
        r"N (?:output|completion) tokens",
        r"N (?:of|in|for) (?:the )?output",
    )
)
_SAID = re.compile(r"prompt is too long: \d+ tokens > \d+|exceed context limit: \d+ \+ \d+ > \d+")
_SAYS_SO = re.compile(
    r"context (?:length|window|size)|context limit|maximum model length|prompt is too long|input is too long"
    r"|too many (?:input |prompt )?tokens|reduce the length of the (?:messages|prompt|input)",
    re.IGNORECASE,
)


def too_long(message: str, code: str | None) -> str | None:
    """Say in Anthropic's words that a conversation is too long; None if the error is about something else.

    Args:
        message: The error of an endpoint, or of the router.
        code: The code that it came with, or was given.
    """
    if code != CODE and not _SAYS_SO.search(message):
        return None
    limit, asked, wanted = _first(_LIMITS, message), _first(_INPUTS, message), _first(_OUTPUTS, message)
    if code != CODE and limit is None:
        return None
    if _SAID.search(message):
        return message
    if limit is not None and asked is not None and wanted is not None and asked < limit:
        return (
            f"input length and `max_tokens` exceed context limit: {asked} + {wanted} > {limit}, "
            "decrease input length or `max_tokens` and try again"
        )
    if limit is not None:
        # The sentence needs both counts; a conversation that is too long has one token more, at least.
        return f"prompt is too long: {max(asked or 0, limit + 1)} tokens > {limit} maximum"
    return f"prompt is too long: {message}"


def _first(patterns: tuple[re.Pattern[str], ...], message: str) -> int | None:
    for pattern in patterns:
        if found := pattern.search(message):
            return int(found.group(1).replace(",", ""))
    return None
