"""A key with a cent on `goblin up`, spent with the unmodified SDK at a provider that bills, and no further."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import openai
import pytest

from tests.fakes.openai_like import FakeOpenAI
from tests.fakes.serving import serve
from tests.flows.conftest import Running

pytestmark = pytest.mark.xdist_group("flows")

CENT = 10_000
HELLO: Any = [{"role": "user", "content": "Hi"}]
MOST = 16384
"""Tokens: at the price in `goblin.toml` all but a cent."""
COST = 5
"""Of what the fake answers, in millionths of a dollar."""


def goblin(running: Running, *words: str) -> Any:
    """The command, as a person's shell runs it."""
    command = [sys.executable, "-m", "goblin.cli", *words, f"--data={running.data}", "--json"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=30, env=running.env(), check=True)
    return json.loads(done.stdout)


def budget_of(running: Running, account: str) -> dict[str, Any]:
    (found,) = [one for one in goblin(running, "budget", "show")["budgets"] if one["account"] == account]
    assert isinstance(found, dict)
    return found


def test_the_request_that_would_cross_is_refused_and_nothing_is_sent(start_up: Callable[..., Running]) -> None:
    fake = FakeOpenAI(models=["gpt-4o-mini"], api_key="sk-paid")
    with serve(fake.app) as base:
        running = start_up(env={"OPENAI_BASE_URL": f"{base}/v1", "OPENAI_API_KEY": "sk-paid"})
        goblin(running, "budget", "set", "key/local", "0.01", "--action", "freeze")
        key = running.variables["GOBLIN_API_KEY"]
        client = openai.OpenAI(base_url=f"{running.url}/v1", api_key=key, max_retries=0, timeout=30)

        def ask() -> str:
            asked = client.chat.completions.with_raw_response
            raw = asked.create(model="gpt-4o-mini", messages=HELLO, max_tokens=MOST)
            return str(raw.headers["x-goblin-cost-usd"])

        sent, refused = 0, None
        while refused is None and sent < 100:
            try:
                assert ask() == f"0.{COST:06d}"
                sent += 1
            except openai.APIStatusError as error:
                refused = error
        assert refused is not None
        assert (refused.status_code, refused.code, refused.type) == (402, "budget_exhausted", "insufficient_quota")
        assert "key/local" in refused.message
        assert "resets at" in refused.message
        assert len(fake.asked) == sent > 3
        assert {body["max_tokens"] for body in fake.asked} == {MOST}

        told = budget_of(running, "key/local")
        assert told["spent_usd_micros"] + told["reserved_usd_micros"] <= CENT
        assert running.stop() == 0
        running.start()  # The same data, and nothing is lent to anybody any more.
        told = budget_of(running, "key/local")
        assert (told["spent_usd_micros"], told["reserved_usd_micros"]) == (sent * COST, 0)
        assert told["left_usd_micros"] == CENT - sent * COST
        costs = goblin(running, "costs", "--by", "key")
        (line,) = costs["lines"]
        assert (line["name"], line["spent_usd_micros"], line["entries"]) == ("local", sent * COST, sent)
        assert costs["unattributed_usd_micros"] == 0
