"""OIDC tokens that nobody should accept: signed by us, by an attacker, or by nobody."""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
import time
from collections.abc import Iterator
from typing import Any

from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import padding, rsa

from localcloud.front_end import REMOVED
from localcloud.identity import Identity
from tests.security.attacks import DEEP, nested

ISSUER = "https://accounts.google.com"


def encoded(part: Any) -> str:
    data = part if isinstance(part, bytes) else json.dumps(part).encode()
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


def signed(key: rsa.RSAPrivateKey, header: Any, claims: Any) -> str:
    said = f"{encoded(header)}.{encoded(claims)}"
    return f"{said}.{encoded(key.sign(said.encode(), padding.PKCS1v15(), hashes.SHA256()))}"


def bad_tokens(identity: Identity, *, audience: str, email: str) -> Iterator[tuple[str, str | bytes]]:
    """Name and token. What is not named in each is as it should be."""
    ours, now = identity._token_key, int(time.time())
    good = {"alg": "RS256", "kid": identity.key_id, "typ": "JWT"}
    claims = {
        "iss": ISSUER,
        "aud": audience,
        "email": email,
        "email_verified": True,
        "iat": now,
        "exp": now + 3600,
        "sub": "1",
        "azp": "1",
    }
    whole = signed(ours, good, claims)
    start, signature = whole.rpartition(".")[0], whole.rpartition(".")[2]

    yield from _claims(ours, good, claims, now)
    yield from _headers(ours, good, claims, identity)

    yield "no signature", f"{start}."
    yield "a cut signature", f"{start}.{signature[:-8]}"
    yield "another's signature", f"{start}.{encoded(b'x' * 256)}"
    yield "no second part", f"{encoded(good)}.{signature}"
    yield "an empty part", f"{encoded(good)}..{signature}"
    yield "five parts", f"{whole}.x.y"
    yield "only dots", "." * 8000
    yield "no base64", "!!!.???.###"
    yield "bytes", b"\xff\xfe.\x80.\x81"
    yield "an escape", "\x1b[31m.\x07.x"
    yield "a space in it", whole[:50] + " " + whole[50:]
    yield "long", "a" * 8191
    yield "too long", "a.b." + "c" * 60_000
    yield "the platform's marker", f"{start}.{REMOVED}"
    yield "the platform's marker twice", f"{start}.{REMOVED}.{REMOVED}"
    yield "changed claims", f"{encoded(good)}.{encoded({**claims, 'sub': '2'})}.{signature}"
    for levels in DEEP[:2]:
        yield f"claims of {levels} levels, unsigned", f"{encoded(good)}.{encoded(nested(levels))}.{signature}"
        yield f"a header of {levels} levels", f"{encoded(nested(levels, kind='object'))}.{encoded(claims)}.{signature}"
    for name, part in {
        "null": b"null",
        "a list": b"[]",
        "a number": b"1",
        "a string": b'"x"',
        "no JSON": b"{",
        "no UTF-8": b"\xff",
        "UTF-16": '{"alg":"RS256"}'.encode("utf-16"),
        "nothing": b"",
        "NaN": b'{"exp":NaN}',
    }.items():
        yield f"a header that is {name}", f"{encoded(part)}.{encoded(claims)}.{signature}"
        yield f"claims that are {name}", signed(ours, good, part)


def _claims(ours: rsa.RSAPrivateKey, good: Any, claims: dict[str, Any], now: int) -> Iterator[tuple[str, str]]:
    """Tokens that our key signed, with other claims than a caller of ours has."""
    changes: dict[str, dict[str, Any]] = {
        "another audience": {"aud": "https://evil.example"},
        "an audience of null": {"aud": None},
        "an audience that is an object": {"aud": {}},
        "an audience that begins like ours": {"aud": claims["aud"] + ".evil.example"},
        "another issuer": {"iss": "https://evil.example"},
        "an issuer that is a list": {"iss": [ISSUER]},
        "an expired one": {"iat": now - 7200, "exp": now - 3600},
        "one of tomorrow": {"iat": now + 86_400, "exp": now + 90_000},
        "an expiry of text": {"exp": str(now + 3600)},
        "an expiry of null": {"exp": None},
        "an expiry that is a list": {"exp": [now + 3600]},
        "a time of text": {"iat": "now"},
        "an unverified address": {"email_verified": False},
        "an address verified in words": {"email_verified": "true"},
        "another's address": {"email": "eve@evil.example"},
        "addresses": {"email": [claims["email"]]},
        "no address": {"email": None},
        "an address with a line end": {"email": f"{claims['email']}\n"},
        "an address of escapes": {"email": "\x1b[31m\r\n{}"},
    }
    for name, change in changes.items():
        yield name, signed(ours, good, {**claims, **change})
    for gone in ("aud", "iss", "exp", "iat", "email", "email_verified"):
        yield f"no {gone}", signed(ours, good, {key: value for key, value in claims.items() if key != gone})


def _headers(ours: rsa.RSAPrivateKey, good: Any, claims: Any, identity: Identity) -> Iterator[tuple[str, str]]:
    """Tokens whose header asks for another key or algorithm."""
    theirs = rsa.generate_private_key(public_exponent=65537, key_size=2048)
    yield "an attacker's key", signed(theirs, good, claims)
    for name, more in {
        "its own key": {"jwk": {"kty": "RSA", "n": "AQAB", "e": "AQAB"}},
        "a key's address": {"jku": "http://127.0.0.1:1/keys", "x5u": "http://127.0.0.1:1/cert"},
        "no kid": {"kid": None},
        "an unknown kid": {"kid": "0" * 40},
        "a kid of lines": {"kid": 'x\r\n{"severity":"ERROR"}\n'},
        "a kid of escapes": {"kid": "\x1b[2J\x07\x00\u2028\u202e"},
        "a kid that is a path": {"kid": "../../dev/null"},
        "a kid that is a list": {"kid": [identity.key_id]},
        "a kid that is an object": {"kid": {"a": 1}},
        "a kid that is a number": {"kid": 10**300},
        "a long kid": {"kid": "k" * 5000},
    }.items():
        yield f"an attacker's key, and {name}", signed(theirs, {**good, **more}, claims)
    for alg in ("none", "None", "nOnE", "", None, 0, "ES256", "PS256", "RS1"):
        yield f"alg {alg!r}", f"{encoded({**good, 'alg': alg})}.{encoded(claims)}."
    header = {**good, "alg": "HS256"}
    said = f"{encoded(header)}.{encoded(claims)}"
    certificate = identity.certificates()[identity.key_id].encode()
    digest = hmac.new(certificate, said.encode(), hashlib.sha256).digest()
    yield "HS256 with our certificate as its secret", f"{said}.{encoded(digest)}"
