"""What providers' errors mean by their words, where status and code do not say it; and how long they ask us to wait.

Source: the error texts of Anthropic, AWS Bedrock, Cerebras, Cohere, DashScope, Google, Groq, llama.cpp, LM Studio,
Mistral, Moonshot, Ollama, OpenAI, OpenRouter, SGLang, TGI, vLLM and xAI, in their documentation, their source code and
public bug reports, read 2026-12-01.
"""

from __future__ import annotations

import re
import time
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import TYPE_CHECKING, Any

from goblin.core.errors import Fault
from goblin.providers.common.reading import count_of

if TYPE_CHECKING:
    from goblin.providers.common.refusals import ErrorDetail

WAIT_S_MAX = 86_400.0
"""Longest wait that is believed."""
_SEARCHED_MAX = 2000
_WAIT_CHARS_MAX = 64
_NODES_MAX = 200

_TOO_LONG = re.compile(
    r"context[ _-]?(length|window|size|limit)s?[ _-]?(was |is |are |has been )?exce"
    r"|exceed(s|ed|ing|_)?[^.\n]{0,60}?(context|max(imum)?[ _](model[ _])?(seq|len|input|prompt|allowed (input|number))"
    r"|maximum number of (input )?tokens|model token limit|input token limit)"
    r"|max(imum)? ?(model )?(context|prompt|sequence)[ _]?(length|window|size)"
    r"|(longer|larger|greater|more) than (the )?(model.?s )?(max\w* )?(context|model length|input length)"
    r"|(longer|larger) than the maximum model length"
    r"|(prompt|input|request|conversation|messages?)( is| was| are)? too (long|large)(?! for this field)"
    r"|too (many|large)( input| prompt)? tokens|too large for model with"
    r"|(prompt|input|inputs?`?) (length|tokens|must have)[^.\n]{0,60}(exceed|less than|must be <=|<=|should be|cannot)"
    r"|tokens?`? \+ `?max_new_tokens`? must be"
    r"|range of input length should be|reduce the length of (the|your) (messages|prompt|input)"
    r"|overflows?[^.\n]{0,40}context|context[^.\n]{0,20}overflow|prompt exceeds|tokens_limit_reached",
    re.IGNORECASE,
)
"""How errors say that the prompt does not fit into the model's context."""
_TOO_LONG_CODES = frozenset(
    {
        "context_length_exceeded",
        "context_window_exceeded",
        "exceed_context_size_error",
        "model_context_window_exceeded",
        "tokens_limit_reached",
    }
)
_WAITS = re.compile(
    r"rate.?limit|too many requests|throttl|per (minute|min|day|hour|second)\b|please wait|\bTP[MD]\b", re.IGNORECASE
)
"""Words of rate limits, which also speak of too many tokens."""

_SAID = (
    (Fault.AUTH, r"(invalid|incorrect|wrong)[ _]?(x-)?api[ _-]?key|api[ _-]?key[ _]?(is )?(not )?(in)?valid"),
    (
        Fault.MONEY,
        r"insufficient[ _](balance|credits?|funds)|arrearage|balance is too low|(not enough|out of) credits?"
        r"|exceeded_current_quota|no resource package",
    ),
    (
        Fault.MISSING,
        r"model[ _](not[ _](found|exist)|decommissioned)|is not a valid model"
        r"|model\b.{0,100}(does not exist|not found|decommissioned)",
    ),
    (Fault.RATE, r"rate[ _-]?limit|too[ _]many[ _]requests|throttl|resource_exhausted"),
    (Fault.CAPACITY, r"overloaded|server[ _](is )?busy|high demand|at capacity|capacity[ _]exceeded"),
)
"""What errors say beside a status that says something else."""


def says_too_long(detail: ErrorDetail) -> bool:
    """Tell whether an error says that the prompt does not fit into the model's context."""
    if detail.code in _TOO_LONG_CODES or detail.type in _TOO_LONG_CODES:
        return True
    message = detail.message[:_SEARCHED_MAX]
    return bool(_TOO_LONG.search(message)) and not _WAITS.search(f"{message} {detail.code} {detail.type}")


