"""Functions as Google serves them: loaded by the framework, on a socket, beside a local cloud and fake providers."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import openai
import pytest

from goblin.cli import paths
from goblin.cli.loading import load
from goblin.gateway.keys import digest_of
from goblin.wiring import gateway as gateway_wiring
from goblin.wiring import process
from tests.clouds import RunningCloud, environment
from tests.fakes.ollama import FakeOllama
from tests.fakes.openai_like import FakeOpenAI
from tests.fakes.serving import serve

FUNCTIONS = Path(__file__).parents[2] / "functions"
API_KEY = "sk-goblin-functions"
OTHER_KEY = "sk-goblin-somebody-else"
VARIABLES = (
    *("LLAMACPP_API_KEY", "OPENAI_API_KEY", "GOBLIN_CONFIG", "GCS_PROJECT_ID", "GOBLIN_VERIFY_CALLER"),
    # Each of these would bring an endpoint of the person who runs the tests.
    *(
        "ANTHROPIC_API_KEY",
        "CLOUDRUN_LLAMACPP_URL",
        "FLY_CHAT_URL",
        "GROQ_API_KEY",
        "RUNPOD_ENDPOINT_URL",
        "VASTAI_API_KEY",
    ),
)
_numbers = itertools.count()


@dataclass
class Fakes:
    llamacpp: FakeOpenAI = field(default_factory=lambda: FakeOpenAI(owner="llamacpp"))
    ollama: FakeOllama = field(default_factory=FakeOllama)
    openai: FakeOpenAI = field(default_factory=FakeOpenAI)

    def as_new(self) -> None:
        new = Fakes()
        for name in ("llamacpp", "ollama", "openai"):
            getattr(self, name).__dict__.update(getattr(new, name).__dict__)


@pytest.fixture(scope="session")
def cloud(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningCloud]:
    # With production's declaration, so that a query without its index is refused as there.
    with RunningCloud(tmp_path_factory.mktemp("cloud"), declaration=paths.declaration()) as cloud:
        yield cloud


@pytest.fixture(scope="session")
def served_fakes() -> Iterator[tuple[Fakes, dict[str, str]]]:
    fakes = Fakes()
    with ExitStack() as stack:
        urls = {
            "LLAMACPP_URL": stack.enter_context(serve(fakes.llamacpp.app)),
            "OLLAMA_URL": stack.enter_context(serve(fakes.ollama.app)),
            "OPENAI_BASE_URL": stack.enter_context(serve(fakes.openai.app)) + "/v1",
            "OPENAI_BILLS": "no",
        }
        yield fakes, urls


@pytest.fixture
def fakes(served_fakes: tuple[Fakes, dict[str, str]]) -> Fakes:
    """As new for each test."""
    found, _ = served_fakes
    found.as_new()
    return found


@pytest.fixture
def firestore(cloud: RunningCloud, environ: dict[str, str]) -> Any:
    """A client of the project that the functions use."""
    from google.cloud import firestore

    client = firestore.Client(project=environ["GOOGLE_CLOUD_PROJECT"])
    yield client
    client.close()


@pytest.fixture
def environ(cloud: RunningCloud, monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """The variables of the local cloud, a fresh project, and no provider yet."""
    said = {**environment(cloud.addresses), "GOOGLE_CLOUD_PROJECT": f"functions-{next(_numbers)}"}
    for name in (*VARIABLES, "LLAMACPP_URL", "OLLAMA_URL", "OPENAI_BASE_URL"):
        monkeypatch.delenv(name, raising=False)
    for name, value in said.items():
        monkeypatch.setenv(name, value)
    return said


@pytest.fixture
def api_keys(firestore: Any) -> None:
    for name, key in (("tests", API_KEY), ("somebody else", OTHER_KEY)):
        fields = {"name": name, "disabled": False, "created_at": datetime.now(UTC)}
        firestore.collection("keys").document(digest_of(key)).set(fields)


@pytest.fixture
def serve_function(environ: dict[str, str]) -> Iterator[Callable[[str], str]]:
    """Load a function by its name and serve it; settings are read anew."""
    with ExitStack() as stack:

        def serving(name: str) -> str:
            process.settings.cache_clear()
            gateway_wiring.meter.cache_clear()
            return stack.enter_context(serve(load(FUNCTIONS / f"{name}.py")))

        yield serving
    process.settings.cache_clear()


@pytest.fixture
def url(
    serve_function: Callable[[str], str],
    served_fakes: tuple[Fakes, dict[str, str]],
    fakes: Fakes,
    api_keys: None,
    monkeypatch: pytest.MonkeyPatch,
) -> str:
    """The gateway, whose only endpoint is a fake llama.cpp."""
    monkeypatch.setenv("LLAMACPP_URL", served_fakes[1]["LLAMACPP_URL"])
    return serve_function("gateway")


@pytest.fixture
def client(url: str) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(api_key=API_KEY, base_url=f"{url}/v1", max_retries=0, timeout=20) as client:
        yield client
