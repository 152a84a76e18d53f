"""A task: a child process, its folders, and the progress that it reports."""

from __future__ import annotations

import asyncio
import json
import math
import os
import shutil
import signal
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

PROGRESS_BYTES_MAX = 1024 * 1024
"""Size at which the progress file is emptied."""
PROGRESS_LINE_BYTES_MAX = 64 * 1024
PUMP_S_MAX = 2.0
SAVE_S_MAX = 24 * 3600.0
"""Longest save time that is believed."""
LOOK_S = 0.05
SAFE = frozenset({"LANG", "LC_ALL", "LD_LIBRARY_PATH", "PATH", "PYTHONPATH", "TZ", "VIRTUAL_ENV"})
SAFE_PREFIXES = ("CUDA_", "HF_HUB_OFFLINE", "NCCL_", "NVIDIA_", "OMP_", "ROCR_", "TORCH")


@dataclass(frozen=True, kw_only=True)
class Folders:
    """The folders and files of an attempt. All of them are deleted when it ends."""

    top: Path

    @property
    def inputs(self) -> Path:
        return self.top / "inputs"

    @property
    def resume(self) -> Path:
        return self.top / "resume"

    @property
    def checkpoints(self) -> Path:
        return self.top / "checkpoints"

    @property
    def work(self) -> Path:
        """The task's working directory and home."""
        return self.top / "work"

    @property
    def parameters(self) -> Path:
        return self.top / "parameters.json"

    @property
    def checkpoint_s(self) -> Path:
        return self.top / "checkpoint_s"

    @property
    def progress(self) -> Path:
        return self.top / "progress.jsonl"

    def make(self) -> None:
        """Create the folders. Downloads of an earlier process are kept, the rest of its files is deleted."""
        self.top.mkdir(mode=0o700, exist_ok=True)
        for folder in (self.checkpoints, self.work):
            shutil.rmtree(folder, ignore_errors=True)
        for folder in (self.inputs, self.resume, self.checkpoints, self.work):
            folder.mkdir(mode=0o700, exist_ok=True)
        self.progress.write_bytes(b"")

    def say_checkpoint_s(self, seconds: float) -> None:
        """Write the time between checkpoints, atomically: the task may read the file at any time."""
        draft = self.checkpoint_s.with_suffix(".draft")
        draft.write_text(f"{seconds:.1f}\n")
        draft.replace(self.checkpoint_s)

    def environment(self, *, resuming: bool, given: Mapping[str, str]) -> dict[str, str]:
        """Build the task's environment. From the agent's own it takes only what finds programs and GPUs."""
        kept = {
            name: value for name, value in given.items() if name in SAFE or name.startswith(SAFE_PREFIXES)
        }  # fmt: skip
        told = {
            "HOME": self.work, "TMPDIR": self.work, "PYTHONUNBUFFERED": 1, "GOBLIN_INPUTS": self.inputs,
            "GOBLIN_CHECKPOINTS": self.checkpoints, "GOBLIN_PARAMETERS": self.parameters,
            "GOBLIN_CHECKPOINT_S": self.checkpoint_s, "GOBLIN_PROGRESS": self.progress,
            **({"GOBLIN_RESUME": self.resume} if resuming else {}),
        }  # fmt: skip
        return {**kept, **{name: str(value) for name, value in told.items()}}


@dataclass
class Said:
    """The task's last reported progress. Impossible numbers are ignored."""

    step: int = 0
    total: int | None = None
    loss: float | None = None
    steps_per_s: float | None = None
    save_s: float | None = None

    def hear(self, line: bytes) -> None:
        """Apply one line of progress. A line that is no JSON object is ignored."""
        try:
            said = json.loads(line)
        except (ValueError, RecursionError):
            return
        if not isinstance(said, dict):
            return
        self.step = max(self.step, _whole(said.get("step")) or 0)
        self.total = _whole(said.get("total")) or self.total
        self.loss = _number(said.get("loss"), self.loss)
        self.steps_per_s = _number(said.get("steps_per_s"), self.steps_per_s, least=0.0)
        self.save_s = _number(said.get("save_s"), self.save_s, least=0.0, most=SAVE_S_MAX)

    def total_from(self, saved: int) -> int | None:
        """Return the number of steps; None if it is unknown or below the steps that are done already."""
        return self.total if self.total is not None and self.total >= max(self.step, saved) else None


def _whole(value: Any) -> int | None:
    return value if isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= 99_999_999 else None


def _number(value: Any, otherwise: float | None, *, least: float = -1e9, most: float = 1e9) -> float | None:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return otherwise
    return float(value) if math.isfinite(value) and least <= value <= most else otherwise


class Progress:
    """Reads what a task appends to its progress file."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._at = 0

    def read(self) -> list[bytes]:
        """Return the complete lines since the last call."""
        with self._path.open("rb") as file:
            file.seek(self._at)
            data = file.read(PROGRESS_BYTES_MAX)
        whole, newline, _ = data.rpartition(b"\n")
        self._at += len(whole) + len(newline)
        if len(data) - len(whole) > PROGRESS_LINE_BYTES_MAX:
            self._at += len(data) - len(whole)  # Skip a line that is too long to be one.
        if self._at > PROGRESS_BYTES_MAX:
            # Lines written in between are lost; the next line replaces their numbers.
            os.truncate(self._path, 0)
            self._at = 0
        return whole.split(b"\n") if whole else []


class Child:
    """The running task, in its own process group, which does not outlive this process."""

    def __init__(self, process: asyncio.subprocess.Process, pump: asyncio.Task[None]) -> None:
        self._process = process
        self._pump = pump

    @classmethod
    async def start(
        cls, command: Sequence[str], *, cwd: Path, environment: Mapping[str, str], output: Callable[[bytes], None]
    ) -> Child:
        """Start the task. Its stdout and stderr go to `output` as they arrive."""
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "goblin_agent.guard", *command, cwd=cwd, env=dict(environment),
            stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT,
            start_new_session=True,
        )  # fmt: skip
        assert process.stdout is not None  # noqa: S101 - it was asked for.
        return cls(process, asyncio.create_task(_pump(process.stdout, output)))

    async def wait(self) -> int:
        """Wait for the task's end, kill its remaining children, read its output. Returns its exit code."""
        # Not `wait`: it waits for the pipe too, which a child of the task may hold open.
        while (code := self._process.returncode) is None:  # noqa: ASYNC110
            await asyncio.sleep(LOOK_S)
        self.kill()
        # A child that left the process group may hold the pipe open for ever.
        await asyncio.wait({self._pump}, timeout=PUMP_S_MAX)
        self._pump.cancel()
        return code

    def ask_to_save(self) -> None:
        """Send SIGTERM to the task, through its guard."""
        with suppress(ProcessLookupError):
            self._process.terminate()

    def kill(self) -> None:
        """Kill the task and its children at once."""
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(self._process.pid, signal.SIGKILL)


async def _pump(stream: asyncio.StreamReader, output: Callable[[bytes], None]) -> None:
    while data := await stream.read(64 * 1024):
        output(data)
