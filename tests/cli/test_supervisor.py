"""Children: started again when they fall, given up when they fall too often, gone when their parent is."""

import asyncio
import os
import signal
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from goblin.cli.supervisor import FALLS_MAX, Child, Failed, keep, python_child, wait_ready


@pytest.fixture
def lock(tmp_path: Path) -> int:
    return os.open(tmp_path / "lock", os.O_CREAT | os.O_RDWR)


def child(tmp_path: Path, lock: int, *command: str) -> Child:
    return Child(name="it", command=command, env=dict(os.environ), log=tmp_path / "it.log", lock=lock)


async def test_a_fallen_child_is_started_again(tmp_path: Path, lock: int) -> None:
    it = child(tmp_path, lock, "sleep", "60")
    await it.start()
    assert it.process is not None
    first = it.process.pid
    said: list[str] = []
    back = asyncio.Event()

    async def recovered() -> None:
        back.set()

    keeping = asyncio.create_task(keep(it, said.append, recovered))
    os.kill(first, signal.SIGKILL)
    await asyncio.wait_for(back.wait(), 10)
    assert it.process.pid != first
    assert "restarting it" in said[0]
    keeping.cancel()
    await it.stop()


async def test_a_child_that_keeps_falling_is_given_up_with_its_last_words(
    tmp_path: Path, lock: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = asyncio.sleep
    monkeypatch.setattr(asyncio, "sleep", lambda _: real(0))
    it = child(tmp_path, lock, "sh", "-c", "echo no luck; exit 3")
    await it.start()

    async def recovered() -> None:
        pass

    with pytest.raises(Failed, match=f"crashed {FALLS_MAX} times") as failure:
        await keep(it, lambda _: None, recovered)
    assert "no luck" in str(failure.value)


async def test_a_child_that_ends_before_it_is_ready_is_no_wait(tmp_path: Path, lock: int) -> None:
    it = child(tmp_path, lock, "sh", "-c", "echo broken; exit 2")
    await it.start()

    async def never() -> bool:
        return False

    with pytest.raises(Failed, match="ended with exit code 2 at its start"):
        await wait_ready(it, never, timeout_s=20)


async def test_stopping_lets_a_child_end_by_itself(tmp_path: Path, lock: int) -> None:
    it = child(tmp_path, lock, "sh", "-c", "trap 'echo drained; exit 0' TERM; echo up; while :; do sleep 0.05; done")
    await it.start()

    async def up() -> bool:
        return "up" in it.tail()

    await wait_ready(it, up, timeout_s=20)
    await it.stop()
    assert it.process is not None
    assert it.process.returncode == 0
    assert it.tail().endswith("drained")


def test_a_child_ends_when_its_parent_is_killed(tmp_path: Path) -> None:
    (tmp_path / "forever.py").write_text("import threading; print('up', flush=True); threading.Event().wait()")
    program = (
        "import subprocess, sys, time\n"
        f"child = subprocess.Popen({python_child('forever')!r}, stdin=subprocess.PIPE, stdout=sys.stdout)\n"
        "print(child.pid, flush=True); child.wait()\n"
    )
    env = {**os.environ, "PYTHONPATH": str(tmp_path)}
    with subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True, env=env) as parent:
        assert parent.stdout is not None
        lines = {parent.stdout.readline().strip(), parent.stdout.readline().strip()}
        pid = int(next(line for line in lines if line != "up"))
        history = psutil.Process(pid)
        parent.kill()
        assert history.wait(10) is None or not history.is_running()


async def test_one_that_has_fallen_is_waited_for_only_if_somebody_starts_it_again(tmp_path: Path, lock: int) -> None:
    it = child(tmp_path, lock, "false")
    await it.start()
    assert it.process is not None
    await it.process.wait()
    looks = iter([False, True])

    async def ready() -> bool:
        return next(looks)

    with pytest.raises(Failed, match="ended with exit code 1 at its start"):
        await wait_ready(it, ready, 10)
    await wait_ready(it, ready, 10, kept=True)
    assert not it.runs
