"""GPU utilization and memory errors, from `nvidia-smi`."""

from __future__ import annotations

import asyncio
import shutil
from dataclasses import dataclass

TIMEOUT_S = 5.0
_QUERY = ("--query-gpu=utilization.gpu,ecc.errors.uncorrected.volatile.total", "--format=csv,noheader,nounits")


@dataclass(frozen=True, kw_only=True)
class Gpus:
    """One measurement of all GPUs. Unknown values are None."""

    share: float | None = None
    """Share of time that the GPUs were busy, 0 to 1, on average."""
    errors: int | None = None
    """Uncorrected memory errors since the driver was loaded, including those of earlier renters."""


async def look() -> Gpus:
    """Measure the GPUs. Returns unknown values if `nvidia-smi` is missing or fails."""
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
    """Parse one line per GPU: a percentage, a comma, a count. Unknown values (`[N/A]`) are ignored."""
    rows = [[cell.strip() for cell in line.split(",")] for line in text.splitlines()]
    busy = [int(row[0]) for row in rows if row[0].isdigit() and int(row[0]) <= 100]
    errors = [int(row[1]) for row in rows if len(row) > 1 and row[1].isdigit()]
    return Gpus(share=sum(busy) / len(busy) / 100 if busy else None, errors=sum(errors) if errors else None)
