"""Start child processes, wait until they are ready, restart them when they crash, stop them in order."""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from goblin.cli.child_log import ChildLog

FALLS_MAX = 5
FALLS_WITHIN_S = 60.0
KILL_AFTER_S = 12.0
"""Time between SIGTERM and SIGKILL; longer than every child's own drain time."""


class Failed(Exception):
    """A child that cannot be kept running; the message names its log."""


@dataclass
class Child:
    """A child process: how to start it, and the process that runs now."""

    name: str
    command: Sequence[str]
    env: Mapping[str, str]
    log: Path
    lock: int
    """File descriptor that the child inherits, so that the data folder stays locked while the child runs."""
    process: asyncio.subprocess.Process | None = None
    fallen_at: list[float] = field(default_factory=list)
    _output: ChildLog = field(init=False, repr=False)

    def __post_init__(self) -> None:
        self._output = ChildLog(self.log)

    @property
    def runs(self) -> bool:
        """Whether the process runs now."""
        return self.process is not None and self.process.returncode is None

    async def start(self) -> None:
        """Start the process; its output is appended to the log."""
        output = self._output.open()
        try:
            self.process = await asyncio.create_subprocess_exec(
                *self.command,
                stdin=asyncio.subprocess.PIPE,
                stdout=output,
                stderr=asyncio.subprocess.STDOUT,
                env=self.env,
                pass_fds=[self.lock],
                umask=0o077,
                # Ctrl-C in the terminal must reach only this process, which stops the children in order.
                start_new_session=True,
            )
        finally:
            os.close(output)

    async def stop(self) -> None:
        """Send SIGTERM so that the process drains and stops; kill it after `KILL_AFTER_S`."""
        if self.process is None or not self.runs:
            return
        self.process.terminate()
        try:
            await asyncio.wait_for(self.process.wait(), KILL_AFTER_S)
        except TimeoutError:
            self.process.kill()
            await self.process.wait()
        await asyncio.to_thread(self._output.settle)

    def tail(self, lines: int = 8) -> str:
        """Return the last lines of the log, for an error message."""
        if not self.runs:
            self._output.settle()
        return self._output.tail(lines)


def python_child(module: str, *words: str) -> list[str]:
    """Return the command of a Python module that stops when this process ends."""
    return [sys.executable, "-m", "goblin.cli.child", module, *words]


async def keep(child: Child, say: Callable[[str], None], recovered: Callable[[], Awaitable[None]]) -> None:
    """Restart the child whenever it ends, and await `recovered` after each restart.

    Raises:
        Failed: It ended too often in a short time.
    """
    clock = asyncio.get_running_loop().time
    while True:
        process = child.process
        if process is None:
            raise Failed(f"{child.name} was never started.")
        code = await process.wait()
        now = clock()
        child.fallen_at = [*(t for t in child.fallen_at if now - t < FALLS_WITHIN_S), now]
        if len(child.fallen_at) >= FALLS_MAX:
            raise Failed(
                f"{child.name} crashed {FALLS_MAX} times within a minute. Its log: {child.log}\n{child.tail()}"
            )
        say(f"{child.name} ended with exit code {code}; restarting it. Its log: {child.log}")
        await asyncio.sleep(min(5.0, 0.2 * 2 ** len(child.fallen_at)))
        await child.start()
        await recovered()


async def wait_ready(
    child: Child, ready: Callable[[], Awaitable[bool]], timeout_s: float, *, kept: bool = False
) -> None:
    """Wait until the child is ready.

    Args:
        child: The child to wait for.
        ready: Asks whether the child is ready now.
        timeout_s: How long the child may take.
        kept: Whether `keep` restarts the child, so that its end is not an error here.

    Raises:
        Failed: The child ended, or was not ready in time.
    """
    clock = asyncio.get_running_loop().time
    deadline = clock() + timeout_s
    while clock() < deadline:
        if not kept and child.process is not None and child.process.returncode is not None:
            raise Failed(
                f"{child.name} ended with exit code {child.process.returncode} at its start. "
                f"Its log: {child.log}\n{child.tail()}"
            )
        if await ready():
            return
        await asyncio.sleep(0.05)
    raise Failed(f"{child.name} was not ready within {timeout_s:.0f} s. Its log: {child.log}\n{child.tail()}")
