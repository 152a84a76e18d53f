"""Processes of this machine as instances: real ones, started, found, ended, and lost with their parent."""

import asyncio
import json
import os
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import psutil
import pytest

from goblin.core.errors import ProviderUnavailable, Transient
from goblin.jobs.domain.instances import KnownInventory, RentalOrder, UnknownInventory
from goblin.jobs.domain.market import InstanceRequirements, Listing
from goblin.providers.local import compute as local
from goblin.providers.local.compute import LocalInstances

# Says what it was given, then waits for its end; `stubborn` does not end when asked.
WORKER = """
import os, signal, sys, threading
if "stubborn" in sys.argv[1]:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
with open("said.draft", "w") as file:
    print(sorted(os.environ), sys.argv[1:], file=file)
os.replace("said.draft", "said")
threading.Thread(target=lambda: (sys.stdin.buffer.read(), os._exit(3)), daemon=True).start()
threading.Event().wait()
"""
DEADLINE_S = 20.0


def order(label: str = "goblin-j-a1") -> RentalOrder:
    environment = {"GOBLIN_URL": "http://g", "GOBLIN_ATTEMPT_TOKEN": "t"}
    return RentalOrder(label=label, kind="batch", environment=environment, offer=local.OFFER)


async def until(true: Callable[[], bool]) -> None:
    """Wait for what another process does; there is nothing to wait on but its effects."""
    deadline = time.monotonic() + DEADLINE_S
    while not true():
        assert time.monotonic() < deadline
        await asyncio.sleep(0.01)


@pytest.fixture
async def provider(tmp_path: Path) -> AsyncIterator[LocalInstances]:
    rented = local.connect(tmp_path / "instances", command=(sys.executable, "-c", WORKER))
    yield rented
    for child in rented._children.values():
        child.kill()
        child.wait()
        assert child.stdin
        child.stdin.close()


async def labels(provider: LocalInstances) -> set[str]:
    inventory = await provider.inventory()
    assert isinstance(inventory, KnownInventory)
    return set(inventory.by_label())


def said(tmp_path: Path, label: str = "goblin-j-a1") -> Path:
    return tmp_path / "instances" / label / "said"


async def test_nothing_was_rented_yet(provider: LocalInstances) -> None:
    assert await provider.inventory() == KnownInventory(instances=frozenset())


