"""Reads single values that upstreams write in several ways: text, token counts, usage, reasons to finish, structs.

What cannot be read is None or empty, never an exception: one odd field must not cost a whole answer. Source of the
shapes: the documentation of the vendors, and public bug reports of gateways and clients, read 2026-12-01.
"""

from __future__ import annotations

import codecs
import json
import re
from collections.abc import Iterable
from typing import Any, TypeVar, get_args, get_origin

import msgspec
from msgspec import UNSET, UnsetType

from goblin.core.decoding import UNREADABLE
from goblin.gateway.domain.chat import Usage
from httpguard.text import is_bounded

COUNT_MAX = 10**9
"""Largest token count that is believed; the largest contexts are a hundred times smaller."""
BROKEN = "error"
"""What `finish_of` answers for a reason that says that the answer is not whole."""
_DEPTH_MAX = 16
_DIGITS_MAX = 32
_THOUGHTS = frozenset({"thinking", "reasoning", "reasoning_text", "reasoning_content", "thought"})
_TEXT_KEYS = ("text", "content", "parts", "value", "output_text", "refusal")
_THOUGHT_KEYS = ("thinking", "reasoning", "reasoning_content", "text", "content", "summary")


def parts_of(value: Any, depth: int = 0) -> tuple[str, str]:
    """Read text and thoughts from a string, from parts such as `{"type": "text"}`, or from a list of both.

    Source: Mistral's reasoning models stream `content` as a list of `thinking` and `text` parts; docs.mistral.ai, read
    2026-12-01.
    """
    match value:
        case str():
            return value, ""
        case bool() | None:
            return "", ""
        case int() | float():
            return msgspec.json.encode(value).decode(), ""  # A proxy turned a token of digits into a number.
        case list() if depth < _DEPTH_MAX:
            found = [parts_of(part, depth + 1) for part in value]
            return "".join(text for text, _ in found), "".join(thought for _, thought in found)
        case dict() if depth < _DEPTH_MAX:
            kind = value.get("type")
            thinks = (isinstance(kind, str) and kind.partition(".")[0] in _THOUGHTS) or value.get("thought") is True
            for key in _THOUGHT_KEYS if thinks else _TEXT_KEYS:
                if (inner := value.get(key)) is not None:
                    said, thought = parts_of(inner, depth + 1)
                    return ("", said + thought) if thinks else (said, thought)
            if isinstance(thoughts := value.get("thinking"), str):
                return "", thoughts
    return "", ""


def text_of(value: Any) -> str:
    """Read all text of a value, thoughts included."""
    return "".join(parts_of(value))


def count_of(value: Any) -> int | None:
    """Read a token count: a whole number from 0 to `COUNT_MAX`, as a number or as text. None for anything else."""
    if isinstance(value, str):
        if len(value) > _DIGITS_MAX or not value.isascii() or "_" in value:
            return None  # Python reads digits of other scripts, and underscores between digits.
        try:
            value = float(value)
        except ValueError:
            return None
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= COUNT_MAX:
        return None
    return int(value) if value == int(value) else None


_ASKED = ("prompt_tokens", "input_tokens", "prompt_eval_count", "promptTokens", "inputTokens", "input")
_ANSWERED = ("completion_tokens", "output_tokens", "eval_count", "completionTokens", "outputTokens", "output")


def usage_of(value: Any) -> Usage | None:
    """Read a usage object; None when it has no counts.

    A count that is missing is computed from the total, or stays 0: `StreamUsage` estimates a zero where there was text.
    """
    if not isinstance(value, dict):
        return None
    asked, answered, total = _first(value, _ASKED), _first(value, _ANSWERED), _first(value, ("total_tokens",)) or 0
    if asked is None and answered:
        asked = max(total - answered, 0)
    if answered is None and asked:
        answered = max(total - asked, 0)
    if not asked and not answered:
        return None
    asked, answered = asked or 0, answered or 0
    details = value.get("completion_tokens_details")
    thoughts = count_of(details.get("reasoning_tokens")) if isinstance(details, dict) else None
    if thoughts and total == asked + answered + thoughts:
        answered += thoughts  # xAI counts thoughts beside the completion, and bills them.
    return Usage(
        prompt_tokens=asked,
        completion_tokens=answered,
        total_tokens=max(total, asked + answered),
        prompt_tokens_details=_details(value.get("prompt_tokens_details")),
        completion_tokens_details=_details(details),
    )


