"""Anthropic inference: chat through the Messages API.

Source: anthropic-python 2.14 and platform.claude.com/docs, read 2026-11-25. Version `2026-10-21` refuses sampling
parameters even at their defaults, so they are left out; the option `version = "2023-06-01"` brings them back. Events
are named, there is no `[DONE]`, unknown events are skipped, and usage is cumulative: the last value counts. Tokens
read from or written to a cache are not part of `input_tokens`. 529 means overloaded; some 429 and 400 are about money.
`GET /v1/models` costs nothing. Thinking becomes `reasoning_content`; its signature has no place in OpenAI's wire
format, so thinking cannot be sent back. A caller of Anthropic's wire gets the events themselves, and its request is
sent as it came, with its `anthropic-version` and `anthropic-beta`.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Iterator, Mapping
from contextlib import aclosing
from typing import Any

import httpx
import msgspec
from msgspec import UNSET

from goblin.core.decoding import UNREADABLE
from goblin.core.endpoints import Capability, Credential, Endpoint
from goblin.core.errors import Fault, ProviderUnavailable
from goblin.gateway.domain.chat import ChatChunk, ChunkChoice, Delta, Embeddings, FunctionDelta, ToolCallDelta, Usage
from goblin.gateway.domain.endpoint_health import Finding, Probe
from goblin.gateway.domain.requests import ChatRequest, CompletionRequest, EmbeddingsRequest
from goblin.gateway.ports import ChatProvider
from goblin.gateway.stream_usage import TOOL_CALLS_MAX
from goblin.providers.anthropic.codec import messages_body, passed_on, unsupported, version_of, wants_schema
from goblin.providers.anthropic.passing import Passing, beside
from goblin.providers.common import probes
from goblin.providers.common.http import Upstream, events
from goblin.providers.common.reading import BROKEN, Halves, count_of, decoded, finish_of, mend, parsed
from goblin.providers.common.refusals import ErrorDetail, fault_of
from goblin.providers.common.sse import ServerEvent
from goblin.providers.common.stream_errors import answer_error
from goblin.providers.common.tool_calls import argument_text, call_id_of

NAME = "anthropic"
UNSUPPORTED = {
    Capability.AUDIO: "its API takes only text, images and PDF",
    Capability.CHOICES: "it returns one choice per request",
    Capability.COMPLETIONS: "it has no completions route",
    Capability.EMBEDDINGS: "it has no embeddings",
    Capability.JSON_OBJECT: "it guarantees JSON only with a schema",
    Capability.LOGPROBS: "it returns no log probabilities",
}
"""Capabilities that it lacks, and why."""
MODELS_MAX = 1000
"""Largest page size of `/v1/models`."""


def connect(endpoint: Endpoint, client: httpx.AsyncClient) -> ChatProvider:
    """Connect to the API at the endpoint's URL, which has no path: `https://api.anthropic.com`."""
    return Anthropic(endpoint, client)


