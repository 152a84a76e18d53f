"""Which providers of instances a process rents from."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from goblin.wiring import jobs as job_wiring
from goblin.wiring import process

KEYS = {"VASTAI_API_KEY": "v", "RUNPOD_API_KEY": "r"}
HERE = {"VAST_API_URL": "http://127.0.0.1:8087", "RUNPOD_API_BASE_URL": "http://localhost:8087/v2"}


@pytest.fixture(autouse=True)
def _settings(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    for name in (*KEYS, *HERE, "GOBLIN_LOCAL_INSTANCES", "GOBLIN_URL"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("GOOGLE_CLOUD_PROJECT", "p")
    process.settings.cache_clear()
    yield
    process.settings.cache_clear()


@pytest.mark.parametrize(
    ("url", "variables", "rented"),
    [
        ("https://goblin.example", KEYS, {"vastai", "runpod"}),
        ("https://goblin.example", {}, set()),
        ("http://127.0.0.1:8080", KEYS, set()),
        ("http://127.0.0.1:8080", {**KEYS, **HERE}, {"vastai", "runpod"}),
        ("http://127.0.0.1:8080", {**KEYS, "VAST_API_URL": HERE["VAST_API_URL"]}, {"vastai"}),
    ],
    ids=["in production", "without keys", "a laptop", "a laptop's own markets", "one of them"],
)
async def test_a_provider_is_rented_from_if_its_machines_can_reach_us(
    monkeypatch: pytest.MonkeyPatch, url: str, variables: dict[str, str], rented: set[str]
) -> None:
    for name, value in {**variables, "GOBLIN_URL": url}.items():
        monkeypatch.setenv(name, value)
    assert set(job_wiring._compute(process.here())) == rented
