"""Cloud Run's front end: who is admitted to a private service, and what the service gets of the token."""

from __future__ import annotations

import base64
import datetime as dt
import json
from typing import Any

import pytest
from google.auth import jwt

from localcloud.front_end import FrontEnd, Header, Refused, strip
from localcloud.identity import Identity

URL = "https://goblin-reconcile-1.us-east1.run.app"
INVOKER = "invoker@p.iam.gserviceaccount.com"
NOW = dt.datetime(2026, 12, 1, tzinfo=dt.UTC)


@pytest.fixture(scope="module")
def identity() -> Identity:
    return Identity(None, clock=lambda: NOW)


def front_end(identity: Identity, now: dt.datetime = NOW) -> FrontEnd:
    async def certificates() -> dict[str, str]:
        return identity.certificates()

    return FrontEnd(certificates, invokers=[INVOKER], clock=lambda: now)


def bearer(token: str, header: bytes = b"authorization") -> list[Header]:
    return [(b"content-type", b"application/json"), (header, f"Bearer {token}".encode())]


async def test_an_invoker_is_admitted_and_its_signature_is_removed(identity: Identity) -> None:
    token = identity.mint(email=INVOKER, audience=URL)
    admitted = await front_end(identity).admit(bearer(token), audience=URL)
    assert admitted == bearer(strip(token))
    received = dict(admitted)[b"authorization"].decode().removeprefix("Bearer ")
    assert received.endswith(".SIGNATURE_REMOVED_BY_GOOGLE")
    assert jwt.decode(received, verify=False)["email"] == INVOKER
    with pytest.raises(ValueError, match="signature"):
        jwt.decode(received, certs=identity.certificates(), audience=URL)


async def test_the_serverless_header_is_read_first(identity: Identity) -> None:
    token = identity.mint(email=INVOKER, audience=URL)
    headers = [
        (b"authorization", b"Bearer a key of our own"),
        (b"x-serverless-authorization", f"Bearer {token}".encode()),
    ]
    admitted = await front_end(identity).admit(headers, audience=URL)
    assert admitted == [headers[0], (b"x-serverless-authorization", f"Bearer {strip(token)}".encode())]


def forged(token: str, **claims: Any) -> str:
    """The token with other claims, under the signature of the first ones."""
    header, payload, signature = token.split(".")
    said = json.loads(base64.urlsafe_b64decode(payload + "=="))
    body = base64.urlsafe_b64encode(json.dumps({**said, **claims}).encode()).rstrip(b"=").decode()
    return f"{header}.{body}.{signature}"


@pytest.mark.parametrize(
    ("made", "status"),
    [
        (lambda it: it.mint(email=INVOKER, audience="https://goblin-gateway-1.us-east1.run.app"), 401),
        (lambda it: it.mint(email="somebody@example.com", audience=URL), 403),
        (lambda it: strip(it.mint(email=INVOKER, audience=URL)), 401),
        (lambda it: forged(it.mint(email="somebody@example.com", audience=URL), email=INVOKER), 401),
        (lambda it: Identity(None, clock=lambda: NOW).mint(email=INVOKER, audience=URL), 401),
        (lambda it: it.mint(email=INVOKER, audience=URL, lifetime_s=-120), 401),
        (lambda it: "", 401),
        (lambda it: "a.b", 401),
        (lambda it: "a.b.c", 401),
        (lambda it: f"{'[' * 3000}.b.c", 401),
        (lambda it: "x" * 9000, 401),
    ],
    ids=[
        "another service's", "another account's", "the marker", "forged claims", "another issuer's", "expired", "empty",
        "two parts", "no base64", "deep", "long",
    ],
)  # fmt: skip
async def test_all_others_are_refused(identity: Identity, made: Any, status: int) -> None:
    refused = await front_end(identity).admit(bearer(made(identity)), audience=URL)
    assert isinstance(refused, Refused)
    assert refused.status == status
    response = refused.response()
    assert response.status_code == status
    assert ("www-authenticate" in response.headers) is (status == 401)


async def test_without_a_token_it_is_forbidden(identity: Identity) -> None:
    for headers in ([], [(b"x-other", b"Bearer x")]):
        refused = await front_end(identity).admit(headers, audience=URL)
        assert isinstance(refused, Refused)
        assert refused.status == 403
    basic = await front_end(identity).admit([(b"authorization", b"Basic eDp5")], audience=URL)
    assert isinstance(basic, Refused)
    assert basic.status == 401


@pytest.mark.parametrize("header", [b"authorization", b"x-serverless-authorization"])
async def test_a_second_header_of_the_same_name_is_refused(identity: Identity, header: bytes) -> None:
    token = identity.mint(email=INVOKER, audience=URL)
    for second in (token, identity.mint(email=INVOKER, audience="https://other.example"), "x"):
        headers = [*bearer(token, header), (header, f"Bearer {second}".encode())]
        refused = await front_end(identity).admit(headers, audience=URL)
        assert isinstance(refused, Refused)
        assert refused.status == 401
        assert refused.reason == f"more than one {header.decode()} header: send one"


async def test_a_token_from_the_future_is_refused(identity: Identity) -> None:
    token = identity.mint(email=INVOKER, audience=URL)
    refused = await front_end(identity, now=NOW - dt.timedelta(minutes=2)).admit(bearer(token), audience=URL)
    assert isinstance(refused, Refused)
