"""Identity tokens for a private Cloud Run service, minted the way google-auth does it, from a key file."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs

import httpx
import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import rsa
from google.auth import crypt, jwt
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import Route

from goblin.core.endpoints import Endpoint
from goblin.core.errors import Fault, ProviderUnavailable
from goblin.gateway.domain import requests
from goblin.gateway.domain.endpoint_health import Finding
from goblin.gcp.identity_tokens import LIFE_LEFT_S, LOOK_AGAIN_S, IdentityToken
from goblin.wiring import endpoints
from tests.fakes.openai_like import FakeOpenAI
from tests.fakes.serving import serve

AUDIENCE = "https://llm.example.run.app"


class Google:
    """The token endpoint: exchanges a signed assertion for a token with the audience that it asks for."""

    def __init__(self) -> None:
        key = rsa.generate_private_key(public_exponent=65537, key_size=2048)
        pkcs8, plain = serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        self.pem = key.private_bytes(serialization.Encoding.PEM, pkcs8, plain).decode()
        self.minted: list[str] = []

    @property
    def app(self) -> Starlette:
        return Starlette(routes=[Route("/token", self._token, methods=["POST"])])

    async def _token(self, request: Request) -> JSONResponse:
        (assertion,) = parse_qs((await request.body()).decode())["assertion"]
        asked = jwt.decode(assertion, verify=False)
        claims = {"aud": asked["target_audience"], "iat": asked["iat"], "exp": asked["exp"], "n": len(self.minted)}
        token = jwt.encode(crypt.RSASigner.from_string(self.pem), claims).decode()
        self.minted.append(token)
        return JSONResponse({"id_token": token})


@pytest.fixture
def google(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    google = Google()
    with serve(google.app) as base:
        path = tmp_path / "key.json"
        path.write_text(
            json.dumps(
                {
                    "type": "service_account",
                    "client_email": "a@p.iam.gserviceaccount.com",
                    "private_key": google.pem,
                    "token_uri": f"{base}/token",
                }
            )
        )
        monkeypatch.setenv("GOOGLE_APPLICATION_CREDENTIALS", str(path))
        yield google


@pytest.mark.parametrize(("api_key", "header"), [(None, "authorization"), ("k", "x-serverless-authorization")])
async def test_requests_carry_a_token_for_the_audience(google: Google, api_key: str | None, header: str) -> None:
    fake = FakeOpenAI(owner="llamacpp", api_key=api_key)
    with serve(fake.app) as base:
        async with httpx.AsyncClient() as client:
            sent: list[httpx.Headers] = []

            async def note(request: httpx.Request) -> None:
                sent.append(request.headers)

            client.event_hooks["request"].append(note)
            endpoint = Endpoint(
                name="e",
                provider="llamacpp",
                url=base,
                api_key=api_key,
                models=("tiny",),
                options={"audience": AUDIENCE},
            )
            provider = endpoints.connect(endpoint, client)[1]
            probe = await provider.probe()
            assert (probe.finding, probe.models, fake.paths) == (Finding.UNCLEAR, ("tiny",), [])
            assert google.minted == []
            body = json.dumps({"model": "tiny", "messages": [{"role": "user", "content": "Hi"}]}).encode()
            asked = requests.parse(requests.ChatRequest, body)
            for _ in range(2):
                assert [chunk async for chunk in provider.chat(asked, model="tiny")]
    (token,) = google.minted
    assert [headers[header] for headers in sent] == [f"Bearer {token}"] * 2
    assert jwt.decode(token, verify=False)["aud"] == AUDIENCE


async def test_a_process_without_an_account_is_for_a_person(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GOOGLE_APPLICATION_CREDENTIALS", str(tmp_path / "missing.json"))
    with pytest.raises(ProviderUnavailable, match="DefaultCredentialsError") as caught:
        await IdentityToken(AUDIENCE).key()
    assert caught.value.fault is Fault.AUTH


async def test_a_token_is_replaced_before_it_dies_and_when_it_is_refused() -> None:
    now, made = [1000.0], 0

    def mint(audience: str) -> tuple[str, float]:
        nonlocal made
        made += 1
        return f"token-{made}", now[0] + 3600

    source = IdentityToken(AUDIENCE, mint=mint, now=lambda: now[0])
    assert [await source.key(), await source.key()] == ["token-1"] * 2
    assert not await source.renew("token-1")
    now[0] += LOOK_AGAIN_S
    assert await source.renew("token-1")
    assert await source.key() == "token-2"
    now[0] += 3600 - LIFE_LEFT_S
    assert await source.key() == "token-3"