def fault_said(detail: ErrorDetail) -> Fault | None:
    """Find the fault that an error names in its code, its type or its message; None when it names none."""
    text = f"{detail.code} {detail.type} {detail.message[:_SEARCHED_MAX]}"
    return next((fault for fault, words in _SAID if re.search(words, text, re.IGNORECASE | re.DOTALL)), None)


def caller_code(detail: ErrorDetail) -> str | None:
    """Choose the code that the caller is told: OpenAI's for a prompt that is too long, else the provider's own."""
    if says_too_long(detail):
        return "context_length_exceeded"
    # llama-server repeats the status as the code.
    return detail.code if detail.code and not detail.code.isdigit() else None


_STATUSES = (
    (429, r"rate[ _-]?limit|too[ _]many[ _]requests|throttl|resource_exhausted"),
    (529, r"overload|busy|(at|no|flex) capacity|capacity_exceeded"),
    (401, r"authentication|unauthorized|api[ _-]?key"),
    (403, r"permission|forbidden"),
    (404, r"not[ _]?found|does not exist"),
    (408, r"time(d )?[ _-]?out"),
    (400, r"invalid[ _]?request|bad[ _]?request|validation|invalid_argument|unprocessable"),
)


def status_of(value: Any, detail: ErrorDetail) -> int:
    """Find the status that an error under status 200 would have had; 500 when nothing tells."""
    told: list[Any] = [detail.code]
    if isinstance(value, dict):
        inner = value.get("error")
        for said in (value, inner if isinstance(inner, dict) else {}):
            told += [said.get(name) for name in ("status", "status_code", "statusCode", "code")]
    for one in told:
        if 400 <= (count_of(one) or 0) <= 599:
            return count_of(one) or 500
    if says_too_long(detail):
        return 400
    for text in (f"{detail.code} {detail.type}", detail.message[:_SEARCHED_MAX]):
        for status, words in _STATUSES:
            if re.search(words, text, re.IGNORECASE):
                return status
    return 500


def retry_after_s(headers: Mapping[str, str], *, limited: bool = False) -> float | None:
    """Read how many seconds the provider asks us to wait; None when it does not say.

    In this order: `retry-after-ms`, `Retry-After` in seconds, as a duration or as a date, and the refill time of rate
    limits that are used up. Dates are compared with the provider's own `Date`.

    Args:
        headers: Names in lower case.
        limited: Whether the provider said that a rate limit was reached: then a refill time counts even where the
            provider does not say which limit it is.
    """
    now = _moment(headers.get("date", "")) or time.time()
    for name, scale in (
        ("retry-after-ms", 0.001),
        ("x-ms-retry-after-ms", 0.001),
        ("retry-after", 1.0),
        ("x-retry-after", 1.0),
        ("x-ratelimit-reset-after", 1.0),
    ):
        if (wait_s := _wait_s(headers.get(name), now)) is not None:
            return min(wait_s * scale, WAIT_S_MAX)
    waits = [*_empty_buckets(headers, now, limited=limited), *_empty_policies(headers.get("ratelimit", ""))]
    return min(max(waits), WAIT_S_MAX) if waits else None


_BUCKET = re.compile(r"(?:x-|anthropic-)?ratelimit-(?:(reset)(?:-([a-z-]{1,30}))?|([a-z-]{1,30})-reset)")


def _empty_buckets(headers: Mapping[str, str], now: float, *, limited: bool) -> Iterator[float]:
    """Read limits that are used up: `x-ratelimit-remaining-tokens: 0` with `x-ratelimit-reset-tokens: 2m59.56s`.

    OpenAI and Groq say when in a duration, Anthropic as a date (`anthropic-ratelimit-tokens-reset`), OpenRouter in
    milliseconds since 1970, others in seconds.
    """
    unsaid = []
    for name, said in headers.items():
        if _BUCKET.fullmatch(name) is None or (wait_s := _wait_s(said, now)) is None:
            continue
        left = count_of(headers.get(name.replace("reset", "remaining")))
        if left == 0:
            yield wait_s
        elif left is None:
            unsaid.append(wait_s)
    if limited and unsaid:
        yield max(unsaid)


