"""Groq inference: OpenAI's wire format with a few additions.

Source: groq-python 1.7 and console.groq.com/docs, read 2026-11-23. The last chunk has the usage in `x_groq`, requested
or not; an error may come there too. 498 means that the flex tier is full, 413 that a request alone is above the limit
per minute. Limits on requests are per day, limits on tokens per minute; `retry-after` comes with a 429 only. Groq
refuses `messages[].name`, which models do not see, so it is left out. `GET /models` costs nothing.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator
from typing import Any

import httpx
import msgspec

from goblin.core.endpoints import Capability, Endpoint
from goblin.core.errors import Fault, ProviderUnavailable
from goblin.gateway.domain.chat import ChatChunk, Embeddings
from goblin.gateway.domain.endpoint_health import Finding, Probe
from goblin.gateway.domain.requests import ChatRequest, CompletionRequest, EmbeddingsRequest
from goblin.gateway.ports import ChatProvider
from goblin.providers.common import probes
from goblin.providers.common.http import Upstream
from goblin.providers.common.openai_codec import LIMITS, OpenAICodec

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


class Groq:
    """Groq's API with the key of one organisation."""

    def __init__(self, endpoint: Endpoint, client: httpx.AsyncClient) -> None:
        self._name = endpoint.name
        self._wire = OpenAICodec(Upstream(endpoint.name, endpoint.url, endpoint.api_key, client), limit=LIMITS[1])

    def chat(self, request: ChatRequest, *, model: str) -> AsyncGenerator[ChatChunk, None]:
        body = {**request.body, "messages": _nameless(request.body["messages"])}
        return self._wire.chat(msgspec.structs.replace(request, body=body), model=model)

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

    def _unsupported(self, lack: Capability) -> ProviderUnavailable:
        return ProviderUnavailable(f"{self._name}: {UNSUPPORTED[lack]}.", fault=Fault.UNSUPPORTED)


def _nameless(messages: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [{key: value for key, value in message.items() if key != "name"} for message in messages]
