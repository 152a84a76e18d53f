"""The contract of `ModelServer`: the adapter with the real llama.cpp server, and with the fake that stands for it."""

from __future__ import annotations

import hashlib
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import FileResponse, JSONResponse, Response
from starlette.routing import Route

import goblin_llamacpp
from goblin.core.endpoints import Endpoint
from goblin.core.errors import ProviderUnavailable
from goblin.providers.llamacpp.control import LlamaCppControl
from goblin.registry.domain.versions import LoadedModel
from tests.fakes.model_server import FakeModelServer
from tests.fakes.serving import closed_port, serve

CLOSED = closed_port()
MODEL = Path(goblin_llamacpp.__file__).parent / "models" / "goblin-tiny.gguf"


KEY = "the-key"


@contextmanager
def real(keys: Path, *load_from: str) -> Iterator[str]:
    keys.write_text(KEY)
    command = [
        sys.executable, "-m", "goblin_llamacpp", f"--model={MODEL}", "--port=0", "--allow-load",
        f"--api-key-file={keys}", *(f"--load-from={url}" for url in load_from),
    ]  # fmt: skip
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        url = process.stdout.readline().strip().removeprefix("listening on ")
        with httpx.Client(base_url=url, transport=httpx.HTTPTransport(retries=3)) as http:
            while http.get("/health").status_code == 503:
                assert process.poll() is None
        yield url
    finally:
        process.kill()
        process.wait()
        if process.stdout:
            process.stdout.close()


@pytest.fixture(scope="module", params=["llama.cpp", "fake"])
def server_url(request: pytest.FixtureRequest, bucket: str, folder: Path) -> Iterator[str]:
    with real(folder / "keys", bucket, CLOSED) if request.param == "llama.cpp" else serve(FakeModelServer().app) as url:
        yield url


@pytest.fixture
async def control(server_url: str) -> LlamaCppControl:
    return connect(server_url)


def connect(url: str) -> LlamaCppControl:
    endpoint = Endpoint(name="llm", provider="llamacpp", url=url, api_key=KEY)
    return LlamaCppControl(endpoint, httpx.AsyncClient(trust_env=False))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("bucket")


@pytest.fixture(scope="module")
def bucket(folder: Path) -> Iterator[str]:
    """Serves files by name, as signed URLs do."""

    async def read(request: Request) -> Response:
        path = folder / request.path_params["name"]
        return FileResponse(path) if path.exists() else Response(status_code=404)

    with serve(Starlette(routes=[Route("/{name}", read)])) as url:
        yield url


def digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


async def test_serves_what_it_was_given_under_its_new_name(control: LlamaCppControl, bucket: str, folder: Path) -> None:
    data = MODEL.read_bytes().replace(b"Goblin Tiny", b"Goblin Tina", 1)
    (folder / "m.gguf").write_bytes(data)
    assert await control.load(f"{bucket}/m.gguf", sha256=digest(data), alias="acme/tina") is None
    assert await control.loaded() == LoadedModel(alias="acme/tina", sha256=digest(data))


async def test_refuses_what_is_not_what_was_said_and_goes_on(
    control: LlamaCppControl, bucket: str, folder: Path
) -> None:
    before = await control.loaded()
    (folder / "m.gguf").write_bytes(MODEL.read_bytes())
    assert await control.load(f"{bucket}/m.gguf", sha256="0" * 64, alias="acme/forged")
    (folder / "no.gguf").write_bytes(b"PK\x03\x04 and more")
    assert await control.load(f"{bucket}/no.gguf", sha256=digest(b"PK\x03\x04 and more"), alias="acme/none")
    assert await control.loaded() == before


async def test_a_file_that_cannot_be_fetched_says_nothing_about_the_model(
    control: LlamaCppControl, bucket: str
) -> None:
    before = await control.loaded()
    with pytest.raises(ProviderUnavailable):
        await control.load(f"{bucket}/gone.gguf", sha256="0" * 64, alias="acme/gone")
    with pytest.raises(ProviderUnavailable):
        await control.load(f"{CLOSED}/m.gguf", sha256="0" * 64, alias="acme/gone")
    with pytest.raises(ProviderUnavailable):
        # At no address of `--load-from`.
        await control.load("http://127.0.0.1:1/m.gguf", sha256="0" * 64, alias="acme/gone")
    assert await control.loaded() == before


async def test_a_server_that_is_busy_gone_or_another_is_no_refusal() -> None:
    fake = FakeModelServer(busy=True)
    with serve(fake.app) as url, pytest.raises(ProviderUnavailable):
        await connect(url).load("http://x/m", sha256="0" * 64, alias="a/b")
    with pytest.raises(ProviderUnavailable):
        await connect(closed_port()).load("http://x/m", sha256="0" * 64, alias="a/b")

    async def nonsense(_request: Request) -> Response:
        return JSONResponse(["no", "props"])

    with serve(Starlette(routes=[Route("/props", nonsense)])) as url:
        with pytest.raises(ProviderUnavailable):
            await connect(url).loaded()
        with pytest.raises(ProviderUnavailable):
            await connect(url).load("http://x/m", sha256="0" * 64, alias="a/b")