async def test_an_instance_is_given_its_order_and_nothing_else(
    provider: LocalInstances, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RUNPOD_API_KEY", "secret")
    monkeypatch.setenv("GOOGLE_APPLICATION_CREDENTIALS", "/key.json")
    instance_id = await provider.rent(order())
    await until(said(tmp_path).exists)
    text = said(tmp_path).read_text()
    assert "SECRET" not in text.upper()
    assert "GOOGLE" not in text
    # What Python itself sets is not ours to take away.
    names = set(eval(text.partition("]")[0] + "]")) - {"LC_CTYPE"}
    assert names == {"GOBLIN_URL", "GOBLIN_ATTEMPT_TOKEN"}
    inventory = await provider.inventory()
    assert isinstance(inventory, KnownInventory)
    assert [(one.instance_id, one.label) for one in inventory.instances] == [(instance_id, "goblin-j-a1")]


async def test_a_label_is_rented_once(provider: LocalInstances) -> None:
    await provider.rent(order())
    with pytest.raises(Transient, match="started before"):
        await provider.rent(order())
    assert await labels(provider) == {"goblin-j-a1"}


@pytest.mark.parametrize("label", ["../etc", "goblin-../x", "other", "goblin-", "goblin-a/b"])
async def test_what_cannot_be_a_label_is_neither_rented_nor_released(provider: LocalInstances, label: str) -> None:
    with pytest.raises(ProviderUnavailable):
        await provider.rent(order(label))
    await provider.release(label)


async def test_release_asks_first_and_insists_the_second_time(provider: LocalInstances, tmp_path: Path) -> None:
    children = {}
    for label in ("goblin-meek-a1", "goblin-stubborn-a1"):
        await provider.rent(order(label))
        children[label] = provider._children[label]
        await until(said(tmp_path, label).exists)
    for label in children:
        await provider.release(label)
    await until(lambda: children["goblin-meek-a1"].poll() is not None)
    assert await labels(provider) == {"goblin-stubborn-a1"}
    await provider.release("goblin-stubborn-a1")
    await until(lambda: children["goblin-stubborn-a1"].poll() is not None)
    assert await labels(provider) == set()
    await provider.release("goblin-stubborn-a1")


async def test_an_instance_that_ended_by_itself_is_gone(provider: LocalInstances, tmp_path: Path) -> None:
    await provider.rent(order())
    os.kill(provider._children["goblin-j-a1"].pid, signal.SIGKILL)
    await until(lambda: provider._children["goblin-j-a1"].poll() is not None)
    assert await labels(provider) == set()
    assert not (tmp_path / "instances" / "goblin-j-a1").exists()


async def test_another_process_with_the_same_id_is_not_ours_and_not_touched(
    provider: LocalInstances, tmp_path: Path
) -> None:
    """After a reboot, or long enough, the process id belongs to somebody else."""
    folder = tmp_path / "instances" / "goblin-j-a1"
    folder.mkdir(parents=True)
    record = {"label": "goblin-j-a1", "pid": os.getpid(), "process_started_at": 12345.0, "asked_to_end": True}
    (folder / "record.json").write_text(json.dumps(record))
    await provider.release("goblin-j-a1")  # Else the test ends here.
    assert await labels(provider) == set()


async def test_a_restarted_host_finds_what_still_runs_and_can_end_it(provider: LocalInstances, tmp_path: Path) -> None:
    await provider.rent(order())
    again = local.connect(tmp_path / "instances")
    assert await labels(again) == {"goblin-j-a1"}
    await until(said(tmp_path).exists)
    await again.release("goblin-j-a1")
    await until(lambda: provider._children["goblin-j-a1"].poll() is not None)
    assert await labels(again) == set()


async def test_a_start_that_was_cut_off_left_nothing(provider: LocalInstances, tmp_path: Path) -> None:
    (tmp_path / "instances" / "goblin-j-a1").mkdir(parents=True)
    assert await labels(provider) == set()


async def test_the_worker_ends_with_the_host_that_started_it(tmp_path: Path) -> None:
    """`kill -9` of the host: the worker's standard input ends, and it with it."""
    host = textwrap.dedent(f"""
        import asyncio, sys
        from pathlib import Path
        from goblin.providers.local import compute as local
        from goblin.jobs.domain.instances import RentalOrder
        provider = local.connect(Path({str(tmp_path / "instances")!r}), command=(sys.executable, "-c", {WORKER!r}))
        order = RentalOrder(label="goblin-j-a1", kind="batch", environment={{}}, offer=local.OFFER)
        print(asyncio.run(provider.rent(order)), flush=True)
        sys.stdin.read()
    """)
    process = subprocess.Popen(  # noqa: ASYNC220 - it is read from and killed
        [sys.executable, "-c", host], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    with process:
        assert process.stdout
        worker = psutil.Process(int(process.stdout.readline().partition("-")[0]))
        await until(said(tmp_path).exists)
        process.kill()
    await until(lambda: not worker.is_running() or worker.status() == psutil.STATUS_ZOMBIE)
    assert await labels(local.connect(tmp_path / "instances")) == set()


async def test_a_folder_that_cannot_be_read_is_unknown_and_not_empty(tmp_path: Path) -> None:
    folder = tmp_path / "instances" / "goblin-j-a1"
    (folder / "record.json").mkdir(parents=True)
    assert isinstance(await local.connect(tmp_path / "instances").inventory(), UnknownInventory)


async def test_there_is_a_limit(provider: LocalInstances, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(local, "INSTANCES_MAX", 1)
    await provider.rent(order())
    with pytest.raises(ProviderUnavailable, match="running already"):
        await provider.rent(order("goblin-k-a1"))


async def test_only_the_newest_logs_are_kept(
    provider: LocalInstances, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(local, "LOGS_KEPT", 2)
    for number in range(4):
        await provider.rent(order(f"goblin-j-a{number}"))
        os.utime(tmp_path / "instances" / "logs" / f"goblin-j-a{number}.log", (number, number))
    assert {log.stem for log in (tmp_path / "instances" / "logs").iterdir()} == {"goblin-j-a2", "goblin-j-a3"}


async def test_a_machine_that_stops_asks_its_instances_to_end_and_starts_no_other(
    provider: LocalInstances, tmp_path: Path
) -> None:
    await provider.rent(order())
    await until(said(tmp_path).exists)
    child = provider._children["goblin-j-a1"]
    await local.close(tmp_path / "instances", within_s=DEADLINE_S)
    assert child.wait() == -signal.SIGTERM
    assert await provider.offers(InstanceRequirements(kind="batch")) == Listing()
    with pytest.raises(ProviderUnavailable, match="shutting down"):
        await provider.rent(order("goblin-j-a2"))
    local.reopen(tmp_path / "instances")
    assert await provider.offers(InstanceRequirements(kind="batch")) != Listing()
    await provider.rent(order("goblin-j-a2"))


async def test_a_machine_that_stops_waits_only_so_long_for_the_stubborn(
    provider: LocalInstances, tmp_path: Path
) -> None:
    label = "goblin-stubborn-a1"
    await provider.rent(order(label))
    await until(said(tmp_path, label).exists)
    await local.close(tmp_path / "instances", within_s=0.2)
    assert await labels(provider) == {label}, "it is there, and so is its record"


async def test_a_machine_on_which_nothing_runs_stops_at_once(tmp_path: Path) -> None:
    async with asyncio.timeout(DEADLINE_S):
        await local.close(tmp_path / "never used", within_s=10 * DEADLINE_S)
