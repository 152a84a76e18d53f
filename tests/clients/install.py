"""Install the pinned programs of `versions.toml`, each in a folder of its own outside the project's environment."""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import shutil
import subprocess
import sys
import tomllib
from dataclasses import dataclass
from pathlib import Path

VERSIONS = Path(__file__).with_name("versions.toml")
INSTALL_S_MAX = 420
DONE = "installed"


class CannotInstall(Exception):
    """The program cannot be installed here; the words say why."""


@dataclass(frozen=True)
class Client:
    """One row of the table."""

    name: str
    npm: tuple[str, ...] = ()
    pip: tuple[str, ...] = ()

    @property
    def folder(self) -> Path:
        """Where it is installed: another version, or another Python, is another folder."""
        said = json.dumps([self.npm, self.pip, sys.version_info[:2] if self.pip else None])
        return cache() / f"{self.name}-{hashlib.sha256(said.encode()).hexdigest()[:12]}"

    @property
    def is_installed(self) -> bool:
        return (self.folder / DONE).exists()

    @property
    def bin(self) -> Path:
        """The folder of its commands."""
        return self.folder / ("node_modules/.bin" if self.npm else "bin")


def cache() -> Path:
    home = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(home) / "goblin" / "clients"


def clients() -> dict[str, Client]:
    rows = tomllib.loads(VERSIONS.read_text())
    return {name: Client(name, **{key: tuple(said) for key, said in row.items()}) for name, row in rows.items()}


def install(client: Client) -> Client:
    """Install a program unless it is there. Raises `CannotInstall`."""
    if client.is_installed:
        return client
    folder = client.folder
    folder.parent.mkdir(parents=True, exist_ok=True)
    with folder.with_suffix(".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # Another run may be installing the same.
        if client.is_installed:
            return client
        shutil.rmtree(folder, ignore_errors=True)  # A run that was killed left half of it.
        folder.mkdir()
        for command in _npm(client, folder) if client.npm else _pip(client, folder):
            _run(client, command)
        (folder / DONE).write_text(json.dumps([*client.npm, *client.pip]))
    return client


def are_there() -> bool:
    """Whether every program is installed, so that a run needs no network."""
    return all(client.is_installed for client in clients().values())


def _npm(client: Client, folder: Path) -> list[list[str]]:
    if (npm := shutil.which("npm")) is None:
        raise CannotInstall("`npm` is not on the PATH")
    quiet = ["--no-save", "--no-package-lock", "--no-audit", "--no-fund", "--loglevel=error", "--fetch-retries=1"]
    return [[npm, "install", *quiet, "--prefix", str(folder), *client.npm]]


def _pip(client: Client, folder: Path) -> list[list[str]]:
    if (uv := shutil.which("uv")) is not None:
        make = [uv, "venv", "--quiet", "--allow-existing", "--python", sys.executable, str(folder)]
        return [make, [uv, "pip", "install", "--quiet", "--python", str(folder / "bin" / "python"), *client.pip]]
    make = [sys.executable, "-m", "venv", "--without-pip", str(folder)]
    quiet = ["--quiet", "--disable-pip-version-check", "--no-input", "--retries=1", "--timeout=30"]
    pip = [sys.executable, "-m", "pip", "--python", str(folder / "bin" / "python")]
    return [make, [*pip, "install", *quiet, "--prefer-binary", *client.pip]]


def _run(client: Client, command: list[str]) -> None:
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=INSTALL_S_MAX, stdin=subprocess.DEVNULL, check=False
        )
    except subprocess.TimeoutExpired:
        raise CannotInstall(f"installing {client.name} took longer than {INSTALL_S_MAX} s") from None
    if done.returncode:
        said = [line for line in (done.stderr or done.stdout).splitlines() if line.strip()]
        why = next((line for line in reversed(said) if "rror" in line), said[-1] if said else "it said nothing")
        raise CannotInstall(f"{Path(command[0]).name} cannot install {client.name}: {why.strip()[:300]}")


if __name__ == "__main__":
    sys.exit(0 if are_there() else 1)
