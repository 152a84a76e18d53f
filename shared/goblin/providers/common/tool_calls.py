"""Tool calls of one choice, from the pieces that upstreams send: each call ends with one id, one name and its own JSON.

    no `index`             the call with that id, else a new one for a new name, else the last
    one `index` for two    another id with a name, or a name after arguments that are complete, begins a call
    a name again           belongs to the call that it repeats
    the whole call again   is left out: its arguments are complete

A call is passed on once its arguments begin, so that its name is whole by then. Source of the shapes: public bug
reports of Gemini's OpenAI route, LiteLLM, Ollama, SGLang and vLLM, read 2026-12-01.
"""

from __future__ import annotations

import re
import uuid
from collections.abc import Collection, Iterator, Sequence
from typing import Any, NamedTuple

import msgspec
from msgspec import UNSET

from goblin.gateway.domain.chat import FunctionDelta, ToolCallDelta
from goblin.gateway.stream_usage import TOOL_CALLS_MAX
from goblin.providers.common import sse
from goblin.providers.common.reading import count_of, encodable, mend

_MARKS = re.compile(r'\\.|\\$|["{}\[\]]', re.DOTALL)
_NOTHING = frozenset({"", "{}", "null"})
"""Arguments that may stand for those that come later."""
_NOTHING_MAX = 64
"""Characters of a text that may be one of `_NOTHING` and white space."""
NAMES_MAX = 8 * TOOL_CALLS_MAX
"""Most ids and indexes by which the calls of one choice are found."""


class TooManyCalls(Exception):
    """More calls than any answer has, or arguments without end that belong to none."""


class _Piece(NamedTuple):
    place: int | None
    id: str
    name: str
    arguments: str


class _Call:
    """One call, and how far its arguments are."""

    __slots__ = (
        *("number", "id", "name", "half", "begun", "written", "again", "closes"),
        *("_complete", "_depth", "_escaped", "_held", "_held_chars", "_in_text", "_unread"),
    )

    def __init__(self, call_id: str) -> None:
        self.number = -1
        """Its place among those that were passed on."""
        self.id = call_id
        self.name = ""
        self.half = ""
        """The first half of a character at the end of the arguments so far."""
        self.begun = False
        """Whether the call was passed on."""
        self.written = False
        """Whether any arguments were passed on."""
        self.again = False
        """Whether its name came again after its arguments were complete."""
        self.closes = False
        """Whether the arguments may be complete, by their last character."""
        self._held: list[str] = []
        """Arguments that are not passed on yet, in pieces."""
        self._held_chars = 0
        self._unread: list[str] = []
        self._complete = False
        self._depth = 0
        self._in_text = False
        self._escaped = False

    @property
    def held(self) -> str:
        """Arguments that are not passed on yet."""
        if len(self._held) > 1:
            self._held = ["".join(self._held)]
        return self._held[0] if self._held else ""

    @property
    def holds_nothing(self) -> bool:
        """Whether the arguments that are held may stand for those that come later."""
        return self._held_chars <= _NOTHING_MAX and self.held.strip() in _NOTHING

    def hold(self, arguments: str) -> None:
        """Keep arguments until it is clear whose they are. Raises `TooManyCalls` when there is no end of them."""
        if self.holds_nothing:
            self._held, self._held_chars = [], 0
        self._held.append(arguments)
        self._held_chars += len(arguments)
        if self._held_chars > sse.LINE_BYTES_MAX:
            raise TooManyCalls

    def feed(self, arguments: str) -> None:
        """Take a piece of the arguments, which is not empty."""
        self._unread.append(arguments)
        self.closes = arguments[-1] in "}] \t\r\n"

    @property
    def complete(self) -> bool:
        """Whether the arguments are a whole JSON object or list."""
        if self._unread:
            text = "".join(self._unread)
            self._unread.clear()
            text = "\\" + text if self._escaped else text
            self._escaped = False
            for mark in _MARKS.finditer(text):
                match mark[0]:
                    case '"':
                        self._in_text = not self._in_text
                    case "\\":
                        self._escaped = True
                    case "{" | "[" if not self._in_text:
                        self._depth += 1
                    case "}" | "]" if not self._in_text:
                        self._depth -= 1
                        self._complete = self._complete or self._depth == 0
        return self._complete


