"""The tasks of an image: those of the agent, and those that the image lists in a file."""

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
    """Return the command of a task.

    Args:
        name: The task's name in the job; None: the image's first task.
        listed: Path of a JSON file with the image's own tasks, `{"name": ["program", "word", …]}`. They come first.

    Raises:
        UnknownTask: The image has no such task, or its list cannot be read. The message lists the known tasks.
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
        raise UnknownTask(f"the image's list of tasks, {os.fspath(path)}, is no JSON object of commands")
    return dict(said)


def _is_command(words: object) -> bool:
    return isinstance(words, list) and bool(words) and all(isinstance(word, str) and word for word in words)
