"""Whole flows: the real `goblin up` as a person starts it, on a port and a data folder of the test's own."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Self

import psutil
import pytest

from goblin.cli.paths import DataFolder
from localcloud.google import free_port

READY_S_MAX = 90
STOP_S_MAX = 30
OTHERS = (
    "GOOGLE_", "GCS_", "PUBSUB_", "FIRESTORE_", "STORAGE_", "GOBLIN_", "OPENAI_", "OLLAMA_", "LLAMACPP_",
    "VASTAI_", "VAST_", "RUNPOD_",
)  # fmt: skip


def clean_environment() -> dict[str, str]:
    """This process's environment without anything that would point a client or Goblin elsewhere."""
    return {name: value for name, value in os.environ.items() if not name.startswith(OTHERS)}


class Running:
    """One `goblin up`."""

    def __init__(self, data: Path, *words: str, env: Mapping[str, str] | None = None) -> None:
        self.data = data
        self.port = free_port()
        self.words = words
        self.out = data.parent / f"{data.name}.out"
        self.variables: dict[str, str] = {}
        self._env = {**clean_environment(), **(env or {})}
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> Self:
        """Start it and return when it says that it is ready."""
        command = [sys.executable, "-m", "goblin.cli", "up", f"--port={self.port}", f"--data={self.data}", *self.words]
        with self.out.open("ab") as out:
            self.process = subprocess.Popen(command, stdout=out, stderr=subprocess.STDOUT, env=self._env)
        deadline = time.monotonic() + READY_S_MAX
        while (found := DataFolder(self.data).environment()) is None or not self.said().rstrip().endswith("Ctrl-C"):
            if self.process.poll() is not None or time.monotonic() > deadline:
                raise AssertionError(f"goblin up did not get ready:\n{self.said()}\n{self.logs()}")
            time.sleep(0.05)  # Waiting for another process to say a thing in a file: there is nothing to be woken by.
        self.variables = found
        return self

    def said(self) -> str:
        return self.out.read_text(errors="replace") if self.out.exists() else ""

    def logs(self) -> str:
        return "\n".join(f"--- {log.name}\n{log.read_text()[-3000:]}" for log in sorted(self.data.glob("logs/*.log")))

    @property
    def url(self) -> str:
        return self.variables["GOBLIN_URL"]

    def env(self) -> dict[str, str]:
        """The environment of an app that was pointed here by `eval "$(./goblin env)"`."""
        return {**clean_environment(), **self.variables}

    def tree(self) -> list[psutil.Process]:
        """The command and everything below it."""
        assert self.process is not None
        top = psutil.Process(self.process.pid)
        return [top, *top.children(recursive=True)]

    def kill_tree(self) -> None:
        """`kill -9` of all of it at once."""
        assert self.process is not None
        tree = self.tree()
        for one in tree:
            one.kill()
        psutil.wait_procs(tree, STOP_S_MAX)
        self.process.wait(STOP_S_MAX)

    def stop(self, number: int = signal.SIGTERM) -> int:
        """Ask it to stop; its exit code."""
        assert self.process is not None
        self.process.send_signal(number)
        return self.process.wait(STOP_S_MAX)

    def close(self) -> None:
        if self.process is not None and self.process.poll() is None:
            try:
                self.stop()
            except subprocess.TimeoutExpired:
                self.kill_tree()


@pytest.fixture(scope="session")
def up(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    """One shared `goblin up` for tests that leave it running."""
    running = Running(tmp_path_factory.mktemp("up") / "data")
    try:
        yield running.start()
    finally:
        running.close()


@pytest.fixture
def start_up(tmp_path: Path) -> Iterator[Callable[..., Running]]:
    """Start a `goblin up` of one's own, to be stopped, killed and started again."""
    started: list[Running] = []

    def start(*words: str, data: Path | None = None, env: Mapping[str, str] | None = None) -> Running:
        running = Running(data or tmp_path / "data", *words, env=env)
        started.append(running)
        return running.start()

    yield start
    for running in started:
        running.close()
