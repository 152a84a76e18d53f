"""Tool calls in an answer: `<tool_call>{"name": …, "arguments": {…}}</tool_call>`, told apart from text.

Pure and incremental: arguments are passed on while they are written. What the result says does not depend on
how the text was cut. A call that is no valid JSON stays text, so nothing the model said is lost.
"""

import json
import re
from dataclasses import dataclass

from .text import held_suffix

OPEN, CLOSE = "<tool_call>", "</tool_call>"

# The order in which templates show a call, and models write it.
_HEAD = re.compile(r'\s*\{\s*"name"\s*:\s*("(?:[^"\\]|\\.)*")\s*,\s*"(?:arguments|parameters)"\s*:\s*(?=\{)')


@dataclass(frozen=True, slots=True)
class Text:
    text: str


@dataclass(frozen=True, slots=True)
class CallStarted:
    index: int
    name: str


@dataclass(frozen=True, slots=True)
class CallArguments:
    """A further piece of a call's arguments, as JSON text."""

    index: int
    text: str


Delta = Text | CallStarted | CallArguments


class ToolCallReader:
    """Reads one answer."""

    def __init__(self) -> None:
        self.calls = 0
        self._held = ""
        self._inside = False
        self._raw = ""
        """Of a call whose arguments have not started, everything since `<tool_call>`."""
        self._object: _ObjectEnd | None = None
        """Set while arguments are passed on."""

    def push(self, text: str) -> list[Delta]:
        deltas: list[Delta] = []
        rest = self._held + text
        self._held = ""
        while rest:
            rest = self._read_call(rest, deltas) if self._inside else self._read_text(rest, deltas)
        return deltas

    def flush(self) -> list[Delta]:
        """The answer is over: an unfinished opening, or a call that never showed its name, is text."""
        left = (OPEN + self._raw if self._inside and self._object is None else "") + self._held
        self._held, self._inside, self._raw, self._object = "", False, "", None
        return [Text(left)] if left else []

    def _read_text(self, text: str, deltas: list[Delta]) -> str:
        start = text.find(OPEN)
        if start < 0:
            keep = held_suffix(text, (OPEN,))
            self._held = text[len(text) - keep :]
            if shown := text[: len(text) - keep]:
                deltas.append(Text(shown))
            return ""
        if start:
            deltas.append(Text(text[:start]))
        self._inside = True
        return text[start + len(OPEN) :]

    def _read_call(self, text: str, deltas: list[Delta]) -> str:
        if self._object is not None:
            return self._read_arguments(text, deltas)
        self._raw += text
        if head := _HEAD.match(self._raw):
            deltas.append(CallStarted(self.calls, json.loads(head[1])))
            rest, self._raw = self._raw[head.end() :], ""
            self._object = _ObjectEnd()
            return rest
        end = self._raw.find(CLOSE)
        if end < 0:
            return ""
        body, rest, self._raw, self._inside = self._raw[:end], self._raw[end + len(CLOSE) :], "", False
        deltas += self._whole_call(body)
        return rest

    def _read_arguments(self, text: str, deltas: list[Delta]) -> str:
        assert self._object is not None  # noqa: S101 - asked by the caller.
        if not self._object.closed:
            count = self._object.feed(text)
            if count:
                deltas.append(CallArguments(self.calls, text[:count]))
            return text[count:]
        # After the arguments: the call's own brace and the closing tag, which may arrive in pieces.
        end = text.find(CLOSE)
        if end < 0:
            self._held = text[-(len(CLOSE) - 1) :]
            return ""
        self.calls += 1
        self._inside, self._object = False, None
        return text[end + len(CLOSE) :]

    def _whole_call(self, body: str) -> list[Delta]:
        """A call in another order, or with arguments as a JSON string."""
        try:
            call = json.loads(body)
        except ValueError:
            call = None
        if not isinstance(call, dict) or not isinstance(call.get("name"), str):
            return [Text(OPEN + body + CLOSE)]
        arguments = call.get("arguments", call.get("parameters", {}))
        text = arguments if isinstance(arguments, str) else json.dumps(arguments, ensure_ascii=False)
        index, self.calls = self.calls, self.calls + 1
        return [CallStarted(index, call["name"]), CallArguments(index, text)]


class _ObjectEnd:
    """Finds where a JSON object ends without parsing it."""

    def __init__(self) -> None:
        self.closed = False
        self._depth = 0
        self._in_string = False
        self._escaped = False

    def feed(self, text: str) -> int:
        """How many characters belong to the object."""
        for position, char in enumerate(text):
            if self._in_string:
                if self._escaped:
                    self._escaped = False
                elif char == "\\":
                    self._escaped = True
                elif char == '"':
                    self._in_string = False
            elif char == '"':
                self._in_string = True
            elif char in "{[":
                self._depth += 1
            elif char in "}]":
                self._depth -= 1
                if self._depth == 0:
                    self.closed = True
                    return position + 1
        return len(text)