class Anthropic:
    """Anthropic's API with the key of one account."""

    def __init__(self, endpoint: Endpoint, client: httpx.AsyncClient) -> None:
        self._endpoint = endpoint
        credentials = (Credential("x-api-key", "", endpoint.api_key),) if endpoint.api_key else ()
        self._upstream = Upstream(
            endpoint.name,
            endpoint.url.rstrip("/").removesuffix("/v1"),
            None,
            client,
            headers={"anthropic-version": version_of(endpoint)},
            credentials=credentials,
            judge=judge,
        )

    async def chat(self, request: ChatRequest, *, model: str) -> AsyncGenerator[ChatChunk, None]:
        original = request.original_for(self._endpoint)
        if original is None:
            body, headers = messages_body(request, model, self._endpoint), None
        else:
            body, headers = passed_on(original, request, model), original.headers
        reader = EventReader(self._upstream, answer_is_tool=original is None and wants_schema(request))
        passing = None if original is None else Passing()
        async with self._upstream.stream("/v1/messages", body, headers=headers) as response:
            try:
                async with aclosing(events(self._upstream, response, lambda: reader.finished)) as found:
                    async for event in found:
                        made = reader.feed(event)
                        for chunk in made if passing is None else passing.beside(made, event):
                            yield chunk
                        if reader.stopped:
                            break
            except httpx.HTTPError:
                # After the stop reason the answer is complete.
                if not reader.finished:
                    raise
        for chunk in reader.end() if passing is None else beside(reader.end(), ()):
            yield chunk

    async def complete(self, request: CompletionRequest, *, model: str) -> AsyncGenerator[ChatChunk, None]:
        raise unsupported(self._endpoint, UNSUPPORTED[Capability.COMPLETIONS])
        yield  # Makes it a generator.

    async def embed(self, request: EmbeddingsRequest, *, model: str) -> Embeddings:
        raise unsupported(self._endpoint, UNSUPPORTED[Capability.EMBEDDINGS])

    async def probe(self) -> Probe:
        return await probes.look(self._look)

    async def _look(self) -> Probe:
        path = f"/v1/models?limit={MODELS_MAX}"
        answer = await self._upstream.json("GET", path, timeout_s=probes.PROBE_TIMEOUT_S)
        listed = self._upstream.convert(answer, AnthropicModels)
        return Probe(finding=Finding.OK, models=tuple(row.id for row in listed.data))


class AnthropicModel(msgspec.Struct, frozen=True, kw_only=True):
    id: str


class AnthropicModels(msgspec.Struct, frozen=True, kw_only=True):
    data: tuple[AnthropicModel, ...]


class MessageUsage(msgspec.Struct, frozen=True, kw_only=True):
    """Cumulative token counts; a field that is missing has not changed."""

    input_tokens: Any = None
    output_tokens: Any = None
    cache_creation_input_tokens: Any = None
    cache_read_input_tokens: Any = None
    cache_creation: Any = None
    """The tokens written to the cache, by how long they stay there."""
    server_tool_use: Any = None
    """How often each tool that Anthropic runs was used."""


class StartedMessage(msgspec.Struct, frozen=True, kw_only=True):
    usage: MessageUsage | None = None


class ContentBlock(msgspec.Struct, frozen=True, kw_only=True):
    """The block that a `content_block_start` begins: `text`, `tool_use`, `thinking`, or an unknown type."""

    type: str = ""
    text: str = ""
    thinking: str = ""
    id: str = ""
    name: str = ""
    input: Any = None


class EventDelta(msgspec.Struct, frozen=True, kw_only=True):
    """The addition of a `content_block_delta` or a `message_delta`; the field that is there says which it is."""

    text: str = ""
    partial_json: Any = ""
    thinking: str = ""
    stop_reason: Any = None


class StreamEvent(msgspec.Struct, frozen=True, kw_only=True):
    """Any event of the stream, with the fields of all of them; or a whole message, which is not one."""

    type: str = ""
    index: int = 0
    message: StartedMessage | None = None
    content_block: ContentBlock | None = None
    delta: EventDelta | None = None
    usage: MessageUsage | None = None
    content: tuple[ContentBlock, ...] | str | None = None
    stop_reason: Any = None
    error: Any = None