class ToolCalls:
    """The calls of one choice, in the order in which they began."""

    def __init__(self, tools: Collection[str]) -> None:
        """Start without a call.

        Args:
            tools: Names of the tools in the request.
        """
        self._tools = tools
        self._calls: list[_Call] = []
        self._begun = 0
        """Number of calls that were passed on."""
        self._by_index: dict[int, _Call] = {}
        self._by_id: dict[str, _Call] = {}
        self._any = False

    def __bool__(self) -> bool:
        """Whether there is a call; pieces with nothing in them make none."""
        return self._any

    def goes_on(self, pieces: Sequence[ToolCallDelta]) -> bool:
        """Take a piece that only continues the arguments of a call, and can be passed on as it is; False for others."""
        piece = pieces[0]
        call = self._by_index.get(piece.index)
        if call is None or len(pieces) > 1 or piece.id or call.number != piece.index or not call.begun:
            return False
        function = piece.function
        if not function or function.name or not function.arguments or call.half or (call.closes and call.complete):
            return False
        call.feed(function.arguments)
        return True

    def add(self, said: Any) -> Iterator[ToolCallDelta]:
        """Take `tool_calls` of any shape, and yield what can be passed on. Raises `TooManyCalls`."""
        pieces = [_piece(one) for one in (said if isinstance(said, list) else [said]) if isinstance(one, dict)]
        touched: set[_Call] = set()
        for position, piece in enumerate(pieces):
            call = self._find(piece, position if len(pieces) > 1 else None, touched)
            touched.add(call)
            self._any = self._any or bool(call.name or piece.name or piece.arguments.strip())
            yield from self._take(call, piece)

    def flush(self, *, whole: bool) -> Iterator[ToolCallDelta]:
        """Yield what is still held back; `whole` if the model ended its calls itself, so that none has a half JSON."""
        for call in self._calls:
            if not (call.begun or call.name or call.held.strip()):
                continue
            if not call.begun:
                yield self._begin(call, "{}" if whole and call.held.strip() in _NOTHING else mend(call.held)[0])
            elif call.half or (whole and not call.written):
                yield _arguments(call, "\ufffd" if call.half else "{}")

    def _find(self, piece: _Piece, position: int | None, touched: Collection[_Call]) -> _Call:
        known = self._by_id.get(piece.id)
        last = known or (self._by_index.get(piece.place) if piece.place is not None else None)
        if last is None and self._calls and (piece.place is None or not (piece.id or piece.name)):
            nameless = position is not None and position < len(self._calls) and not (piece.id or piece.name)
            last = self._calls[position] if nameless and position is not None else self._calls[-1]
        if last is None or (known is None and self._begins(piece, last, touched=last in touched)):
            last = self._new(piece, last)
        if piece.place is not None:
            self._by_index[piece.place] = last
        if piece.id:
            self._by_id.setdefault(piece.id, last)
        if max(len(self._by_index), len(self._by_id)) > NAMES_MAX:
            raise TooManyCalls
        return last

    def _begins(self, piece: _Piece, last: _Call, *, touched: bool) -> bool:
        """Tell whether a piece begins another call than the last one at its place.

        Args:
            piece: What came.
            last: The call that it would continue.
            touched: Whether an earlier piece of the same chunk was that call's.
        """
        other_id = bool(piece.id and last.id and piece.id != last.id)
        if touched and (piece.name or other_id):
            return True
        if other_id:
            return bool(piece.name) or (last.complete and bool(piece.arguments.strip()))
        if not piece.name:
            return last.complete and last.again and bool(piece.arguments.strip())
        if not last.name:
            return False
        differs = piece.name != last.name
        if last.complete:
            last.again = not differs
            return differs or bool(piece.arguments.strip())
        if not differs and last.holds_nothing and last.held.strip() == piece.arguments.strip() == "{}":
            return True  # The same call without arguments, twice.
        return differs and (last.begun or (piece.name in self._tools and last.name in self._tools))

    def _new(self, piece: _Piece, last: _Call | None) -> _Call:
        call = _Call(piece.id)
        if last is not None and last.again and not piece.name:
            call.name = last.name
        self._calls.append(call)
        if len(self._calls) > TOOL_CALLS_MAX:
            raise TooManyCalls
        return call

    def _take(self, call: _Call, piece: _Piece) -> Iterator[ToolCallDelta]:
        arguments = piece.arguments
        if call.begun:
            if not arguments or call.complete:
                return
            arguments, call.half = mend(call.half + arguments)
            if arguments:
                call.feed(arguments)
                call.written = True
                yield _arguments(call, arguments)
            return
        call.id = call.id or piece.id
        call.name = self._named(call.name, piece.name)
        apart = not call.held and not piece.name
        if arguments:
            call.hold(arguments)
        if not call.name or call.holds_nothing:
            return
        for earlier in self._calls[: self._calls.index(call)]:
            if earlier.name and not earlier.begun:
                yield self._begin(earlier, "")
        said, call.half = mend(call.held)
        if said:
            call.feed(said)
        yield self._begin(call, "" if apart else said)
        if apart:
            call.written = True
            yield _arguments(call, said)

    def _named(self, known: str, said: str) -> str:
        """Join a name that comes in pieces; one that comes again, or whole after a piece of it, is no piece."""
        if not known or not said or said.startswith(known):
            return said or known
        if known in self._tools and known + said not in self._tools:
            return known
        return known + said

    def _begin(self, call: _Call, arguments: str) -> ToolCallDelta:
        call.begun, call.written, call.number = True, bool(arguments), self._begun
        self._begun += 1
        if not call.name and len(self._tools) == 1:
            (call.name,) = self._tools
        call.id = call_id_of(call.id)
        function = FunctionDelta(name=call.name, arguments=arguments)
        return ToolCallDelta(index=call.number, id=call.id, type="function", function=function)


def call_id_of(said: Any) -> str:
    """Return the id of a call; a new one where the upstream gave none, because clients need it for the result."""
    known = mend(str(said))[0] if isinstance(said, str | int) and said and said is not True else ""
    return known or f"call_{uuid.uuid4().hex[:24]}"


def argument_text(arguments: Any) -> str:
    """Return arguments as JSON text; some servers send the object itself."""
    if isinstance(arguments, str):
        return arguments
    return "" if arguments is None or arguments is UNSET else msgspec.json.encode(encodable(arguments)).decode()


def _piece(said: dict[str, Any]) -> _Piece:
    """Read one entry of `tool_calls`; some servers leave out `function` and put its fields beside the id."""
    function = said.get("function")
    if not isinstance(function, dict):
        function = said
    name, call_id = function.get("name") or said.get("name"), said.get("id") or function.get("id")
    arguments = next(
        (function[key] for key in ("arguments", "parameters", "input") if function.get(key) is not None), ""
    )
    return _Piece(
        place=count_of(said.get("index")),
        id=str(call_id) if isinstance(call_id, str | int) and call_id and call_id is not True else "",
        name=mend(name)[0] if isinstance(name, str) else "",
        arguments=argument_text(arguments),
    )


def _arguments(call: _Call, text: str) -> ToolCallDelta:
    return ToolCallDelta(index=call.number, function=FunctionDelta(arguments=text))
