"""Chunks, embeddings and usage in the shape of OpenAI's API, to which every provider is mapped.

Inside the gateway every answer is a stream of chunks: a whole answer is a stream that was collected. Fields that a
provider left out stay out (`UNSET`), so that tool calls, refusals, reasoning and log probabilities pass unchanged.
"""

from __future__ import annotations

from typing import Any, Literal

from msgspec import UNSET, Struct, UnsetType

FinishReason = Literal["stop", "length", "tool_calls", "content_filter", "function_call"]


class Usage(Struct, frozen=True, kw_only=True):
    """Tokens of one request."""

    prompt_tokens: int = 0
    completion_tokens: int = 0
    total_tokens: int = 0
    prompt_tokens_details: dict[str, Any] | UnsetType | None = UNSET
    completion_tokens_details: dict[str, Any] | UnsetType | None = UNSET


class FunctionDelta(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A piece of a function call; `arguments` is a piece of JSON text."""

    name: str | UnsetType | None = UNSET
    arguments: str | UnsetType | None = UNSET


class ToolCallDelta(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A piece of a tool call; pieces of one call share their index."""

    index: int
    id: str | UnsetType | None = UNSET
    type: str | UnsetType | None = UNSET
    function: FunctionDelta | UnsetType = UNSET


class Delta(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What a chunk adds to the answer."""

    role: str | UnsetType | None = UNSET
    content: str | UnsetType | None = UNSET
    refusal: str | UnsetType | None = UNSET
    reasoning_content: str | UnsetType | None = UNSET
    reasoning: str | UnsetType | None = UNSET
    tool_calls: tuple[ToolCallDelta, ...] | UnsetType | None = UNSET
    function_call: FunctionDelta | UnsetType | None = UNSET
    audio: dict[str, Any] | UnsetType | None = UNSET
    event: dict[str, Any] | UnsetType = UNSET
    """The event of Anthropic's wire, or of the Responses wire, that this stands for, unchanged; only in answers to
    requests of the same wire. Empty: an event before it said the same."""

    @property
    def says_something(self) -> bool:
        """Whether a caller would notice it: after this, another endpoint cannot start over unseen."""
        return bool(
            _given(self.content)
            or _given(self.tool_calls)
            or _given(self.refusal)
            or _given(self.reasoning_content)
            or _given(self.reasoning)
            or _given(self.function_call)
            or _given(self.audio)
            or self._begins_a_block
            or self._begins_an_item
        )

    @property
    def beyond_text(self) -> bool:
        """Whether it has anything besides content, so that the content alone is not the answer."""
        return bool(
            self.tool_calls
            or self.refusal
            or self.reasoning_content
            or self.reasoning
            or self.function_call
            or self.audio
            or self._begins_a_block
            or self._cites
            or self._of_responses
        )

    @property
    def _of_responses(self) -> bool:
        """Whether it carries an event of the Responses wire: such an answer cannot go on at another endpoint."""
        return isinstance(self.event, dict) and str(self.event.get("type")).startswith("response.")

    @property
    def _begins_a_block(self) -> bool:
        """Whether its event begins a content block that is not text."""
        if not self.event or self.event.get("type") != "content_block_start":
            return False
        block = self.event.get("content_block")
        return not isinstance(block, dict) or block.get("type") != "text"

    @property
    def _cites(self) -> bool:
        """Whether its event adds to a block of text what is not text."""
        if not self.event or self.event.get("type") != "content_block_delta":
            return False
        delta = self.event.get("delta")
        return not isinstance(delta, dict) or delta.get("type") != "text_delta"

    @property
    def _begins_an_item(self) -> bool:
        """Whether its event begins an item that is not a message, such as a tool call of the vendor's own."""
        if not self.event or self.event.get("type") != "response.output_item.added":
            return False
        item = self.event.get("item")
        return not isinstance(item, dict) or item.get("type") != "message"

    @property
    def text(self) -> str:
        """All text in it that a tokenizer would count."""
        parts = [self.content, self.refusal, self.reasoning_content, self.reasoning]
        for call in _given(self.tool_calls) or ():
            if function := _given(call.function):
                parts += [function.name, function.arguments]
        return "".join(_given(part) or "" for part in parts)


class ChunkChoice(Struct, frozen=True, kw_only=True):
    """One of the `n` answers."""

    index: int = 0
    delta: Delta = Delta()
    logprobs: dict[str, Any] | None = None
    finish_reason: str | None = None
    stop_reason: Any = UNSET
    """vLLM's addition to `stop`: the stop sequence that ended the answer, or a token's id, or null."""


class ChatChunk(Struct, frozen=True, kw_only=True):
    """One event of a stream. The last one of a stream has usage and no choices."""

    choices: tuple[ChunkChoice, ...] = ()
    id: str = ""
    object: str = "chat.completion.chunk"
    created: int = 0
    model: str = ""
    system_fingerprint: str | UnsetType | None = UNSET
    service_tier: str | UnsetType | None = UNSET
    usage: Usage | UnsetType | None = UNSET
    cut_short: str | UnsetType | None = UNSET
    """Set by llama.cpp's server, with `length`, when it shuts down: another endpoint can continue the answer."""

    @property
    def starts_answer(self) -> bool:
        """Whether the caller would notice this chunk."""
        return any(choice.finish_reason or choice.delta.says_something for choice in self.choices)


class Embedding(Struct, frozen=True, kw_only=True):
    """The vector of one input."""

    index: int
    embedding: list[float]


class Embeddings(Struct, frozen=True, kw_only=True):
    """The vectors of one request, in the order of its inputs."""

    data: tuple[Embedding, ...]
    usage: Usage | None = None


class PassedAnswer(Struct, frozen=True, kw_only=True):
    """The answer of another route, as the endpoint sent it."""

    body: dict[str, Any] = {}
    usage: Usage | None = None
    content: bytes | None = None
    """The answer's bytes, where it need not be JSON."""


def _given(value: Any) -> Any:
    """Return the value, or None if the field was left out."""
    return None if value is UNSET else value
