"""The scheduled health check as Cloud Scheduler calls it, with the gateway reading what it wrote."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import httpx
import pytest

from tests.clouds import RunningCloud
from tests.fakes.serving import closed_port
from tests.functions.conftest import API_KEY, Fakes

AUDIENCE = "https://check-health.example"
EMAIL = "scheduler@goblin.iam.gserviceaccount.com"


@pytest.fixture
def invited(
    environ: dict[str, str], cloud: RunningCloud, monkeypatch: pytest.MonkeyPatch
) -> Callable[..., dict[str, str]]:
    """Configures who may call; gives headers with a token of that account, or of another."""
    monkeypatch.setenv("GOBLIN_PUSH_AUDIENCE", AUDIENCE)
    monkeypatch.setenv("GOBLIN_INVOKER_EMAIL", EMAIL)
    monkeypatch.setenv("GOBLIN_OIDC_CERTS_URL", f"{cloud.addresses.http}/oauth2/v1/certs")

    def headers(email: str = EMAIL, audience: str = AUDIENCE) -> dict[str, str]:
        assert cloud.cloud is not None
        return {"authorization": "Bearer " + cloud.cloud.identity.mint(email=email, audience=audience)}

    return headers


@pytest.fixture
def url(
    invited: Any,
    serve_function: Callable[[str], str],
    served_fakes: tuple[Fakes, dict[str, str]],
    fakes: Fakes,
    monkeypatch: pytest.MonkeyPatch,
) -> str:
    for name, value in served_fakes[1].items():
        monkeypatch.setenv(name, value)
    return serve_function("check_health")


def test_every_endpoint_is_looked_at_and_the_page_shows_it(
    url: str, invited: Any, fakes: Fakes, serve_function: Callable[[str], str], api_keys: None
) -> None:
    fakes.ollama.loaded = ["llama3:latest"]
    fakes.llamacpp.loading = True
    fakes.openai.down = True
    answer = httpx.post(url, headers=invited(), timeout=20)
    assert answer.status_code == 200
    gateway = serve_function("gateway")
    page = httpx.get(f"{gateway}/providers", headers={"authorization": f"Bearer {API_KEY}"}, timeout=20).json()
    shown = {name: (row["status"], row["reason"]) for name, row in page.items()}
    assert shown == {
        "gcp_llamacpp": ("unhealthy", "gcp_llamacpp answered 503 (loading)."),
        "gcp_ollama": ("healthy", ""),
        "openai_compatible": ("unhealthy", "openai_compatible answered 500 (transient)."),
    }
    assert page["gcp_ollama"]["latency_ms"] >= 1
    assert page["gcp_ollama"]["models"] == ["tiny", "llama3:latest", "llama3"]
    assert page["gcp_ollama"]["loaded"] == ["llama3:latest", "llama3"]
    assert page["gcp_ollama"]["checked_at"]


def test_looking_again_writes_only_what_changed(url: str, invited: Any, fakes: Fakes, firestore: Any) -> None:
    written = []
    for _ in range(2):
        assert httpx.post(url, headers=invited(), timeout=20).status_code == 200
        documents = {row.id: row for row in firestore.collection("health").stream()}
        assert {row.get("status") for row in documents.values()} == {"healthy"}
        written.append({name: row.update_time for name, row in documents.items()})
    assert set(written[0]) == {"gcp_llamacpp", "gcp_ollama", "openai_compatible"}
    assert written[1] == written[0]
    fakes.llamacpp.loading = True
    httpx.post(url, headers=invited(), timeout=20)
    now = {row.id: row.update_time for row in firestore.collection("health").stream()}
    assert {name for name, at in now.items() if at != written[0][name]} == {"gcp_llamacpp"}


def test_a_look_costs_nothing(url: str, invited: Any, fakes: Fakes) -> None:
    httpx.post(url, headers=invited(), timeout=20)
    assert fakes.llamacpp.paths == ["/health", "/v1/models"]
    assert fakes.ollama.paths == ["/api/version", "/api/ps", "/api/tags"]
    assert fakes.openai.paths == ["/v1/models"]


def test_only_the_scheduler_may_call(url: str, invited: Any, fakes: Fakes) -> None:
    assert httpx.post(url).status_code == 401
    assert httpx.post(url, headers={"authorization": "Bearer nonsense"}).status_code == 401
    assert httpx.post(url, headers=invited(audience="https://other.example")).status_code == 401
    refused = httpx.post(url, headers=invited(email="mallory@evil.example"))
    assert refused.status_code == 403
    assert refused.json()["error"]["type"] == "permission_error"
    assert fakes.llamacpp.paths == []


def test_nobody_is_let_in_when_nobody_is_configured(
    invited: Any, serve_function: Callable[[str], str], monkeypatch: pytest.MonkeyPatch
) -> None:
    headers = invited()
    monkeypatch.delenv("GOBLIN_INVOKER_EMAIL")
    assert httpx.post(serve_function("check_health"), headers=headers).status_code == 403


def test_a_store_that_is_gone_is_503_so_that_the_scheduler_tries_again(
    invited: Any, serve_function: Callable[[str], str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FIRESTORE_EMULATOR_HOST", closed_port().removeprefix("http://"))
    answer = httpx.post(serve_function("check_health"), headers=invited(), timeout=20)
    assert (answer.status_code, answer.json()["error"]["code"]) == (503, "store_unavailable")
