"""A task: a child process, the folders it is given, and what it says of itself."""

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
"""The file of progress is emptied when it has grown over this."""
PROGRESS_LINE_BYTES_MAX = 64 * 1024
PUMP_S_MAX = 2.0
SAVE_S_MAX = 24 * 3600.0
"""No save takes so long."""
LOOK_S = 0.05
SAFE = frozenset({"LANG", "LC_ALL", "LD_LIBRARY_PATH", "PATH", "PYTHONPATH", "TZ", "VIRTUAL_ENV"})
SAFE_PREFIXES = ("CUDA_", "HF_HUB_OFFLINE", "NCCL_", "NVIDIA_", "OMP_", "ROCR_", "TORCH")


@dataclass(frozen=True, kw_only=True)
class Folders:
    """Where a task works; all of it is wiped when the attempt ends."""

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
        """Make what is not there; of what an earlier process left, what it read is used again and the rest goes."""
        self.top.mkdir(mode=0o700, exist_ok=True)
        for folder in (self.checkpoints, self.work):
            shutil.rmtree(folder, ignore_errors=True)
        for folder in (self.inputs, self.resume, self.checkpoints, self.work):
            folder.mkdir(mode=0o700, exist_ok=True)
        self.progress.write_bytes(b"")

    def say_checkpoint_s(self, seconds: float) -> None:
        """Whole or not at all: the task reads it whenever it likes."""
        draft = self.checkpoint_s.with_suffix(".draft")
        draft.write_text(f"{seconds:.1f}\n")
        draft.replace(self.checkpoint_s)

    def environment(self, *, resuming: bool, given: Mapping[str, str]) -> dict[str, str]:
        """All that a task is told; of the agent's own environment only what finds programs and GPUs."""
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
    """What the task said last of itself; impossible numbers count as not said."""

    step: int = 0
    total: int | None = None
    loss: float | None = None
    steps_per_s: float | None = None
    save_s: float | None = None

    def hear(self, line: bytes) -> None:
        """One line of progress; what is no JSON object is passed over."""
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
        """Steps in all, unless more were done than there are: then nobody knows."""
        return self.total if self.total is not None and self.total >= max(self.step, saved) else None


def _whole(value: Any) -> int | None:
    return value if isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= 99_999_999 else None


def _number(value: Any, otherwise: float | None, *, least: float = -1e9, most: float = 1e9) -> float | None:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return otherwise
    return float(value) if math.isfinite(value) and least <= value <= most else otherwise


class Progress:
    """Reads what a task appends to its file of progress."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._at = 0

    def read(self) -> list[bytes]:
        """The whole lines that are new."""
        with self._path.open("rb") as file:
            file.seek(self._at)
            data = file.read(PROGRESS_BYTES_MAX)
        whole, newline, _ = data.rpartition(b"\n")
        self._at += len(whole) + len(newline)
        if len(data) - len(whole) > PROGRESS_LINE_BYTES_MAX:
            self._at += len(data) - len(whole)  # No line is so long.
        if self._at > PROGRESS_BYTES_MAX:
            # What is written in between is lost: the next line says it all again.
            os.truncate(self._path, 0)
            self._at = 0
        return whole.split(b"\n") if whole else []


class Child:
    """The running task, in a process group of its own that does not outlive this process."""

    def __init__(self, process: asyncio.subprocess.Process, pump: asyncio.Task[None]) -> None:
        self._process = process
        self._pump = pump

    @classmethod
    async def start(
        cls, command: Sequence[str], *, cwd: Path, environment: Mapping[str, str], output: Callable[[bytes], None]
    ) -> Child:
        """Start it; what it writes goes to `output` as it comes."""
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "goblin_agent.guard", *command, cwd=cwd, env=dict(environment),
            stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT,
            start_new_session=True,
        )  # fmt: skip
        assert process.stdout is not None  # noqa: S101 - it was asked for.
        return cls(process, asyncio.create_task(_pump(process.stdout, output)))

    async def wait(self) -> int:
        """Its exit code, once all that it wrote was taken; its children that are left are killed."""
        # Not `wait`: it waits for the pipe too, which a child of the task may hold open.
        while (code := self._process.returncode) is None:  # noqa: ASYNC110
            await asyncio.sleep(LOOK_S)
        self.kill()
        # Who left the group may hold the pipe open for ever.
        await asyncio.wait({self._pump}, timeout=PUMP_S_MAX)
        self._pump.cancel()
        return code

    def ask_to_save(self) -> None:
        """SIGTERM to it, by its guard."""
        with suppress(ProcessLookupError):
            self._process.terminate()

    def kill(self) -> None:
        """At once, with all its children."""
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(self._process.pid, signal.SIGKILL)


async def _pump(stream: asyncio.StreamReader, output: Callable[[bytes], None]) -> None:
    while data := await stream.read(64 * 1024):
        output(data)
