"""A promotion all the way: the command, the pointer, the event, the swap under load, the refusal, the restart."""

from __future__ import annotations

import asyncio
import hashlib
import json
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest

from goblin.cli import paths
from tests.flows.conftest import Running

STREAMS = 50

pytestmark = pytest.mark.xdist_group("flows")


def goblin(up: Running, *words: str, fails: bool = False) -> dict[str, Any]:
    """Run a command beside the running Goblin; its JSON."""
    command = [sys.executable, "-m", "goblin.cli", *words]
    ended = subprocess.run(command, env=up.env(), capture_output=True, text=True, timeout=60, check=False)
    assert (ended.returncode != 0) == fails, ended.stderr
    return json.loads(ended.stdout) if ended.stdout.strip() else {"error": ended.stderr}


def until(happened: Callable[[], bool], deadline_s: float = 30) -> None:
    deadline = time.monotonic() + deadline_s
    while not happened():
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.05)  # Another process's doing: it can only be asked again.


def successor(folder: Path, name: str) -> Path:
    """The same weights with another name in the header: another file, another digest."""
    path = folder / f"{name}.gguf"
    tiny = paths.default_model().read_bytes()
    assert b"Goblin Tiny" in tiny
    path.write_bytes(tiny.replace(b"Goblin Tiny", b"Goblin " + name.encode(), 1))
    return path


def digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def served(up: Running) -> dict[str, str]:
    (model,) = goblin(up, "models", "list", "--json")["models"]
    return model["served_by"]


def meets(up: Running, file: Path) -> bool:
    """Whether the next request meets the model in the file."""
    with openai.OpenAI(base_url=f"{up.url}/v1", api_key=up.variables["GOBLIN_API_KEY"], max_retries=0) as client:
        answer = client.chat.completions.create(
            model="acme/tiny", messages=[{"role": "user", "content": "Hello"}], max_tokens=3
        )
    return digest(file)[:16] in str(answer.system_fingerprint)


async def streams_across(up: Running, swap: Callable[[], None]) -> list[list[str]]:
    """Streams, always `STREAMS` of them at once, from before a swap until after it; the lines of each."""
    ended: list[list[str]] = []
    over = asyncio.Event()
    body = {"model": "acme/tiny", "stream": True, "max_tokens": 24, "messages": [{"role": "user", "content": "Hello"}]}
    headers = {"authorization": f"Bearer {up.variables['GOBLIN_API_KEY']}"}
    limits = httpx.Limits(max_connections=STREAMS)
    async with httpx.AsyncClient(base_url=up.url, headers=headers, timeout=60, limits=limits, trust_env=False) as http:

        async def follow() -> None:
            async with http.stream("POST", "/v1/chat/completions", json=body) as answer:
                ended.append([line async for line in answer.aiter_lines() if line])

        async def caller() -> None:
            while not over.is_set():
                await follow()

        callers = [asyncio.create_task(caller()) for _ in range(STREAMS)]
        try:
            await asyncio.to_thread(swap)
        finally:
            over.set()
            await asyncio.gather(*callers)
    return ended


def test_a_promotion_under_load_breaks_no_stream_and_survives_everything(
    start_up: Callable[..., Running], tmp_path: Path
) -> None:
    up = start_up()
    one, two = successor(tmp_path, "Tina"), successor(tmp_path, "Tony")
    for version, file in (("1.0.0", one), ("1.1.0", two)):
        assert goblin(up, "models", "register", "acme/tiny", version, str(file), "--json")["version"] == version
    assert goblin(up, "models", "promote", "acme/tiny", "1.0.0", "--expect", "none", "--json")["seq"] == 1
    until(lambda: served(up) == {"gcp_llamacpp": "1.0.0"})
    assert meets(up, one)

    def swap() -> None:
        assert goblin(up, "models", "promote", "acme/tiny", "1.1.0", "--expect", "1.0.0", "--json")["seq"] == 2
        until(lambda: meets(up, two))

    ended = asyncio.run(streams_across(up, swap))
    assert len(ended) >= STREAMS
    for lines in ended:
        assert lines[-1] == "data: [DONE]", lines
        finishes = [json.loads(line.removeprefix("data: "))["choices"] for line in lines[:-1]]
        assert any(choices and choices[0]["finish_reason"] for choices in finishes), lines
    assert meets(up, two)

    # A stale promotion loses, a torn file is not registered; what the server refuses leaves the old model at work.
    assert "1.1.0" in goblin(up, "models", "promote", "acme/tiny", "1.0.0", "--expect", "1.0.0", fails=True)["error"]
    torn = tmp_path / "torn.gguf"
    torn.write_bytes(two.read_bytes()[:500_000])
    assert "cut off" in goblin(up, "models", "register", "acme/tiny", "1.2.0", str(torn), fails=True)["error"]
    odd = tmp_path / "odd.gguf"
    odd.write_bytes(two.read_bytes().replace(b"llama", b"lxama"))
    goblin(up, "models", "register", "acme/tiny", "1.2.0", str(odd), "--json")
    promoted = goblin(up, "models", "promote", "acme/tiny", "1.2.0", "--wait", "30", "--json")
    assert (list(promoted["refused_by"]), promoted["before"]) == (["gcp_llamacpp"], "1.1.0")
    assert served(up) == {"gcp_llamacpp": "1.1.0"}
    assert meets(up, two)

    # Everything dies; what was served is served again, although a later version is in production.
    up.kill_tree()
    up.start()
    assert meets(up, two)

    # Two rollbacks go back twice.
    for version, file in (("1.1.0", two), ("1.0.0", one)):
        assert goblin(up, "models", "rollback", "acme/tiny", "--json")["version"] == version
        until(partial(meets, up, file))
    shown = goblin(up, "models", "show", "acme/tiny", "--json")
    assert [move["seq"] for move in shown["history"]] == [5, 4, 3, 2, 1]
    assert shown["refused_by"] == {}


def test_cloud_billing_s_notification_freezes_until_somebody_thaws_and_an_invented_event_does_not(up: Running) -> None:
    program = """
import json, os
from datetime import UTC, datetime
from google.cloud import pubsub_v1
publisher = pubsub_v1.PublisherClient()
topic = publisher.topic_path(os.environ["GOOGLE_CLOUD_PROJECT"], "budget-exceeded")
invented = {"account": "openai", "window": "2999-12", "spent_usd_micros": 9, "limit_usd_micros": 9}
billed = {"budgetDisplayName": "b", "costAmount": 10.01, "costIntervalStart": f"{datetime.now(UTC):%Y-%m}-01T08:00:00Z",
          "budgetAmount": 10.0, "budgetAmountType": "SPECIFIED_AMOUNT", "currencyCode": "USD",
          "alertThresholdExceeded": 1.0}
for event, words in [(invented, {}), (invented, {}), (billed, {"billingAccountId": "01-23", "budgetId": "b-1"})]:
    publisher.publish(topic, json.dumps(event).encode(), **words).result()
"""
    subprocess.run([sys.executable, "-c", program], env=up.env(), check=True, timeout=60)
    until(lambda: bool(goblin(up, "budget", "show", "--json")["freezes"]))
    shown = goblin(up, "budget", "show", "--json")
    assert [freeze["account"] for freeze in shown["freezes"]] == ["total"]
    assert [action["kind"] for action in shown["actions"]] == ["freeze"]
    (lifted,) = goblin(up, "budget", "thaw", "total", "--json")["lifted"]
    assert lifted["account"] == "total"
    assert goblin(up, "budget", "show", "--json")["freezes"] == []
    assert "not frozen" in goblin(up, "budget", "thaw", "total", fails=True)["error"]
