"""One gateway for all programs: `goblin up` with its own model, and fakes of two vendors that follow a script.

The programs are collected only where this folder is named: `./goblin test clients`, further words go to pytest.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from goblin.cli.paths import data_folder
from tests.clients.install import CannotInstall, Client, clients, install
from tests.clients.recorder import Recorder
from tests.clients.scripted import prepare_for
from tests.fakes.anthropic import FakeAnthropic
from tests.fakes.openai_like import FakeOpenAI
from tests.fakes.serving import serve
from tests.flows.conftest import Running

CLAUDE, GPT, TINY = "claude-sonnet-4-6", "gpt-4o-mini", "goblin-tiny"
INSTALLS_AT_ONCE = 3
TEST_S_MAX = 600
RUN_S_MAX = 150
PROGRAMS = Path(__file__).with_name("programs")
HERE = Path(__file__).parent


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    named = any((config.invocation_params.dir / word.split("::")[0]).is_relative_to(HERE) for word in config.args)
    return None if named else True


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "client(name): the row of `versions.toml` that the test runs")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if item.path.is_relative_to(HERE):
            item.add_marker(pytest.mark.timeout(TEST_S_MAX))  # The first one waits for its installation.


def pytest_terminal_summary(terminalreporter: Any, config: pytest.Config) -> None:
    if (folder := config.stash.get(SENT, None)) is not None:
        terminalreporter.write_line(f"what the programs sent: {folder}")


SENT = pytest.StashKey[Path]()


@dataclass
class Gateway:
    """The gateway, with what stands before it and behind it."""

    running: Running
    recorder: Recorder
    url: str
    """The recorder's address, which is the gateway's for the programs."""
    key: str
    gpt: FakeOpenAI
    claude: FakeAnthropic


@dataclass
class Program:
    """One program, in a home and a folder of its own."""

    client: Client
    gateway: Gateway
    home: Path
    work: Path
    env: dict[str, str] = field(default_factory=dict)

    @property
    def sent(self) -> list[dict[str, Any]]:
        return self.gateway.recorder.seen

    def run(self, *command: str, **env: str) -> str:
        """Run a command of the program; what it printed."""
        words = [str(self.client.bin / command[0]) if (self.client.bin / command[0]).exists() else command[0]]
        done = subprocess.run(
            [*words, *command[1:]], capture_output=True, text=True, cwd=self.work, timeout=RUN_S_MAX,
            env={**self.env, **env}, stdin=subprocess.DEVNULL, check=False,
        )  # fmt: skip
        folder = self.gateway.recorder.folder
        if folder is not None:
            said = f"$ {' '.join(command)}\n{done.stdout}\n{done.stderr}\n"
            with (folder / "said.txt").open("a") as file:
                file.write(said.replace(self.gateway.key, "…"))
        assert done.returncode == 0, f"{done.stdout[-3000:]}\n{done.stderr[-3000:]}"
        return done.stdout

    def script(self, name: str, **env: str) -> dict[str, Any]:
        """Run one of `programs/`; the facts of its last line."""
        if name.endswith(".mjs"):
            shutil.copy(PROGRAMS / name, self.work / name)
            (self.work / "node_modules").symlink_to(self.client.folder / "node_modules")
            said = self.run("node", name, **env)
        else:
            said = self.run("python", str(PROGRAMS / name), **env)
        found: dict[str, Any] = json.loads(said.strip().splitlines()[-1])
        return found


@pytest.fixture(scope="session")
def gateway(tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest) -> Iterator[Gateway]:
    claude, gpt = FakeAnthropic(models=[CLAUDE]), FakeOpenAI(models=[GPT])
    # Not in pytest's own folder, which a few runs later is gone.
    sent = data_folder(None) / "clients"
    shutil.rmtree(sent, ignore_errors=True)
    sent.mkdir(parents=True, mode=0o700)
    request.config.stash[SENT] = sent
    with ExitStack() as stack:
        env = {
            "ANTHROPIC_BASE_URL": stack.enter_context(serve(claude.app)),
            "ANTHROPIC_API_KEY": "k",
            "OPENAI_BASE_URL": stack.enter_context(serve(gpt.app)) + "/v1",
            "OPENAI_API_KEY": "k",
        }
        up = Running(tmp_path_factory.mktemp("clients") / "data", env=env)
        stack.callback(up.close)
        up.start()
        recorder = Recorder(up.url)
        url = stack.enter_context(serve(recorder.app))
        yield Gateway(up, recorder, url, up.variables["GOBLIN_API_KEY"], gpt, claude)


@pytest.fixture(scope="session")
def installing(request: pytest.FixtureRequest) -> Iterator[dict[str, Future[Client]]]:
    """All programs that this run needs, being installed side by side."""
    marks = [mark for item in request.session.items for mark in item.iter_markers("client")]
    names, rows = dict.fromkeys(mark.args[0] for mark in marks), clients()
    with ThreadPoolExecutor(INSTALLS_AT_ONCE) as pool:
        yield {name: pool.submit(install, rows[name]) for name in names}


@pytest.fixture
def program(
    request: pytest.FixtureRequest, installing: dict[str, Future[Client]], gateway: Gateway, tmp_path: Path
) -> Program:
    """The program of the test's mark `client`, pointed at the gateway by the usual variables."""
    mark = request.node.get_closest_marker("client")
    try:
        client = installing[mark.args[0]].result()
    except CannotInstall as reason:
        pytest.skip(f"{mark.args[0]}: {reason}")
    if client.npm and shutil.which("node") is None:
        pytest.skip(f"{client.name}: `node` is not on the PATH")
    home, work = tmp_path / "home", tmp_path / "work"
    home.mkdir()
    work.mkdir()
    gateway.gpt.__dict__.update(FakeOpenAI(models=[GPT]).__dict__)
    gateway.claude.__dict__.update(FakeAnthropic(models=[CLAUDE]).__dict__)
    prepare_for(gateway.gpt)
    root = request.config.stash[SENT]
    gateway.recorder.begin(root / client.name / "-".join(re.findall(r"[\w.]+", request.node.name)))
    env = {
        "PATH": f"{client.bin}:{os.environ['PATH']}",
        "HOME": str(home),
        "LANG": "C.UTF-8",
        "NO_COLOR": "1",
        "OPENAI_BASE_URL": f"{gateway.url}/v1",
        "OPENAI_API_KEY": gateway.key,
    }
    return Program(client, gateway, home, work, env)
