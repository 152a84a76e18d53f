"""`python -m goblin_agent`: run the attempt whose token is in the environment, then end.

`GOBLIN_URL` says where the controller is, `GOBLIN_ATTEMPT_TOKEN` who we are; `GOBLIN_TASKS` may name the image's list
of tasks. SIGTERM means that the machine is being taken away: what is done is saved, and the job is given back.
"""

from __future__ import annotations

import asyncio
import os
import sys
from pathlib import Path

FOLDER = "attempt"
"""In the working directory: what an agent that was killed has downloaded is there for the next one."""
SECRETS = ("GOBLIN_URL", "GOBLIN_ATTEMPT_TOKEN")
HANDED = "GOBLIN_HANDED_OVER"
"""The number of a pipe that holds them."""


def main() -> int:
    """The process's exit code: 0 unless the attempt broke."""
    if HANDED not in os.environ:
        _start_again_without_secrets()
    with os.fdopen(int(os.environ.pop(HANDED)), "rb") as pipe:
        url, token = pipe.read().decode().split("\n")
    if not url or not token:
        sys.stderr.write("goblin_agent: GOBLIN_URL and GOBLIN_ATTEMPT_TOKEN say what to do; they are not set.\n")
        return 2
    from goblin_agent.attempt import run_attempt  # Only now: what starts again at once has no need of it.

    return asyncio.run(run_attempt(url=url, token=token, top=Path(FOLDER).absolute()))


def _start_again_without_secrets() -> None:
    """Become the same program with a clean environment: a process's first one stays readable in `/proc` for its user.

    Raises:
        OSError: The program is gone.
    """
    values = "\n".join(os.environ.pop(name, "").replace("\n", "") for name in SECRETS)
    reading, writing = os.pipe()
    os.write(writing, values.encode())
    os.close(writing)
    os.set_inheritable(reading, True)
    words = [sys.executable, *sys.orig_argv[1:]]
    os.execve(sys.executable, words, {**os.environ, HANDED: str(reading)})  # noqa: S606 - it is this program.


if __name__ == "__main__":
    sys.exit(main())
