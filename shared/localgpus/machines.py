"""What a rented instance runs on: a container at a provider, a process on a laptop.

Each simulated provider chooses its instances' names: the provider's name and the instance's id. A name stands for one
disk and, while the instance runs, one process with its children.
"""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import threading
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Protocol

RUNNING_MAX = 32
"""Most processes at once: a laptop has less capacity than a data centre."""
LOG_BYTES_MAX = 1024 * 1024
"""Largest log of one instance, over all its starts. When it is full, its older half is dropped."""
_PIECE = 64 * 1024
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,199}\Z")


class NoRoom(Exception):
    """The instance cannot be started: too many run already, or its command fails to start."""


class Machines(Protocol):
    """Where instances run. A name that was never started is no error: it does not run, and stopping it does nothing."""

    def start(self, name: str, *, image: str, args: Sequence[str], env: Mapping[str, str]) -> None:
        """Start the instance, on its earlier disk if it has one. Does nothing while it runs.

        Args:
            name: The instance's name: letters, digits, `.`, `_`, `-`.
            image: The container image that a provider would run.
            args: Arguments for the image's own program.
            env: The whole environment of the process.

        Raises:
            NoRoom: The instance cannot be started.
        """

    def stop(self, name: str, *, grace_s: float) -> None:
        """Send SIGTERM now and SIGKILL after `grace_s`. Returns at once."""

    def kill(self, name: str) -> None:
        """Send SIGKILL to the process and its children."""

    def remove(self, name: str) -> None:
        """Kill the instance and delete its disk and its log."""

    def running(self, name: str) -> bool:
        """Return whether the instance's process runs now."""

    def exit_code(self, name: str) -> int | None:
        """Return the exit code of its last process, 128 + the signal's number if a signal ended it.

        None while it runs, and if no end of it is known.
        """

    def logs(self, name: str) -> str:
        """Return the end of its output, at most `LOG_BYTES_MAX` bytes of it."""

    def stop_all(self, *, within_s: float) -> None:
        """Send SIGTERM to all instances and wait until they have ended, at most `within_s`."""

    def close(self) -> None:
        """Kill all instances, as if the host were switched off."""


@dataclass(kw_only=True, slots=True)
class _Run:
    """One process of an instance, from start to end."""

    process: subprocess.Popen[bytes]
    ended: threading.Event = field(default_factory=threading.Event)
    """Set once the process has ended and its process group is killed."""


class Processes:
    """The port `Machines` with processes: one command for every image, with the instance's environment and no other.

    Standard input is a pipe without data. It closes when this process ends, however it ends, and the command must then
    end too.
    """

    def __init__(self, command: Sequence[str], folder: Path) -> None:
        """Create the machines. Nothing runs yet.

        Args:
            command: Runs in place of any image. Its first word is an absolute path, because there is no `PATH`.
            folder: Holds the disks and logs.
        """
        self._command = tuple(command)
        self._folder = folder
        self._runs: dict[str, _Run] = {}
        self._lock = threading.Lock()

    def start(self, name: str, *, image: str, args: Sequence[str], env: Mapping[str, str]) -> None:
        folder = self._at(name)
        with self._lock:
            if self._alive(name):
                return
            if sum(run.process.poll() is None for run in self._runs.values()) >= RUNNING_MAX:
                raise NoRoom(f"{RUNNING_MAX} instances are running already")
            disk = folder / "disk"
            disk.mkdir(parents=True, exist_ok=True, mode=0o700)
            try:
                process = subprocess.Popen(
                    [*self._command, *args],
                    env={"HOME": str(disk), "TMPDIR": str(disk), **env},
                    cwd=disk, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
                    start_new_session=True,
                )  # fmt: skip
            except (OSError, ValueError) as error:
                raise NoRoom(f"image {image} cannot be started: {error}") from error
            run = self._runs[name] = _Run(process=process)
        for work, what in ((self._collect, "wait"), (_keep_log, "log")):
            words = (run,) if what == "wait" else (process.stdout, folder / "log")
            threading.Thread(target=work, args=words, name=f"{what} {name}", daemon=True).start()

    def stop(self, name: str, *, grace_s: float) -> None:
        run = self._runs.get(name)
        if run is None or run.process.poll() is not None:
            return
        with suppress(ProcessLookupError):
            run.process.terminate()
        late = threading.Timer(grace_s, _kill, (run,))
        late.daemon = True
        late.start()

    def kill(self, name: str) -> None:
        if run := self._runs.get(name):
            _kill(run)

    def remove(self, name: str) -> None:
        self.kill(name)
        if run := self._runs.pop(name, None):
            run.ended.wait(5.0)
        shutil.rmtree(self._at(name), ignore_errors=True)

    def running(self, name: str) -> bool:
        return self._alive(name)

    def exit_code(self, name: str) -> int | None:
        run = self._runs.get(name)
        code = run.process.poll() if run else None
        return code if code is None or code >= 0 else 128 - code

    def logs(self, name: str) -> str:
        try:
            return (self._at(name) / "log").read_bytes()[-LOG_BYTES_MAX:].decode("utf-8", "replace")
        except FileNotFoundError:
            return ""

    def stop_all(self, *, within_s: float) -> None:
        runs = [run for run in list(self._runs.values()) if run.process.poll() is None]
        for run in runs:
            with suppress(ProcessLookupError):
                run.process.terminate()
        deadline = time.monotonic() + within_s
        for run in runs:
            run.ended.wait(max(0.0, deadline - time.monotonic()))

    def close(self) -> None:
        runs = list(self._runs.values())
        for run in runs:
            _kill(run)
        for run in runs:
            run.ended.wait(5.0)

    def _alive(self, name: str) -> bool:
        run = self._runs.get(name)
        return run is not None and run.process.poll() is None

    def _at(self, name: str) -> Path:
        if not _NAME.match(name):
            raise ValueError(f"An instance cannot be named {name!r}: use up to 200 letters, digits, '.', '_' and '-'.")
        return self._folder / name

    def _collect(self, run: _Run) -> None:
        """Wait for the process, then kill its children: a container too ends with its first process."""
        run.process.wait()
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(run.process.pid, signal.SIGKILL)
        if run.process.stdin:
            with suppress(OSError):
                run.process.stdin.close()
        run.ended.set()


