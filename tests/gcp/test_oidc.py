"""Only the accounts we invited, with tokens that Google signed for us, now."""

from __future__ import annotations

import base64
import contextlib
import json
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from typing import Any

import httpx
import pytest

from goblin.core.errors import Forbidden, Transient, Unauthenticated
from goblin.gcp import oidc
from goblin.gcp.oidc import CallerVerifier
from localcloud.front_end import strip
from localcloud.identity import Identity

AUDIENCE = "https://fn.example"
EMAIL = "invoker@p.iam.gserviceaccount.com"
CERTS = "https://certs.example/v1"


class Certs:
    """Serves certificates; may be down, or rotate."""

    def __init__(self, identity: Identity) -> None:
        self.identities = [identity]
        self.down = False
        self.fetches = 0
        self.max_age_s = 3600

    def __call__(self, request: httpx.Request) -> httpx.Response:
        assert str(request.url) == CERTS
        self.fetches += 1
        if self.down:
            return httpx.Response(500)
        certs = {kid: pem for identity in self.identities for kid, pem in identity.certificates().items()}
        return httpx.Response(200, json=certs, headers={"cache-control": f"public, max-age={self.max_age_s}"})


@pytest.fixture(scope="module")
def identity() -> Identity:
    return Identity(None)


@pytest.fixture(scope="module")
def stranger() -> Identity:
    return Identity(None)


@pytest.fixture
def certs(identity: Identity) -> Certs:
    return Certs(identity)


@pytest.fixture
async def callers(certs: Certs) -> AsyncIterator[CallerVerifier]:
    async with httpx.AsyncClient(transport=httpx.MockTransport(certs)) as client:
        yield CallerVerifier(client, audiences=[AUDIENCE], emails=[EMAIL], certs_url=CERTS)


def bearer(identity: Identity, *, email: str = EMAIL, audience: str = AUDIENCE, **more: Any) -> str:
    return "Bearer " + identity.mint(email=email, audience=audience, **more)


def rewritten(authorization: str, **claims: Any) -> str:
    """The same signature under other claims."""
    head, payload, signature = authorization.split(".")
    old = json.loads(base64.urlsafe_b64decode(payload + "=" * (-len(payload) % 4)))
    new = base64.urlsafe_b64encode(json.dumps(old | claims).encode()).rstrip(b"=").decode()
    return f"{head}.{new}.{signature}"


async def test_the_invited_pass_and_certificates_are_read_once(
    callers: CallerVerifier, identity: Identity, certs: Certs
) -> None:
    assert await callers.verify(bearer(identity)) == EMAIL
    assert await callers.verify(bearer(identity)) == EMAIL
    assert certs.fetches == 1


async def test_everybody_else_does_not(callers: CallerVerifier, identity: Identity, stranger: Identity) -> None:
    old = Identity(None, clock=lambda: datetime.now(UTC) - timedelta(hours=3))
    old._token_key = identity._token_key
    refused = [
        None,
        "",
        "Bearer",
        "Bearer x",
        "Bearer a.b.c",
        "Bearer " + "x" * 9000,
        "Basic " + bearer(identity).removeprefix("Bearer "),
        bearer(stranger),
        bearer(old),
        bearer(identity, audience="https://other.example"),
        rewritten(bearer(identity, email="mallory@x"), email=EMAIL),
        rewritten(bearer(identity), exp=9999999999),
    ]
    for header in refused:
        with pytest.raises(Unauthenticated):
            await callers.verify(header)
    with pytest.raises(Forbidden):
        await callers.verify(bearer(identity, email="mallory@evil.example"))