def is_sound(usage: Usage) -> bool:
    """Tell whether a usage that was decoded can be passed on as it is; zeros say nothing and do no harm."""
    asked, answered = usage.prompt_tokens, usage.completion_tokens
    return (
        0 <= asked <= COUNT_MAX
        and 0 <= answered <= COUNT_MAX
        and usage.total_tokens == asked + answered
        and not usage.prompt_tokens_details
        and not usage.completion_tokens_details
    )


def _first(value: dict[str, Any], names: Iterable[str]) -> int | None:
    return next((count for name in names if (count := count_of(value.get(name))) is not None), None)


def _details(value: Any) -> dict[str, Any] | UnsetType:
    if not isinstance(value, dict):
        return UNSET
    counts = {name: count_of(said) for name, said in value.items() if name.isascii()}
    return {name: count for name, count in counts.items() if count is not None} or UNSET


_REASONS = (
    (
        "content_filter",
        r"(content)?filter(ed)?|safety|sensitive|refus(al|ed)|blocked|blocklist|guardrails?|prohibited|recitation|spii"
        r"|toxic|moderation",
    ),
    (
        BROKEN,
        r"errors?|fail(ed|ure)?|abort(ed)?|cancell?(ed)?|time(out)?|interrupted|insufficient|unavailable|malformed"
        r"|overloaded|exception|crashed|oom|disconnected|network",
    ),
    ("length", r"length|max(tokens)?|limit|exceeded|window|truncated"),
    ("tool_calls", r"tool(s|calls|use)?|functions?"),
)
"""Words in reasons, the first that fits wins. Source: the documentation of Anthropic, AWS Bedrock, Cohere, DeepSeek,
Google, IBM watsonx, Mistral, OpenRouter, SGLang, TGI, Together, vLLM and Z.ai, read 2026-12-01."""
_KNOWN = frozenset({"stop", "length", "tool_calls", "content_filter", "function_call"})
_WORDS = re.compile(r"[A-Z]?[a-z0-9]+|[A-Z0-9]+")


def finish_of(reason: Any) -> str | None:
    """Read a reason to finish as one of OpenAI's five, or as `BROKEN`; None where there is no reason yet.

    A word that nobody knows is `stop`: the upstream says that the answer has ended, and not that something went wrong.
    """
    if isinstance(reason, str) and reason in _KNOWN:
        return reason
    if isinstance(reason, dict):
        reason = reason.get("type") or reason.get("reason") or bool(reason)  # SGLang: {"type": "stop", "matched": 2}.
    if not reason or (isinstance(reason, str) and reason.lower() in ("none", "null", "not_finished")):
        return None
    if not isinstance(reason, str):
        return "stop"
    if reason in _KNOWN:
        return reason
    words = [word.lower() for word in _WORDS.findall(reason[:100])]
    return next((meant for meant, known in _REASONS if any(re.fullmatch(known, word) for word in words)), "stop")


_PAIR = re.compile("[\ud800-\udbff][\udc00-\udfff]")
_BYTES = re.compile("[\udc80-\udcff]+")
_HALF = re.compile("[\ud800-\udfff]")
_UNKNOWN = "\ufffd"


def mend(text: str) -> tuple[str, str]:
    """Join the halves of characters that were cut, and hold back a first half at the end.

    Args:
        text: It may have lone surrogates, which are halves of UTF-16 or, from U+DC80, bytes that are not UTF-8.

    Returns:
        Text that can be encoded, and the rest, which belongs before the next piece.
    """
    if not _HALF.search(text):
        return text, ""
    text = _PAIR.sub(lambda pair: pair[0].encode("utf-16", "surrogatepass").decode("utf-16"), text)
    held = ""
    if "\ud800" <= text[-1] <= "\udbff":
        text, held = text[:-1], text[-1]
    elif "\udc80" <= text[-1] <= "\udcff":
        start = next(found for found in _BYTES.finditer(text) if found.end() == len(text)).start()
        decoder = codecs.getincrementaldecoder("utf-8")("replace")
        said = decoder.decode(text[start:].encode("utf-8", "surrogateescape"))
        text, held = text[:start] + said, decoder.getstate()[0].decode("utf-8", "surrogateescape")
    text = _BYTES.sub(lambda run: run[0].encode("utf-8", "surrogateescape").decode("utf-8", "replace"), text)
    return _HALF.sub(_UNKNOWN, text), held


