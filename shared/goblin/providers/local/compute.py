"""This machine as a compute provider: an instance is a process that runs the agent, and costs nothing.

An instance is recorded in a folder named by its label. The folder is written before the process starts and deleted
when the process is gone. A process id alone proves nothing (ids are reused, also after a reboot), so the record also
holds the process's start time. The process ends with its parent, however the parent ends: its standard input is a pipe.
"""

from __future__ import annotations

import asyncio
import json
import os
import re
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, ParamSpec, TypeVar

import psutil

from goblin.core.errors import ProviderUnavailable, Transient
from goblin.core.labels import LABEL_PREFIX
from goblin.jobs.domain.instances import Instance, Inventory, KnownInventory, RentalOrder, UnknownInventory
from goblin.jobs.domain.market import InstanceRequirements, Listing, Offer

P = ParamSpec("P")
T = TypeVar("T")

NAME = "local"
KINDS = frozenset({"batch", "training"})
START_S_MAX = 30.0
INSTANCES_MAX = 16
LOGS_KEPT = 50
CLOSED = "closed"
"""Name of a file in the folder; while it exists the machine is shutting down and no instance starts."""
LOOK_S = 0.1
"""How often `close` checks which processes still run."""
AGENT = "goblin_agent"
OFFER = Offer(
    offer_id="process", provider=NAME, pool=NAME, spot=False, price_usd_micros_per_hour=0, gpu_count=0,
    gpu_memory_mib=0, boot_s=1.0, reliability=1.0, download_mib_per_s=1000.0,
)  # fmt: skip
_SAME_START_S = 0.5
"""Tolerance for start times, which are converted from the kernel's ticks since boot."""
_LABEL = re.compile(rf"^{LABEL_PREFIX}[A-Za-z0-9._-]{{1,200}}\Z")


@dataclass(frozen=True, kw_only=True, slots=True)
class Record:
    """One instance as recorded on disk."""

    label: str
    pid: int | None = None
    """Process id; None while it is being started."""
    process_started_at: float = 0.0
    """Seconds since 1970, as the kernel reports it."""
    asked_to_end: bool = False
    """Whether it was sent SIGTERM; the next release kills it."""


def connect(folder: Path, *, command: tuple[str, ...] | None = None) -> LocalInstances:
    """Use this machine as a compute provider.

    Args:
        folder: Holds the instances' records and logs.
        command: Command that runs an agent that ends with its parent; tests pass another.
    """
    return LocalInstances(folder, command or (sys.executable, "-u", "-m", "goblin.cli.child", AGENT))


def reopen(folder: Path) -> None:
    """Allow instances to start again, after `close`."""
    (folder / CLOSED).unlink(missing_ok=True)


