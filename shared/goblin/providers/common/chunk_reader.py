"""Reads the chunks of one answer in OpenAI's shape, from any server: what they mean is kept, how they say it is not.

    bytes or parsed JSON ──▶ ChunkReader ──▶ chunks as OpenAI would send them ──▶ the gateway, and then every face

A good chunk is decoded once and passed on. Everything else is read field by field: text, thoughts, calls, reasons and
counts are looked for where servers put them, and what is not needed may have any shape. The reason to finish is held
back until the stream ends, because it follows from what was said: calls end in `tool_calls`, whatever the server says.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping
from typing import Any

import msgspec
from msgspec import UNSET, UnsetType

from goblin.core.decoding import UNREADABLE
from goblin.core.errors import Fault, ProviderUnavailable
from goblin.gateway.domain.chat import ChatChunk, ChunkChoice, Delta, FunctionDelta, ToolCallDelta
from goblin.providers.common import sse, stream_errors
from goblin.providers.common.http import Upstream
from goblin.providers.common.reading import (
    BROKEN,
    Halves,
    count_of,
    encodable,
    finish_of,
    is_sound,
    mend,
    parsed,
    parts_of,
    text_of,
    usage_of,
)
from goblin.providers.common.tool_calls import ToolCalls, TooManyCalls, argument_text
from httpguard.text import is_bounded

CHOICES_MAX = 128
"""Most choices that OpenAI's API takes for one request."""
TORN_BYTES_MAX = 32 * 1024 * 1024
"""Bytes that are parsed in vain in one answer, because the rest of a chunk comes as another event."""

_WRAPPERS = ("data", "result", "response", "output", "chunk", "body")
_THOUGHTS = ("reasoning_content", "reasoning", "thinking", "thought", "reasoning_text", "reasoning_details")
_FIELDS = ("content", "refusal", "reasoning_content")
_OWN = frozenset({"stop", "tool_calls", "function_call"})
"""Reasons that say that the model ended the answer itself; which of them it is follows from the answer."""


class _WireChunk(ChatChunk, frozen=True, kw_only=True):
    error: Any = None
    x_groq: Any = None
    """Groq's addition, with the usage or an error."""


class _TextChoice(msgspec.Struct, frozen=True, kw_only=True):
    index: int = 0
    text: str = ""
    logprobs: dict[str, Any] | None = None
    finish_reason: str | None = None


class _TextChunk(msgspec.Struct, frozen=True, kw_only=True):
    """One chunk of the older completions route."""

    choices: tuple[_TextChoice, ...] = ()
    usage: Any = None
    error: Any = None
    x_groq: Any = None
    cut_short: Any = None


_CHAT = msgspec.json.Decoder(_WireChunk)
_TEXT = msgspec.json.Decoder(_TextChunk)


class _Choice:
    """What is known of one choice so far."""

    __slots__ = ("calls", "finish", "function_called", "said", "stopped_by")

    def __init__(self, tools: Collection[str]) -> None:
        self.calls = ToolCalls(tools)
        self.finish: str | None = None
        self.function_called = False
        self.said = False
        """Whether it has any text, so that a whole message is a repetition."""
        self.stopped_by: str | int | UnsetType = UNSET
        """vLLM's `stop_reason`: the stop sequence that ended it, or a token's id."""


