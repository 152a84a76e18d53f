"""The data folder: one holder at a time, secrets for the owner alone, the environment only while somebody runs."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from goblin.cli import paths


def test_a_second_holder_is_told_who_has_it(tmp_path: Path) -> None:
    first = paths.DataFolder(tmp_path / "data")
    first.hold()
    first.sign("http://127.0.0.1:8080")
    with pytest.raises(paths.Held) as held:
        paths.DataFolder(tmp_path / "data").hold()
    assert f"process {os.getpid()}, http://127.0.0.1:8080" in str(held.value)
    assert "--data" in str(held.value)


def test_a_child_that_lives_on_keeps_the_folder_held(tmp_path: Path) -> None:
    program = (
        "import os, subprocess, sys; from pathlib import Path; from goblin.cli.paths import DataFolder\n"
        "lock = DataFolder(Path(sys.argv[1])).hold()\n"
        "print(subprocess.Popen(['cat'], stdin=0, stdout=-3, stderr=-3, pass_fds=[lock]).pid, flush=True)\n"
    )
    reader, writer = os.pipe()
    parent = subprocess.run(
        [sys.executable, "-c", program, str(tmp_path)], stdin=reader, capture_output=True, text=True
    )
    os.close(reader)
    child = int(parent.stdout)
    folder = paths.DataFolder(tmp_path)
    assert folder.held()
    os.close(writer)  # The child reads the end of its input and goes.
    _wait_gone(child)
    assert not folder.held()
    folder.hold()


def _wait_gone(pid: int) -> None:
    import psutil

    try:
        psutil.Process(pid).wait(10)
    except psutil.NoSuchProcess:
        return


def test_the_key_is_made_once_and_only_its_owner_reads_it(tmp_path: Path) -> None:
    folder = paths.DataFolder(tmp_path)
    key = folder.api_key()
    assert key == paths.DataFolder(tmp_path).api_key()
    assert key.startswith("gob-local-")
    assert (tmp_path / "api-key").stat().st_mode & 0o077 == 0


def test_the_environment_is_known_only_while_somebody_holds_the_folder(tmp_path: Path) -> None:
    folder = paths.DataFolder(tmp_path)
    folder.write_environment({"A": "b"})
    assert folder.environment() is None
    lock = folder.hold()
    assert paths.DataFolder(tmp_path).environment() == {"A": "b"}
    folder.forget_environment()
    assert paths.DataFolder(tmp_path).environment() is None
    os.close(lock)
