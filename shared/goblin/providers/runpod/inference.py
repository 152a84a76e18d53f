"""RunPod inference: serverless endpoints, through their OpenAI route, their queue, or their load balancer.

Source: runpod/docs at 2026-08-20 and worker-vllm, read 2026-11-23. The option `route` says which:

    openai     (default) `/openai/v1` of vLLM workers. It does not notice a caller that disconnects: the job runs on.
    queue      `/run`, `/stream`, `/cancel`: any worker; the job is cancelled when the caller disconnects. The option
               `worker` says what its input is: `vllm` (default) OpenAI's route and the request, `plain` the request.
    balancer   `https://{endpoint}.api.runpod.ai`, without a queue; it can be probed only with the option `endpoint_id`.

`/health` of the jobs plane costs nothing and starts no worker, and neither does the list of workers of the management
API, version 2 (version 1 ended on 2026-11-15). Listing models does start a GPU, so models must be configured. A lack
of capacity comes as status 400 with a message. There is no idempotency key: a job whose response is lost ends with its
`ttl`.
"""

from __future__ import annotations

import math
from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import replace
from typing import Any

import httpx
import msgspec

from goblin.billing.policy.prices import bills_time
from goblin.core.endpoints import Capability, Endpoint
from goblin.core.errors import Broken, Fault, ProviderUnavailable
from goblin.gateway.domain.chat import ChatChunk, Embeddings
from goblin.gateway.domain.endpoint_health import Finding, Probe, Warmth
from goblin.gateway.domain.requests import ChatRequest, CompletionRequest, EmbeddingsRequest
from goblin.gateway.ports import ChatProvider
from goblin.providers.common import probes
from goblin.providers.common.chunk_reader import tool_names
from goblin.providers.common.http import Upstream
from goblin.providers.common.openai_codec import LIMITS, OpenAICodec, continues_as_vllm, limited, streaming, told
from goblin.providers.common.reading import count_of
from goblin.providers.common.refusals import judge_gpu_host
from goblin.providers.runpod.queue import RunPodQueue
from goblin.providers.runpod.worker_outputs import OutputReader

NAME = "runpod"
UNSUPPORTED = {
    Capability.EMBEDDINGS: "its vLLM workers have no embeddings route",
    Capability.FILES: "its vLLM workers read no PDF",
}
"""Capabilities that it lacks, and why."""
API = "https://api.runpod.io/v2"
EXECUTION_S = 600
"""Longest run of a queued job, where neither the option `execution_s` nor a bill by time bounds it."""
ROUTES = ("openai", "queue", "balancer")
WORKERS = ("vllm", "plain")


def connect(endpoint: Endpoint, client: httpx.AsyncClient) -> ChatProvider:
    """Connect to the endpoint at its URL, `https://api.runpod.ai/v2/{endpoint}`, or that of its load balancer.

    Raises:
        Broken: An option has an unknown value.
    """
    for option, known in (("route", ROUTES), ("worker", WORKERS)):
        if endpoint.options.get(option, known[0]) not in known:
            raise Broken(f"Endpoint {endpoint.name}: the option `{option}` must be one of {', '.join(known)}.")
    if endpoint.options.get("route") == "queue":
        return Queued(endpoint, client)
    return Direct(endpoint, client)


class Direct:
    """An endpoint with OpenAI's wire format: the routes `openai` and `balancer`."""

    def __init__(self, endpoint: Endpoint, client: httpx.AsyncClient) -> None:
        url = endpoint.url.rstrip("/")
        balanced = endpoint.options.get("route") == "balancer"
        base = f"{url}/v1" if balanced else f"{url}/openai/v1"
        self._endpoint = endpoint
        self._wire = OpenAICodec(
            Upstream(endpoint.name, base, endpoint.api_key, client, judge=judge_gpu_host),
            limit=LIMITS[0],
            continues=continues_as_vllm(endpoint),
        )
        self._view = _view_of_balanced(endpoint, client) if balanced else View(endpoint, url, "/health", client)

    def chat(self, request: ChatRequest, *, model: str) -> AsyncGenerator[ChatChunk, None]:
        return self._wire.chat(request, model=model)

    def complete(self, request: CompletionRequest, *, model: str) -> AsyncGenerator[ChatChunk, None]:
        return self._wire.complete(request, model=model)

    async def embed(self, request: EmbeddingsRequest, *, model: str) -> Embeddings:
        raise _no_embeddings(self._endpoint)

    async def probe(self) -> Probe:
        return await probes.look(self._view.look)


