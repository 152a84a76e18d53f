"""Cloud Run's front end, for private services: it admits callers that may invoke a service, and refuses all others.

A token must be valid, name the service's own URL as its audience, and belong to an account that may invoke the service.
The service then gets the token without its signature, so that the token is worthless elsewhere. Code that checks the
signature once more fails here as it does in production.

Sources, read 2026-12-01: cloud.google.com/run/docs/authenticating/service-to-service (`X-Serverless-Authorization` is
read before `Authorization`; the signature becomes `SIGNATURE_REMOVED_BY_GOOGLE`) and
cloud.google.com/run/docs/troubleshooting (401: the token cannot be verified; 403: no token, or no `run.invoker` role).
"""

import base64
import binascii
import json
from collections.abc import Awaitable, Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import padding, rsa
from starlette.responses import HTMLResponse, Response

from localcloud.clock import Clock, utc_now
from localcloud.identity import ISSUER

REMOVED = "SIGNATURE_REMOVED_BY_GOOGLE"
TOKEN_BYTES_MAX = 8192
CLOCK_SKEW_S = 60
HEADERS = (b"x-serverless-authorization", b"authorization")
"""Where a token is looked for, in this order."""

Header = tuple[bytes, bytes]


class BadToken(ValueError):
    """The token cannot be verified, or is meant for another service."""


@dataclass(frozen=True, slots=True)
class Refused:
    """The answer that the front end gives in the service's place."""

    status: int
    reason: str

    def response(self) -> Response:
        """Return it as Google's front end words it."""
        headers = {}
        if self.status == 401:
            headers["www-authenticate"] = (
                'Bearer error="invalid_token" error_description="The access token could not be verified"'
            )
        title = {401: "401 Unauthorized", 403: "403 Forbidden"}[self.status]
        return HTMLResponse(
            f"<html><head><title>{title}</title></head><body><h1>{title}</h1></body></html>", self.status, headers
        )


class FrontEnd:
    """The check in front of private services."""

    def __init__(
        self,
        certificates: Callable[[], Awaitable[Mapping[str, str]]],
        *,
        invokers: Collection[str],
        clock: Clock = utc_now,
    ) -> None:
        """Keep who may invoke the services.

        Args:
            certificates: Reads the token issuer's certificates: `kid` → PEM x509.
            invokers: E-mail addresses of the accounts that have `roles/run.invoker`.
            clock: The time that tokens are judged at.
        """
        self._certificates = certificates
        self._invokers = frozenset(invokers)
        self._clock = clock

    async def admit(self, headers: Sequence[Header], *, audience: str) -> list[Header] | Refused:
        """Check a request's token.

        Args:
            headers: The request's, names in lower case.
            audience: The service's own URL.

        Returns:
            The headers that the service gets, the token without its signature; or the answer in its place.
        """
        for wanted in HEADERS:
            if sum(name == wanted for name, _ in headers) > 1:
                # The service could read another one than was checked here.
                return Refused(401, f"more than one {wanted.decode()} header: send one")
        found = next(((name, value) for wanted in HEADERS for name, value in headers if name == wanted), None)
        if found is None:
            return Refused(403, "no token")
        name, value = found
        scheme, _, token = value.decode("latin-1").partition(" ")
        if scheme.lower() != "bearer" or not token:
            return Refused(401, "no bearer token")
        try:
            claims = verify(token, await self._certificates(), audience=audience, now_s=self._clock().timestamp())
        except BadToken as error:
            return Refused(401, str(error))
        if str(claims.get("email")) not in self._invokers or claims.get("email_verified") is not True:
            return Refused(403, f"{claims.get('email')} may not invoke this service")
        stripped = f"{scheme} {strip(token)}".encode("latin-1")
        return [(key, stripped if (key, old) == (name, value) else old) for key, old in headers]


def strip(token: str) -> str:
    """Replace a token's signature by the marker that services get."""
    return f"{token.rpartition('.')[0]}.{REMOVED}"


def verify(token: str, certificates: Mapping[str, str], *, audience: str, now_s: float) -> dict[str, Any]:
    """Verify an OIDC token and return its claims.

    Args:
        token: A JWT signed with RS256.
        certificates: `kid` → PEM x509.
        audience: What its `aud` must be.
        now_s: Seconds since 1970.

    Raises:
        BadToken: It is malformed, forged, too old, or meant for another audience.
    """
    if len(token) > TOKEN_BYTES_MAX or token.count(".") != 2:
        raise BadToken("not a JWT")
    signed, _, signature = token.rpartition(".")
    header, claims = (_json(part) for part in signed.split("."))
    certificate = certificates.get(str(header.get("kid")))
    if header.get("alg") != "RS256" or certificate is None:
        raise BadToken("signed with an unknown key")
    key = x509.load_pem_x509_certificate(certificate.encode()).public_key()
    if not isinstance(key, rsa.RSAPublicKey):
        raise BadToken("signed with a key of another kind")
    try:
        key.verify(_bytes(signature), signed.encode(), padding.PKCS1v15(), hashes.SHA256())
    except InvalidSignature as error:
        raise BadToken("the signature is wrong") from error
    if claims.get("iss") != ISSUER:
        raise BadToken("another issuer")
    if claims.get("aud") != audience:
        raise BadToken(f"meant for {claims.get('aud')}, not for {audience}")
    issued_at, expires_at = claims.get("iat"), claims.get("exp")
    if not isinstance(issued_at, int) or not isinstance(expires_at, int):
        raise BadToken("without its times")
    if not issued_at - CLOCK_SKEW_S <= now_s <= expires_at + CLOCK_SKEW_S:
        raise BadToken("outside its time")
    return claims


def _json(part: str) -> dict[str, Any]:
    try:
        value = json.loads(_bytes(part))
    except (ValueError, RecursionError) as error:
        raise BadToken("not a JWT") from error
    if not isinstance(value, dict):
        raise BadToken("not a JWT")
    return value


def _bytes(part: str) -> bytes:
    try:
        return base64.urlsafe_b64decode(part + "=" * (-len(part) % 4))
    except (binascii.Error, ValueError) as error:
        raise BadToken("not a JWT") from error
