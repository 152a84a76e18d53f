"""Authentication of a private function's caller by Google's OIDC tokens, as Cloud Scheduler and Pub/Sub send them.

Source: cloud.google.com/pubsub/docs/authenticate-push-subscriptions, read 2026-11-23. Signature, audience and
time are checked by google-auth; this module checks issuer and account.

Behind Cloud Run's invoker check the platform has verified the signature and replaced it by a marker
(`SIGNATURE_REMOVED_BY_GOOGLE`), so it cannot be verified again: then all but the signature is checked here. That is
sound only where the invoker check is on. Elsewhere anybody could send such a token.
"""

from __future__ import annotations

import asyncio
import logging
import re
import time
from collections.abc import Collection, Mapping

import httpx
from google.auth import exceptions, jwt

from goblin.core import decoding
from goblin.core.errors import Forbidden, Transient, Unauthenticated

log = logging.getLogger(__name__)

ISSUERS = frozenset({"https://accounts.google.com", "accounts.google.com"})
TOKEN_BYTES_MAX = 8192
FETCH_TIMEOUT_S = 5.0
SIGNATURE_REMOVED = "SIGNATURE_REMOVED_BY_GOOGLE"
"""What Cloud Run puts in the place of a signature that it has verified."""
TOKEN_LIFE_S_MAX = 86400
"""Longest life of a token whose signature cannot be verified here. Google's live an hour."""
CLOCK_SKEW_S = 10
"""As google-auth allows."""
REFETCH_AFTER_S = 30.0
"""Shortest time between reads of the certificates for an unknown key id: it may be a new key, or a forged token."""
CERTS_LIFE_S = (60.0, 86400.0)


class CallerVerifier:
    """A check whether a caller is one of the allowed accounts. Without an allowed account, every caller is refused."""

    def __init__(
        self,
        client: httpx.AsyncClient,
        *,
        audiences: Collection[str],
        emails: Collection[str],
        certs_url: str,
        signature_verified: bool = False,
    ) -> None:
        """Keep what a token must say.

        Args:
            client: Reads the certificates.
            audiences: The function's own URLs; a token names one of them.
            emails: Accounts that may call.
            certs_url: Where the issuer's certificates are.
            signature_verified: The platform has verified the signature and removed it.
        """
        self._client = client
        self._audiences = [audience for audience in audiences if audience]
        self._signature_verified = signature_verified
        self._emails = frozenset(emails)
        self._certs_url = certs_url
        self._certs: dict[str, str] = {}
        self._fetched_at = 0.0
        self._fresh_until = 0.0
        self._fetching = asyncio.Lock()

    async def verify(self, authorization: str | None) -> str:
        """Verify a caller's token and return its account.

        Raises:
            Unauthenticated: There is no token, or it is not valid.
            Forbidden: The token is valid, but its account is not allowed.
            Transient: Google's certificates could not be read.
        """
        if not self._audiences or not self._emails:
            raise Forbidden("No caller is configured: set GOBLIN_PUSH_AUDIENCE and GOBLIN_INVOKER_EMAIL.")
        scheme, _, token = (authorization or "").partition(" ")
        if scheme.lower() != "bearer" or not token or len(token) > TOKEN_BYTES_MAX:
            raise Unauthenticated(
                'An OIDC token is required. Send it as "Authorization: Bearer TOKEN".', code="missing_token"
            )
        claims = await self._claims(token)
        email = str(claims.get("email", ""))
        issuer = claims.get("iss")
        if not isinstance(issuer, str) or issuer not in ISSUERS or claims.get("email_verified") is not True:
            raise Unauthenticated("The OIDC token was not issued by Google.", code="invalid_token")
        if email not in self._emails:
            raise Forbidden(f"{email} may not call this function.")
        return email

    async def _claims(self, token: str) -> Mapping[str, object]:
        if self._signature_verified and token.rpartition(".")[2] != SIGNATURE_REMOVED:
            log.error("An OIDC token came without Cloud Run's marker: its invoker check is off.")
            raise Unauthenticated(
                "Cloud Run did not check this OIDC token: its signature is not replaced by"
                f" {SIGNATURE_REMOVED}. Turn on the service's invoker check, or set GOBLIN_VERIFY_CALLER=on.",
                code="invalid_token",
            )
        try:
            if self._signature_verified:
                claims: Mapping[str, object] = jwt.decode(token, verify=False)
                self._check(claims)
                return claims
            key_id = jwt.decode_header(token).get("kid")
            certs = await self._certificates(str(key_id))
            claims = jwt.decode(token, certs=certs, audience=self._audiences)
            if not isinstance(claims, Mapping):
                raise ValueError("the claims are not an object")
        except (exceptions.GoogleAuthError, AttributeError, LookupError, *decoding.UNREADABLE) as error:
            # The reason would help an attacker more than a caller; it is in the log.
            log.warning("An OIDC token was refused: %.200s", error)
            raise Unauthenticated("The OIDC token is not valid.", code="invalid_token") from error
        return claims

    def _check(self, claims: Mapping[str, object]) -> None:
        """Check audience and time. Raises `ValueError`."""
        if not isinstance(claims, Mapping) or claims.get("aud") not in self._audiences:
            raise ValueError("the token is meant for another audience")
        issued_at, expires_at = claims.get("iat"), claims.get("exp")
        if not isinstance(issued_at, int) or not isinstance(expires_at, int):
            raise ValueError("the token does not say when it is valid")
        if not issued_at - CLOCK_SKEW_S <= time.time() <= expires_at + CLOCK_SKEW_S:
            raise ValueError("the token is not valid now")
        if expires_at - issued_at > TOKEN_LIFE_S_MAX:
            raise ValueError("the token is valid for too long")

    async def _certificates(self, key_id: str) -> Mapping[str, str]:
        async with self._fetching:
            now = time.monotonic()
            stale = now >= self._fresh_until
            unknown = key_id not in self._certs and now - self._fetched_at > REFETCH_AFTER_S
            if stale or unknown or not self._certs:
                await self._fetch(now)
        return self._certs

    async def _fetch(self, now: float) -> None:
        try:
            response = await self._client.get(self._certs_url, timeout=FETCH_TIMEOUT_S)
            response.raise_for_status()
        except httpx.HTTPError as error:
            raise Transient("Google's certificates for OIDC tokens could not be read. Try again later.") from error
        self._certs = decoding.decode(response.content, dict[str, str], lambda why: Transient(
            f"Google's certificates for OIDC tokens could not be read: {why}. Try again later."
        ))  # fmt: skip
        self._fetched_at = now
        self._fresh_until = now + _life_s(response.headers.get("cache-control", ""))


def _life_s(cache_control: str) -> float:
    found = re.search(r"max-age=(\d+)", cache_control)
    low, high = CERTS_LIFE_S
    return min(max(float(found[1]) if found else low, low), high)