class ChunkReader:
    """Converts what a server sends for one answer to chunks."""

    def __init__(
        self, upstream: Upstream, *, choices: int = 1, tools: Collection[str] = (), completes: bool = False
    ) -> None:
        """Start an answer.

        Args:
            upstream: Whose answer it is: its name and its judge of errors.
            choices: How many choices were asked for.
            tools: Names of the tools in the request.
            completes: Whether chunks are those of the completions route, with `text`.
        """
        self._upstream = upstream
        self._wanted = choices
        self._tools = tools
        self._completes = completes
        self._choices: dict[int, _Choice] = {}
        self._first: int | None = None
        """The server's number of the choice that began first."""
        self._halves = Halves()
        self._plain: dict[int, _Choice] = {}
        """The choices whose next chunk may be passed on as it is: they have begun, and nothing waits."""
        self.over = False
        """Whether the answer is whole and has all choices that were asked for."""
        self._torn = b""
        """The begin of a chunk whose rest comes as another event."""
        self._torn_bytes = 0
        """Bytes that were parsed in vain because of it."""

    @property
    def whole(self) -> bool:
        """Whether every choice that began has a reason to finish."""
        return bool(self._choices) and all(choice.finish is not None for choice in self._choices.values())

    @property
    def finished(self) -> bool:
        """Whether any choice has a reason to finish."""
        return any(choice.finish is not None for choice in self._choices.values())

    @property
    def said(self) -> bool:
        """Whether it has anything of an answer."""
        return self.finished or any(choice.said for choice in self._choices.values())

    def finish(self, index: int) -> None:
        """End a choice whose shape has no reasons to finish."""
        if (choice := self._choices.get(index)) is not None:
            choice.finish = choice.finish or "stop"

    def read(self, data: bytes, event: str = "message") -> Iterable[ChatChunk]:
        """Read the data of one event.

        Raises:
            InvalidRequest: It is an error that blames the request, before anything was said.
            ProviderUnavailable: It is another error, or cannot be read and is no keep-alive.
        """
        if data == b"[DONE]" and not self._torn:
            return ()
        if self._completes:
            return self._read_text(data, event)
        if not is_bounded(data):
            return self._look_into(data, event)
        try:
            chunk = _CHAT.decode(data)
        except UNREADABLE:
            return self._look_into(data, event)
        if len(chunk.choices) == 1 and chunk.error is None and chunk.x_groq is None:
            choice = chunk.choices[0]
            if choice.finish_reason is None and (known := self._plain.get(choice.index)) is not None:
                delta, usage = choice.delta, chunk.usage
                if (
                    (not usage or is_sound(usage))
                    and choice.logprobs is None
                    and delta.event is UNSET
                    and (
                        known.calls.goes_on(delta.tool_calls)
                        if delta.tool_calls
                        else delta.content or delta.reasoning_content or delta.reasoning
                    )
                ):
                    return (chunk,)
        return self._look_into(data, event)

    def read_value(self, value: Any, event: str = "message") -> Iterator[ChatChunk]:
        """Read parsed JSON: a chunk, a whole answer, or a list of them. Raises like `read`."""
        try:
            yield from self._value(value, event)
        finally:
            self._note()

    def _value(self, value: Any, event: str = "message") -> Iterator[ChatChunk]:
        if isinstance(value, list):
            for one in value:
                yield from self._value(one)
            return
        if not isinstance(value, dict):
            if event == "error" and not self.whole:
                raise self._error(value)
            return
        value = _unwrapped(value)
        if stream_errors.is_error(value, event):
            if self.whole:
                return  # The answer is there.
            raise self._error(value)
        yield from self._object(value)

    def end(self) -> Iterator[ChatChunk]:
        """Yield what was held back. Raises `ProviderUnavailable` when the answer is not whole."""
        if not self.whole:
            if self._torn:
                raise self._upstream.nonsense()
            raise ProviderUnavailable(f"{self._upstream.name} ended the stream before the answer was complete.")
        for index, choice in sorted(self._choices.items()):
            finish = choice.finish or "stop"
            if finish in _OWN:
                finish = "tool_calls" if choice.calls else "function_call" if choice.function_called else "stop"
            lost: dict[str, Any] = {
                name: half for name in _FIELDS if (half := self._halves.take((index, name.removesuffix("_content"))))
            }
            if lost:
                yield ChatChunk(choices=(ChunkChoice(index=index, delta=Delta(**lost)),))
            for calls in _apart(choice.calls.flush(whole=finish == "tool_calls")):
                yield ChatChunk(choices=(ChunkChoice(index=index, delta=Delta(tool_calls=calls)),))
            yield ChatChunk(
                choices=(ChunkChoice(index=index, finish_reason=finish, stop_reason=choice.stopped_by),),
            )

    def _read_text(self, data: bytes, event: str) -> Iterable[ChatChunk]:
        if not is_bounded(data):
            return self._look_into(data, event)
        try:
            chunk = _TEXT.decode(data)
        except UNREADABLE:
            return self._look_into(data, event)
        if len(chunk.choices) == 1 and chunk.error is None and chunk.x_groq is None and chunk.usage is None:
            choice = chunk.choices[0]
            if choice.text and choice.finish_reason is None and choice.index in self._plain:
                said = ChunkChoice(index=choice.index, delta=Delta(content=choice.text), logprobs=choice.logprobs)
                return (ChatChunk(choices=(said,)),)
        return self._look_into(data, event)

    def _look_into(self, data: bytes, event: str) -> Iterator[ChatChunk]:
        """Read an event that is not plainly good: an odd chunk, several in one event, an error, or a keep-alive."""
        try:
            yield from self._values(data, event)
        finally:
            self._note()

    def _note(self) -> None:
        """Note which chunks can be passed on as they are: whatever waits for its other half keeps them from it."""
        waits = bool(self._halves or self._torn)
        self._plain = {} if waits else {index: one for index, one in self._choices.items() if one.said}
        self.over = len(self._choices) >= self._wanted and self.whole

    def _values(self, data: bytes, event: str) -> Iterator[ChatChunk]:
        data = self._torn + data if self._torn else data.strip()
        if not data or data == b"[DONE]":
            return
        try:
            value = parsed(data)
        except UNREADABLE:
            yield from self._unparsed(data, event)
            return
        self._torn = b""
        yield from self._value(value, event)

    def _unparsed(self, data: bytes, event: str) -> Iterator[ChatChunk]:
        """Read the data of an event that is not one JSON value."""
        lines = data.split(b"\n")
        if len(lines) > 1 and not self._torn:
            for line in lines:
                yield from self._values(line, event)
        elif self.whole:
            return  # The answer is there.
        elif event == "error":
            raise self._error(data.decode("utf-8", "replace"))
        elif data[:1] in (b"{", b"["):
            # Either a proxy put one chunk into two events, or the rest is lost and nothing will fit to this.
            self._torn_bytes += len(data)
            too_much = len(data) > sse.LINE_BYTES_MAX or self._torn_bytes > TORN_BYTES_MAX or not is_bounded(data)
            if too_much or data.endswith(b"}"):
                raise self._upstream.nonsense()
            self._torn = data

    def _object(self, value: Mapping[str, Any]) -> Iterator[ChatChunk]:
        groq = value.get("x_groq")
        usage = usage_of(value.get("usage"))
        if usage is None and isinstance(groq, dict):
            usage = usage_of(groq.get("usage"))
        if value.get("cut_short"):
            raise ProviderUnavailable(f"{self._upstream.name} is shutting down and cut its answer short.")
        found: list[list[ChunkChoice]] = []
        for position, said in enumerate(_choices_of(value)):
            if usage is None:
                usage = usage_of(said.get("usage"))  # Moonshot's place for it.
            for number, choice in enumerate(self._choice(said, position)):
                found += [[]] if number >= len(found) else []
                found[number].append(choice)
        if not found and usage is not None:
            found.append([])
        mark = value.get("system_fingerprint")
        for number, choices in enumerate(found):
            yield ChatChunk(
                choices=tuple(choices),
                usage=UNSET if usage is None or number else usage,
                system_fingerprint=mend(mark)[0] if isinstance(mark, str) else UNSET,
            )

    def _choice(self, said: Mapping[str, Any], position: int) -> Iterator[ChunkChoice]:
        """Read one choice. It makes several, where pieces of one call must follow each other."""
        index = count_of(said.get("index"))
        index = self._index(position if index is None else index)
        choice = self._choices.get(index)
        if choice is None:
            choice = self._choices[index] = _Choice(self._tools)
            if len(self._choices) > max(self._wanted, CHOICES_MAX):
                raise ProviderUnavailable(f"{self._upstream.name} sent more choices than were asked for.")
        source = _source(said, repeats=choice.said or bool(choice.calls))
        fields = self._texts(index, source)
        if source.get("role"):
            fields["role"] = "assistant"
        if isinstance(audio := source.get("audio"), dict):
            fields["audio"] = encodable(audio)
        if isinstance(called := source.get("function_call"), dict):
            choice.function_called = True
            fields["function_call"] = _function(called)
        try:
            calls = _apart(choice.calls.add(source.get("tool_calls") or said.get("tool_calls")))
        except TooManyCalls as error:
            raise ProviderUnavailable(f"{self._upstream.name} sent more tool calls than an answer has.") from error
        if calls:
            fields["tool_calls"] = calls.pop(0)
        logprobs = said.get("logprobs")
        logprobs = encodable(logprobs) if isinstance(logprobs, dict) else None
        finish = finish_of(said["finish_reason"] if "finish_reason" in said else said.get("stop_reason"))
        if finish == BROKEN:
            raise ProviderUnavailable(
                f"{self._upstream.name} broke off its answer.", fault=_fault_of(said.get("finish_reason"))
            )
        choice.finish = choice.finish or finish
        if "finish_reason" in said and isinstance(stopped_by := said.get("stop_reason"), str | int):
            choice.stopped_by = encodable(stopped_by)
        choice.said = choice.said or bool(
            fields.keys() - {"role"} and any(fields[name] for name in fields.keys() - {"role"})
        )
        if fields or logprobs is not None:
            yield ChunkChoice(index=index, delta=Delta(**fields), logprobs=logprobs)
        for more in calls:
            yield ChunkChoice(index=index, delta=Delta(tool_calls=more))

    def _index(self, said: int) -> int:
        """Number choices as they were asked for: the only one is number 0, whatever the server calls it."""
        self._first = said if self._first is None else self._first
        return 0 if self._wanted == 1 and said == self._first else said

    def _texts(self, index: int, source: Mapping[str, Any]) -> dict[str, Any]:
        """Read content, refusal and thoughts, with the halves of characters joined."""
        content = source.get("content")
        text, thought = (content, "") if isinstance(content, str) else parts_of(content)
        fields: dict[str, Any] = {}
        if isinstance(content, str) or text:
            fields["content"] = text
        if refusal := text_of(source.get("refusal")):
            fields["refusal"] = refusal
        for name in ("reasoning_content", "reasoning"):
            if isinstance(said := source.get(name), str):
                fields[name] = said
        if not (fields.get("reasoning_content") or fields.get("reasoning")):
            for name in _THOUGHTS:
                if said := text_of(source.get(name)):
                    thought += said
                    break
        if thought:
            fields["reasoning_content"] = fields.get("reasoning_content", "") + thought
        if fields.get("reasoning") == fields.get("reasoning_content"):
            fields.pop("reasoning", None)  # Some servers write it under both names.
        for name, said in fields.items():
            fields[name] = self._halves.join((index, name.removesuffix("_content")), said)
        return fields

    def _error(self, value: Any) -> Exception:
        return stream_errors.answer_error(self._upstream, value, said=self.said)


