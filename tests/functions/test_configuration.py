"""`goblin.toml` changed, broken and mended under a served gateway; one model under two names at two providers."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest

from goblin.gateway import config_reload
from tests.functions.conftest import API_KEY, Fakes

AUTHORIZED = {"authorization": f"Bearer {API_KEY}"}
FILE = """
[[endpoints]]
name = "first"
provider = "llamacpp"
url = "${LLAMACPP_URL}"
models = ["tiny"]
price_input_usd_micros_per_mtok = 0
price_output_usd_micros_per_mtok = 0

[[endpoints]]
name = "second"
provider = "openai"
url = "${OPENAI_BASE_URL}"
models = ["vendor/tiny-1b"]
price_input_usd_micros_per_mtok = 0
price_output_usd_micros_per_mtok = 0

[models.small]
strategy = "failover"
"""
FIRST = (
    '[models.small.endpoints]\nfirst = { upstream_model = "tiny" }\nsecond = { upstream_model = "vendor/tiny-1b" }\n'
)
SECOND = (
    '[models.small.endpoints]\nsecond = { upstream_model = "vendor/tiny-1b" }\nfirst = { upstream_model = "tiny" }\n'
)


@pytest.fixture
def file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    path = tmp_path / "goblin.toml"
    path.write_text(FILE + FIRST)
    monkeypatch.setattr(config_reload, "LOOK_EVERY_S", 0.0)
    return path


@pytest.fixture
def url(
    file: Path,
    serve_function: Callable[[str], str],
    served_fakes: tuple[Fakes, dict[str, str]],
    fakes: Fakes,
    api_keys: None,
    monkeypatch: pytest.MonkeyPatch,
) -> str:
    for name, value in {**served_fakes[1], "GOBLIN_CONFIG": str(file)}.items():
        monkeypatch.setenv(name, value)
    fakes.openai.models = ["vendor/tiny-1b"]
    return serve_function("gateway")


def write(file: Path, text: str) -> None:
    """Replace the file in one step: a reader must not meet half of it."""
    new = file.with_suffix(".new")
    new.write_text(text)
    new.replace(file)


def ask(url: str) -> httpx.Response:
    body = {"model": "small", "messages": [{"role": "user", "content": "Hi"}]}
    return httpx.post(f"{url}/v1/chat/completions", json=body, headers=AUTHORIZED, timeout=20)


def until(url: str, holds: Callable[[httpx.Response], bool]) -> httpx.Response:
    """Ask until the file has been read again, beside the requests."""
    deadline = time.monotonic() + 10
    while time.monotonic() < deadline:
        if holds(answer := ask(url)):
            return answer
        time.sleep(0.01)
    raise AssertionError("it did not happen in time")


def test_each_provider_is_asked_under_the_name_it_knows_and_the_caller_sees_its_own(url: str, fakes: Fakes) -> None:
    answer = ask(url)
    assert answer.headers["x-goblin-provider"] == "first"
    assert answer.json()["model"] == "small"
    assert fakes.llamacpp.asked[-1]["model"] == "tiny"
    listed = httpx.get(f"{url}/v1/models", headers=AUTHORIZED, timeout=20).json()["data"]
    assert {row["id"]: row["owned_by"] for row in listed}["small"] == "first, second"


def test_a_changed_file_is_in_force_without_a_restart_and_a_bad_one_is_not(url: str, file: Path) -> None:
    assert ask(url).headers["x-goblin-provider"] == "first"

    write(file, FILE + SECOND)
    until(url, lambda answer: answer.headers["x-goblin-provider"] == "second")

    write(file, FILE + "[models.small.endpoints]\nsecondd = {}\n")
    until(url, lambda _: state(url) == "old")
    answer = ask(url)
    assert answer.headers["x-goblin-provider"] == "second"
    shown = httpx.get(f"{url}/providers", headers=AUTHORIZED, timeout=20)
    assert "secondd" in shown.headers["x-goblin-configuration"]

    write(file, FILE + FIRST)
    until(url, lambda answer: answer.headers["x-goblin-provider"] == "first")
    assert state(url) == "ok"


def state(url: str) -> Any:
    return httpx.get(f"{url}/health", timeout=20).json()["configuration"]
