"""Google's token service on loopback: OIDC tokens, their certificates, and a service account that signs URLs.

Two RSA keys, so that a signed URL's key never mints a token. Tokens are RS256 with the claims that Google puts
in them; `google.oauth2.id_token.verify_token(token, request, audience=…, certs_url=…)` accepts them when
`certs_url` names our `/oauth2/v1/certs`.
"""

import base64
import datetime as dt
import hashlib
import json
import os
import secrets
from functools import cached_property
from pathlib import Path
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import padding, rsa
from cryptography.x509.oid import NameOID
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import BaseRoute, Route

from localcloud.clock import Clock, utc_now

ISSUER = "https://accounts.google.com"
SERVICE_ACCOUNT_EMAIL = "localcloud@local.iam.gserviceaccount.com"
KEY_BITS = 2048
CERTIFICATE_VALID_FROM = dt.datetime(2020, 1, 1, tzinfo=dt.UTC)
CERTIFICATE_VALID_UNTIL = dt.datetime(2120, 1, 1, tzinfo=dt.UTC)
"""Fixed, so that one key always has the same validity. Google rotates its keys weekly; localcloud does not."""


class Identity:
    """The token issuer: it signs tokens and publishes the keys that verify them."""

    def __init__(self, folder: Path | None, *, clock: Clock = utc_now) -> None:
        """Make the keys on first use.

        Args:
            folder: Where the private keys are kept, readable by their owner only. None keeps them in memory.
            clock: The time that tokens are issued at.
        """
        self._folder = folder
        self._clock = clock

    def mint(self, *, email: str, audience: str, lifetime_s: int = 3600) -> str:
        """Issue an OIDC identity token for a service account, as Google's token service would."""
        issued_at = int(self._clock().timestamp())
        subject = subject_of(email)
        claims = {
            "aud": audience,
            "azp": subject,
            "email": email,
            "email_verified": True,
            "exp": issued_at + lifetime_s,
            "iat": issued_at,
            "iss": ISSUER,
            "sub": subject,
        }
        header = {"alg": "RS256", "kid": self.key_id, "typ": "JWT"}
        signed = f"{_base64url(_json(header))}.{_base64url(_json(claims))}"
        signature = self._token_key.sign(signed.encode(), padding.PKCS1v15(), hashes.SHA256())
        return f"{signed}.{_base64url(signature)}"

    @property
    def key_id(self) -> str:
        """The `kid` of every token: a fingerprint of the public key."""
        return fingerprint(self._token_key.public_key())

    def certificates(self) -> dict[str, str]:
        """Return `kid` → PEM x509, the map that google-auth reads."""
        return {self.key_id: self._certificate}

    def jwks(self) -> dict[str, Any]:
        """Return the same key as a JSON Web Key Set (RFC 7517)."""
        numbers = self._token_key.public_key().public_numbers()
        key = {"n": _base64url(_big_endian(numbers.n)), "e": _base64url(_big_endian(numbers.e))}
        return {"keys": [{"kty": "RSA", "use": "sig", "alg": "RS256", "kid": self.key_id, **key}]}

    def routes(self) -> list[BaseRoute]:
        """Return the routes of www.googleapis.com and accounts.google.com that publish the keys."""
        return [
            Route("/oauth2/v1/certs", self._serve_certificates),
            Route("/oauth2/v3/certs", self._serve_jwks),
            Route("/.well-known/openid-configuration", self._serve_discovery),
        ]

    @cached_property
    def service_account(self) -> dict[str, str]:
        """The content of a service account's key file. Its key only signs V4 URLs."""
        private_key = self._signing_key.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )
        return {
            "type": "service_account",
            "project_id": "local",
            "private_key_id": fingerprint(self.public_key),
            "private_key": private_key.decode(),
            "client_email": SERVICE_ACCOUNT_EMAIL,
            "client_id": subject_of(SERVICE_ACCOUNT_EMAIL),
            # Never called: signing needs no token. A loopback address, so that no request can leave this machine.
            "token_uri": "http://127.0.0.1/token",
        }

    @cached_property
    def public_key(self) -> rsa.RSAPublicKey:
        """The key that verifies the signatures of `service_account`."""
        return self._signing_key.public_key()

    @cached_property
    def _token_key(self) -> rsa.RSAPrivateKey:
        return self._key("identity.pem")

    @cached_property
    def _signing_key(self) -> rsa.RSAPrivateKey:
        return self._key("service-account.pem")

    @cached_property
    def _certificate(self) -> str:
        name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "localcloud")])
        certificate = (
            x509.CertificateBuilder()
            .subject_name(name)
            .issuer_name(name)
            .public_key(self._token_key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(CERTIFICATE_VALID_FROM)
            .not_valid_after(CERTIFICATE_VALID_UNTIL)
            .sign(self._token_key, hashes.SHA256())
        )
        return certificate.public_bytes(serialization.Encoding.PEM).decode()

    def _key(self, name: str) -> rsa.RSAPrivateKey:
        if self._folder is None:
            return rsa.generate_private_key(public_exponent=65537, key_size=KEY_BITS)
        path = self._folder / name
        if not path.exists():
            _write_new_key(path)
        path.chmod(0o600)
        key = serialization.load_pem_private_key(path.read_bytes(), password=None)
        if not isinstance(key, rsa.RSAPrivateKey):
            raise TypeError(f"{path} does not hold an RSA key. Delete the file; the next start makes a new one.")
        return key

    async def _serve_certificates(self, _request: Request) -> JSONResponse:
        return JSONResponse(self.certificates(), headers={"Cache-Control": "public, max-age=3600"})

    async def _serve_jwks(self, _request: Request) -> JSONResponse:
        return JSONResponse(self.jwks(), headers={"Cache-Control": "public, max-age=3600"})

    async def _serve_discovery(self, request: Request) -> JSONResponse:
        here = str(request.base_url).rstrip("/")
        return JSONResponse(
            {
                "issuer": ISSUER,
                "jwks_uri": f"{here}/oauth2/v3/certs",
                "id_token_signing_alg_values_supported": ["RS256"],
                "response_types_supported": ["id_token"],
                "subject_types_supported": ["public"],
            }
        )


def fingerprint(key: rsa.RSAPublicKey) -> str:
    """Return forty hex digits that name a key, in the form of Google's key ids."""
    der = key.public_bytes(serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo)
    return hashlib.sha256(der).hexdigest()[:40]


def subject_of(email: str) -> str:
    """Return a stable 21-digit account number, in the form of Google's `sub`."""
    return str(10**20 + int.from_bytes(hashlib.sha256(email.encode()).digest()[:8], "big"))


def _write_new_key(path: Path) -> None:
    """Write a new key file, readable by its owner only, whole or not at all; an existing file stays."""
    key = rsa.generate_private_key(public_exponent=65537, key_size=KEY_BITS)
    pem = key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    draft = path.with_name(f".{path.name}.{secrets.token_hex(8)}")
    descriptor = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "wb") as file:
        file.write(pem)
        file.flush()
        os.fsync(file.fileno())
    try:
        os.link(draft, path)
    except FileExistsError:
        pass  # Another process wrote its key first: use that one.
    finally:
        draft.unlink()


def _json(value: dict[str, Any]) -> bytes:
    return json.dumps(value, separators=(",", ":")).encode()


def _base64url(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


def _big_endian(number: int) -> bytes:
    return number.to_bytes((number.bit_length() + 7) // 8, "big")
