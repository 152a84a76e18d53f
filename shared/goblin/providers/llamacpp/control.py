"""Client for the control routes of the server in `containers/llamacpp`: which model it serves, and loading another.

    GET  /props         {"model_alias", "model_sha256" (null when no digest was requested), …}
    POST /models/load   {"url", "sha256", "alias"} → 200 once it serves it; 400 `model_refused` when it never will

A load answers only when it is done: minutes for a large model.
"""

from __future__ import annotations

import httpx
import msgspec

from goblin.core.endpoints import Endpoint
from goblin.core.errors import InvalidRequest, ProviderUnavailable
from goblin.providers.common.http import Upstream
from goblin.registry.domain.versions import LoadedModel

LOOK_S_MAX = 5.0
"""Timeout for reading which model is loaded."""
LOAD_S_MAX = 500.0
"""Timeout for loading a model, below the 540 s that Pub/Sub waits for an acknowledgement."""


class _Props(msgspec.Struct, frozen=True):
    model_alias: str
    model_sha256: str | None = None


class LlamaCppControl:
    """A llama.cpp server as a `ModelServer`."""

    def __init__(self, endpoint: Endpoint, client: httpx.AsyncClient) -> None:
        root = endpoint.url.rstrip("/").removesuffix("/v1")
        self._server = Upstream(endpoint.name, root, endpoint.api_key, client, credentials=endpoint.credentials)

    async def loaded(self) -> LoadedModel:
        answer = await self._ask("GET", "/props", LOOK_S_MAX)
        try:
            props = msgspec.convert(answer, _Props)
        except msgspec.ValidationError as error:
            raise self._server.nonsense() from error
        return LoadedModel(alias=props.model_alias, sha256=props.model_sha256)

    async def load(self, url: str, *, sha256: str, alias: str) -> str | None:
        body = {"url": url, "sha256": sha256, "alias": alias}
        try:
            await self._server.json("POST", "/models/load", body=body, timeout_s=LOAD_S_MAX)
        except InvalidRequest as error:
            if error.code == "model_refused":
                return error.message
            raise self._unasked(error) from error
        return None

    async def _ask(self, method: str, path: str, timeout_s: float) -> object:
        try:
            return await self._server.json(method, path, timeout_s=timeout_s)
        except InvalidRequest as error:
            raise self._unasked(error) from error

    def _unasked(self, error: InvalidRequest) -> ProviderUnavailable:
        """Build the error for a refusal that is not about the model: a load in progress, or a different server."""
        return ProviderUnavailable(f"{self._server.name}: {error.message}")
