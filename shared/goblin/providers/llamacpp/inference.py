"""llama.cpp inference over HTTP: llama-server, or the server in `containers/llamacpp`, which has the same API.

Source: llama.cpp tools/server README and server.cpp at 0c1e57098, read 2026-11-23. `/health` needs no key and
starts nothing; while the model loads every route answers 503 `Loading model`. A full server queues requests and never
answers 429. An error after the first token ends the stream without `[DONE]`.

On Cloud Run the option `audience` names the service, and requests carry an identity token for it. Cloud Run starts a
GPU for every request and bills it for ten minutes, so such an endpoint is never probed: its models must be configured,
and its health comes from real traffic. Source: cloud.google.com/run/docs, read 2026-11-23.
"""

from __future__ import annotations

import time
from collections.abc import AsyncGenerator

import httpx

from goblin.core.endpoints import Capability, Endpoint
from goblin.gateway.domain.chat import ChatChunk, Embeddings, PassedAnswer
from goblin.gateway.domain.endpoint_health import Finding, Probe
from goblin.gateway.domain.requests import ChatRequest, CompletionRequest, EmbeddingsRequest, PassedRequest
from goblin.gateway.ports import ChatProvider
from goblin.providers.common import passing, probes
from goblin.providers.common.http import Upstream
from goblin.providers.common.openai_codec import LIMITS, OpenAICodec

NAME = "llamacpp"
UNSUPPORTED = {
    Capability.AUDIO: "llama.cpp is built without its multimodal library",
    Capability.CHOICES: "it makes at most as many choices at once as it has slots",
    Capability.FILES: "llama.cpp reads no PDF",
    Capability.PROMPTS: "it takes one prompt per request",
}


def connect(endpoint: Endpoint, client: httpx.AsyncClient) -> ChatProvider:
    """Connect to the server at the endpoint's URL, which has no path: `http://host:8080`."""
    return LlamaCpp(endpoint, client)


class LlamaCpp:
    """One server with one model."""

    def __init__(self, endpoint: Endpoint, client: httpx.AsyncClient) -> None:
        root = endpoint.url.rstrip("/").removesuffix("/v1")
        self._root = Upstream(endpoint.name, root, endpoint.api_key, client, credentials=endpoint.credentials)
        self._wire = OpenAICodec(
            Upstream(endpoint.name, f"{root}/v1", endpoint.api_key, client, credentials=endpoint.credentials),
            limit=LIMITS[0],
        )
        self._models = endpoint.models
        self._on_cloud_run = bool(endpoint.credentials)

    def chat(self, request: ChatRequest, *, model: str) -> AsyncGenerator[ChatChunk, None]:
        return self._wire.chat(request, model=model)

    def complete(self, request: CompletionRequest, *, model: str) -> AsyncGenerator[ChatChunk, None]:
        return self._wire.complete(request, model=model)

    async def embed(self, request: EmbeddingsRequest, *, model: str) -> Embeddings:
        return await self._wire.embed(request, model=model)

    async def pass_on(self, request: PassedRequest, *, model: str) -> PassedAnswer:
        return await passing.pass_on(self._root, request, model=model, before="/v1")

    async def probe(self) -> Probe:
        return await probes.look(self._look)

    async def _look(self) -> Probe:
        if self._on_cloud_run:
            return Probe(finding=Finding.UNCLEAR, reason="a probe would start a GPU", models=self._models)
        started = time.monotonic()
        await self._root.json("GET", "/health", timeout_s=probes.PROBE_TIMEOUT_S)
        latency_ms = probes.elapsed_ms(started)
        models = await self._wire.models(timeout_s=probes.PROBE_TIMEOUT_S)
        return Probe(finding=Finding.OK, latency_ms=latency_ms, models=models, loaded=models)
