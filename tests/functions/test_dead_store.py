"""The gateway while Firestore is dead: what is free goes on, what costs money says why not, and nobody hangs."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import openai
import pytest

from tests.functions.conftest import API_KEY, Fakes
from tests.functions.far_store import far_away
from tests.functions.test_budget_exceeded import CONFIG, HELLO

PATIENCE_S = 8.0
"""Deadlines are five seconds, and at the most one of them is in a request's way."""


def test_free_goes_on_and_paid_is_refused_with_503_and_the_reason(
    environ: dict[str, str], serve_function: Callable[[str], str], served_fakes: Any, fakes: Fakes, api_keys: None,
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path,
) -> None:  # fmt: skip
    config = tmp_path / "goblin.toml"
    config.write_text(CONFIG)
    fakes.openai.models = ["big"]
    with far_away(environ["FIRESTORE_EMULATOR_HOST"], away_s=0.0) as wire:
        for name, value in {**served_fakes[1], "GOBLIN_CONFIG": str(config)}.items():
            monkeypatch.setenv(name, value)
        monkeypatch.setenv("FIRESTORE_EMULATOR_HOST", wire.address)
        gateway = serve_function("gateway")
        with openai.OpenAI(api_key=API_KEY, base_url=f"{gateway}/v1", max_retries=0, timeout=30) as client:

            def ask(model: str) -> tuple[str, float]:
                """Who answered, or the code of the refusal, and after how long."""
                started = time.monotonic()
                try:
                    raw = client.chat.completions.with_raw_response.create(model=model, messages=HELLO, max_tokens=10)
                    said = raw.headers["x-goblin-provider"]
                except openai.APIStatusError as error:
                    said = f"{error.status_code} {error.code} {error.message}"
                return said, time.monotonic() - started

            assert ask("big")[0] == "paid"
            assert ask("tiny")[0] == "free"
            wire.dies()
            sent = len(fakes.openai.asked)
            said, took_s = ask("big")
            assert said.startswith("503 store_unavailable")
            assert "ledger" in said
            assert took_s < PATIENCE_S
            assert len(fakes.openai.asked) == sent
            for _ in range(3):
                assert ask("tiny")[0] == "free"
                said, took_s = ask("big")
                assert said.startswith("503 store_unavailable")
                assert took_s < PATIENCE_S
            assert len(fakes.openai.asked) == sent
            wire.lives()
            until = time.monotonic() + 30
            while ask("big")[0] != "paid":
                assert time.monotonic() < until
                time.sleep(0.2)  # The client finds by itself that its connection is dead.
