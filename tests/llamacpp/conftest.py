"""A real server process on the shipped model, and OpenAI's own client for it."""

import contextlib
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import httpx
import openai
import pytest

import goblin_llamacpp

PACKAGE = Path(goblin_llamacpp.__file__).parent
MODEL = PACKAGE / "models" / "goblin-tiny.gguf"


@dataclass
class Running:
    """A server process that listens."""

    process: subprocess.Popen[str]
    url: str
    key: str = ""

    @property
    def headers(self) -> dict[str, str]:
        return {"Authorization": f"Bearer {self.key}"} if self.key else {}

    def client(self, *, key: str = "none", timeout: float = 30.0) -> openai.OpenAI:
        return openai.OpenAI(base_url=f"{self.url}/v1", api_key=key, max_retries=0, timeout=timeout)

    def http(self) -> httpx.Client:
        return httpx.Client(base_url=self.url, headers=self.headers, timeout=30)

    def wait_ready(self, deadline_s: float = 30.0) -> None:
        self.wait_until(lambda: httpx.get(f"{self.url}/health").status_code == 200, deadline_s)

    def wait_until(self, happened: Callable[[], bool], deadline_s: float = 20.0) -> None:
        deadline = time.monotonic() + deadline_s
        while not happened():
            assert self.process.poll() is None, "the server has died"
            assert time.monotonic() < deadline, "it did not happen in time"
            # Another process can only be asked again; not so often that asking slows it down.
            threading.Event().wait(0.01)

    def metric(self, name: str) -> float:
        text = httpx.get(f"{self.url}/metrics", headers=self.headers).text
        (line,) = [line for line in text.splitlines() if line.startswith(f"llamacpp:{name} ")]
        return float(line.split()[1])

    def stop(self) -> int:
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(timeout=15)


Start = Callable[..., contextlib.AbstractContextManager[Running]]


@contextlib.contextmanager
def running(*options: str, model: Path = MODEL, ready: bool = True, key: str = "") -> Iterator[Running]:
    command = [sys.executable, "-m", "goblin_llamacpp", "--model", str(model), "--port", "0", *options]
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, text=True, cwd=PACKAGE.parent, env=os.environ | {"PYTHONUNBUFFERED": "1"}
    )
    try:
        assert process.stdout is not None
        line = process.stdout.readline().strip()
        assert line.startswith("listening on http://"), line
        server = Running(process, line.removeprefix("listening on "), key)
        if ready:
            server.wait_ready()
        yield server
    finally:
        process.kill()
        process.wait()
        if process.stdout:
            process.stdout.close()


@pytest.fixture
def start() -> Start:
    """Start a server of one's own: `with start("--slots", "1") as server`."""
    return running


@pytest.fixture(scope="module")
def server() -> Iterator[Running]:
    """One server shared by a module's tests."""
    with running("--slots", "8") as process:
        yield process


@pytest.fixture
def client(server: Running) -> Iterator[openai.OpenAI]:
    with server.client() as client:
        yield client