class Queued:
    """An endpoint whose workers take jobs from a queue: the route `queue`."""

    def __init__(self, endpoint: Endpoint, client: httpx.AsyncClient) -> None:
        url = endpoint.url.rstrip("/")
        # A job whose caller crashed must not run, and be billed, for longer than was reserved for it.
        longest_s = math.ceil(endpoint.request_s_max) if bills_time(endpoint) else EXECUTION_S
        execution_s = int(endpoint.options.get("execution_s", longest_s))
        self._endpoint = endpoint
        self._upstream = Upstream(endpoint.name, url, endpoint.api_key, client, judge=judge_gpu_host)
        self._queue = RunPodQueue(self._upstream, execution_s=execution_s, life_s=execution_s + 300)
        self._plain = endpoint.options.get("worker") == "plain"
        self._view = View(endpoint, url, "/health", client)

    def chat(self, request: ChatRequest, *, model: str) -> AsyncGenerator[ChatChunk, None]:
        body = {**streaming(limited(request, LIMITS[0]), model), **told(request, continues_as_vllm(self._endpoint))}
        return self._run("/v1/chat/completions", body)

    def complete(self, request: CompletionRequest, *, model: str) -> AsyncGenerator[ChatChunk, None]:
        return self._run("/v1/completions", streaming(request.body, model))

    async def embed(self, request: EmbeddingsRequest, *, model: str) -> Embeddings:
        raise _no_embeddings(self._endpoint)

    async def probe(self) -> Probe:
        return await probes.look(self._view.look)

    async def _run(self, route: str, body: dict[str, Any]) -> AsyncGenerator[ChatChunk, None]:
        work = body if self._plain else {"openai_route": route, "openai_input": body}
        reader = OutputReader(self._upstream, choices=count_of(body.get("n")) or 1, tools=tool_names(body))
        async with aclosing(self._queue.run(work)) as outputs:
            async for output in outputs:
                for chunk in reader.read(output):
                    yield chunk
        for chunk in reader.end():
            yield chunk


class View:
    """Probes the workers of an endpoint without starting one."""

    def __init__(self, endpoint: Endpoint, url: str, path: str, client: httpx.AsyncClient) -> None:
        self._upstream = Upstream(endpoint.name, url, endpoint.api_key, client, judge=judge_gpu_host)
        self._path = path
        self._models = endpoint.models

    async def look(self) -> Probe:
        answer = await self._upstream.json("GET", self._path, timeout_s=probes.PROBE_TIMEOUT_S)
        seen = self._upstream.convert(answer, Seen)
        probe = judge_workers(seen.workers if isinstance(seen.workers, Workers) else seen.summary)
        warm = self._models if probe.warmth is Warmth.WARM else ()
        return replace(probe, models=self._models, loaded=warm)


class Blind:
    """The probe of a load balancer without `endpoint_id`: always unclear."""

    def __init__(self, models: tuple[str, ...] | None) -> None:
        self._models = models

    async def look(self) -> Probe:
        return Probe(finding=Finding.UNCLEAR, reason="a probe would start a GPU", models=self._models)


def _view_of_balanced(endpoint: Endpoint, client: httpx.AsyncClient) -> View | Blind:
    endpoint_id = endpoint.options.get("endpoint_id")
    if not endpoint_id:
        return Blind(endpoint.models)
    return View(endpoint, endpoint.options.get("api", API), f"/serverless/{endpoint_id}/workers", client)


class Workers(msgspec.Struct, frozen=True, kw_only=True):
    """Number of workers in each state. A missing key means none: the documentation shows only two of the keys."""

    idle: int = 0
    ready: int = 0
    running: int = 0
    initializing: int = 0
    throttled: int = 0
    unhealthy: int = 0


class Seen(msgspec.Struct, frozen=True, kw_only=True):
    """States of the workers: `/health` has counts in `workers`; the management API has a list there, and `summary`."""

    workers: Workers | tuple[Any, ...] = Workers()
    summary: Workers = Workers()


def judge_workers(workers: Workers) -> Probe:
    """Judge by its workers' states whether an endpoint can answer the next request."""
    if workers.idle + workers.ready:
        return Probe(finding=Finding.OK, warmth=Warmth.WARM)
    if workers.running:
        return Probe(finding=Finding.OK, reason="every worker is busy", warmth=Warmth.WARM)
    if workers.initializing:
        return Probe(finding=Finding.OK, reason="a worker is starting", warmth=Warmth.STARTING)
    if workers.throttled:
        return Probe(finding=Finding.OK, reason="RunPod has no GPU for it now", warmth=Warmth.FULL)
    if workers.unhealthy:
        return Probe(finding=Finding.FAILED, reason="its workers crash")
    return Probe(finding=Finding.OK, reason="no worker is running; a request starts one", warmth=Warmth.ASLEEP)


def _no_embeddings(endpoint: Endpoint) -> ProviderUnavailable:
    why = UNSUPPORTED[Capability.EMBEDDINGS]
    return ProviderUnavailable(f"{endpoint.name}: {why}.", fault=Fault.UNSUPPORTED)
