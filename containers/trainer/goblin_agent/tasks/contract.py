"""The contract from a task's side: its inputs and parameters, and how it reports progress and saves."""

from __future__ import annotations

import json
import os
import shutil
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

EX_DATAERR = 65
"""Exit code of a task that no other attempt can complete."""
SAY_PERIOD_S = 0.5


def refuse(reason: str) -> NoReturn:
    """Write the reason to stderr and exit as a task that no other attempt can complete."""
    sys.stderr.write(f"{reason}\n")
    sys.exit(EX_DATAERR)


class Place:
    """The task's side of the contract. SIGTERM only sets `stopping`; the task reads it between steps."""

    def __init__(self) -> None:
        self.inputs = Path(os.environ["GOBLIN_INPUTS"])
        resume = os.environ.get("GOBLIN_RESUME")
        self.resume = Path(resume) if resume else None
        """Folder with the checkpoint to resume from; None: start at step 0."""
        self.parameters: dict[str, Any] = json.loads(Path(os.environ["GOBLIN_PARAMETERS"]).read_text())
        self.stopping = False
        """Whether the task must save now and exit 0."""
        self._checkpoints = Path(os.environ["GOBLIN_CHECKPOINTS"])
        self._checkpoint_s = Path(os.environ["GOBLIN_CHECKPOINT_S"])
        self._progress = Path(os.environ["GOBLIN_PROGRESS"])
        self._saved_at = self._said_at = time.monotonic()
        self._said_step: int | None = None
        signal.signal(signal.SIGTERM, self._stop)

    def _stop(self, *_: object) -> None:
        self.stopping = True

    def whole(self, name: str, usual: int, *, least: int = 0, most: int = 99_999_999) -> int:
        """Read a parameter that is a whole number. Exits with code 65 if it is not."""
        value = self.parameters.get(name, usual)
        if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= most:
            refuse(f"parameter {name} must be a whole number from {least} to {most}, not {value!r}")
        return value

    def number(self, name: str, usual: float, *, least: float = 0.0, most: float = 1e9) -> float:
        """Read a parameter that is a number. Exits with code 65 if it is not."""
        value = self.parameters.get(name, usual)
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not least <= value <= most:
            refuse(f"parameter {name} must be a number from {least} to {most}, not {value!r}")
        return float(value)

    def due(self) -> bool:
        """Return whether the next checkpoint is due."""
        return time.monotonic() - self._saved_at >= float(self._checkpoint_s.read_text())

    def say(self, step: int, total: int, *, last: bool = False, **numbers: float) -> None:
        """Report progress, at most twice a second; `last` reports always."""
        now = time.monotonic()
        if now - self._said_at < SAY_PERIOD_S and self._said_step is not None and not last:
            return
        if self._said_step is not None and now > self._said_at:
            numbers["steps_per_s"] = (step - self._said_step) / (now - self._said_at)
        self._said_at, self._said_step = now, step
        self._append({"step": step, "total": total, **numbers})

    def save(self, step: int, write: Callable[[Path], None], **numbers: float) -> None:
        """Write a checkpoint atomically: `write` fills a folder, which is then renamed."""
        started = time.monotonic()
        draft, whole = self._checkpoints / f"step-{step}.tmp", self._checkpoints / f"step-{step}"
        shutil.rmtree(draft, ignore_errors=True)
        draft.mkdir(mode=0o700)
        write(draft)
        for path in draft.iterdir():
            with path.open("rb") as file:
                os.fsync(file.fileno())
        draft.rename(whole)
        self._saved_at = time.monotonic()
        # After the rename: the numbers belong to a checkpoint that exists.
        self._append({"step": step, "save_s": self._saved_at - started, "saved": True, **numbers})

    def _append(self, line: dict[str, Any]) -> None:
        with self._progress.open("a") as file:
            file.write(json.dumps(line) + "\n")
