"""Which Goblin a command speaks to: the one that the environment names, else the one that runs on this machine."""

from __future__ import annotations

import asyncio
import getpass
import os
from collections.abc import Coroutine
from pathlib import Path
from typing import Any, TypeVar

from goblin.cli import paths
from goblin.cli.main import fail
from goblin.core.errors import GoblinError

T = TypeVar("T")


def reach(data: Path | None) -> None:
    """Put its addresses into this process's environment, where Google's clients look; ends when there is none."""
    if os.environ.get("GOBLIN_BUCKET"):
        return
    folder = paths.data_folder(data)
    variables = paths.DataFolder(folder).environment()
    if variables is None:
        fail(f"nothing is running (and ready) on {folder}, and GOBLIN_BUCKET names no other. Start it: ./goblin up")
        return
    os.environ.update(variables)


def run(work: Coroutine[Any, Any, T]) -> T:
    """Run to the end; an error of ours is one line."""
    try:
        return asyncio.run(work)
    except GoblinError as error:
        fail(error.message)
        raise


def person() -> str:
    """Who gives the command, for records."""
    try:
        return getpass.getuser()
    except OSError:
        return "somebody"