class EventReader:
    """Converts the events of one answer to chunks."""

    def __init__(self, upstream: Upstream, *, answer_is_tool: bool) -> None:
        """Start an answer.

        Args:
            upstream: Whose answer it is: its name and its judge of errors.
            answer_is_tool: Whether the arguments of `ANSWER_TOOL` are the text of the answer.
        """
        self.stopped = False
        """Whether the last event has come."""
        self._upstream = upstream
        self._answer_is_tool = answer_is_tool
        self._finish: str | None = None
        self._said = False
        self._calls: dict[int, _Call] = {}
        """The tool call of each block that is one, by index of the block."""
        self._count = 0
        """Number of tool calls."""
        self._usage: dict[str, Any] = {}
        """What is known of `MessageUsage`, by its fields."""
        self._halves = Halves()

    @property
    def finished(self) -> bool:
        """Whether the answer is complete."""
        return self.stopped or self._finish is not None

    def feed(self, event: ServerEvent) -> Iterator[ChatChunk]:
        """Convert an event.

        Raises:
            InvalidRequest: It is an error that blames the request, before anything was said.
            ProviderUnavailable: It is another error, or cannot be read.
        """
        try:
            said = decoded(event.data, StreamEvent)
        except UNREADABLE:
            if event.data.strip()[:1] in (b"{", b"[") and not self.finished:
                raise self._upstream.nonsense() from None
            return  # A keep-alive.
        if said.error or "error" in (said.type, event.event):
            if not self.finished:
                raise answer_error(self._upstream, parsed(event.data), said=self._said)
            return
        for chunk in self._read(said, said.type or event.event):
            self._said = self._said or chunk.starts_answer
            yield chunk

    def end(self) -> Iterator[ChatChunk]:
        """Yield the end of the answer. Raises `ProviderUnavailable` if it is not complete."""
        if not self.finished:
            raise ProviderUnavailable(f"{self._upstream.name} ended the stream before the answer was complete.")
        for index in list(self._calls):
            yield from self._close(index)
        for name in ("content", "reasoning_content"):
            if lost := self._halves.take(name):
                yield _chunk(Delta(content=lost) if name == "content" else Delta(reasoning_content=lost))
        finish = self._finish or "stop"
        if self._answer_is_tool:
            finish = "stop" if finish == "tool_calls" else finish
        elif self._count and finish == "stop":
            finish = "tool_calls"  # Some servers end calls with `end_turn`.
        usage = usage_of(self._usage)
        choice = ChunkChoice(delta=Delta(), finish_reason=finish)
        yield ChatChunk(choices=(choice,), usage=UNSET if usage is None else usage)

    def _read(self, event: StreamEvent, kind: str) -> Iterator[ChatChunk]:
        match kind:
            case "message_start":
                # Its `output_tokens` are of a message that has only begun.
                self._count_tokens(event.message.usage if event.message else None, output=False)
                yield _chunk(Delta(role="assistant", content=""))
            case "content_block_start" if event.content_block is not None:
                yield from self._begin(event.index, event.content_block)
            case "content_block_delta" if event.delta is not None:
                yield from self._add(event.index, event.delta)
            case "content_block_stop":
                yield from self._close(event.index)
            case "message_delta":
                self._count_tokens(event.usage)
                self._stop(event.delta.stop_reason if event.delta and event.delta.stop_reason else event.stop_reason)
            case "message_stop":
                self.stopped = True
            case "message" if event.content is not None:
                # A whole message, although a stream was asked for.
                blocks = (ContentBlock(type="text", text=event.content),) if isinstance(event.content, str) else None
                for index, block in enumerate(blocks or event.content):
                    if isinstance(block, ContentBlock):
                        yield from self._begin(index, block)
                self._count_tokens(event.usage)
                self._stop(event.stop_reason or "end_turn")
                self.stopped = True

    def _begin(self, index: int, block: ContentBlock) -> Iterator[ChatChunk]:
        yield from self._close(index)
        match block.type:
            case "text" if block.text and not self._answer_is_tool:
                yield _chunk(Delta(content=self._halves.join("content", block.text)))
            case "thinking" if block.thinking:
                yield _chunk(Delta(reasoning_content=self._halves.join("reasoning_content", block.thinking)))
            case "tool_use":
                self._calls[index] = _Call(self._count, block.input)
                self._count += 1
                if self._count > TOOL_CALLS_MAX:
                    raise ProviderUnavailable(f"{self._upstream.name} sent more tool calls than an answer has.")
                if not self._answer_is_tool:
                    called, call_id = FunctionDelta(name=mend(block.name)[0], arguments=""), call_id_of(block.id)
                    head = ToolCallDelta(index=self._count - 1, id=call_id, type="function", function=called)
                    yield _chunk(Delta(tool_calls=(head,)))

    def _add(self, index: int, delta: EventDelta) -> Iterator[ChatChunk]:
        # When the tool's arguments are the answer, text beside them is not part of it.
        if delta.text and not self._answer_is_tool:
            yield _chunk(Delta(content=self._halves.join("content", delta.text)))
        if delta.thinking:
            yield _chunk(Delta(reasoning_content=self._halves.join("reasoning_content", delta.thinking)))
        if (piece := argument_text(delta.partial_json)) and self._calls:
            yield self._arguments(self._calls.get(index) or self._calls[max(self._calls)], piece)

    def _close(self, index: int) -> Iterator[ChatChunk]:
        """Complete the arguments of a call: OpenAI's clients parse even those of a call that has none."""
        call = self._calls.pop(index, None)
        if call is None:
            return
        if not call.written:
            # Some servers send the whole `input` with the start of the block.
            yield self._arguments(call, argument_text(call.input).strip() or "{}")
        if lost := self._halves.take(call):
            yield self._arguments(call, lost)

    def _arguments(self, call: _Call, piece: str) -> ChatChunk:
        call.written = True
        piece = self._halves.join(call, piece)
        if self._answer_is_tool:
            return _chunk(Delta(content=piece))
        said = ToolCallDelta(index=call.number, function=FunctionDelta(arguments=piece))
        return _chunk(Delta(tool_calls=(said,)))

    def _stop(self, reason: Any) -> None:
        finish = finish_of(reason)
        if finish == BROKEN:
            raise ProviderUnavailable(f"{self._upstream.name} broke off its answer.")
        self._finish = finish or self._finish

    def _count_tokens(self, said: MessageUsage | None, *, output: bool = True) -> None:
        if said is not None:
            counts = {
                name: _counts(value) if name in _BY_NAME else count_of(value)
                for name, value in msgspec.structs.asdict(said).items()
            }
            # Some servers repeat the counts of the start as zeros.
            self._usage |= {
                name: count for name, count in counts.items() if count and (output or name != "output_tokens")
            }