@pytest.mark.parametrize(
    "claims", [{"iss": "https://evil.example"}, {"iss": []}, {"iss": {}}, {"email_verified": False}]
)
async def test_googles_name_and_a_verified_email_are_needed(
    callers: CallerVerifier, identity: Identity, claims: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    real = oidc.jwt.decode
    monkeypatch.setattr(oidc.jwt, "decode", lambda *a, **k: {**real(*a, **k), **claims})
    with pytest.raises(Unauthenticated):
        await callers.verify(bearer(identity))


@pytest.mark.parametrize(("audience", "emails"), [("", [EMAIL]), (AUDIENCE, [])])
async def test_with_nobody_invited_nobody_comes(
    identity: Identity, certs: Certs, audience: str, emails: list[str]
) -> None:
    async with httpx.AsyncClient(transport=httpx.MockTransport(certs)) as client:
        callers = CallerVerifier(client, audiences=[audience], emails=emails, certs_url=CERTS)
        with pytest.raises(Forbidden):
            await callers.verify(bearer(identity))


async def test_without_certificates_nobody_passes_and_the_caller_may_try_again(
    callers: CallerVerifier, identity: Identity, certs: Certs
) -> None:
    certs.down = True
    with pytest.raises(Transient):
        await callers.verify(bearer(identity))
    certs.down = False
    assert await callers.verify(bearer(identity)) == EMAIL


async def test_a_new_certificate_is_found_but_strangers_do_not_make_us_look(
    callers: CallerVerifier, identity: Identity, stranger: Identity, certs: Certs, monkeypatch: pytest.MonkeyPatch
) -> None:
    await callers.verify(bearer(identity))
    for _ in range(5):
        with pytest.raises(Unauthenticated):
            await callers.verify(bearer(stranger))
    assert certs.fetches == 1
    certs.identities.append(stranger)
    monkeypatch.setattr(oidc, "REFETCH_AFTER_S", 0.0)
    assert await callers.verify(bearer(stranger)) == EMAIL


# Behind Cloud Run's invoker check: the signature is gone, everything else is checked.


@pytest.fixture
def behind_iam() -> CallerVerifier:
    return CallerVerifier(
        httpx.AsyncClient(), audiences=[AUDIENCE], emails=[EMAIL], certs_url=CERTS, signature_verified=True
    )


def stripped(authorization: str) -> str:
    return f"{authorization.rpartition('.')[0]}.SIGNATURE_REMOVED_BY_GOOGLE"


async def test_behind_the_invoker_check_a_token_without_its_signature_passes(
    behind_iam: CallerVerifier, callers: CallerVerifier, identity: Identity
) -> None:
    token = stripped(bearer(identity))
    assert await behind_iam.verify(token) == EMAIL
    with pytest.raises(Unauthenticated):
        await callers.verify(token)


@pytest.mark.parametrize(
    ("claims", "error"),
    [
        ({"aud": "https://other.example"}, Unauthenticated),
        ({"aud": [AUDIENCE]}, Unauthenticated),
        ({"aud": None}, Unauthenticated),
        ({"iss": "https://issuer.example"}, Unauthenticated),
        ({"iss": ["https://accounts.google.com"]}, Unauthenticated),
        ({"iss": {"https://accounts.google.com": 1}}, Unauthenticated),
        ({"iss": None}, Unauthenticated),
        ({"exp": 1}, Unauthenticated),
        ({"exp": 10**400}, Unauthenticated),
        ({"exp": float("inf")}, Unauthenticated),
        ({"iat": 10**400}, Unauthenticated),
        ({"iat": -(10**400)}, Unauthenticated),
        ({"exp": "tomorrow"}, Unauthenticated),
        ({"iat": 10**12}, Unauthenticated),
        ({"email_verified": False}, Unauthenticated),
        ({"email": "somebody@example.com"}, Forbidden),
        ({"email": None}, Forbidden),
    ],
)
async def test_behind_the_invoker_check_everything_else_is_checked(
    behind_iam: CallerVerifier, identity: Identity, claims: dict[str, Any], error: type[Exception]
) -> None:
    with pytest.raises(error):
        await behind_iam.verify(stripped(rewritten(bearer(identity), **claims)))


@pytest.mark.parametrize("token", ["", "x", "a.b", "a.b.", f"{'W3tb' * 900}.e30.", "e30.W10.", "e30.MQ.", "e30."])
async def test_behind_the_invoker_check_nonsense_is_refused(behind_iam: CallerVerifier, token: str) -> None:
    with pytest.raises(Unauthenticated):
        await behind_iam.verify(f"Bearer {token}")
    with pytest.raises(Unauthenticated):
        await behind_iam.verify(f"Bearer {token}{oidc.SIGNATURE_REMOVED}")


def _part(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


PARTS = (
    b'{"email": "\xff"}', b"\xff\xfe", b"[" * 2000 + b"]" * 2000, b'{"a":' * 900 + b"1" + b"}" * 900, b"[]", b"7",
    b"null", b'"text"', b'{"exp": 1e999, "iat": -1e999}', b'{"iat": ' + b"9" * 5000 + b"}", b'{"email": "\\ud800"}',
    b"\x00", b"", b'{"alg": "RS256", "kid": {"a": []}}', b'{"alg": ["RS256"], "kid": "\\u0000\\n"}',
    b'{"kid": ' + b"9" * 5000 + b"}",
)  # fmt: skip


@pytest.mark.parametrize("signature", [oidc.SIGNATURE_REMOVED, "c2ln", "", "\udcff", "é"])
async def test_whatever_a_tokens_parts_hold_it_is_refused(
    behind_iam: CallerVerifier, callers: CallerVerifier, identity: Identity, signature: str
) -> None:
    head, payload, _ = bearer(identity).removeprefix("Bearer ").split(".")
    for part in map(_part, PARTS):
        for token in (f"{head}.{part}.{signature}", f"{part}.{part}.{signature}"):
            for verifier in (behind_iam, callers):
                with pytest.raises(Unauthenticated):
                    await verifier.verify(f"Bearer {token}")
        # Where the platform has verified the signature, the head says nothing any more.
        with pytest.raises(Unauthenticated):
            await callers.verify(f"Bearer {part}.{payload}.{signature}")
        with contextlib.suppress(Unauthenticated):
            assert await behind_iam.verify(f"Bearer {part}.{payload}.{signature}") == EMAIL


@pytest.mark.parametrize("body", [b"\xff", b"[" * 2000, b"[]", b'{"a": 1}', b"", b'{"a": "\xe9"}'])
async def test_certificates_that_cannot_be_read_are_asked_for_again(identity: Identity, body: bytes) -> None:
    transport = httpx.MockTransport(lambda _: httpx.Response(200, content=body))
    async with httpx.AsyncClient(transport=transport) as client:
        verifier = CallerVerifier(client, audiences=[AUDIENCE], emails=[EMAIL], certs_url=CERTS)
        with pytest.raises(Transient):
            await verifier.verify(bearer(identity))


async def test_behind_the_invoker_check_a_token_with_a_signature_says_that_the_check_is_off(
    behind_iam: CallerVerifier, identity: Identity
) -> None:
    token = bearer(identity)
    unsigned = token.rpartition(".")[0]
    for sent in (token, f"{unsigned}.", f"{unsigned}.x", stripped(token).lower(), f"{stripped(token)}="):
        with pytest.raises(Unauthenticated, match="Cloud Run did not check") as refused:
            await behind_iam.verify(sent)
        assert refused.value.code == "invalid_token"


def test_localclouds_front_end_leaves_the_marker_that_is_required() -> None:
    assert strip("a.b.c") == f"a.b.{oidc.SIGNATURE_REMOVED}"
