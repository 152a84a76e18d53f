"""Start children, wait until they are ready, start them again when they fall, stop them in order."""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

LOG_BYTES_MAX = 16 << 20
FALLS_MAX = 5
FALLS_WITHIN_S = 60.0
KILL_AFTER_S = 12.0
"""Above every child's own drain time."""


class Failed(Exception):
    """A child cannot be kept running; the message says where its log is."""


@dataclass
class Child:
    """One process: how it is started, and the one that runs now."""

    name: str
    command: Sequence[str]
    env: Mapping[str, str]
    log: Path
    lock: int
    """Inherited, so that the data folder stays held while the child lives."""
    process: asyncio.subprocess.Process | None = None
    fallen_at: list[float] = field(default_factory=list)

    @property
    def runs(self) -> bool:
        """Whether there is a process now."""
        return self.process is not None and self.process.returncode is None

    async def start(self) -> None:
        """Start the process, its output appended to the log."""
        self.log.parent.mkdir(parents=True, exist_ok=True)
        if self.log.exists() and self.log.stat().st_size > LOG_BYTES_MAX:
            self.log.replace(self.log.with_suffix(".log.1"))
        with self.log.open("ab") as log:
            self.process = await asyncio.create_subprocess_exec(
                *self.command,
                stdin=asyncio.subprocess.PIPE,
                stdout=log,
                stderr=asyncio.subprocess.STDOUT,
                env=self.env,
                pass_fds=[self.lock],
                # Ctrl-C in the terminal reaches us alone; we stop children in order.
                start_new_session=True,
            )

    async def stop(self) -> None:
        """Ask it to drain and stop; kill it when it does not."""
        if self.process is None or not self.runs:
            return
        self.process.terminate()
        try:
            await asyncio.wait_for(self.process.wait(), KILL_AFTER_S)
        except TimeoutError:
            self.process.kill()
            await self.process.wait()

    def tail(self, lines: int = 8) -> str:
        """The end of its log, for a person."""
        try:
            with self.log.open("rb") as file:
                file.seek(max(0, file.seek(0, os.SEEK_END) - 8192))
                return "\n".join(file.read().decode(errors="replace").splitlines()[-lines:])
        except OSError:
            return ""


def python_child(module: str, *words: str) -> list[str]:
    """The command of a Python module that stops when we do."""
    return [sys.executable, "-m", "goblin.cli.child", module, *words]


async def keep(child: Child, say: Callable[[str], None], recovered: Callable[[], Awaitable[None]]) -> None:
    """Start the child again whenever it falls.

    Raises:
        Failed: It fell too often in a short time.
    """
    clock = asyncio.get_running_loop().time
    while True:
        process = child.process
        if process is None:
            raise Failed(f"{child.name} was never started")
        code = await process.wait()
        now = clock()
        child.fallen_at = [*(t for t in child.fallen_at if now - t < FALLS_WITHIN_S), now]
        if len(child.fallen_at) >= FALLS_MAX:
            raise Failed(f"{child.name} fell {FALLS_MAX} times within a minute. Its log: {child.log}\n{child.tail()}")
        say(f"{child.name} ended with {code}; starting it again. Its log: {child.log}")
        await asyncio.sleep(min(5.0, 0.2 * 2 ** len(child.fallen_at)))
        await child.start()
        await recovered()


async def wait_ready(
    child: Child, ready: Callable[[], Awaitable[bool]], timeout_s: float, *, kept: bool = False
) -> None:
    """Return when the child says that it is ready.

    Args:
        child: Whose answer it is.
        ready: Whether it is, now.
        timeout_s: How long it may take.
        kept: Whether somebody starts it again when it falls.

    Raises:
        Failed: It ended, or did not get ready in time.
    """
    clock = asyncio.get_running_loop().time
    deadline = clock() + timeout_s
    while clock() < deadline:
        if not kept and child.process is not None and child.process.returncode is not None:
            raise Failed(
                f"{child.name} ended with {child.process.returncode} at its start. Its log: {child.log}\n{child.tail()}"
            )
        if await ready():
            return
        await asyncio.sleep(0.05)
    raise Failed(f"{child.name} was not ready within {timeout_s:.0f} s. Its log: {child.log}\n{child.tail()}")
