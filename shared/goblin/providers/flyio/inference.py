"""Fly.io inference: a llama.cpp server in an app that is always on, and the states of its machines.

Source: superfly/docs at 2026-08-07, read 2026-11-23. Fly is CPU only. Where autostart is on, any request through its
proxy starts a stopped machine, even `/health`. With `account_key` and the option `app`, probes use the Machines API
instead, which starts nothing. Without them the app is taken to be always on, and probes use `/health`. The API allows
one request a second. A failing check takes a machine out of routing and does not restart it.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Sequence
from dataclasses import replace
from urllib.parse import quote

import httpx
import msgspec

from goblin.core.endpoints import Capability, Endpoint
from goblin.core.errors import GoblinError
from goblin.gateway.domain.chat import ChatChunk, Embeddings
from goblin.gateway.domain.endpoint_health import Finding, Probe, Warmth
from goblin.gateway.domain.requests import ChatRequest, CompletionRequest, EmbeddingsRequest
from goblin.gateway.ports import ChatProvider
from goblin.providers.common import probes
from goblin.providers.common.http import Upstream
from goblin.providers.common.openai_codec import LIMITS, OpenAICodec

NAME = "flyio"
UNSUPPORTED = {
    Capability.AUDIO: "llama.cpp is built without its multimodal library",
    Capability.CHOICES: "it makes at most as many choices at once as it has slots",
    Capability.FILES: "llama.cpp reads no PDF",
    Capability.PROMPTS: "it takes one prompt per request",
}
API = "https://api.machines.dev/v1"


def connect(endpoint: Endpoint, client: httpx.AsyncClient) -> ChatProvider:
    """Connect to the app at the endpoint's URL, which has no path: `https://app.fly.dev`."""
    return FlyApp(endpoint, client)


class FlyApp:
    """One app with one model, on one or a few machines."""

    def __init__(self, endpoint: Endpoint, client: httpx.AsyncClient) -> None:
        root = endpoint.url.rstrip("/").removesuffix("/v1")
        self._root = Upstream(endpoint.name, root, endpoint.api_key, client)
        self._wire = OpenAICodec(Upstream(endpoint.name, f"{root}/v1", endpoint.api_key, client), limit=LIMITS[0])
        api = endpoint.options.get("api", API)
        self._api = Upstream(endpoint.name, api, endpoint.account_key, client)
        self._app = (endpoint.options.get("app") or None) if endpoint.account_key else None
        self._models = endpoint.models

    def chat(self, request: ChatRequest, *, model: str) -> AsyncGenerator[ChatChunk, None]:
        return self._wire.chat(request, model=model)

    def complete(self, request: CompletionRequest, *, model: str) -> AsyncGenerator[ChatChunk, None]:
        return self._wire.complete(request, model=model)

    async def embed(self, request: EmbeddingsRequest, *, model: str) -> Embeddings:
        return await self._wire.embed(request, model=model)

    async def probe(self) -> Probe:
        return await probes.look(self._look if self._app is None else self._look_at_machines)

    async def _look(self) -> Probe:
        await self._root.exchange("GET", "/health", timeout_s=probes.PROBE_TIMEOUT_S)
        models = await self._wire.models(timeout_s=probes.PROBE_TIMEOUT_S)
        return Probe(finding=Finding.OK, models=models, loaded=models, warmth=Warmth.WARM)

    async def _look_at_machines(self) -> Probe:
        path = f"/apps/{quote(self._app or '', safe='')}/machines"
        try:
            answer = await self._api.json("GET", path, timeout_s=probes.PROBE_TIMEOUT_S)
        except GoblinError as error:
            # An error of the Machines API, or of our token for it, says nothing about the app.
            return Probe(finding=Finding.UNCLEAR, reason=f"Machines API: {error.message}")
        seen = judge_machines(self._api.convert(answer, tuple[FlyMachine, ...]))
        if seen.warmth is not Warmth.WARM or self._models is not None:
            return replace(seen, models=self._models)
        models = await self._wire.models(timeout_s=probes.PROBE_TIMEOUT_S)
        return replace(seen, models=models, loaded=models)


class Check(msgspec.Struct, frozen=True, kw_only=True):
    status: str = ""


class FlyMachine(msgspec.Struct, frozen=True, kw_only=True):
    state: str
    checks: tuple[Check, ...] | None = None

    @property
    def passing(self) -> bool:
        return all(check.status == "passing" for check in self.checks or ())


_MOVING = frozenset({"created", "creating", "starting", "restarting", "updating", "replacing"})
_RESTING = frozenset({"stopped", "stopping", "suspended", "suspending"})


def judge_machines(machines: Sequence[FlyMachine]) -> Probe:
    """Judge by its machines' states whether an app can answer the next request."""
    states = {machine.state for machine in machines}
    if any(machine.state == "started" and machine.passing for machine in machines):
        return Probe(finding=Finding.OK, warmth=Warmth.WARM)
    if "started" in states:
        return Probe(finding=Finding.FAILED, reason="its machines are started but fail their checks")
    if states & _MOVING:
        return Probe(finding=Finding.OK, reason="a machine is starting", warmth=Warmth.STARTING)
    if states & _RESTING:
        return Probe(finding=Finding.OK, reason="its machines are stopped", warmth=Warmth.ASLEEP)
    return Probe(finding=Finding.FAILED, reason="it has no machine that can start")
