"""Parser for tool calls in an answer: `<tool_call>{"name": …, "arguments": {…}}</tool_call>`.

Pure and incremental: arguments are passed on while the model writes them. The result does not depend on how the text
was split. A call that is not valid JSON stays text, so no output of the model is lost.
"""

import json
import re
from dataclasses import dataclass

from .text import held_suffix

OPEN, CLOSE = "<tool_call>", "</tool_call>"

# The order of keys in which templates show a call, and in which models write it.
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
    """Another piece of a call's arguments, as JSON text."""

    index: int
    text: str


Delta = Text | CallStarted | CallArguments


class ToolCallReader:
    """Parser of one answer."""

    def __init__(self) -> None:
        self.calls = 0
        self._held = ""
        self._inside = False
        self._raw = ""
        """Text since `<tool_call>`, of a call whose arguments have not started."""
        self._object: _ObjectEnd | None = None
        """Set while the arguments of a call are passed on."""

    def push(self, text: str) -> list[Delta]:
        """Add text of the answer and return what it adds."""
        deltas: list[Delta] = []
        rest = self._held + text
        self._held = ""
        while rest:
            rest = self._read_call(rest, deltas) if self._inside else self._read_text(rest, deltas)
        return deltas

    def flush(self) -> list[Delta]:
        """Return what was held back, at the end of the answer.

        An unfinished `<tool_call>`, or a call whose name never came, is text.
        """
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
        assert self._object is not None  # noqa: S101 - checked by the caller.
        if not self._object.closed:
            count = self._object.feed(text)
            if count:
                deltas.append(CallArguments(self.calls, text[:count]))
            return text[count:]
        # After the arguments come the call's own brace and the closing tag. They may arrive in pieces.
        end = text.find(CLOSE)
        if end < 0:
            self._held = text[-(len(CLOSE) - 1) :]
            return ""
        self.calls += 1
        self._inside, self._object = False, None
        return text[end + len(CLOSE) :]

    def _whole_call(self, body: str) -> list[Delta]:
        """Parse a complete call whose keys are in another order, or whose arguments are a JSON string."""
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
    """Search for the end of a JSON object without parsing it."""

    def __init__(self) -> None:
        self.closed = False
        self._depth = 0
        self._in_string = False
        self._escaped = False

    def feed(self, text: str) -> int:
        """Return how many characters of the text belong to the object."""
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
