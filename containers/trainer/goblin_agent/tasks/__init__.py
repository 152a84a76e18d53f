"""The tasks that an image has: those of the agent itself, and those that the image names in a file."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

BUILT_IN: Mapping[str, Sequence[str]] = {
    "char-lm": (sys.executable, "-m", "goblin_agent.tasks.char_lm"),
}


class UnknownTask(Exception):
    """The image has no such task."""


def command(name: str | None, listed: str | None = None) -> Sequence[str]:
    """The command of a task; None asks for the image's first.

    Args:
        name: As in the job.
        listed: A JSON file, `{"name": ["program", "word", …]}`, where an image names its own; they come first.

    Raises:
        UnknownTask: With the names that there are.
    """
    known = {**_listed(listed), **BUILT_IN}
    chosen = next(iter(known)) if name is None else name
    if chosen not in known:
        raise UnknownTask(f"this image has no task {chosen!r}; it has {', '.join(known)}")
    return known[chosen]


def _listed(path: str | None) -> dict[str, Sequence[str]]:
    if not path:
        return {}
    try:
        said = json.loads(Path(path).read_text())
    except (OSError, ValueError) as error:
        raise UnknownTask(f"the image's list of tasks cannot be read: {error}") from error
    if not isinstance(said, dict) or not all(_is_command(words) for words in said.values()):
        raise UnknownTask(f"the image's list of tasks, {os.fspath(path)}, is no object of commands")
    return dict(said)


def _is_command(words: object) -> bool:
    return isinstance(words, list) and bool(words) and all(isinstance(word, str) and word for word in words)
