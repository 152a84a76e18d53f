"""Vast.ai inference: OpenAI-compatible servers on instances that we rent, found through the list of instances.

The endpoint's URL is the API's, `https://console.vast.ai`, and `account_key` is the API's key, which is never sent to
an instance: a rented host belongs to a stranger. `api_key` is the key of the servers. Options: `label` of the instances
(default: the endpoint's name), `port` inside the container (default: 8000), `scheme` (default: http, which sends the
key and prompts unencrypted). An outbid instance stops within seconds, and its streams break off. Source: vast-ai/docs
at 2026-08-07 and public measurements of 2026-08-27, read 2026-11-23.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, Mapping
from contextlib import aclosing
from dataclasses import dataclass
from typing import TypeVar

import httpx

from goblin.core.endpoints import Capability, Endpoint
from goblin.core.errors import Fault, ProviderUnavailable
from goblin.gateway.domain.chat import ChatChunk, Embeddings
from goblin.gateway.domain.endpoint_health import Finding, Probe, Warmth
from goblin.gateway.domain.requests import ChatRequest, CompletionRequest, EmbeddingsRequest
from goblin.gateway.ports import ChatProvider
from goblin.providers.common import probes
from goblin.providers.common.http import Upstream
from goblin.providers.common.openai_codec import LIMITS, OpenAICodec, continues_as_vllm
from goblin.providers.vastai.instances import ServerState, VastInstances

NAME = "vastai"
UNSUPPORTED = {Capability.FILES: "servers on rented machines read no PDF"}
KNOWN_S = 30.0
"""How long a list is valid; a server that fails a request makes it stale at once."""
AGAIN_S = 5.0
"""How long a list is valid that is empty or could not be read."""
LIST_INTERVAL_S = 1.0
"""Shortest time between two lists; the API's own limit."""
ASKED_MAX = 8
"""Servers whose health is checked in one probe."""
T = TypeVar("T")


def connect(endpoint: Endpoint, client: httpx.AsyncClient) -> ChatProvider:
    """Connect to the instances that carry the endpoint's label."""
    return VastServers(endpoint, client)


@dataclass(slots=True, eq=False)
class VastServer:
    """The inference server on one instance."""

    health: Upstream
    wire: OpenAICodec
    in_flight: int = 0
    doubted_until: float = float("-inf")
    """Until this monotonic time other servers are preferred, because this one failed."""


