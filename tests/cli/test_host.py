"""The functions host: every file loaded by the framework, every path sent to its function."""

import json
from pathlib import Path

import httpx
import pytest

from goblin.cli import host, loading

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
    for name, target in {"front": "front", "page": "page", "thing_happened": "on_thing_happened"}.items():
        (tmp_path / f"{name}.py").write_text(FUNCTION.format(target=target))
    (tmp_path / "__init__.py").write_text("")
    declaration = tmp_path / "cloud.json"
    declaration.write_text(
        json.dumps(
            {"http": {"front": {"paths": ["/v1", "/health"]}, "page": {"paths": ["/"]}, "absent": {"paths": ["/x"]}}}
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
        ("/v1x", "page", "/v1x"),
        ("/fn/front/v1/chat", "front", "/v1/chat"),
        ("/fn/thing_happened/", "on_thing_happened", "/"),
        ("/fn/thing_happened", "on_thing_happened", "/"),
    ],
)
async def test_each_path_reaches_its_function(served: httpx.AsyncClient, path: str, function: str, seen: str) -> None:
    answer = await served.post(path, content="hello")
    assert answer.json() == {"function": function, "path": seen, "body": "hello"}


async def test_an_unknown_function_is_not_found_in_openais_shape(served: httpx.AsyncClient) -> None:
    answer = await served.get("/fn/nobody/")
    assert answer.status_code == 404
    assert answer.json()["error"]["code"] == "not_found"


def test_a_file_without_its_function_is_an_error_at_start(tmp_path: Path) -> None:
    (tmp_path / "silent.py").write_text("x = 1")
    with pytest.raises(ImportError, match="silent"):
        loading.load_all(tmp_path)
