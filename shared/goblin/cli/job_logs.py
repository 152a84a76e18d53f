"""What an attempt wrote: the end of its log, and what follows while it runs."""

from __future__ import annotations

import time
from typing import Any

import click

from goblin.cli import terminal
from goblin.cli.api import Api, NoAnswer
from goblin.cli.job_show import ENDED
from goblin.cli.main import fail

LOOK_S = 2.0
SILENCE_S_MAX = 90.0
"""A Goblin that is started again is waited for."""
OVERLAP = 4096
"""Characters by which a longer log is recognised as the one seen before, when its beginning is out of sight."""


def show(api: Api, job_id: str, attempt: int | None) -> None:
    """The end of a log, as it is now."""
    said = api.get(f"/jobs/{job_id}/logs", **_query(attempt))
    if not said["whole"]:
        click.echo(f"(attempt {said['attempt']}: the beginning is in the bucket)", err=True)
    click.echo(terminal.lines(said["text"]), nl=False)


def follow(api: Api, job_id: str, attempt: int | None) -> None:
    """Print what is written until the job has ended, or the attempt that was asked for is over."""
    shown, seen, heard_at = 0, "", time.monotonic()
    while True:
        try:
            # In this order: what was written before the end is seen after it.
            job = api.look(f"/jobs/{job_id}").json()
            said = api.look(f"/jobs/{job_id}/logs", **_query(attempt)).json() if job["attempt"] else None
        except NoAnswer as reason:
            if time.monotonic() - heard_at > SILENCE_S_MAX:
                fail(str(reason))
        else:
            heard_at = time.monotonic()
            if said:
                if said["attempt"] != shown:
                    shown, seen = said["attempt"], ""
                    click.echo(f"--- attempt {shown} on {job['provider']}", err=True)
                click.echo(terminal.lines(news(seen, said["text"])), nl=False)
                seen = said["text"]
            if job["state"] in ENDED or (attempt is not None and job["attempt"] > attempt):
                return
        time.sleep(LOOK_S)


def news(seen: str, now: str) -> str:
    """What of a log was not there before; all of it when the two have nothing in common."""
    if now.startswith(seen):
        return now[len(seen) :]
    tail = seen[-OVERLAP:]
    found = now.rfind(tail)
    return now if found < 0 else now[found + len(tail) :]


def _query(attempt: int | None) -> dict[str, Any]:
    return {} if attempt is None else {"attempt": attempt}
