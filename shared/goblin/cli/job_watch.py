"""Follow a job to its end: a progress bar on a terminal, one line per change in a pipe."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from datetime import datetime
from typing import Any, NoReturn

from rich.console import Console, Group
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table

from goblin.cli import terminal
from goblin.cli.api import Api, NoAnswer
from goblin.cli.job_show import ENDED, Told, done, money, pace, why
from goblin.cli.main import fail
from goblin.cli.terminal import marked

LOOK_S = 0.5
LINE_S = 5.0
"""Least seconds between two lines in a pipe when only the progress changed; changes of state print at once."""
SILENCE_S_MAX = 90.0
"""How long to wait for a Goblin that restarts."""
INTERRUPTED = 130


def watch(api: Api, job_id: str, *, as_json: bool) -> NoReturn:
    """Follow a job to its end and exit: 0 if it succeeded, 1 if not, 130 on Ctrl-C."""
    follow = _in_json if as_json else _on_terminal if terminal.console().is_terminal else _in_lines
    try:
        last = follow(api, job_id)
    except KeyboardInterrupt:
        terminal.echo(f"\n{job_id} still runs. Watch it again: goblin jobs watch {job_id}", err=True)
        raise SystemExit(INTERRUPTED) from None
    if not as_json:
        terminal.echo(f"{job_id} {last['state']}: {terminal.plain(last['reason'])}; {money(last)}")
    raise SystemExit(0 if last["state"] == "succeeded" else 1)


def looks(api: Api, job_id: str) -> Iterator[Told]:
    """Poll the job and yield it until it has ended; tolerate up to `SILENCE_S_MAX` without an answer."""
    heard_at = time.monotonic()
    while True:
        try:
            job: dict[str, Any] = api.look(f"/jobs/{job_id}").json()
        except NoAnswer as reason:
            if time.monotonic() - heard_at > SILENCE_S_MAX:
                fail(str(reason))
        else:
            heard_at = time.monotonic()
            yield job
            if job["state"] in ENDED:
                return
        time.sleep(LOOK_S)


def _changes(api: Api, job_id: str) -> Iterator[Told]:
    """Yield the job each time its state, attempt or progress changed."""
    seen = None
    for job in looks(api, job_id):
        now = (*_standing(job), job["step"], job["progress"])
        if now != seen:
            seen = now
            yield job


def _standing(job: Told) -> tuple[Any, ...]:
    return job["state"], job["attempt"], job["preemptions"], bool(job["stop"])


def _in_json(api: Api, job_id: str) -> Told:
    last: Told = {}
    for last in _changes(api, job_id):
        terminal.echo_json(json.dumps(last))
    return last


def _in_lines(api: Api, job_id: str) -> Told:
    last: Told = {}
    stood, said_at = None, -LINE_S
    for last in _changes(api, job_id):
        now = time.monotonic()
        if _standing(last) != stood or now - said_at >= LINE_S:
            stood, said_at = _standing(last), now
            terminal.echo(f"{datetime.now().astimezone():%H:%M:%S} {line(last)}")
    return last


def line(job: Told) -> str:
    """Format everything about a job that changes, in one line."""
    said = f"{job['state']} {done(job)}{pace(job)}; {money(job)}; {attempt(job)}"
    waits = _waits(job)
    return said + (f"; {terminal.plain(waits)}" if waits else "")


def attempt(job: Told) -> str:
    """Format the attempt: its number, provider, and the preemptions so far."""
    said = f"attempt {job['attempt']}" + (f" on {job['provider']}" if job["provider"] else "")
    lost = job["preemptions"]
    return said + (f", {lost} preemption{'' if lost == 1 else 's'}" if lost else "")


def _waits(job: Told) -> str:
    """Return why the job does not run, or why it was asked to stop; empty otherwise."""
    if job["stop"]:
        return f"asked to stop: {job['stop']['reason']}"
    return "" if job["state"] in ("running", *ENDED) else why(job)


def _on_terminal(api: Api, job_id: str) -> Told:
    last: Told = {}
    console = terminal.console()
    with Live(console=console, get_renderable=lambda: picture(last, console), refresh_per_second=4) as live:
        for job in looks(api, job_id):
            last = job
            live.refresh()
    return last


def picture(job: Told, console: Console) -> Group | str:
    """Draw the progress bar with speed and cost."""
    if not job:
        return "…"
    known, running = job["total"] is not None, job["state"] == "running"
    bar = Table.grid(padding=(0, 1, 0, 0))
    bar.add_row(
        ProgressBar(
            total=max(1, job["total"]) if known else None, completed=job["step"], pulse=running and not known,
            width=max(8, min(40, console.width - 30)),
        ),
        f"{done(job)}{pace(job)}" if console.width >= 80 else done(job),
    )  # fmt: skip
    head = f"[bold]{job['job_id']}[/]  {terminal.state(job['state'])}  {attempt(job)}"
    rows: list[Any] = [head, bar, money(job)]
    if console.width < 80 and pace(job):
        rows.insert(2, pace(job).removeprefix(", "))
    if waits := _waits(job):
        rows.append(f"[yellow]{marked(waits)}[/]")
    return Group(*rows)
