"""OpenAI inference, also for servers with a compatible API: the base URL is configured.

Source: openai-python 3.54 and OpenAI's API reference, read 2026-11-23. `GET /models` costs nothing. A 429 with a
quota code is about money, not about rate. Usage in a stream must be requested. OpenAI's reasoning models refuse
`max_tokens`, and compatible servers may not know `max_completion_tokens`: OpenAI itself gets the new name, other
servers the one in the option `limit`, or else the caller's. OpenAI itself, and a server with the option `responses =
"yes"`, gets a Responses request as it came.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator
from urllib.parse import urlsplit

import httpx

from goblin.core.endpoints import Capability, Endpoint
from goblin.core.errors import Broken
from goblin.gateway.domain.chat import ChatChunk, Embeddings, PassedAnswer
from goblin.gateway.domain.endpoint_health import Finding, Probe
from goblin.gateway.domain.requests import ChatRequest, CompletionRequest, EmbeddingsRequest, PassedRequest
from goblin.gateway.policy.passed_responses import HOST, OPTION
from goblin.gateway.ports import ChatProvider
from goblin.providers.common import passing, probes
from goblin.providers.common.http import Upstream
from goblin.providers.common.openai_codec import LIMITS, OpenAICodec, continues_as_vllm
from goblin.providers.common.responses_codec import ResponsesCodec

NAME = "openai"
UNSUPPORTED: dict[Capability, str] = {}


def connect(endpoint: Endpoint, client: httpx.AsyncClient) -> ChatProvider:
    """Connect to the API at the endpoint's URL, which ends as OpenAI's does: `https://host/v1`."""
    return OpenAI(endpoint, client)


class OpenAI:
    """One account at one base URL."""

    def __init__(self, endpoint: Endpoint, client: httpx.AsyncClient) -> None:
        limit = endpoint.options.get("limit") or (LIMITS[1] if urlsplit(endpoint.url).hostname == HOST else None)
        if limit not in (*LIMITS, None):
            raise Broken(f"Endpoint {endpoint.name}: the option `limit` must be one of {', '.join(LIMITS)}.")
        if endpoint.options.get(OPTION, "auto") not in ("auto", "yes", "no"):
            raise Broken(f"Endpoint {endpoint.name}: the option `{OPTION}` must be one of auto, yes, no.")
        upstream = Upstream(endpoint.name, endpoint.url, endpoint.api_key, client)
        self._upstream = upstream
        self._responses = ResponsesCodec(upstream)
        self._wire = OpenAICodec(
            upstream,
            limit=limit,
            # OpenAI itself never continues a message; an endpoint that declares it is a server such as vLLM.
            continues=continues_as_vllm(endpoint),
        )

    def chat(self, request: ChatRequest, *, model: str) -> AsyncGenerator[ChatChunk, None]:
        if request.responses is not None:
            return self._responses.respond(request, model=model)
        return self._wire.chat(request, model=model)

    def complete(self, request: CompletionRequest, *, model: str) -> AsyncGenerator[ChatChunk, None]:
        return self._wire.complete(request, model=model)

    async def embed(self, request: EmbeddingsRequest, *, model: str) -> Embeddings:
        return await self._wire.embed(request, model=model)

    async def pass_on(self, request: PassedRequest, *, model: str) -> PassedAnswer:
        return await passing.pass_on(self._upstream, request, model=model)

    async def probe(self) -> Probe:
        return await probes.look(self._look)

    async def _look(self) -> Probe:
        models = await self._wire.models(timeout_s=probes.PROBE_TIMEOUT_S)
        return Probe(finding=Finding.OK, models=models)
