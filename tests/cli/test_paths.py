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


def modes(folder: Path) -> dict[str, int]:
    return {str(path.relative_to(folder)): path.lstat().st_mode & 0o777 for path in [folder, *folder.rglob("*")]}


def test_what_an_earlier_run_left_open_is_closed_whatever_the_folder_was(tmp_path: Path) -> None:
    data = tmp_path / "data"
    for folder in (data / "cloud" / "storage" / "objects" / "00", data / "logs", data / "instances" / "goblin-a"):
        folder.mkdir(parents=True)
    for name in ("api-key", "cloud/firestore.db", "cloud/firestore.db-wal", "logs/functions.log", "lock",
                 "cloud/storage/objects/00/1", "instances/goblin-a/record.json"):  # fmt: skip
        (data / name).write_text("")
    script = data / "instances" / "run.sh"
    script.write_text("")
    for path in [data, *data.rglob("*")]:
        path.chmod(0o777)
    old = os.umask(0)
    try:
        paths.DataFolder(data).hold()
        paths.DataFolder(data).write_environment({"A": "b"})
        paths.DataFolder(data).new_llamacpp_key()
    finally:
        os.umask(old)
    assert {name: mode for name, mode in modes(data).items() if mode & 0o077} == {}
    assert (data / "environment.json").stat().st_mode & 0o777 == 0o600


def test_a_persons_own_files_beside_it_are_left_alone(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    (tmp_path / "notes.txt").chmod(0o644)
    outside = tmp_path / "outside"
    outside.write_text("")
    outside.chmod(0o644)
    (tmp_path / "logs").mkdir()
    (tmp_path / "logs" / "link").symlink_to(outside)
    paths.DataFolder(tmp_path).hold()
    assert (tmp_path / "notes.txt").stat().st_mode & 0o777 == 0o644
    assert outside.stat().st_mode & 0o777 == 0o644


def test_a_folder_that_everyone_shares_is_refused(tmp_path: Path) -> None:
    tmp_path.chmod(0o1777)
    with pytest.raises(paths.NotOurs, match="shared by all users"):
        paths.DataFolder(tmp_path).hold()
    assert tmp_path.stat().st_mode & 0o7777 == 0o1777


def test_a_lock_that_is_a_link_is_refused(tmp_path: Path) -> None:
    (tmp_path / "victim").write_text("kept")
    (tmp_path / "lock").symlink_to(tmp_path / "victim")
    with pytest.raises(OSError, match="symbolic links"):
        paths.DataFolder(tmp_path).hold()


@pytest.mark.skipif(os.geteuid() != 0, reason="only root gives files to others")
def test_what_another_user_put_there_is_not_believed(tmp_path: Path) -> None:
    data = tmp_path / "data"
    data.mkdir()
    (data / "api-key").write_text("known to another")
    os.chown(data / "api-key", 65534, 65534)
    with pytest.raises(paths.NotOurs, match="made by another user"):
        paths.DataFolder(data).hold()
    os.chown(data, 65534, 65534)
    with pytest.raises(paths.NotOurs, match="belongs to another user"):
        paths.DataFolder(data).hold()


def test_every_run_has_another_key_for_its_model_server(tmp_path: Path) -> None:
    folder = paths.DataFolder(tmp_path)
    key, file = folder.new_llamacpp_key()
    assert file.read_text() == key
    assert len(key) >= 40
    assert file.stat().st_mode & 0o777 == 0o600
    assert folder.new_llamacpp_key()[0] != key