def _shut(folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    (folder / CLOSED).touch()


async def close(folder: Path, *, within_s: float) -> None:
    """Stop new instances from starting and ask every instance to save and end.

    Returns when all have ended, or after `within_s`. Another process rents instances here: it sees the `CLOSED` file,
    and it alone writes the records.
    """
    _shut(folder)
    here, asked = LocalInstances(folder, ()), set[str]()
    clock = asyncio.get_running_loop().time
    deadline = clock() + within_s
    while (running := await asyncio.to_thread(here.running)) and clock() < deadline:
        for label in running.keys() - asked:
            with suppress(psutil.Error):
                running[label].terminate()
        asked |= running.keys()
        await asyncio.sleep(LOOK_S)


class LocalInstances:
    """This machine as a `ComputeProvider`."""

    name = NAME
    kinds = KINDS
    start_s_max = START_S_MAX

    def __init__(self, folder: Path, command: tuple[str, ...]) -> None:
        self._folder = folder
        self._command = command
        self._children: dict[str, subprocess.Popen[bytes]] = {}
        """Processes that this process started, by label: it holds their pipes and reaps them when they end."""
        self._lock = threading.Lock()
        """Serialises operations: an inventory must not delete a record whose process is about to start."""

    async def offers(self, wanted: InstanceRequirements) -> Listing:
        if wanted.kind not in KINDS or wanted.gpu_count or self._closed():
            return Listing()
        return Listing(offers=(OFFER,))

    async def inventory(self) -> Inventory:
        try:
            return await asyncio.to_thread(self._alone, self._look)
        except (OSError, ValueError, psutil.Error) as error:
            return UnknownInventory(reason=f"{type(error).__name__}: {error}")

    async def rent(self, order: RentalOrder) -> str:
        if not _LABEL.match(order.label):
            raise ProviderUnavailable(f"{order.label!r} is not a valid instance label.")
        try:
            return await asyncio.to_thread(self._alone, self._start, order)
        except OSError as error:
            raise ProviderUnavailable(f"The agent's process cannot be started: {error}.") from error

    async def release(self, label: str) -> None:
        if not _LABEL.match(label):
            return
        try:
            await asyncio.to_thread(self._alone, self._end, label)
        except (OSError, ValueError, psutil.Error) as error:
            raise Transient(f"The agent's process cannot be ended: {type(error).__name__}: {error}.") from error

    def _alone(self, call: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        with self._lock:
            return call(*args, **kwargs)

    def running(self) -> dict[str, psutil.Process]:
        """Find the processes of all instances, by label, without deleting records of those that ended."""
        names = [folder.name for folder in self._folder.glob(f"{LABEL_PREFIX}*")]
        found = {name: self._process(self._read(name)) for name in names}
        return {name: process for name, process in found.items() if process is not None}

    def _look(self) -> KnownInventory:
        found = set()
        for folder in sorted(self._folder.glob(f"{LABEL_PREFIX}*")) if self._folder.is_dir() else ():
            record = self._read(folder.name)
            if self._process(record) is not None:
                found.add(_instance(record))
            else:
                self._forget(folder.name)
        return KnownInventory(instances=frozenset(found))

    def _closed(self) -> bool:
        return (self._folder / CLOSED).exists()

    def _start(self, order: RentalOrder) -> str:
        if self._closed():
            raise ProviderUnavailable("This machine is shutting down.")
        if len(self._look().instances) >= INSTANCES_MAX:
            raise ProviderUnavailable(f"{INSTANCES_MAX} processes are running already, which is the limit.")
        folder = self._folder / order.label
        folder.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        try:
            folder.mkdir(mode=0o700)
        except FileExistsError as error:
            raise Transient(f"An instance {order.label} was started before.") from error
        record = Record(label=order.label)
        self._write(record)
        with self._log(order.label).open("ab") as output:
            child = subprocess.Popen(
                [*self._command, order.label],
                # Pass only the order's environment, none of our own: no key, no project, no path.
                env=dict(order.environment),
                cwd=folder, stdin=subprocess.PIPE, stdout=output, stderr=subprocess.STDOUT, start_new_session=True,
            )  # fmt: skip
        self._children[order.label] = child
        try:
            started_at = psutil.Process(child.pid).create_time()
            record = replace(record, pid=child.pid, process_started_at=started_at)
            self._write(record)
        except (OSError, psutil.Error) as error:
            # Without a record it could not be found again.
            child.kill()
            child.wait()
            self._forget(order.label)
            raise ProviderUnavailable(f"The agent's process could not be recorded: {error}.") from error
        return _instance(record).instance_id

    def _end(self, label: str) -> None:
        """Ask a process to end; the second time, kill it."""
        record = self._read(label)
        process = self._process(record)
        if process is None:
            self._forget(label)
            return
        with suppress(psutil.NoSuchProcess):
            if record.asked_to_end:
                process.kill()
            else:
                process.terminate()
                self._write(replace(record, asked_to_end=True))

    def _process(self, record: Record) -> psutil.Process | None:
        """Find the record's process if it still runs. A record without a process id was interrupted while starting."""
        child = self._children.get(record.label)
        if child is not None and child.poll() is not None:
            return None
        if record.pid is None:
            return None
        try:
            process = psutil.Process(record.pid)
            same = abs(process.create_time() - record.process_started_at) < _SAME_START_S
            return process if same and process.status() != psutil.STATUS_ZOMBIE else None
        except psutil.NoSuchProcess:
            return None

    def _read(self, label: str) -> Record:
        try:
            said: dict[str, Any] = json.loads((self._folder / label / "record.json").read_text())
            return Record(**said)
        except (FileNotFoundError, TypeError, json.JSONDecodeError):
            return Record(label=label)

    def _write(self, record: Record) -> None:
        path = self._folder / record.label / "record.json"
        draft = path.with_suffix(".draft")
        draft.write_text(json.dumps(asdict(record)))
        draft.replace(path)

    def _forget(self, label: str) -> None:
        child = self._children.pop(label, None)
        if child is not None and child.stdin is not None:
            child.stdin.close()
        shutil.rmtree(self._folder / label, ignore_errors=True)

    def _log(self, label: str) -> Path:
        logs = self._folder / "logs"
        logs.mkdir(exist_ok=True, mode=0o700)
        kept = sorted(logs.glob("*.log"), key=os.path.getmtime)
        for old in kept[: max(0, len(kept) - LOGS_KEPT + 1)]:
            old.unlink(missing_ok=True)
        return logs / f"{label}.log"


def _instance(record: Record) -> Instance:
    return Instance(provider=NAME, instance_id=f"{record.pid}-{record.process_started_at:.2f}", label=record.label)
