"""Groq inference: OpenAI's wire format with a few additions.

Source: groq-python 1.7 and console.groq.com/docs, read 2026-11-23. The last chunk has the usage in `x_groq`, requested
or not; an error may come there too. 498 means that the flex tier is full. Limits on requests are per day, limits on
tokens per minute; `retry-after` comes with a 429 only. Groq refuses `messages[].name`, which models do not see, so it
is left out. `GET /models` costs nothing.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Any

import httpx
import msgspec

from goblin.core.endpoints import Capability, Endpoint
from goblin.core.errors import Fault, ProviderUnavailable
from goblin.gateway.domain.chat import ChatChunk, Embeddings, Usage
from goblin.gateway.domain.endpoint_health import Finding, Probe
from goblin.gateway.domain.requests import ChatRequest, CompletionRequest, EmbeddingsRequest
from goblin.gateway.ports import ChatProvider
from goblin.providers.common import probes
from goblin.providers.common.http import Upstream
from goblin.providers.common.openai_codec import LIMITS, OpenAICodec
from goblin.providers.common.refusals import detail_of

NAME = "groq"
UNSUPPORTED = {
    Capability.AUDIO: "its chat models take only text and images",
    Capability.CHOICES: "it returns one choice per request",
    Capability.COMPLETIONS: "it has no completions route",
    Capability.EMBEDDINGS: "it has no embeddings",
    Capability.FILES: "its chat models take only text and images",
    Capability.LOGPROBS: "it returns no log probabilities",
}
"""Capabilities that it lacks, and why."""


def connect(endpoint: Endpoint, client: httpx.AsyncClient) -> ChatProvider:
    """Connect to the API at the endpoint's URL: `https://api.groq.com/openai/v1`."""
    return Groq(endpoint, client)


class XGroq(msgspec.Struct, frozen=True, kw_only=True):
    """Groq's addition to the first and the last chunk."""

    usage: Usage | None = None
    error: Any = None


class GroqChunk(ChatChunk, frozen=True, kw_only=True):
    x_groq: XGroq | None = None


class Groq:
    """Groq's API with the key of one organisation."""

    def __init__(self, endpoint: Endpoint, client: httpx.AsyncClient) -> None:
        self._name = endpoint.name
        self._wire = OpenAICodec(
            Upstream(endpoint.name, endpoint.url, endpoint.api_key, client), chunk=GroqChunk, limit=LIMITS[1]
        )

    async def chat(self, request: ChatRequest, *, model: str) -> AsyncGenerator[ChatChunk, None]:
        body = {**request.body, "messages": _nameless(request.body["messages"])}
        spoken = msgspec.structs.replace(request, body=body)
        async with aclosing(self._wire.chat(spoken, model=model)) as chunks:
            async for chunk in chunks:
                yield self._plain(chunk)

    async def complete(self, request: CompletionRequest, *, model: str) -> AsyncGenerator[ChatChunk, None]:
        raise self._unsupported(Capability.COMPLETIONS)
        yield  # Makes it a generator.

    async def embed(self, request: EmbeddingsRequest, *, model: str) -> Embeddings:
        raise self._unsupported(Capability.EMBEDDINGS)

    async def probe(self) -> Probe:
        return await probes.look(self._look)

    async def _look(self) -> Probe:
        models = await self._wire.models(timeout_s=probes.PROBE_TIMEOUT_S)
        return Probe(finding=Finding.OK, models=models)

    def _plain(self, chunk: ChatChunk) -> ChatChunk:
        """Move the usage from `x_groq` to OpenAI's field. Raises `ProviderUnavailable` for an error in `x_groq`."""
        if not isinstance(chunk, GroqChunk) or chunk.x_groq is None:
            return chunk
        said = chunk.x_groq
        if said.error:
            code = detail_of({"error": said.error}).code
            fault = Fault.CAPACITY if code == "capacity_exceeded" else Fault.TRANSIENT
            raise ProviderUnavailable(f"{self._name} sent an error in the stream.", fault=fault)
        if said.usage is not None and not isinstance(chunk.usage, Usage):
            return msgspec.structs.replace(chunk, usage=said.usage)
        return chunk

    def _unsupported(self, lack: Capability) -> ProviderUnavailable:
        return ProviderUnavailable(f"{self._name}: {UNSUPPORTED[lack]}.", fault=Fault.UNSUPPORTED)


def _nameless(messages: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [{key: value for key, value in message.items() if key != "name"} for message in messages]