class _Call:
    """A tool call whose block is open."""

    def __init__(self, number: int, given: Any) -> None:
        self.number = number
        self.input = given
        """The whole input, where the block has begun with it."""
        self.written = False
        """Whether any arguments were passed on."""


_BY_NAME = frozenset({"cache_creation", "server_tool_use"})
"""Fields of `MessageUsage` that have several counts."""


def usage_of(counts: Mapping[str, Any]) -> Usage | None:
    """Convert to OpenAI's counts, where cached tokens are part of the prompt. None without counts."""
    read, written = counts.get("cache_read_input_tokens", 0), counts.get("cache_creation_input_tokens", 0)
    asked, answered = counts.get("input_tokens", 0) + read + written, counts.get("output_tokens", 0)
    if not asked and not answered:
        return None
    details = {"cached_tokens": read} | ({"cache_creation_tokens": written} if written else {})
    if longer := counts.get("cache_creation", {}).get("ephemeral_1h_input_tokens"):
        details["cache_creation_1h_tokens"] = longer
    uses = {name: times for name, times in counts.get("server_tool_use", {}).items() if name.endswith("_requests")}
    details |= uses
    return Usage(
        prompt_tokens=asked,
        completion_tokens=answered,
        total_tokens=asked + answered,
        prompt_tokens_details=details if read or written or uses else UNSET,
    )


def _counts(value: Any) -> dict[str, int]:
    """Read counts by name; what is none is left out."""
    found = value.items() if isinstance(value, dict) else ()
    return {name: count for name, said in found if name.isascii() and (count := count_of(said))}


def judge(status: int, detail: ErrorDetail) -> Fault | None:
    """Find the fault like `fault_of`; an account without credit comes with status 400."""
    if "credit balance is too low" in detail.message:
        return Fault.MONEY
    return fault_of(status, detail)


def _chunk(delta: Delta) -> ChatChunk:
    return ChatChunk(choices=(ChunkChoice(delta=delta),))
