"""OIDC tokens that authenticate this process's service account to a private Cloud Run service, for one audience.

Source: google-auth 2.x `google.oauth2.id_token`, read 2026-11-25. The credentials come from the metadata server or
from a service account's key file; a user's own login cannot mint such tokens. Tokens live an hour. A service that
wants a key of its own in `Authorization` reads our token from `X-Serverless-Authorization`, which Cloud Run checks
first and removes. Source: cloud.google.com/run/docs/authenticating/service-to-service.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from datetime import UTC
from typing import Any

from google.auth.exceptions import GoogleAuthError

from goblin.core.endpoints import Credential, Endpoint
from goblin.core.errors import Fault, ProviderUnavailable

LIFE_LEFT_S = 300.0
"""A token that expires sooner than this is replaced, so that none expires in flight."""
LOOK_AGAIN_S = 10.0


AUDIENCE = "audience"
"""Name of the option that marks an endpoint as a private Cloud Run service."""


def credentials_for(endpoint: Endpoint) -> tuple[Credential, ...]:
    """Return the credentials that Cloud Run checks in front of an endpoint; none for one without an audience."""
    audience = endpoint.options.get(AUDIENCE)
    if not audience:
        return ()
    header = "x-serverless-authorization" if endpoint.api_key else "authorization"
    return (Credential(header, "Bearer", IdentityToken(audience)),)


class IdentityToken:
    """A `KeySource` of identity tokens. A token is fetched on first use."""

    def __init__(
        self,
        audience: str,
        *,
        mint: Callable[[str], tuple[str, float]] | None = None,
        now: Callable[[], float] = time.time,
    ) -> None:
        """Set the audience of the tokens.

        Args:
            audience: The service's URL.
            mint: Makes a token and returns it with its end, in seconds since 1970. It blocks.
            now: Returns seconds since 1970.
        """
        self._audience = audience
        self._mint = mint or _mint
        self._now = now
        self._token = ""
        self._until = float("-inf")
        self._minted_at = float("-inf")
        self._minting = asyncio.Lock()

    async def key(self) -> str:
        if self._now() < self._until - LIFE_LEFT_S:
            return self._token
        async with self._minting:
            if self._now() >= self._until - LIFE_LEFT_S:
                await self._renew()
        return self._token

    async def renew(self, refused: str) -> bool:
        async with self._minting:
            if self._token == refused and self._now() - self._minted_at >= LOOK_AGAIN_S:
                await self._renew()
            return self._token != refused

    async def _renew(self) -> None:
        try:
            self._token, self._until = await asyncio.to_thread(self._mint, self._audience)
        except (GoogleAuthError, OSError, ValueError) as error:
            raise ProviderUnavailable(
                f"Google gave no identity token for {self._audience}: {type(error).__name__}.", fault=Fault.AUTH
            ) from error
        self._minted_at = self._now()


def _mint(audience: str) -> tuple[str, float]:
    """Fetch a token with the credentials of this process's service account."""
    from google.auth.transport import requests
    from google.oauth2 import id_token

    transport = requests.Request()
    credentials: Any = id_token.fetch_id_token_credentials(audience, request=transport)
    credentials.refresh(transport)
    # google-auth keeps naive UTC.
    return str(credentials.token), credentials.expiry.replace(tzinfo=UTC).timestamp()
