"""How busy the GPUs are, as `nvidia-smi` says."""

from __future__ import annotations

import asyncio
import shutil

TIMEOUT_S = 5.0
_QUERY = ("--query-gpu=utilization.gpu", "--format=csv,noheader,nounits")


async def share() -> float | None:
    """The share of the last moment that the GPUs were busy, on average; None where nobody can tell."""
    program = shutil.which("nvidia-smi")
    if program is None:
        return None
    try:
        asked = await asyncio.create_subprocess_exec(
            program, *_QUERY, stdin=asyncio.subprocess.DEVNULL, stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.DEVNULL,
        )  # fmt: skip
    except OSError:
        return None
    try:
        said, _ = await asyncio.wait_for(asked.communicate(), TIMEOUT_S)
    except TimeoutError:
        asked.kill()
        await asked.wait()
        return None
    return parse(said.decode(errors="replace"))


def parse(text: str) -> float | None:
    """The average of one percentage a line; a GPU that cannot tell (`[N/A]`) does not count."""
    found = [int(line) for line in text.split() if line.isdigit() and int(line) <= 100]
    return sum(found) / len(found) / 100 if found else None
