"""V4 signed URLs: signatures and expiry.

Source: https://cloud.google.com/storage/docs/access-control/signed-urls and
https://cloud.google.com/storage/docs/authentication/canonical-requests, read 2026-11-25.
"""

import hashlib
import re
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from urllib.parse import quote

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.padding import PKCS1v15
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPublicKey
from cryptography.hazmat.primitives.hashes import SHA256

from localcloud.storage.errors import StorageError

ALGORITHM = "GOOG4-RSA-SHA256"
LIFE_MAX_S = 7 * 86_400
_EARLY_MAX = timedelta(minutes=15)
_NOT_RESIGNED = {"x-goog-user-project"}

Signers = Mapping[str, RSAPublicKey] | Callable[[str], RSAPublicKey | None]
"""The public key of a service account, by its e-mail address."""

_PARAMETERS = (
    "X-Goog-Algorithm",
    "X-Goog-Credential",
    "X-Goog-Date",
    "X-Goog-Expires",
    "X-Goog-SignedHeaders",
    "X-Goog-Signature",
)
_SCOPE = re.compile(r"(?P<email>[^/]+)/(?P<date>\d{8})/[^/]+/storage/goog4_request")


def is_signed(query: Sequence[tuple[str, str]]) -> bool:
    """Return whether a URL claims a V2 or V4 signature. Then every part of it must be valid; V2 is refused."""
    claims = {name.lower() for name in _PARAMETERS} | {"googleaccessid", "signature"}
    return any(name.lower() in claims for name, _ in query)


def verify(
    *,
    method: str,
    path: str,
    query: Sequence[tuple[str, str]],
    headers: Mapping[str, str],
    signers: Signers,
    now: datetime,
) -> None:
    """Raise unless a known account signed the request and the signature has not expired.

    Args:
        method: The HTTP method in capitals.
        path: The decoded path, from the slash on.
        query: The decoded parameters, in any order.
        headers: The headers, with names in small letters.
        signers: The known accounts.
        now: The present, aware UTC.
    """
    values = dict(query)
    missing = [name for name in _PARAMETERS if name not in values]
    if missing or len(values) != len(query):
        raise StorageError(
            400,
            "invalid",
            "Invalid argument.",
            xml_code="AuthenticationRequired",
            details=f"A V4 signed URL needs each parameter once; missing: {', '.join(missing) or 'none'}",
        )
    scope = _SCOPE.fullmatch(values["X-Goog-Credential"])
    if values["X-Goog-Algorithm"] != ALGORITHM or scope is None:
        raise _malformed("X-Goog-Algorithm or X-Goog-Credential")
    _check_time(values, scope["date"], now)
    signed_headers = values["X-Goog-SignedHeaders"].split(";")
    _check_headers(headers, signed_headers)
    key = signers(scope["email"]) if callable(signers) else signers.get(scope["email"])
    canonical = (
        canonical_request(method, path, query, {**headers, "host": host}, signed_headers)
        for host in _hosts(headers.get("host", ""))
    )
    if key is None or not any(_is_signature(key, values, text) for text in canonical):
        raise StorageError(
            403,
            "forbidden",
            "Access denied.",
            xml_code="SignatureDoesNotMatch",
            details="The request signature we calculated does not match the signature you provided."
            " Check your Google secret key and signing method.",
        )


def _hosts(host: str) -> tuple[str, str]:
    """Return what a client may have signed as its host: Node's client leaves out the port, which production has not."""
    return host, re.sub(r":\d+$", "", host)


def _is_signature(key: RSAPublicKey, values: Mapping[str, str], canonical: str) -> bool:
    to_sign = "\n".join(
        (
            ALGORITHM,
            values["X-Goog-Date"],
            values["X-Goog-Credential"].partition("/")[2],
            hashlib.sha256(canonical.encode()).hexdigest(),
        )
    )
    try:
        key.verify(bytes.fromhex(values["X-Goog-Signature"]), to_sign.encode(), PKCS1v15(), SHA256())
    except (InvalidSignature, ValueError):
        return False
    return True


def canonical_request(
    method: str,
    path: str,
    query: Sequence[tuple[str, str]],
    headers: Mapping[str, str],
    signed_headers: Sequence[str],
) -> str:
    """Rebuild the text that the client hashed and signed from the received request."""
    pairs = sorted(
        f"{quote(name, safe='~')}={quote(value, safe='~')}" for name, value in query if name != "X-Goog-Signature"
    )
    lines = [f"{name}:{' '.join(headers.get(name, '').split())}" for name in signed_headers]
    return "\n".join(
        (
            method,
            quote(path, safe="/~"),
            "&".join(pairs),
            "\n".join(lines) + "\n",
            ";".join(signed_headers),
            headers.get("x-goog-content-sha256", "UNSIGNED-PAYLOAD"),
        )
    )


def _check_time(values: Mapping[str, str], scope_date: str, now: datetime) -> None:
    try:
        signed_at = datetime.strptime(values["X-Goog-Date"], "%Y%m%dT%H%M%SZ").replace(tzinfo=UTC)
        life_s = int(values["X-Goog-Expires"])
    except ValueError as error:
        raise _malformed("X-Goog-Date or X-Goog-Expires") from error
    if values["X-Goog-Date"][:8] != scope_date or not 0 < life_s <= LIFE_MAX_S:
        raise _malformed("X-Goog-Date, X-Goog-Expires or X-Goog-Credential")
    if now < signed_at - _EARLY_MAX:
        raise StorageError(
            400, "invalid", "Invalid argument.", xml_code="InvalidArgument", details="The request is not yet valid."
        )
    expires_at = signed_at + timedelta(seconds=life_s)
    if now > expires_at:
        raise StorageError(
            400,
            "invalid",
            "Invalid argument.",
            xml_code="ExpiredToken",
            details=f"The provided token has expired. Request signature expired at: {expires_at.isoformat()}",
        )


def _check_headers(headers: Mapping[str, str], signed_headers: Sequence[str]) -> None:
    """Require that every `x-goog-` header is signed, so that the holder of the URL cannot add any."""
    if "host" not in signed_headers or list(signed_headers) != sorted(set(signed_headers)):
        raise _malformed("X-Goog-SignedHeaders")
    for name in headers:
        if name.startswith("x-goog-") and name not in signed_headers and name not in _NOT_RESIGNED:
            raise StorageError(
                400,
                "invalid",
                "Your request has a malformed header.",
                xml_code="MalformedSecurityHeader",
                details=f"Header was included in signedheaders, but not in the request or the reverse: {name}",
            )


def _malformed(what: str) -> StorageError:
    return StorageError(400, "invalid", "Invalid argument.", xml_code="InvalidArgument", details=f"Malformed {what}")