def tool_names(body: Mapping[str, Any]) -> frozenset[str]:
    """List the names of the tools of a request in OpenAI's shape."""
    tools = body.get("tools")
    functions = [tool.get("function") for tool in tools if isinstance(tool, dict)] if isinstance(tools, list) else []
    names = [function.get("name") for function in functions if isinstance(function, dict)]
    return frozenset(name for name in names if isinstance(name, str))


def _unwrapped(value: dict[str, Any]) -> dict[str, Any]:
    """Take a chunk out of an envelope such as `{"code": 0, "data": {"choices": […]}}`."""
    if "choices" not in value:
        for name in _WRAPPERS:
            if isinstance(inner := value.get(name), dict) and "choices" in inner:
                return {**value, **inner}
    return value


def _choices_of(value: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    said = value.get("choices")
    if isinstance(said, dict):
        return [said]
    if isinstance(said, list):
        return [one for one in said if isinstance(one, dict)]
    alone = isinstance(value.get("delta"), dict) or isinstance(value.get("message"), dict)
    return [value] if alone or isinstance(value.get("text"), str) else []


def _source(said: Mapping[str, Any], *, repeats: bool) -> Mapping[str, Any]:
    """Find what a choice says: in `delta`, in a whole `message`, or in `text`.

    Args:
        said: The choice.
        repeats: Whether it has said something, so that a whole message would only repeat it.
    """
    delta, message = said.get("delta"), said.get("message")
    if isinstance(delta, str | list):
        delta = {"content": delta}
    if isinstance(message, str | list):
        message = {"content": message}
    if isinstance(delta, dict) and (repeats or any(value for name, value in delta.items() if name != "role")):
        return delta
    if isinstance(message, dict) and message and not repeats:
        return message
    if said.get("text") is not None:
        return {**(delta if isinstance(delta, dict) else {}), "content": said["text"]}
    return delta if isinstance(delta, dict) else {}


def _function(said: Mapping[str, Any]) -> FunctionDelta:
    """Read the older form of a call, of which there is only one."""
    name = said.get("name")
    return FunctionDelta(
        name=mend(name)[0] if isinstance(name, str) else UNSET, arguments=mend(argument_text(said.get("arguments")))[0]
    )


def _apart(pieces: Iterable[ToolCallDelta]) -> list[tuple[ToolCallDelta, ...]]:
    """Spread pieces over chunks, so that no chunk has two of one call: clients do not join those."""
    chunks: list[list[ToolCallDelta]] = []
    there: set[int] = set()
    for piece in pieces:
        if not chunks or piece.index in there:
            chunks.append([])
            there.clear()
        chunks[-1].append(piece)
        there.add(piece.index)
    return [tuple(chunk) for chunk in chunks]


def _fault_of(reason: Any) -> Fault:
    """Find the fault behind a reason that says that the answer is broken."""
    return Fault.CAPACITY if "insufficient" in str(reason)[:100].lower() else Fault.TRANSIENT
