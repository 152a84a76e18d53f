"""Endpoints of `goblin.toml` connected to the providers that speak to them."""

from __future__ import annotations

import importlib
from dataclasses import replace

import httpx

from goblin import providers
from goblin.core.endpoints import Endpoint, KeySource
from goblin.gateway.ports import ChatProvider
from goblin.gcp.identity_tokens import credentials_for
from goblin.gcp.secret_manager import PREFIX as SECRET
from goblin.gcp.secret_manager import SecretManager
from goblin.wiring.settings import BadConfiguration


def provider_names() -> frozenset[str]:
    """List the folders in `goblin/providers` that have an `inference.py`."""
    return frozenset(providers.having("inference"))


def connect(
    endpoint: Endpoint, client: httpx.AsyncClient, secrets: SecretManager | None = None
) -> tuple[Endpoint, ChatProvider]:
    """Connect an endpoint to its provider; returns it with its keys and what its provider lacks too.

    Raises:
        BadConfiguration: There is no such provider, or no secret can have that name.
    """
    if endpoint.provider not in provider_names():
        there = ", ".join(sorted(provider_names()))
        raise BadConfiguration(
            f"endpoint {endpoint.name}: there is no provider {endpoint.provider!r}; there are {there}"
        )
    module = importlib.import_module(f"{providers.__name__}.{endpoint.provider}.inference")
    known = replace(
        endpoint,
        lacks=module.UNSUPPORTED,
        api_key=_key(endpoint, endpoint.api_key, secrets),
        account_key=_key(endpoint, endpoint.account_key, secrets),
        credentials=credentials_for(endpoint),
    )
    return known, module.connect(known, client)


def _key(endpoint: Endpoint, key: str | KeySource | None, secrets: SecretManager | None) -> str | KeySource | None:
    """A key as the file has it, or, for `secret:NAME`, whatever Secret Manager holds when it is needed."""
    if not isinstance(key, str) or not key.startswith(SECRET):
        return key
    if secrets is None:
        raise BadConfiguration(f"endpoint {endpoint.name}: its key is in Secret Manager, which is not connected")
    try:
        return secrets.source(key.removeprefix(SECRET))
    except ValueError as error:
        raise BadConfiguration(f"endpoint {endpoint.name}: {error}") from error
