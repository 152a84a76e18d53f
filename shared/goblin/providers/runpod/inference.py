"""RunPod: serverless endpoints, asked through their OpenAI route, their queue, or their load balancer.

Source: runpod/docs at 2026-08-20 and worker-vllm, read 2026-11-23. The option `route` says which:

    openai     (the default) `/openai/v1` of vLLM workers. A caller that leaves is not heard there: its job runs on.
    queue      `/run`, `/stream`, `/cancel`: any worker, and a caller that leaves takes its job along. The option
               `worker` says what it is fed: `vllm` (the default) the request and OpenAI's route, `plain` the request.
    balancer   `https://{endpoint}.api.runpod.ai`, without a queue; the option `endpoint_id` lets it be looked at.

`/health` of the jobs plane costs nothing and wakes nobody, and neither does the list of workers of the management API,
version 2 (version 1 ended on 2026-11-15). Listing models does wake a GPU, so models must be configured. No capacity
is told with status 400 and words. There is no key for idempotency: a job whose answer is lost ends with its `ttl`.
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
from goblin.providers.common.http import Upstream
from goblin.providers.common.openai_codec import LIMITS, OpenAICodec, continues_as_vllm, limited, streaming, told
from goblin.providers.common.refusals import judge_gpu_host
from goblin.providers.runpod.queue import RunPodQueue
from goblin.providers.runpod.worker_outputs import OutputReader

NAME = "runpod"
UNSUPPORTED = {Capability.EMBEDDINGS: "its vLLM workers have no route for them"}
API = "https://api.runpod.io/v2"
EXECUTION_S = 600
ROUTES = ("openai", "queue", "balancer")
WORKERS = ("vllm", "plain")


def connect(endpoint: Endpoint, client: httpx.AsyncClient) -> ChatProvider:
    """Speak to the endpoint at its URL, `https://api.runpod.ai/v2/{endpoint}`, or to its balancer's.

    Raises:
        Broken: an option is none that there is.
    """
    for option, known in (("route", ROUTES), ("worker", WORKERS)):
        if endpoint.options.get(option, known[0]) not in known:
            raise Broken(f"endpoint {endpoint.name}: option `{option}` is one of {', '.join(known)}")
    if endpoint.options.get("route") == "queue":
        return Queued(endpoint, client)
    return Direct(endpoint, client)


class Direct:
    """An endpoint that speaks OpenAI's wire."""

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
    """An endpoint whose workers take jobs."""

    def __init__(self, endpoint: Endpoint, client: httpx.AsyncClient) -> None:
        url = endpoint.url.rstrip("/")
        # A job whose caller died is not billed for longer than was put aside for it.
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
        reader = OutputReader(self._upstream)
        async with aclosing(self._queue.run(work)) as outputs:
            async for output in outputs:
                for chunk in reader.read(output):
                    yield chunk
        for chunk in reader.end():
            yield chunk


class View:
    """The workers of an endpoint, seen without waking one."""

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
    """What there is to see of a balancer without its endpoint's id."""

    def __init__(self, models: tuple[str, ...] | None) -> None:
        self._models = models

    async def look(self) -> Probe:
        return Probe(finding=Finding.UNCLEAR, reason="looking would wake a GPU", models=self._models)


def _view_of_balanced(endpoint: Endpoint, client: httpx.AsyncClient) -> View | Blind:
    endpoint_id = endpoint.options.get("endpoint_id")
    if not endpoint_id:
        return Blind(endpoint.models)
    return View(endpoint, endpoint.options.get("api", API), f"/serverless/{endpoint_id}/workers", client)


class Workers(msgspec.Struct, frozen=True, kw_only=True):
    """How many are in each state. Keys that are missing mean none: the documentation shows two of them."""

    idle: int = 0
    ready: int = 0
    running: int = 0
    initializing: int = 0
    throttled: int = 0
    unhealthy: int = 0


class Seen(msgspec.Struct, frozen=True, kw_only=True):
    """`/health` counts in `workers`; the management API lists there, and counts in `summary`."""

    workers: Workers | tuple[Any, ...] = Workers()
    summary: Workers = Workers()


def judge_workers(workers: Workers) -> Probe:
    """What an endpoint's workers make of its next request."""
    if workers.idle + workers.ready:
        return Probe(finding=Finding.OK, warmth=Warmth.WARM)
    if workers.running:
        return Probe(finding=Finding.OK, reason="every worker is busy", warmth=Warmth.WARM)
    if workers.initializing:
        return Probe(finding=Finding.OK, reason="a worker starts", warmth=Warmth.STARTING)
    if workers.throttled:
        return Probe(finding=Finding.OK, reason="RunPod has no GPU for it now", warmth=Warmth.FULL)
    if workers.unhealthy:
        return Probe(finding=Finding.FAILED, reason="its workers crash")
    return Probe(finding=Finding.OK, reason="no worker is there; a request starts one", warmth=Warmth.ASLEEP)


def _no_embeddings(endpoint: Endpoint) -> ProviderUnavailable:
    why = UNSUPPORTED[Capability.EMBEDDINGS]
    return ProviderUnavailable(f"{endpoint.name}: {why}.", fault=Fault.UNSUPPORTED)
