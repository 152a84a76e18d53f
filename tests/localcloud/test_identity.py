"""The tokens and keys that stand in for Google's."""

import stat
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import padding
from google.auth import exceptions, jwt
from google.oauth2 import id_token, service_account
from starlette.applications import Starlette
from starlette.testclient import TestClient

from localcloud.identity import ISSUER, Identity

AUDIENCE = "http://127.0.0.1:8080/fn/job_requested/"
EMAIL = "pusher@local.iam.gserviceaccount.com"


class Certificates:
    """A google-auth transport that asks the identity's own routes."""

    def __init__(self, identity: Identity) -> None:
        self._client = TestClient(Starlette(routes=identity.routes()))

    def __call__(self, url: str, method: str = "GET", **_: Any) -> Any:
        answer = self._client.request(method, url)

        class Response:
            status = answer.status_code
            headers = answer.headers
            data = answer.content

        return Response()


def verify(identity: Identity, token: str, audience: str = AUDIENCE) -> Any:
    return id_token.verify_token(
        token, Certificates(identity), audience=audience, certs_url="http://testserver/oauth2/v1/certs"
    )


@pytest.fixture(scope="module")
def identity() -> Identity:
    return Identity(None)


def test_google_auth_accepts_a_token(identity: Identity) -> None:
    claims = verify(identity, identity.mint(email=EMAIL, audience=AUDIENCE))
    assert claims["iss"] == ISSUER
    assert (claims["email"], claims["email_verified"], claims["aud"]) == (EMAIL, True, AUDIENCE)
    assert claims["exp"] - claims["iat"] == 3600
    assert claims["sub"].isdigit()


def test_a_token_for_another_audience_is_refused(identity: Identity) -> None:
    with pytest.raises(exceptions.InvalidValue):
        verify(identity, identity.mint(email=EMAIL, audience="http://elsewhere/"))


def test_an_old_token_is_refused() -> None:
    long_ago = Identity(None, clock=lambda: datetime.now(UTC) - timedelta(hours=2))
    with pytest.raises(exceptions.InvalidValue):
        verify(long_ago, long_ago.mint(email=EMAIL, audience=AUDIENCE))


def test_a_token_of_another_key_is_refused(identity: Identity) -> None:
    stranger = Identity(None)
    with pytest.raises((exceptions.GoogleAuthError, ValueError)):
        verify(identity, stranger.mint(email=EMAIL, audience=AUDIENCE))


def test_a_changed_token_is_refused(identity: Identity) -> None:
    header, _, signature = identity.mint(email=EMAIL, audience=AUDIENCE).split(".")
    _, other_claims, _ = identity.mint(email="root@local", audience=AUDIENCE).split(".")
    with pytest.raises((exceptions.GoogleAuthError, ValueError)):
        verify(identity, f"{header}.{other_claims}.{signature}")


def test_keys_are_kept_for_their_owner_only(tmp_path: Path) -> None:
    first = Identity(tmp_path)
    token = first.mint(email=EMAIL, audience=AUDIENCE)
    email = first.service_account["client_email"]
    modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in tmp_path.iterdir()}
    assert modes == {"identity.pem": 0o600, "service-account.pem": 0o600}

    again = Identity(tmp_path)
    assert verify(again, token)["email"] == EMAIL
    assert again.service_account == first.service_account
    assert again.service_account["client_email"] == email


def test_a_key_that_others_could_read_is_closed_again(tmp_path: Path) -> None:
    _ = Identity(tmp_path).key_id
    (tmp_path / "identity.pem").chmod(0o644)
    _ = Identity(tmp_path).key_id
    assert stat.S_IMODE((tmp_path / "identity.pem").stat().st_mode) == 0o600


def test_the_service_account_signs_what_the_public_key_verifies(identity: Identity) -> None:
    credentials = service_account.Credentials.from_service_account_info(identity.service_account)
    signature = credentials.sign_bytes(b"GET\n/bucket/object")
    identity.public_key.verify(signature, b"GET\n/bucket/object", padding.PKCS1v15(), hashes.SHA256())
    with pytest.raises(InvalidSignature):
        identity.public_key.verify(signature, b"PUT\n/bucket/object", padding.PKCS1v15(), hashes.SHA256())


def test_the_key_of_signed_urls_mints_no_tokens(identity: Identity) -> None:
    credentials = service_account.Credentials.from_service_account_info(identity.service_account)
    claims = {"aud": AUDIENCE, "email": EMAIL, "iat": 0, "exp": 1 << 33}
    forged = jwt.encode(credentials.signer, claims, key_id=identity.key_id).decode()
    with pytest.raises((exceptions.GoogleAuthError, ValueError)):
        verify(identity, forged)


def test_discovery_leads_to_the_json_web_keys(identity: Identity) -> None:
    client = TestClient(Starlette(routes=identity.routes()))
    discovery = client.get("/.well-known/openid-configuration").json()
    keys = client.get(discovery["jwks_uri"]).json()["keys"]
    assert [key["kid"] for key in keys] == list(client.get("/oauth2/v1/certs").json())
    assert set(keys[0]) == {"kty", "use", "alg", "kid", "n", "e"}  # Nothing private.
