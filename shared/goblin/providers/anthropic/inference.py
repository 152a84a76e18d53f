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

from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Any

import httpx
import msgspec
from msgspec import UNSET

from goblin.core.endpoints import Capability, Credential, Endpoint
from goblin.core.errors import Fault, ProviderUnavailable
from goblin.gateway.domain.chat import ChatChunk, ChunkChoice, Delta, Embeddings, FunctionDelta, ToolCallDelta, Usage
from goblin.gateway.domain.endpoint_health import Finding, Probe
from goblin.gateway.domain.requests import ChatRequest, CompletionRequest, EmbeddingsRequest
from goblin.gateway.ports import ChatProvider
from goblin.providers.anthropic.codec import messages_body, passed_on, unsupported, version_of, wants_schema
from goblin.providers.anthropic.passing import beside, own_events
from goblin.providers.common import probes
from goblin.providers.common.http import Upstream, events
from goblin.providers.common.refusals import ErrorDetail, detail_of, fault_of

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
        reader = EventReader(self._endpoint.name, answer_is_tool=original is None and wants_schema(request))
        async with self._upstream.stream("/v1/messages", body, headers=headers) as response:
            try:
                async with aclosing(events(self._upstream, response)) as found:
                    async for event in found:
                        said: StreamEvent = self._upstream.decode(event.data, StreamEvent)
                        made = [chunk] if (chunk := reader.read(said)) is not None else []
                        for one in made if original is None else beside(made, own_events(event.data)):
                            yield one
                        if said.type == "message_stop":
                            break
            except httpx.HTTPError:
                # After the stop reason the answer is complete.
                if not reader.finished:
                    raise
        if not reader.finished:
            raise ProviderUnavailable(f"{self._endpoint.name} ended the stream before the answer was complete.")

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

    input_tokens: int | None = None
    output_tokens: int | None = None
    cache_creation_input_tokens: int | None = None
    cache_read_input_tokens: int | None = None
    cache_creation: Any = None
    """The tokens written to the cache, by how long they stay there."""
    server_tool_use: Any = None
    """How often each tool that Anthropic runs was used."""


class StartedMessage(msgspec.Struct, frozen=True, kw_only=True):
    usage: MessageUsage | None = None


class ContentBlock(msgspec.Struct, frozen=True, kw_only=True):
    """The block that a `content_block_start` begins: `text`, `tool_use`, `thinking`, or an unknown type."""

    type: str
    text: str = ""
    thinking: str = ""
    id: str = ""
    name: str = ""
    input: Any = None


class EventDelta(msgspec.Struct, frozen=True, kw_only=True):
    """The addition of a `content_block_delta` or a `message_delta`."""

    type: str = ""
    text: str = ""
    partial_json: str = ""
    thinking: str = ""
    stop_reason: str | None = None


class StreamEvent(msgspec.Struct, frozen=True, kw_only=True):
    """Any event of the stream, with the fields of all of them."""

    type: str
    index: int = 0
    message: StartedMessage | None = None
    content_block: ContentBlock | None = None
    delta: EventDelta | None = None
    usage: MessageUsage | None = None
    error: Any = None


_FINISH = {
    "end_turn": "stop",
    "stop_sequence": "stop",
    "pause_turn": "stop",
    "max_tokens": "length",
    "model_context_window_exceeded": "length",
    "tool_use": "tool_calls",
    "refusal": "content_filter",
}


