"""How busy and how well the GPUs are, as `nvidia-smi` says."""

from __future__ import annotations

import asyncio
import shutil
from dataclasses import dataclass

TIMEOUT_S = 5.0
_QUERY = ("--query-gpu=utilization.gpu,ecc.errors.uncorrected.volatile.total", "--format=csv,noheader,nounits")


@dataclass(frozen=True, kw_only=True)
class Gpus:
    """One look; what nobody can tell is None."""

    share: float | None = None
    """Of the last moment that they were busy, on average."""
    errors: int | None = None
    """Of memory, uncorrected, since the driver was loaded: those of whoever was here before count too."""


async def look() -> Gpus:
    """Ask, where there is somebody to be asked."""
    program = shutil.which("nvidia-smi")
    if program is None:
        return Gpus()
    try:
        asked = await asyncio.create_subprocess_exec(
            program, *_QUERY, stdin=asyncio.subprocess.DEVNULL, stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.DEVNULL,
        )  # fmt: skip
    except OSError:
        return Gpus()
    try:
        said, _ = await asyncio.wait_for(asked.communicate(), TIMEOUT_S)
    except TimeoutError:
        asked.kill()
        await asked.wait()
        return Gpus()
    return parse(said.decode(errors="replace"))


def parse(text: str) -> Gpus:
    """One line a GPU: a percentage, a comma, a count. What cannot tell (`[N/A]`) does not count."""
    rows = [[cell.strip() for cell in line.split(",")] for line in text.splitlines()]
    busy = [int(row[0]) for row in rows if row[0].isdigit() and int(row[0]) <= 100]
    errors = [int(row[1]) for row in rows if len(row) > 1 and row[1].isdigit()]
    return Gpus(share=sum(busy) / len(busy) / 100 if busy else None, errors=sum(errors) if errors else None)