def _kill(run: _Run) -> None:
    # Not after its exit was collected: another process group may have the number by then.
    if run.process.poll() is None:
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(run.process.pid, signal.SIGKILL)


def _keep_log(output: IO[bytes], path: Path) -> None:
    """Write the output to the log until every writer has closed it. A full log loses its older half."""
    with output, path.open("ab+") as log:
        while piece := os.read(output.fileno(), min(_PIECE, LOG_BYTES_MAX // 2)):
            if log.tell() + len(piece) > LOG_BYTES_MAX:
                log.seek(max(0, log.tell() - LOG_BYTES_MAX // 2))
                kept = log.read()
                log.truncate(0)
                log.write(kept)
            log.write(piece)
            log.flush()


@dataclass(kw_only=True, slots=True)
class Started:
    """What an instance was last started with."""

    image: str
    args: tuple[str, ...]
    env: dict[str, str]


class NoMachines:
    """The port `Machines` without processes: the test says what its instances do."""

    def __init__(self) -> None:
        self.started: dict[str, Started] = {}
        self.live: set[str] = set()
        self.stopping: set[str] = set()
        """Instances that got SIGTERM and have not ended: `end` or `kill` ends them."""
        self.codes: dict[str, int] = {}
        self.written: dict[str, str] = {}
        self.room = RUNNING_MAX

    def start(self, name: str, *, image: str, args: Sequence[str], env: Mapping[str, str]) -> None:
        if name in self.live:
            return
        if len(self.live) >= self.room:
            raise NoRoom("no room")
        self.started[name] = Started(image=image, args=tuple(args), env=dict(env))
        self.live.add(name)
        self.codes.pop(name, None)

    def end(self, name: str, code: int = 0) -> None:
        """Let the instance's process end by itself."""
        if name in self.live:
            self.live.discard(name)
            self.stopping.discard(name)
            self.codes[name] = code

    def stop(self, name: str, *, grace_s: float) -> None:
        if name not in self.live:
            return
        if grace_s > 0:
            self.stopping.add(name)
        else:
            self.end(name, 128 + signal.SIGKILL)

    def kill(self, name: str) -> None:
        self.end(name, 128 + signal.SIGKILL)

    def remove(self, name: str) -> None:
        self.kill(name)
        for held in (self.started, self.codes, self.written):
            held.pop(name, None)

    def running(self, name: str) -> bool:
        return name in self.live

    def exit_code(self, name: str) -> int | None:
        return self.codes.get(name)

    def logs(self, name: str) -> str:
        return self.written.get(name, "")

    def stop_all(self, *, within_s: float) -> None:
        self.stopping |= self.live

    def close(self) -> None:
        for name in sorted(self.live):
            self.kill(name)
