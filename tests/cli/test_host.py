"""The functions host: every file loaded by the framework, every path sent to its function."""

import json
import sys
from pathlib import Path
from typing import Any

import httpx
import pytest
import uvicorn

from goblin.cli import host, loading
from localcloud.front_end import FrontEnd
from localcloud.identity import Identity

FUNCTION = """\
import functions_framework.aio
from starlette.responses import JSONResponse

@functions_framework.aio.http
async def {target}(request):
    body = (await request.body()).decode()
    return JSONResponse({{"function": "{target}", "path": request.scope["path"], "body": body}})
"""


@pytest.fixture
def served(tmp_path: Path) -> httpx.AsyncClient:
    targets = {"front": "front", "page": "page", "rest": "rest", "thing_happened": "on_thing_happened"}
    for name, target in targets.items():
        (tmp_path / f"{name}.py").write_text(FUNCTION.format(target=target))
    (tmp_path / "__init__.py").write_text("")
    declaration = tmp_path / "cloud.json"
    declaration.write_text(
        json.dumps(
            {
                "http": {
                    "front": {"paths": ["/v1", "/health"]},
                    "page": {"paths": ["/"]},
                    "rest": {"paths": ["/*"]},
                    "absent": {"paths": ["/x"]},
                }
            }
        )
    )
    app = host.build(tmp_path, declaration)
    return httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://goblin")


@pytest.mark.parametrize(
    ("path", "function", "seen"),
    [
        ("/v1/models", "front", "/v1/models"),
        ("/v1", "front", "/v1"),
        ("/health", "front", "/health"),
        ("/", "page", "/"),
        ("/v1x", "rest", "/v1x"),
        ("//v1/models", "rest", "//v1/models"),
        ("/chat/completions", "rest", "/chat/completions"),
        ("/x/y", "rest", "/x/y"),
        ("/fn/front/v1/chat", "front", "/v1/chat"),
        ("/fn/thing_happened/", "on_thing_happened", "/"),
        ("/fn/thing_happened", "on_thing_happened", "/"),
    ],
)
async def test_each_path_reaches_its_function(served: httpx.AsyncClient, path: str, function: str, seen: str) -> None:
    answer = await served.post(f"http://goblin{path}", content="hello")
    assert answer.json() == {"function": function, "path": seen, "body": "hello"}


async def test_an_unknown_function_is_not_found_in_openais_shape(served: httpx.AsyncClient) -> None:
    answer = await served.get("/fn/nobody/")
    assert answer.status_code == 404
    assert answer.json()["error"]["code"] == "not_found"


def test_a_file_without_its_function_is_an_error_at_start(tmp_path: Path) -> None:
    (tmp_path / "silent.py").write_text("x = 1")
    with pytest.raises(ImportError, match="silent"):
        loading.load_all(tmp_path)


async def test_private_functions_stand_behind_cloud_runs_front_end(tmp_path: Path) -> None:
    echo = FUNCTION.replace('"body": body', '"body": request.headers.get("authorization")')
    for name, target in {"front": "front", "thing_happened": "on_thing_happened"}.items():
        (tmp_path / f"{name}.py").write_text(echo.format(target=target))
    (tmp_path / "cloud.json").write_text(json.dumps({"http": {"front": {"paths": ["/v1"]}}}))
    identity, invoker, url = Identity(None), "invoker@p.iam.gserviceaccount.com", "http://goblin"

    async def certificates() -> dict[str, str]:
        return identity.certificates()

    app = host.build(tmp_path, tmp_path / "cloud.json", front_end=FrontEnd(certificates, invokers=[invoker]), url=url)
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url=url) as client:

        async def push(audience: str, email: str = invoker) -> httpx.Response:
            token = identity.mint(email=email, audience=audience)
            return await client.post("/fn/thing_happened/", headers={"authorization": f"Bearer {token}"})

        admitted = await push(f"{url}/fn/thing_happened")
        assert admitted.json()["body"].endswith(".SIGNATURE_REMOVED_BY_GOOGLE")
        assert (await push(f"{url}/fn/front")).status_code == 401
        assert (await push(f"{url}/fn/thing_happened", "somebody@example.com")).status_code == 403
        assert (await client.post("/fn/thing_happened/")).status_code == 403
        key = await client.post("/v1/chat", headers={"authorization": "Bearer a key of ours"})
        assert key.json()["body"] == "Bearer a key of ours"


async def test_only_some_functions_are_served(tmp_path: Path) -> None:
    for name in ("front", "page"):
        (tmp_path / f"{name}.py").write_text(FUNCTION.format(target=name))
    (tmp_path / "cloud.json").write_text(json.dumps({"http": {"front": {"paths": ["/v1"]}, "page": {"paths": ["/"]}}}))
    app = host.build(tmp_path, tmp_path / "cloud.json", only=["page"])
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://goblin") as client:
        assert (await client.get("/")).json()["function"] == "page"
        assert (await client.get("/v1")).status_code == 404
        assert (await client.get("/fn/front/")).status_code == 404


@pytest.mark.parametrize(
    ("setting", "origin", "status"),
    [
        ("", "https://chat.example.com", 403),
        ("https://chat.example.com", "https://chat.example.com", 404),
        ("https://chat.example.com", "https://evil.example", 403),
        ("https://chat.example.com", "http://127.0.0.1:8080", 404),
        ("*", "https://chat.example.com", 403),
    ],
)
async def test_pages_of_listed_origins_pass_the_guard(
    monkeypatch: pytest.MonkeyPatch, setting: str, origin: str, status: int
) -> None:
    """Its own page may always ask; 404 comes from behind the guard, because no function is served."""
    served: list[Any] = []
    monkeypatch.setenv("GOBLIN_CORS_ORIGINS", setting)
    monkeypatch.setattr(sys, "argv", ["host", "--port=8080", "--only=none"])
    monkeypatch.setattr(host, "load_all", lambda folder: {})
    monkeypatch.setattr(uvicorn, "run", lambda app, **_: served.append(app))
    host.main()
    async with httpx.AsyncClient(transport=httpx.ASGITransport(served[0]), base_url="http://127.0.0.1:8080") as client:
        asked = {"origin": origin, "access-control-request-method": "POST"}
        assert (await client.options("/v1/chat/completions", headers=asked)).status_code == status
