"""Logs of the processes of `goblin up`: bounded while they run, whole at their end, for their owner's eyes."""

import os
import stat
import sys
from contextlib import suppress
from pathlib import Path

import pytest

from goblin.cli.child_log import ChildLog
from goblin.cli.supervisor import Child

MIB = 1 << 20


def write(log: ChildLog, data: bytes) -> None:
    descriptor = log.open()
    with os.fdopen(descriptor, "wb") as file:
        file.write(data)
    log.settle()


def test_a_log_that_is_full_is_turned_over_while_the_process_runs(tmp_path: Path) -> None:
    log = ChildLog(tmp_path / "logs" / "it.log", bytes_max=10_000)
    old = log.path.with_name("it.log.1")
    descriptor = log.open()
    with os.fdopen(descriptor, "wb", buffering=0) as file:
        for n in range(3000):
            file.write(b"line %04d of some length\n" % n)
            for part in (log.path, old):
                with suppress(FileNotFoundError):  # It is just being turned over.
                    assert part.stat().st_size <= 10_000
    log.settle()
    lines = (old.read_text() + log.path.read_text()).splitlines()
    assert lines[-1] == "line 2999 of some length"
    assert [int(line.split()[1]) for line in lines[1:]] == list(range(3000 - len(lines) + 1, 3000))
    assert sorted(file.name for file in log.path.parent.iterdir()) == ["it.log", "it.log.1"]


def test_one_endless_line_is_bounded_too(tmp_path: Path) -> None:
    log = ChildLog(tmp_path / "it.log", bytes_max=1000)
    write(log, b"x" * 300_000)
    assert sum(file.stat().st_size for file in tmp_path.iterdir()) <= 2000


def test_what_a_process_prints_cannot_move_a_cursor(tmp_path: Path) -> None:
    log = ChildLog(tmp_path / "it.log")
    write(log, "a\x1b[2J\r\x00\x9bä\u202e\n\tb\n".encode() + b"\xff\xc3")
    assert log.path.read_text() == "a\\x1b[2J\\r\\x00\\x9bä\\u202e\n\tb\n\\xff\\xc3"
    assert log.tail(1) == "\tb\n\\xff\\xc3"


def test_it_is_its_owners_and_never_another_file(tmp_path: Path) -> None:
    old = os.umask(0)
    try:
        log = ChildLog(tmp_path / "logs" / "it.log")
        write(log, b"said\n")
    finally:
        os.umask(old)
    assert stat.S_IMODE(log.path.stat().st_mode) == 0o600
    assert stat.S_IMODE(log.path.parent.stat().st_mode) == 0o700
    victim = tmp_path / "victim"
    victim.write_text("")
    log.path.unlink()
    log.path.symlink_to(victim)
    with pytest.raises(OSError, match="symbolic links"):
        log.open()
    assert victim.read_text() == ""


def size_of(folder: Path) -> int:
    return sum(file.stat().st_size for file in folder.iterdir())


async def test_a_chatty_child_fills_no_disk_and_is_not_held_up(tmp_path: Path) -> None:
    program = "import sys\nfor n in range(60): sys.stdout.write('x' * (1 << 20) + '\\n')\nsys.stdout.write('end\\n')"
    lock = os.open(tmp_path / "lock", os.O_CREAT | os.O_RDWR)
    it = Child(name="it", command=[sys.executable, "-c", program], env=dict(os.environ), log=tmp_path / "l", lock=lock)
    await it.start()
    assert it.process is not None
    assert await it.process.wait() == 0
    assert it.tail().endswith("\nend")
    assert size_of(tmp_path) < 33 * MIB
