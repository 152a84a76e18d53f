"""The functions' own port, as a page in this machine's browser meets it."""

import subprocess
import sys
from collections.abc import Iterator

import httpx
import pytest

from localcloud.google import free_port
from tests.flows.conftest import clean_environment

PATHS = (
    "/", "/v1/models", "/health", "/providers", "/jobs", "/fn/gateway/v1/models", "/fn/reconcile/", "/no/such", "//x",
)  # fmt: skip


@pytest.fixture(scope="module")
def served() -> Iterator[str]:
    port = free_port()
    env = {**clean_environment(), "GCS_PROJECT_ID": "p", "PUBSUB_EMULATOR_HOST": "127.0.0.1:1",
           "FIRESTORE_EMULATOR_HOST": "127.0.0.1:1", "GOBLIN_VERIFY_CALLER": "off"}  # fmt: skip
    words = [sys.executable, "-m", "goblin.cli.host", f"--port={port}"]
    with subprocess.Popen(words, env=env, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        try:
            transport = httpx.HTTPTransport(retries=7)
            with httpx.Client(transport=transport, timeout=20) as http:
                http.get(f"http://127.0.0.1:{port}/no-function-answers-this")
            yield f"http://127.0.0.1:{port}"
        finally:
            process.kill()


@pytest.mark.parametrize("path", PATHS)
def test_only_our_own_names_and_pages_are_answered(served: str, path: str) -> None:
    with httpx.Client(timeout=20) as http:
        for host in ("evil.example", "evil.example:8080", "localhost.", "127.0.0.1.nip.io"):
            for method in ("GET", "POST"):
                answer = http.request(method, f"{served}{path}", headers={"host": host})
                assert (answer.status_code, answer.json()["error"]["code"]) == (421, "wrong_host"), host
        for page in ({"origin": "https://evil"}, {"origin": "null"}, {"sec-fetch-site": "cross-site"}):
            for method in ("GET", "POST", "OPTIONS"):
                answer = http.request(method, f"{served}{path}", headers=page)
                assert (answer.status_code, answer.json()["error"]["code"]) == (403, "wrong_origin"), page
                assert "access-control-allow-origin" not in answer.headers


def test_the_consoles_own_page_is_answered(served: str) -> None:
    own = {"origin": served, "sec-fetch-site": "same-origin"}
    assert httpx.get(f"{served}/v1/models", headers=own, timeout=20).status_code not in (403, 421)
