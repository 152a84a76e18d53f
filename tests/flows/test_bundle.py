"""The bundle as Google runs it: a clean Python with its requirements, and each target by plain functions-framework."""

import fcntl
import functools
import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import pytest

from goblin.cli import bootstrap, paths
from localcloud.google import free_port

pytestmark = [
    pytest.mark.xdist_group("flows"),
    pytest.mark.skipif(paths.checkout() is None, reason="a bundle is made from a checkout"),
]

OURS, GOOGLES = f"{sys.version_info.major}.{sys.version_info.minor}", "3.13"
AT_A_TIME = 3
START_S_MAX, END_S_MAX, INSTALL_S_MAX = 60, 10, 100
PRIVATE = ("POST", "/", 403)
"""What a private target answers while it is not configured who may call it."""
PUBLIC = {"gateway": ("GET", "/health", 200), "jobs": ("POST", "/jobs/j/claim", 401), "console": ("POST", "/", 405)}
"""What a public target answers without Google's services."""


def _bundle(python: str | Path, folder: Path, env: Mapping[str, str] | None = None) -> str:
    """Make a bundle with a Python; the SHA-256 of its zip."""
    command = [str(python), "-m", "goblin.cli", "bundle", str(folder), "--zip", str(folder.with_suffix(".zip"))]
    return subprocess.run(command, check=True, capture_output=True, text=True, timeout=60, env=env).stdout.split()[0]


@pytest.fixture(scope="module")
def bundled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("bundle") / "source"
    _bundle(sys.executable, folder)
    return folder


def _find_python(version: str) -> str | None:
    """A Python of this version: ours, the one on the PATH, or one of pyenv's."""
    found = [sys.executable] if version == OURS else [shutil.which(f"python{version}")]
    found += [str(path) for path in sorted(Path.home().glob(f".pyenv/versions/{version}.*/bin/python"))]
    for python in filter(None, found):
        said = subprocess.run([python, "-c", "import sys; print(sys.version)"], capture_output=True, text=True)
        if said.returncode == 0 and said.stdout.startswith(f"{version}."):
            return python
    return None


def _install(python: Path, requirements: Path, work: Path) -> None:
    """Install the requirements, each checked by its hashes; skip the test where no index offers packages."""
    pip = [str(python), "-m", "pip", "--disable-pip-version-check", "--quiet"]
    run = functools.partial(subprocess.run, capture_output=True, text=True, timeout=INSTALL_S_MAX)
    (work / "one.txt").write_text(bootstrap.requirements(requirements.read_text())["idna"])
    if run([*pip, "download", "--no-deps", "--dest", str(work), "-r", str(work / "one.txt")]).returncode:
        pytest.skip("no package index answers")
    done = run([*pip, "install", "--no-compile", "--require-hashes", "-r", str(requirements)])
    assert done.returncode == 0, done.stderr
    done = run([*pip, "check"])
    assert done.returncode == 0, done.stdout


@pytest.fixture(scope="module", params=[OURS, GOOGLES] if OURS != GOOGLES else [OURS])
def python(request: pytest.FixtureRequest, bundled: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A clean Python with exactly the bundle's requirements, kept for the next run with the same ones."""
    base = _find_python(request.param)
    if base is None:
        pytest.skip(f"no Python {request.param} on this machine")
    requirements = bundled / "requirements.txt"
    key = hashlib.sha256(f"{base} {os.getuid()} {requirements.read_text()}".encode()).hexdigest()[:16]
    folder = Path(tempfile.gettempdir()) / f"goblin-bundle-{key}"
    found = folder / "bin" / "python"
    with folder.with_suffix(".lock").open("w") as turn:
        fcntl.flock(turn, fcntl.LOCK_EX)
        if not (folder / "installed").exists():
            subprocess.run([base, "-m", "venv", "--clear", str(folder)], check=True, timeout=INSTALL_S_MAX)
            _install(found, requirements, tmp_path_factory.mktemp("pip"))
            (folder / "installed").touch()
    return found


def _serve(python: Path, source: Path, target: str, out: Path) -> list[str]:
    """Start a target, ask it once and end it; what was wrong."""
    name = target.removeprefix("on_")
    method, path, status = PUBLIC.get(name, PRIVATE)
    port = free_port()
    env = {"FUNCTION_TARGET": target, "FUNCTION_SOURCE": f"{name}.py", "PORT": str(port)}
    command = [str(python.with_name("functions-framework"))]
    wrong = []
    with (
        # As in a container of its own: gunicorn's control socket lies here, and several would take one another's.
        tempfile.TemporaryDirectory() as env["XDG_RUNTIME_DIR"],
        out.open("wb") as file,
        subprocess.Popen(command, cwd=source, env=env, stdout=file, stderr=file) as process,
    ):
        try:
            answer = _ask(process, method, f"http://127.0.0.1:{port}{path}")
            if answer is None or answer.status_code != status:
                wrong.append(f"answered {answer and answer.text}, not {status}")
            process.send_signal(signal.SIGTERM)
            if code := process.wait(END_S_MAX):
                wrong.append(f"ended with exit code {code}")
        except subprocess.TimeoutExpired:
            wrong.append(f"did not end within {END_S_MAX} s of SIGTERM")
        finally:
            process.kill()
    for line in out.read_text().splitlines():
        try:
            json.loads(line)["severity"]
        except (ValueError, KeyError, TypeError):
            wrong.append(f"printed {line!r}")
    return [f"{target} {what}" for what in wrong]


def _ask(process: subprocess.Popen[bytes], method: str, url: str) -> httpx.Response | None:
    """Ask until there is an answer; None when the process ended or took too long."""
    until = time.monotonic() + START_S_MAX
    while process.poll() is None and time.monotonic() < until:
        try:
            return httpx.request(method, url, timeout=START_S_MAX, trust_env=False)
        except httpx.TransportError:
            time.sleep(0.1)  # Another process: there is nothing to be woken by.
    return None


def test_each_target_starts_answers_and_ends_as_google_runs_it(python: Path, bundled: Path, tmp_path: Path) -> None:
    events = {
        topic.get("function") for topic in json.loads((bundled / "goblin/cloud.json").read_text())["topics"].values()
    }
    targets = [f"on_{file.stem}" if file.stem in events else file.stem for file in sorted(bundled.glob("*.py"))]
    assert {"gateway", "jobs", "reconcile", "on_job_requested"} <= set(targets)
    with ThreadPoolExecutor(AT_A_TIME) as together:
        found = together.map(lambda target: _serve(python, bundled, target, tmp_path / target), targets)
    assert [what for wrong in found for what in wrong] == []


def test_each_python_makes_the_same_bundle(python: Path, tmp_path: Path) -> None:
    root = paths.checkout()
    assert root is not None
    env = {"PYTHONPATH": str(root / "shared"), "PYTHONDONTWRITEBYTECODE": "1"}
    assert _bundle(python, tmp_path / "theirs", env) == _bundle(sys.executable, tmp_path / "ours")