class VastServers:
    """All instances with one label, as one endpoint; sends each request to the least busy."""

    def __init__(self, endpoint: Endpoint, client: httpx.AsyncClient) -> None:
        self._endpoint = endpoint
        self._client = client
        self._label = endpoint.options.get("label", endpoint.name)
        self._port = int(endpoint.options.get("port", "8000"))
        self._scheme = endpoint.options.get("scheme", "http")
        self._instances = VastInstances(endpoint, client, label=self._label)
        self._servers: dict[str, VastServer] = {}
        """Servers by base URL."""
        self._starting = False
        self._asked_at = float("-inf")
        self._error: ProviderUnavailable | None = None
        """Why the last list could not be read."""
        self._stale = False
        self._listing = asyncio.Lock()

    async def chat(self, request: ChatRequest, *, model: str) -> AsyncGenerator[ChatChunk, None]:
        server = await self._pick()
        async with aclosing(self._watched(server, server.wire.chat(request, model=model))) as chunks:
            async for chunk in chunks:
                yield chunk

    async def complete(self, request: CompletionRequest, *, model: str) -> AsyncGenerator[ChatChunk, None]:
        server = await self._pick()
        async with aclosing(self._watched(server, server.wire.complete(request, model=model))) as chunks:
            async for chunk in chunks:
                yield chunk

    async def embed(self, request: EmbeddingsRequest, *, model: str) -> Embeddings:
        server = await self._pick()

        async def one() -> AsyncGenerator[Embeddings, None]:
            yield await server.wire.embed(request, model=model)

        async with aclosing(self._watched(server, one())) as answers:
            return await anext(answers)

    async def probe(self) -> Probe:
        return await probes.look(self._look)

    async def _watched(self, server: VastServer, answer: AsyncGenerator[T, None]) -> AsyncGenerator[T, None]:
        """Count a request as in flight; if it fails, avoid its server for a while and refresh the list."""
        server.in_flight += 1
        try:
            async with aclosing(answer):
                async for item in answer:
                    yield item
        except ProviderUnavailable as error:
            if error.fault is Fault.TRANSIENT:
                self._doubt(server)
            raise
        finally:
            server.in_flight -= 1

    def _doubt(self, server: VastServer) -> None:
        self._stale = True
        server.doubted_until = time.monotonic() + KNOWN_S

    async def _pick(self) -> VastServer:
        """Choose the least busy server, those that failed recently last. Raises `ProviderUnavailable` without any."""
        try:
            servers = await self._known(KNOWN_S)
        except ProviderUnavailable as error:
            if error.fault is not Fault.MISSING:
                raise
            # The list is missing, not the model.
            raise ProviderUnavailable(f"{self._endpoint.name}: the list of its instances cannot be read.") from error
        if servers:
            now = time.monotonic()
            return min(servers.values(), key=lambda server: (server.doubted_until > now, server.in_flight))
        if self._starting:
            raise ProviderUnavailable(f"{self._endpoint.name}: an instance is starting.", fault=Fault.LOADING)
        raise ProviderUnavailable(f"{self._endpoint.name}: no instance is rented.", fault=Fault.CAPACITY)

    async def _known(self, believed_s: float) -> Mapping[str, VastServer]:
        """List servers by base URL, from a list that is at most `believed_s` old.

        While a new list cannot be read, the last one counts. Raises `ProviderUnavailable` when that has no server.
        """
        async with self._listing:
            if self._error is not None or not self._servers:
                believed_s = min(believed_s, AGAIN_S)
            if self._stale:
                believed_s = LIST_INTERVAL_S
            if time.monotonic() - self._asked_at >= believed_s:
                self._asked_at = time.monotonic()
                try:
                    await self._list()
                except ProviderUnavailable as error:
                    self._error = error
            if self._error is not None and not self._servers:
                known = self._error
                raise ProviderUnavailable(known.message, fault=known.fault, retry_after_s=known.retry_after_s)
            return self._servers

    async def _list(self) -> None:
        found = await self._instances.all()
        running = [one for one in found if one.state is ServerState.RUNNING]
        addresses = [self._instances.address(one, self._port, self._scheme) for one in running]
        self._servers = {url: self._servers.get(url) or self._server(url) for url in addresses if url is not None}
        # An instance that runs without an address will get one soon: it counts as starting.
        self._starting = None in addresses or any(one.state is ServerState.STARTING for one in found)
        self._error, self._stale = None, False

    def _server(self, url: str) -> VastServer:
        name, key = self._endpoint.name, self._endpoint.api_key
        wire = OpenAICodec(
            Upstream(name, f"{url}/v1", key, self._client),
            limit=LIMITS[0],
            continues=continues_as_vllm(self._endpoint),
        )
        return VastServer(health=Upstream(name, url, key, self._client), wire=wire)

    async def _look(self) -> Probe:
        try:
            servers = await self._known(LIST_INTERVAL_S)
        except ProviderUnavailable as error:
            if error.fault in (Fault.MISSING, Fault.RATE):
                return Probe(
                    finding=Finding.UNCLEAR, reason=f"the list of its instances cannot be read: {error.message}"
                )
            raise
        if not servers and self._starting:
            return Probe(finding=Finding.LOADING, reason="an instance is starting", warmth=Warmth.STARTING)
        if not servers:
            return Probe(finding=Finding.FAILED, reason=f"no instance has the label {self._label}")
        asked = list(servers.values())[:ASKED_MAX]
        answers = await asyncio.gather(*(_healthy(server) for server in asked), return_exceptions=True)
        well = [server for server, answer in zip(asked, answers, strict=True) if answer is None]
        for server in asked:
            if server not in well:
                self._doubt(server)
        if not well:
            raise next(answer for answer in answers if isinstance(answer, BaseException))
        models = self._endpoint.models or await well[0].wire.models(timeout_s=probes.PROBE_TIMEOUT_S)
        return Probe(finding=Finding.OK, models=models, loaded=models, warmth=Warmth.WARM)


async def _healthy(server: VastServer) -> None:
    await server.health.exchange("GET", "/health", timeout_s=probes.PROBE_TIMEOUT_S)
