"""Google's Node clients with their defaults; skipped where Node or the packages are missing and cannot be installed."""

import fcntl
import json
import os
import shutil
import subprocess
import tempfile
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from tests.clouds import environment

SCRIPT = Path(__file__).with_name("node_clients.js")
# The newest versions that run on Node 20, 2026-12-01.
PACKAGES = ("@google-cloud/storage@7.22.0", "@google-cloud/pubsub@5.3.1", "@google-cloud/firestore@8.7.1")
NODE_MIN = 20
INSTALL_S_MAX = 50
RUN_S_MAX = 50


@cache
def packages() -> tuple[Path | None, str]:
    """The folder of installed packages, or None and why there is none. They are installed once per machine."""
    node, npm = shutil.which("node"), shutil.which("npm")
    if node is None or npm is None:
        return None, "Node.js is not installed: no node or npm on PATH"
    version = subprocess.run([node, "--version"], capture_output=True, text=True, check=True).stdout.strip()
    if int(version.removeprefix("v").partition(".")[0]) < NODE_MIN:
        return None, f"Node.js {version} is too old for Google's clients; they need {NODE_MIN}"
    versions = "-".join(name.rpartition("@")[2] for name in PACKAGES)
    folder = Path(tempfile.gettempdir()) / f"goblin-node-clients-{os.getuid()}-{versions}"
    with folder.with_name(f"{folder.name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # Another worker may be installing.
        return _install(npm, folder)


def _install(npm: str, folder: Path) -> tuple[Path | None, str]:
    done = folder / "installed"
    if done.exists():
        return folder, ""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    # Neither scripts of packages nor waiting: without a network it fails at once.
    quick = ("--ignore-scripts", "--no-audit", "--no-fund", "--fetch-retries=0", "--fetch-timeout=10000")
    command = [npm, "install", "--no-save", "--no-package-lock", *quick, "--prefix", str(folder), *PACKAGES]
    try:
        result = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=INSTALL_S_MAX)
    except subprocess.TimeoutExpired:
        return None, f"npm install took longer than {INSTALL_S_MAX} s"
    if result.returncode:
        return None, f"npm install failed: {' '.join(result.stderr.split())[:300]}"
    done.touch()
    return folder, ""


@pytest.fixture
def node(local_cloud: Any, tmp_path: Path) -> Any:
    """A function that runs one part of the script, and fails with what it wrote."""
    folder, reason = packages()
    if folder is None:
        pytest.skip(reason)
    account = tmp_path / "service-account.json"
    account.write_text(json.dumps(local_cloud.cloud.identity.service_account))
    env = {
        **{name: value for name, value in os.environ.items() if not name.startswith(("GOOGLE_", "NODE_"))},
        **environment(local_cloud.addresses),
        "GOOGLE_CLOUD_PROJECT": local_cloud.project(),
        "METADATA_SERVER_DETECTION": "none",
        "NODE_PATH": str(folder / "node_modules"),
        "KEY_FILE": str(account),
        "FOLDER": str(tmp_path),
    }

    def run(part: str) -> None:
        done = subprocess.run(
            ["node", str(SCRIPT), part], env=env, capture_output=True, text=True, timeout=RUN_S_MAX, check=False
        )
        assert done.returncode == 0, done.stderr

    return run


@pytest.mark.parametrize("part", ["storage", "pubsub", "firestore"])
def test_node_clients_work_with_their_defaults(node: Any, part: str) -> None:
    node(part)
