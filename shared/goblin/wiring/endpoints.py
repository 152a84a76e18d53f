"""Connecting endpoints of `goblin.toml` to the provider code that calls them."""

from __future__ import annotations

import importlib
from dataclasses import replace

import httpx

from goblin import providers
from goblin.core.endpoints import Capability, Endpoint, KeySource
from goblin.gateway.ports import ChatProvider
from goblin.gcp.identity_tokens import credentials_for
from goblin.gcp.secret_manager import PREFIX as SECRET
from goblin.gcp.secret_manager import SecretManager
from goblin.wiring.settings import BadConfiguration

PASSED = (Capability.RERANK, Capability.IMAGES, Capability.TRANSCRIPTIONS)


def provider_names() -> frozenset[str]:
    """Return the names of the folders in `goblin/providers` that have an `inference.py`."""
    return frozenset(providers.having("inference"))


def connect(
    endpoint: Endpoint, client: httpx.AsyncClient, secrets: SecretManager | None = None
) -> tuple[Endpoint, ChatProvider]:
    """Connect an endpoint to its provider; return it with its keys and the capabilities that the provider lacks.

    Raises:
        BadConfiguration: The provider does not exist, or the key's secret cannot have that name.
    """
    if endpoint.provider not in provider_names():
        there = ", ".join(sorted(provider_names()))
        raise BadConfiguration(
            f"Endpoint {endpoint.name}: there is no provider {endpoint.provider!r}. Choose one of: {there}."
        )
    module = importlib.import_module(f"{providers.__name__}.{endpoint.provider}.inference")
    known = replace(
        endpoint,
        lacks=module.UNSUPPORTED,
        api_key=_key(endpoint, endpoint.api_key, secrets),
        account_key=_key(endpoint, endpoint.account_key, secrets),
        credentials=credentials_for(endpoint),
    )
    provider: ChatProvider = module.connect(known, client)
    if not hasattr(provider, "pass_on"):  # As of `PassingProvider`.
        known = replace(known, lacks={**known.lacks, **dict.fromkeys(PASSED, "its adapter has no such route")})
    return known, provider


def _key(endpoint: Endpoint, key: str | KeySource | None, secrets: SecretManager | None) -> str | KeySource | None:
    """Return the key as written, or, for `secret:NAME`, a source that reads Secret Manager when the key is needed."""
    if not isinstance(key, str) or not key.startswith(SECRET):
        return key
    if secrets is None:
        raise BadConfiguration(f"Endpoint {endpoint.name}: its key is in Secret Manager, which is not connected.")
    try:
        return secrets.source(key.removeprefix(SECRET))
    except ValueError as error:
        raise BadConfiguration(f"Endpoint {endpoint.name}: {error}") from error
