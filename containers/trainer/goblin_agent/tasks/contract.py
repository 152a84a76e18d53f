"""The contract from a task's side: what it is given, and how it says and saves."""

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
"""Says that no other attempt can mend it."""
SAY_PERIOD_S = 0.5


def refuse(reason: str) -> NoReturn:
    """End as a task that no other attempt can mend."""
    sys.stderr.write(f"{reason}\n")
    sys.exit(EX_DATAERR)


class Place:
    """Where this task runs. SIGTERM is noted and waits for the end of a step."""

    def __init__(self) -> None:
        self.inputs = Path(os.environ["GOBLIN_INPUTS"])
        resume = os.environ.get("GOBLIN_RESUME")
        self.resume = Path(resume) if resume else None
        """The files of the checkpoint to go on from; None: from the start."""
        self.parameters: dict[str, Any] = json.loads(Path(os.environ["GOBLIN_PARAMETERS"]).read_text())
        self.stopping = False
        """Save now, then exit 0."""
        self._checkpoints = Path(os.environ["GOBLIN_CHECKPOINTS"])
        self._checkpoint_s = Path(os.environ["GOBLIN_CHECKPOINT_S"])
        self._progress = Path(os.environ["GOBLIN_PROGRESS"])
        self._saved_at = self._said_at = time.monotonic()
        self._said_step: int | None = None
        signal.signal(signal.SIGTERM, self._stop)

    def _stop(self, *_: object) -> None:
        self.stopping = True

    def whole(self, name: str, usual: int, *, least: int = 0, most: int = 99_999_999) -> int:
        """A parameter that is a whole number."""
        value = self.parameters.get(name, usual)
        if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= most:
            refuse(f"parameter {name} is a whole number from {least} to {most}, not {value!r}")
        return value

    def number(self, name: str, usual: float, *, least: float = 0.0, most: float = 1e9) -> float:
        """A parameter that is a number."""
        value = self.parameters.get(name, usual)
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not least <= value <= most:
            refuse(f"parameter {name} is a number from {least} to {most}, not {value!r}")
        return float(value)

    def due(self) -> bool:
        """Whether so much was done since the last checkpoint that it is time for the next."""
        return time.monotonic() - self._saved_at >= float(self._checkpoint_s.read_text())

    def say(self, step: int, total: int, *, last: bool = False, **numbers: float) -> None:
        """How far it is; said twice a second at most."""
        now = time.monotonic()
        if now - self._said_at < SAY_PERIOD_S and self._said_step is not None and not last:
            return
        if self._said_step is not None and now > self._said_at:
            numbers["steps_per_s"] = (step - self._said_step) / (now - self._said_at)
        self._said_at, self._said_step = now, step
        self._append({"step": step, "total": total, **numbers})

    def save(self, step: int, write: Callable[[Path], None], **numbers: float) -> None:
        """Write a checkpoint whole or not at all: `write` fills a folder, which is renamed then."""
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
        # After the folder is there: the numbers are of a checkpoint that exists.
        self._append({"step": step, "save_s": self._saved_at - started, "saved": True, **numbers})

    def _append(self, line: dict[str, Any]) -> None:
        with self._progress.open("a") as file:
            file.write(json.dumps(line) + "\n")