def encodable(value: Any) -> Any:
    """Return a value that can be written as JSON: without halves of characters."""
    try:
        msgspec.json.encode(value)
    except (ValueError, RecursionError):
        return _encodable(value, 0)
    return value


def _encodable(value: Any, depth: int) -> Any:
    match value:
        case str():
            return mend(value)[0]
        case list() if depth < _DEPTH_MAX:
            return [_encodable(one, depth + 1) for one in value]
        case dict() if depth < _DEPTH_MAX:
            return {mend(str(key))[0]: _encodable(one, depth + 1) for key, one in value.items()}
        case bool() | int() | float():
            return value
    return None


class Halves:
    """First halves of characters, by the field that waits for the second."""

    def __init__(self) -> None:
        self._held: dict[Any, str] = {}

    def __bool__(self) -> bool:
        return bool(self._held)

    def join(self, field: Any, text: str) -> str:
        """Put what is held before the text, and hold what is cut at its end."""
        mended, half = mend(self._held.pop(field, "") + text)
        if half:
            self._held[field] = half
        return mended

    def holds(self, field: Any) -> bool:
        """Tell whether a field waits."""
        return field in self._held

    def take(self, field: Any) -> str:
        """Give up on a field: its half can be no character any more."""
        return _UNKNOWN if self._held.pop(field, "") else ""


S = TypeVar("S", bound=msgspec.Struct)


def parsed(data: bytes) -> Any:
    """Parse JSON. Halves of characters stay, as lone surrogates. Raises one of `UNREADABLE`, also for deep nesting."""
    if not is_bounded(data):
        raise ValueError("it is nested too deeply")
    try:
        return msgspec.json.decode(data)
    except UNREADABLE:
        return json.loads(data.decode("utf-8", "surrogateescape"), strict=False)


def decoded(data: bytes, kind: type[S]) -> S:
    """Parse JSON into a struct; a field of another shape gets its default. Raises one of `UNREADABLE`."""
    if not is_bounded(data):
        raise ValueError("it is nested too deeply")
    try:
        return msgspec.json.decode(data, type=kind)
    except UNREADABLE:
        return leniently(parsed(data), kind)


def leniently(value: Any, kind: type[S]) -> S:
    """Convert parsed JSON to a struct field by field; a field of another shape gets its default, if it has one.

    Raises:
        msgspec.ValidationError: It is no object, or a field without a default is missing or has another shape.
    """
    if not isinstance(value, dict):
        raise msgspec.ValidationError("Expected an object.")
    fields: dict[str, Any] = {}
    for field in msgspec.structs.fields(kind):
        if field.encode_name not in value:
            continue
        said = value[field.encode_name]
        try:
            fields[field.name] = msgspec.convert(said, field.type, strict=False)
        except UNREADABLE:
            if (found := _by_parts(said, field.type)) is not None:
                fields[field.name] = found
    missing = [field.name for field in msgspec.structs.fields(kind) if field.required and field.name not in fields]
    if missing:
        raise msgspec.ValidationError(f"Nothing for {missing[0]}.")
    return kind(**fields)


def _by_parts(value: Any, kind: Any) -> Any:
    """Convert what is not of a field's type as it is: text in parts, a struct, or the good rows of a list."""
    kinds = (kind, *get_args(kind))
    if str in kinds and (text := text_of(value)):
        return text
    inner = next((one for one in kinds if isinstance(one, type) and issubclass(one, msgspec.Struct)), None)
    if inner is not None and isinstance(value, dict) and get_origin(kind) is not tuple:
        try:
            return leniently(value, inner)
        except UNREADABLE:
            return None
    rows = next((one for one in kinds if get_origin(one) is tuple), None)
    if rows is not None and isinstance(value, list | dict):
        row_kind = get_args(rows)[0]
        found = (_by_parts(row, row_kind) for row in (value if isinstance(value, list) else [value]))
        return tuple(row for row in found if row is not None)
    return None
