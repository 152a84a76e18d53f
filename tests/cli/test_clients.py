"""`goblin test clients`: what it runs, and how the programs are installed or skipped."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from goblin.cli.main import main
from tests.clients import install
from tests.clients.install import CannotInstall, Client


@pytest.mark.parametrize(
    ("words", "run"),
    [
        (["clients", "-k", "codex"], ["-n0", "tests/clients", "-k", "codex"]),
        (["tests/web"], ["-n", "3", "--dist", "loadgroup", "tests/web"]),
    ],
)
def test_the_word_clients_names_their_folder(monkeypatch: pytest.MonkeyPatch, words: list[str], run: list[str]) -> None:
    ran: list[list[str]] = []

    def execute(_: str, command: list[str]) -> None:
        ran.append(command[3:])

    monkeypatch.setattr(os, "execv", execute)
    monkeypatch.chdir(Path.cwd())
    assert CliRunner().invoke(main, ["test", *words]).exit_code == 0
    assert ran == [run]


@pytest.fixture
def npm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """An `npm` that does what the test says, and the only program there is."""
    folder = tmp_path / "bin"
    folder.mkdir()
    monkeypatch.setenv("PATH", str(folder))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))

    def does(script: str) -> None:
        (folder / "npm").write_text(f"#!/bin/sh\n{script}\n")
        (folder / "npm").chmod(0o755)

    return does


CLIENT = Client("some-agent", npm=("some-agent@1.2.3",))


def test_a_program_is_installed_once_in_a_folder_of_its_own(npm: Any, tmp_path: Path) -> None:
    npm(f'echo "$@" >> {tmp_path}/calls')
    assert install.install(CLIENT).folder.is_relative_to(tmp_path / "cache" / "goblin" / "clients")
    install.install(CLIENT)
    (call,) = (tmp_path / "calls").read_text().splitlines()
    assert f"--prefix {CLIENT.folder}" in call
    assert {"install", "--no-save", "--no-package-lock", "some-agent@1.2.3"} <= set(call.split())
    assert CLIENT.folder != Client("some-agent", npm=("some-agent@1.2.4",)).folder


def test_half_an_installation_is_made_again(npm: Any) -> None:
    CLIENT.folder.mkdir(parents=True)
    (CLIENT.folder / "half").touch()
    npm("exit 0")
    install.install(CLIENT)
    assert json.loads((CLIENT.folder / install.DONE).read_text()) == ["some-agent@1.2.3"]
    assert not (CLIENT.folder / "half").exists()


def test_what_cannot_be_installed_says_why(npm: Any) -> None:
    with pytest.raises(CannotInstall, match="`npm` is not on the PATH"):
        install.install(CLIENT)
    npm("echo 'npm error code ENOTFOUND' >&2; echo 'npm error network no such host' >&2; echo bye >&2; exit 1")
    with pytest.raises(CannotInstall, match="npm cannot install some-agent: npm error network no such host"):
        install.install(CLIENT)
    assert not CLIENT.is_installed
    assert not install.are_there()


def test_every_program_is_pinned() -> None:
    for client in install.clients().values():
        assert bool(client.npm) != bool(client.pip)
        assert all("@" in one[1:] for one in client.npm)
        assert all("==" in one for one in client.pip)