class EventReader:
    """Converts the events of one answer to chunks."""

    def __init__(self, name: str, *, answer_is_tool: bool) -> None:
        """Start an answer.

        Args:
            name: The endpoint's name, for messages.
            answer_is_tool: Whether the arguments of `ANSWER_TOOL` are the text of the answer.
        """
        self.finished = False
        self._name = name
        self._answer_is_tool = answer_is_tool
        self._calls: dict[int, int] = {}
        """Index of the tool call, by index of its block."""
        self._written: set[int] = set()
        """Indexes of the tool call blocks whose arguments have begun."""
        self._usage = MessageUsage()

    def read(self, event: StreamEvent) -> ChatChunk | None:
        """Convert an event; None when it has no content. Raises `ProviderUnavailable` for an `error` event."""
        match event.type:
            case "message_start":
                self._count(event.message.usage if event.message else None)
                return _chunk(Delta(role="assistant", content=""))
            case "content_block_start" if event.content_block is not None:
                return self._begin(event.index, event.content_block)
            case "content_block_delta" if event.delta is not None:
                return self._add(event.index, event.delta)
            case "content_block_stop" if event.index in self._calls and event.index not in self._written:
                # OpenAI's clients parse the arguments even of a call that has none.
                return self._arguments(event.index, "{}")
            case "message_delta" if event.delta is not None:
                self._count(event.usage)
                return self._finish(event.delta.stop_reason)
            case "error":
                detail = detail_of({"error": event.error})
                raise ProviderUnavailable(
                    f"{self._name} sent an error in the stream.",
                    fault=_STREAM_FAULTS.get(detail.type, Fault.TRANSIENT),
                )
        return None

    def _begin(self, index: int, block: ContentBlock) -> ChatChunk | None:
        match block.type:
            case "text" if block.text:
                return _chunk(Delta(content=block.text))
            case "thinking" if block.thinking:
                return _chunk(Delta(reasoning_content=block.thinking))
            case "tool_use":
                number = self._calls[index] = len(self._calls)
                if self._answer_is_tool:
                    return None
                called = FunctionDelta(name=block.name, arguments="")
                return _chunk(
                    Delta(tool_calls=(ToolCallDelta(index=number, id=block.id, type="function", function=called),))
                )
        return None

    def _add(self, index: int, delta: EventDelta) -> ChatChunk | None:
        match delta.type:
            case "text_delta":
                # When the tool's arguments are the answer, text beside them is not part of it.
                return None if self._answer_is_tool else _chunk(Delta(content=delta.text))
            case "thinking_delta":
                return _chunk(Delta(reasoning_content=delta.thinking))
            case "input_json_delta" if index in self._calls and delta.partial_json:
                return self._arguments(index, delta.partial_json)
        return None

    def _arguments(self, index: int, piece: str) -> ChatChunk:
        self._written.add(index)
        if self._answer_is_tool:
            return _chunk(Delta(content=piece))
        call = ToolCallDelta(index=self._calls[index], function=FunctionDelta(arguments=piece))
        return _chunk(Delta(tool_calls=(call,)))

    def _finish(self, reason: str | None) -> ChatChunk | None:
        if reason is None:
            return None
        self.finished = True
        finish = _FINISH.get(reason, "stop")
        if self._answer_is_tool and finish == "tool_calls":
            finish = "stop"
        choice = ChunkChoice(delta=Delta(), finish_reason=finish)
        usage = usage_of(self._usage)
        return ChatChunk(choices=(choice,), usage=UNSET if usage is None else usage)

    def _count(self, said: MessageUsage | None) -> None:
        if said is not None:
            news = {name: value for name, value in msgspec.structs.asdict(said).items() if value is not None}
            self._usage = msgspec.structs.replace(self._usage, **news)


def usage_of(said: MessageUsage) -> Usage | None:
    """Convert to OpenAI's counts, where cached tokens are part of the prompt. None when counts are missing."""
    if said.input_tokens is None or said.output_tokens is None:
        return None
    read, written = said.cache_read_input_tokens or 0, said.cache_creation_input_tokens or 0
    asked = said.input_tokens + read + written
    details = {"cached_tokens": read} | ({"cache_creation_tokens": written} if written else {})
    if longer := _counts(said.cache_creation).get("ephemeral_1h_input_tokens"):
        details["cache_creation_1h_tokens"] = longer
    uses = {name: times for name, times in _counts(said.server_tool_use).items() if name.endswith("_requests")}
    details |= uses
    return Usage(
        prompt_tokens=asked,
        completion_tokens=said.output_tokens,
        total_tokens=asked + said.output_tokens,
        prompt_tokens_details=details if read or written or uses else UNSET,
    )


def _counts(value: Any) -> dict[str, int]:
    """Read counts by name; what is none is left out."""
    found = value.items() if isinstance(value, dict) else ()
    return {name: said for name, said in found if isinstance(said, int) and not isinstance(said, bool) and said > 0}


def judge(status: int, detail: ErrorDetail) -> Fault | None:
    """Find the fault like `fault_of`; an account without credit comes with status 400."""
    if "credit balance is too low" in detail.message:
        return Fault.MONEY
    return fault_of(status, detail)


_STREAM_FAULTS = {
    "overloaded_error": Fault.CAPACITY,
    "rate_limit_error": Fault.RATE,
    "billing_error": Fault.MONEY,
    "authentication_error": Fault.AUTH,
    "permission_error": Fault.AUTH,
}


def _chunk(delta: Delta) -> ChatChunk:
    return ChatChunk(choices=(ChunkChoice(delta=delta),))
