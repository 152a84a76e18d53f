"""What a person reads: amounts, times and tables, on terminals of any width and in pipes."""

from __future__ import annotations

import io
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import click

from goblin.core.money import USD_MICROS

if TYPE_CHECKING:
    from rich.console import Console

PIPE_COLUMNS = 10_000
"""A pipe has no width; rich would take 80 columns and cut what does not fit."""


def console() -> Console:
    """Standard output; without colours where `NO_COLOR` says so or it is no terminal."""
    from rich.console import Console

    return Console(highlight=False, soft_wrap=False)


def write(*parts: Any) -> None:
    """Print texts and tables, one below the other; in a pipe one line a row, whatever its length."""
    from rich.console import Console

    screen = console()
    if screen.is_terminal:
        screen.print(*parts, sep="\n")
        return
    paper = io.StringIO()
    Console(highlight=False, width=PIPE_COLUMNS, file=paper).print(*parts, sep="\n")
    click.echo("\n".join(line.rstrip() for line in paper.getvalue().rstrip("\n").split("\n")))


def plain(text: str) -> str:
    """One line without anything that a terminal would obey: hosts and datasets may say what they like."""
    return "".join(sign if sign.isprintable() else " " for sign in text)


def marked(text: object) -> str:
    """The same, where rich would take brackets for its markup."""
    from rich.markup import escape

    return escape(plain(str(text)))


def lines(text: str) -> str:
    """The same for a log: line by line; a progress bar that rewrites its line becomes lines."""
    rows = text.replace("\r\n", "\n").replace("\r", "\n").split("\n")
    return "\n".join(plain(row.replace("\t", "    ")) for row in rows)


def when(instant: str) -> str:
    """An instant here."""
    return datetime.fromisoformat(instant).astimezone().strftime("%Y-%m-%d %H:%M:%S")


def ahead(instant: str) -> str:
    """How far off an instant is."""
    seconds = (datetime.fromisoformat(instant) - datetime.now(UTC)).total_seconds()
    return f"in {span(seconds)}" if seconds >= 0 else f"{span(-seconds)} ago"


def span(seconds: float) -> str:
    """A length of time, as exact as one needs it: `8 h 02 min`, `12 min`, `40 s`."""
    whole = round(seconds)
    if whole < 120:
        return f"{whole} s"
    minutes = round(seconds / 60)
    if minutes < 120:
        return f"{minutes} min"
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02} min" if hours < 48 else f"{hours // 24} d {hours % 24} h"


def usd(micros: int) -> str:
    """About so much: cents, and of less than a dollar four digits; the exact amount is in the JSON."""
    dollars = micros / USD_MICROS
    return f"${dollars:,.2f}" if dollars == 0 or dollars >= 1 else f"${max(dollars, 0.0001):.4f}"


COLOURS: Mapping[str, str] = {
    "succeeded": "green", "failed": "red", "refused": "red", "cancelled": "yellow", "running": "cyan",
    "preempted": "yellow",
}  # fmt: skip


def state(name: str) -> str:
    """A job's state in its colour."""
    return f"[{COLOURS[name]}]{name}[/]" if name in COLOURS else name
