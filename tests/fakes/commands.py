"""Fakes of command line tools (gcloud, terraform, git): they write down their words and answer what a test says."""

from __future__ import annotations

import json
import os
import shlex
import stat
from pathlib import Path
from typing import Any

_MARK = "\x1f"
"""Between the words of a call: a shell writes it as one line, and no word holds it."""
_SCRIPT = """#!/bin/sh
IFS='{mark}'
printf '%s\\n' "{name}{mark}$*" >> '{folder}/calls'
IFS=' '
said="{name} $* "
. '{folder}/answers'
"""
_ANSWER = """case "$said" in {prefix}*)
  /bin/cat '{out}'
  /bin/cat '{err}' >&2
  exit {code};;
esac
"""


class Commands:
    """A folder of fakes for the front of PATH. A call without an answer of its own prints nothing and ends with 0."""

    def __init__(self, folder: Path, *names: str) -> None:
        self._folder = folder
        self._answers: list[str] = []
        folder.mkdir(parents=True, exist_ok=True)
        self._write()
        for name in names:
            self.install(name)

    def install(self, name: str) -> None:
        file = self._folder / name
        file.write_text(_SCRIPT.format(name=name, folder=self._folder, mark=_MARK))
        file.chmod(file.stat().st_mode | stat.S_IXUSR)

    def remove(self, name: str) -> None:
        (self._folder / name).unlink()

    def answer(self, words: str, out: Any = "", *, code: int = 0, err: str = "") -> None:
        """Say what a call that begins with these words prints, a text or JSON; the last said wins."""
        here = self._folder / f"answer-{len(self._answers)}"
        files = (here.with_suffix(".out"), here.with_suffix(".err"))
        for file, text in zip(files, (out if isinstance(out, str) else json.dumps(out), err), strict=True):
            file.write_text(text)
        prefix = shlex.quote(f"{words} ")
        self._answers.insert(0, _ANSWER.format(prefix=prefix, out=files[0], err=files[1], code=code))
        self._write()

    def _write(self) -> None:
        (self._folder / "answers").write_text("".join(self._answers))

    def calls(self, *words: str) -> list[list[str]]:
        """The calls in their order, as far as they begin with these words."""
        file = self._folder / "calls"
        text = file.read_text() if file.exists() else ""
        # A call without words ends in a mark.
        found = [line.removesuffix(_MARK).split(_MARK) for line in text.splitlines()]
        return [call for call in found if call[: len(words)] == list(words)]

    def path(self, *more: str) -> str:
        """The PATH on which the fakes come first, and beside them only `more`."""
        return os.pathsep.join([str(self._folder), *more])
