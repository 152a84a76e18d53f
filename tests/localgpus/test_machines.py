"""What instances run on: real processes, told only what they are told, gone with all that they started."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

from localgpus import machines
from localgpus.machines import NoMachines, NoRoom, Processes

# Says what it was given and what it started; `stubborn` does not end when asked, `loud` fills its log.
PROGRAM = """
import os, signal, subprocess, sys, threading
threading.Thread(target=lambda: (os.read(0, 1), os._exit(3)), daemon=True).start()
if "stubborn" in sys.argv: signal.signal(signal.SIGTERM, signal.SIG_IGN)
if "code" in sys.argv: sys.exit(7)
if "loud" in sys.argv:
    for n in range(200): print("x" * 1000, flush=True)
    print("last", flush=True); sys.exit(0)
child = subprocess.Popen([sys.executable, "-c", "import threading; threading.Event().wait()"], env={})
print(sorted(os.environ), sys.argv[1:], os.getcwd(), child.pid, flush=True)
threading.Event().wait()
"""
DEADLINE_S = 20.0


def until(true: Callable[[], object]) -> None:
    """Wait for what another process does; there is nothing to wait on but its effects."""
    deadline = time.monotonic() + DEADLINE_S
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0.01)


@pytest.fixture
def rented(tmp_path: Path) -> Iterator[Processes]:
    made = Processes([sys.executable, "-c", PROGRAM], tmp_path)
    yield made
    made.close()


def start(rented: Processes, *args: str, name: str = "vast-1") -> None:
    rented.start(name, image="goblin/agent:1", args=args, env={"GOBLIN_URL": "http://g"})


def test_an_instance_is_told_its_environment_and_nothing_of_ours(
    rented: Processes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("VASTAI_API_KEY", "secret")
    start(rented, "train")
    until(lambda: "GOBLIN_URL" in rented.logs("vast-1"))
    said = rented.logs("vast-1")
    assert "secret" not in said
    assert "VASTAI_API_KEY" not in said
    assert "PATH" not in said.replace("PYTHONPATH", "PATH").split("]")[0]
    assert "['train']" in said
    assert str(tmp_path / "vast-1" / "disk") in said


def test_an_instance_ends_with_everything_that_it_started(rented: Processes) -> None:
    start(rented)
    until(lambda: rented.logs("vast-1"))
    child = int(rented.logs("vast-1").split()[-1])
    assert psutil.pid_exists(child)
    rented.stop("vast-1", grace_s=60)
    until(lambda: not rented.running("vast-1"))
    until(lambda: not _lives(child))
    assert rented.exit_code("vast-1") == 128 + signal.SIGTERM


def test_one_that_does_not_end_when_asked_is_made_to_after_its_grace(rented: Processes) -> None:
    start(rented, "stubborn")
    until(lambda: rented.logs("vast-1"))
    rented.stop("vast-1", grace_s=60)
    rented.stop("vast-1", grace_s=0.05)
    until(lambda: not rented.running("vast-1"))
    assert rented.exit_code("vast-1") == 128 + signal.SIGKILL


def test_all_are_asked_to_end_and_waited_for_but_not_for_ever(rented: Processes) -> None:
    start(rented, name="vast-1")
    start(rented, "stubborn", name="vast-2")
    until(lambda: "GOBLIN_URL" in rented.logs("vast-1") and "GOBLIN_URL" in rented.logs("vast-2"))
    rented.stop_all(within_s=0.5)
    assert (rented.running("vast-1"), rented.running("vast-2")) == (False, True)
    assert rented.exit_code("vast-1") == 128 + signal.SIGTERM


def test_an_exit_code_is_told(rented: Processes) -> None:
    start(rented, "code")
    until(lambda: rented.exit_code("vast-1") is not None)
    assert rented.exit_code("vast-1") == 7


def test_a_disk_outlives_a_stop_and_not_a_removal(rented: Processes, tmp_path: Path) -> None:
    start(rented)
    mark = tmp_path / "vast-1" / "disk" / "checkpoint"
    mark.write_text("1000")
    rented.kill("vast-1")
    until(lambda: not rented.running("vast-1"))
    start(rented)
    assert mark.exists()
    rented.remove("vast-1")
    assert not mark.exists()
    assert not rented.running("vast-1")
    assert rented.logs("vast-1") == ""


def test_a_log_keeps_its_newest_part_within_its_limit(
    rented: Processes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(machines, "LOG_BYTES_MAX", 20_000)
    start(rented, "loud")
    until(lambda: rented.logs("vast-1").endswith("last\n"))
    assert (tmp_path / "vast-1" / "log").stat().st_size <= 20_000


def test_there_is_room_for_so_many_and_no_more(rented: Processes, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machines, "RUNNING_MAX", 1)
    start(rented)
    start(rented)
    with pytest.raises(NoRoom):
        start(rented, name="vast-2")


@pytest.mark.parametrize("name", ["", "../x", "a/b", ".", "-a", "x" * 201, "a\n"])
def test_a_name_is_no_path(rented: Processes, name: str) -> None:
    with pytest.raises(ValueError, match="cannot be"):
        start(rented, name=name)


def test_instances_die_with_who_rents_them_out(tmp_path: Path) -> None:
    landlord = textwrap.dedent(f"""
        import sys, time
        from pathlib import Path
        from localgpus.machines import Processes
        rented = Processes([sys.executable, "-c", {PROGRAM!r}], Path({str(tmp_path)!r}))
        rented.start("vast-1", image="", args=[], env={{}})
        while not rented.logs("vast-1"): time.sleep(0.01)
        print(rented._runs["vast-1"].process.pid, flush=True)
        time.sleep(60)
    """)
    env = {**os.environ, "PYTHONPATH": str(Path(machines.__file__).parents[1])}
    with subprocess.Popen([sys.executable, "-c", landlord], stdout=subprocess.PIPE, env=env) as process:
        assert process.stdout
        pid = int(process.stdout.readline())
        assert _lives(pid)
        process.kill()
    until(lambda: not _lives(pid))


def test_what_a_test_says_of_its_instances_holds() -> None:
    said = NoMachines()
    said.start("a", image="i", args=["x"], env={"K": "v"})
    assert said.running("a")
    said.stop("a", grace_s=10)
    assert said.running("a")
    said.end("a", 3)
    assert (said.running("a"), said.exit_code("a")) == (False, 3)
    said.kill("never started")
    assert said.exit_code("never started") is None


def _lives(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False