_POLICY = re.compile(r'"[a-z]+";r=([0-9]{1,9});t=([0-9]{1,9})\b')


def _empty_policies(header: str) -> list[float]:
    """Read RunPod's `RateLimit: "minute";r=0;t=12, "hour";r=2800;t=1812`: `r` remains, `t` seconds until it refills."""
    return [float(seconds) for left, seconds in _POLICY.findall(header[:_SEARCHED_MAX]) if int(left) == 0]


_UNITS_S = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86_400.0}
_STEP = r"(\d{1,9}(?:\.\d{1,9})?)\s*(milliseconds?|ms|minutes?|mins?|m|seconds?|secs?|s|hours?|hrs?|h|days?|d)"
_STEPS = re.compile(_STEP, re.IGNORECASE)
_DURATION = re.compile(rf"(?:{_STEP}\s*)+", re.IGNORECASE)
_IN_TEXT = re.compile(
    rf"(?:try again|retry|wait|available|reset)\D{{0,40}}?((?:{_STEP}[\s,]*)+)(?![a-z])", re.IGNORECASE
)


def wait_in_words_s(message: str) -> float | None:
    """Read the wait in a message: Groq's `Please try again in 7.66s`, Azure's `Please retry after 20 seconds`."""
    found = _IN_TEXT.search(message[:_SEARCHED_MAX])
    return None if found is None else min(_duration_s(found[1]), WAIT_S_MAX)


_WAIT_KEYS = {
    "retry_after": 1.0,
    "retryafter": 1.0,
    "retry-after": 1.0,
    "retry_after_seconds": 1.0,
    "retry_after_ms": 0.001,
    "retrydelay": 1.0,
    "estimated_time": 1.0,
}


def wait_in_body_s(body: Any) -> float | None:
    """Find the wait in a parsed error body, wherever it is: Google's `retryDelay`, OpenRouter's `metadata.headers`."""
    now, left = time.time(), [body]
    for _ in range(_NODES_MAX):
        if not left:
            break
        value = left.pop()
        if isinstance(value, list):
            left += value[:16]
        if not isinstance(value, dict):
            continue
        for key, said in value.items():
            name = str(key).lower()
            if name in _WAIT_KEYS and (wait_s := _wait_s(said, now)) is not None:
                return min(wait_s * _WAIT_KEYS[name], WAIT_S_MAX)
            if name == "headers" and isinstance(said, dict):
                held = {str(key).lower(): str(value) for key, value in said.items()}
                if (wait_s := retry_after_s(held, limited=True)) is not None:
                    return wait_s
            elif isinstance(said, dict | list):
                left.append(said)
    return None


def _wait_s(said: Any, now: float) -> float | None:
    """Read a wait from a number of seconds, a duration, a date, or a time since 1970 in seconds or milliseconds."""
    text = str(said).strip() if isinstance(said, str | int | float) and not isinstance(said, bool) else ""
    if not 0 < len(text) <= _WAIT_CHARS_MAX:
        return None
    try:
        number = float(text)
    except ValueError:
        if _DURATION.fullmatch(text):
            return _duration_s(text)
        moment = _moment(text)
        return moment - now if moment is not None and moment > now else None
    if 1e11 < number < 1e14:
        number /= 1000
    if 1e9 < number < 1e11:
        number -= now
    return number if 0 <= number < float("inf") else None


def _duration_s(text: str) -> float:
    """Add up a duration: `6m0s`, `2m59.56s`, `250ms`, `1 hour 5 minutes`."""
    total = 0.0
    for number, unit in _STEPS.findall(text):
        unit = unit.lower()
        total += float(number) * _UNITS_S["ms" if unit.startswith(("ms", "milli")) else unit[0]]
    return total


def _moment(text: str) -> float | None:
    """Read a date as HTTP or as RFC 3339 writes it, in seconds since 1970."""
    if len(text) > _WAIT_CHARS_MAX:
        return None
    for read in (parsedate_to_datetime, datetime.fromisoformat):
        try:
            found = read(text)
            return (found if found.tzinfo else found.replace(tzinfo=UTC)).timestamp()
        except (ValueError, TypeError, IndexError, OverflowError):
            continue
    return None
