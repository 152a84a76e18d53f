"""Output: amounts, times and tables, on terminals of any width and in pipes.

Every command prints through here, because hosts, datasets and callers are not trusted: what they wrote reaches a
terminal without control characters.
"""

from __future__ import annotations

import io
import json
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import click

from goblin.core.money import USD_MICROS
from httpguard.lines import escape

if TYPE_CHECKING:
    from rich.console import Console

PIPE_COLUMNS = 10_000
"""Width used in a pipe, which has none: rich would assume 80 columns and cut longer lines."""


def echo(text: str = "", *, err: bool = False, nl: bool = True) -> None:
    """Print text: lines of people's words, each control character but tab and newline as Python writes it."""
    click.echo(escape(text, keep="\n\t"), err=err, nl=nl)


def echo_json(text: str) -> None:
    """Print JSON on one line, with control characters as JSON writes them: they can only be inside its strings."""
    signs = (sign if sign.isprintable() else json.dumps(sign)[1:-1] for sign in text)
    click.echo("".join(signs).replace("\x7f", "\\u007f"))  # JSON lets it stand as it is.


def console(**options: Any) -> Console:
    """Return a console on standard output; without colours if `NO_COLOR` is set or it is not a terminal."""
    from rich.console import Console
    from rich.text import Text

    class Screen(Console):
        """A console that escapes control characters in the strings that it is given."""

        def render_str(self, text: str, **more: Any) -> Text:
            return super().render_str(escape(text, keep="\n\t"), **more)

    return Screen(**{"highlight": False, "soft_wrap": False, **options})


def write(*parts: Any) -> None:
    """Print texts and tables below each other; in a pipe each row is one line of any length."""
    screen = console()
    if screen.is_terminal:
        screen.print(*parts, sep="\n")
        return
    paper = io.StringIO()
    console(width=PIPE_COLUMNS, file=paper).print(*parts, sep="\n")
    click.echo("\n".join(line.rstrip() for line in paper.getvalue().rstrip("\n").split("\n")))


def plain(text: str) -> str:
    """Return the text as one line without control characters, because hosts and datasets are not trusted."""
    return "".join(sign if sign.isprintable() else " " for sign in text)


def marked(text: object) -> str:
    """Return `plain` text with brackets escaped, which rich would read as markup."""
    from rich.markup import escape

    return escape(plain(str(text)))


def lines(text: str) -> str:
    """Apply `plain` to each line of a log; a carriage return of a progress bar starts a new line."""
    rows = text.replace("\r\n", "\n").replace("\r", "\n").split("\n")
    return "\n".join(plain(row.replace("\t", "    ")) for row in rows)


def when(instant: str) -> str:
    """Format an instant in this machine's time zone."""
    return datetime.fromisoformat(instant).astimezone().strftime("%Y-%m-%d %H:%M:%S")


def ahead(instant: str) -> str:
    """Format the time until an instant, or since it."""
    seconds = (datetime.fromisoformat(instant) - datetime.now(UTC)).total_seconds()
    return f"in {span(seconds)}" if seconds >= 0 else f"{span(-seconds)} ago"


def span(seconds: float) -> str:
    """Format a length of time, the coarser the longer: `8 h 02 min`, `12 min`, `40 s`."""
    whole = round(seconds)
    if whole < 120:
        return f"{whole} s"
    minutes = round(seconds / 60)
    if minutes < 120:
        return f"{minutes} min"
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02} min" if hours < 48 else f"{hours // 24} d {hours % 24} h"


def usd(micros: int) -> str:
    """Format micro-dollars rounded: cents, below a dollar four decimals; the JSON has the exact amount."""
    dollars = micros / USD_MICROS
    return f"${dollars:,.2f}" if dollars == 0 or dollars >= 1 else f"${max(dollars, 0.0001):.4f}"


COLOURS: Mapping[str, str] = {
    "succeeded": "green", "failed": "red", "refused": "red", "cancelled": "yellow", "running": "cyan",
    "preempted": "yellow",
}  # fmt: skip


def state(name: str) -> str:
    """Mark up a job's state with its colour."""
    return f"[{COLOURS[name]}]{name}[/]" if name in COLOURS else name
