"""What a process was lent goes back before it ends: real processes, and a store that is far away."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest

from localcloud.google import free_port
from tests.functions.conftest import API_KEY, Fakes
from tests.functions.far_store import far_away
from tests.functions.test_budget_exceeded import CONFIG, HELLO

ROOT = Path(__file__).parents[2]
START_S_MAX, END_S_MAX = 30.0, 9.0
HOSTS = {
    "ours": ["-m", "goblin.cli.host"],
    "google's": ["-m", "functions_framework", "--asgi", "--target=gateway", "--source=functions/gateway.py",
                 "--host=127.0.0.1"],
}  # fmt: skip


class Gateway:
    """A process that serves the gateway."""

    def __init__(self, host: str, environment: dict[str, str], folder: Path) -> None:
        self.port = free_port()
        self.log = (folder / "log").open("w+b")
        self.process = subprocess.Popen(
            [sys.executable, *HOSTS[host], f"--port={self.port}"], env={**os.environ, **environment}, cwd=ROOT,
            stdout=self.log, stderr=subprocess.STDOUT,
        )  # fmt: skip
        until = time.monotonic() + START_S_MAX
        while not self._is_up():
            assert self.process.poll() is None, self.said()
            assert time.monotonic() < until, self.said()
            time.sleep(0.05)  # Another process: there is nothing to be woken by.

    def _is_up(self) -> bool:
        try:
            return httpx.get(f"http://127.0.0.1:{self.port}/health", timeout=5).status_code < 500
        except httpx.TransportError:
            return False

    def client(self) -> openai.OpenAI:
        url = f"http://127.0.0.1:{self.port}/v1"
        return openai.OpenAI(api_key=API_KEY, base_url=url, max_retries=0, timeout=20)

    def told_to_end(self) -> None:
        self.process.send_signal(signal.SIGTERM)

    def said(self) -> str:
        self.log.seek(0)
        return self.log.read().decode(errors="replace")

    def close(self) -> None:
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait(10)
        self.log.close()


@pytest.fixture(params=list(HOSTS))
def gateway(
    request: pytest.FixtureRequest, environ: dict[str, str], served_fakes: Any, fakes: Fakes, api_keys: None,
    tmp_path: Path,
) -> Iterator[Gateway]:  # fmt: skip
    config = tmp_path / "goblin.toml"
    config.write_text(CONFIG)
    fakes.openai.models = ["big"]
    with ExitStack() as stack:
        firestore = stack.enter_context(far_away(environ["FIRESTORE_EMULATOR_HOST"])).address
        variables = {**environ, **served_fakes[1], "GOBLIN_CONFIG": str(config), "FIRESTORE_EMULATOR_HOST": firestore}
        started = Gateway(request.param, variables, tmp_path)
        stack.callback(started.close)
        yield started


def leased(firestore: Any) -> int:
    """Of everything, now."""
    total = firestore.collection("accounts").document("total").get().to_dict() or {"tallies": {}}
    usage = total["tallies"].get("month", {"leased_usd_micros": 0})
    found: int = usage["leased_usd_micros"]
    return found


def documents(firestore: Any, collection: str) -> list[Any]:
    return [document.to_dict() for document in firestore.collection(collection).stream()]


def spent(firestore: Any) -> int:
    return sum(e["amount_usd_micros"] for e in documents(firestore, "ledger") if e["kind"] == "settle")


def test_an_idle_process_writes_what_was_spent_and_returns_what_is_spare(gateway: Gateway, firestore: Any) -> None:
    with gateway.client() as client:
        for _ in range(6):
            client.chat.completions.create(model="big", messages=HELLO, max_tokens=100)
    assert leased(firestore) > 0
    assert len(documents(firestore, "leases")) == 1
    gateway.told_to_end()
    gateway.process.wait(END_S_MAX)
    assert (leased(firestore), documents(firestore, "leases")) == (0, []), gateway.said()
    assert spent(firestore) == 6 * 62
    assert len(documents(firestore, "requests")) == 6


def test_a_busy_process_ends_after_its_answer_was_settled(gateway: Gateway, fakes: Fakes, firestore: Any) -> None:
    with gateway.client() as client:
        for _ in range(6):
            client.chat.completions.create(model="big", messages=HELLO, max_tokens=100)
        fakes.openai.script.silent_after = 2
        stream = client.chat.completions.create(model="big", messages=HELLO, max_tokens=100, stream=True)
        next(iter(stream))
        gateway.told_to_end()
        time.sleep(0.5)  # Long enough for what is spare to have gone back; the answer is still under way.
        assert gateway.process.poll() is None
        assert len(documents(firestore, "leases")) == 1
        stream.close()
    gateway.process.wait(END_S_MAX)
    assert (leased(firestore), documents(firestore, "leases")) == (0, []), gateway.said()
    assert spent(firestore) > 6 * 62
