"""Which Goblin a command talks to: the one that the environment names, else the one that runs on this machine."""

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
    """Put the running Goblin's addresses into this process's environment, where Google's clients look.

    Does nothing when `GOBLIN_BUCKET` is set. Ends the command when no Goblin is ready on the data folder.
    """
    if os.environ.get("GOBLIN_BUCKET"):
        return
    folder = paths.data_folder(data)
    variables = paths.DataFolder(folder).environment()
    if variables is None:
        fail(f"No Goblin is ready on {folder}, and GOBLIN_BUCKET is not set. Start it with: ./goblin up")
        return
    os.environ.update(variables)


def run(work: Coroutine[Any, Any, T]) -> T:
    """Run a coroutine to its end; print an error of ours as one line and end the command."""
    try:
        return asyncio.run(work)
    except GoblinError as error:
        fail(error.message)
        raise


def person() -> str:
    """Return the name of the user who gives the command, for records."""
    try:
        return getpass.getuser()
    except OSError:
        return "somebody"
