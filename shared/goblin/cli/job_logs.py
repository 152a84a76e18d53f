"""Print the log of an attempt: its end, and new lines while it runs."""

from __future__ import annotations

import time
from typing import Any

from goblin.cli import terminal
from goblin.cli.api import Api, NoAnswer
from goblin.cli.job_show import ENDED
from goblin.cli.main import fail

LOOK_S = 2.0
SILENCE_S_MAX = 90.0
"""How long to wait for a Goblin that restarts."""
OVERLAP = 4096
"""Characters of overlap that identify the text seen before, once the beginning of a long log is cut off."""


def show(api: Api, job_id: str, attempt: int | None) -> None:
    """Print the end of a log as it is now."""
    said = api.get(f"/jobs/{job_id}/logs", **_query(attempt))
    if not said["whole"]:
        terminal.echo(f"(attempt {said['attempt']}: only the end is shown; the beginning is in the bucket)", err=True)
    terminal.echo(terminal.lines(said["text"]), nl=False)


def follow(api: Api, job_id: str, attempt: int | None) -> None:
    """Print new log lines until the job has ended, or until the given attempt is over."""
    shown, seen, heard_at = 0, "", time.monotonic()
    while True:
        try:
            # Job first, log second: lines written before the job ended are still read.
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
                    terminal.echo(f"--- attempt {shown} on {job['provider']}", err=True)
                terminal.echo(terminal.lines(news(seen, said["text"])), nl=False)
                seen = said["text"]
            if job["state"] in ENDED or (attempt is not None and job["attempt"] > attempt):
                return
        time.sleep(LOOK_S)


def news(seen: str, now: str) -> str:
    """Return the part of `now` that follows `seen`; all of `now` when the two do not overlap."""
    if now.startswith(seen):
        return now[len(seen) :]
    tail = seen[-OVERLAP:]
    found = now.rfind(tail)
    return now if found < 0 else now[found + len(tail) :]


def _query(attempt: int | None) -> dict[str, Any]:
    return {} if attempt is None else {"attempt": attempt}
