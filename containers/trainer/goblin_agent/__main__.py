"""`python -m goblin_agent`: run the attempt whose token is in the environment, then exit.

`GOBLIN_JOBS_URL` is the controller's URL (default: `GOBLIN_URL`), `GOBLIN_ATTEMPT_TOKEN` the attempt's token;
`GOBLIN_TASKS` may name the image's list of tasks. SIGTERM means that the machine is being taken away: the agent saves
and gives the job back.
"""

from __future__ import annotations

import asyncio
import os
import sys
from pathlib import Path

FOLDER = "attempt"
"""Folder in the working directory. If an agent is killed, the next one uses the downloads that it left there."""
SECRETS = ("GOBLIN_URL", "GOBLIN_ATTEMPT_TOKEN")
HANDED = "GOBLIN_HANDED_OVER"
"""The variable with the file descriptor of a pipe that holds the secrets."""


def main() -> int:
    """Run the attempt and return the process's exit code: 0 unless the attempt failed."""
    if HANDED not in os.environ:
        _start_again_without_secrets()
    with os.fdopen(int(os.environ.pop(HANDED)), "rb") as pipe:
        url, token = pipe.read().decode().split("\n")
    if not url or not token:
        sys.stderr.write("goblin_agent: GOBLIN_URL or GOBLIN_ATTEMPT_TOKEN is not set. Set both.\n")
        return 2
    from goblin_agent.attempt import run_attempt  # Late: the first start needs none of it.

    return asyncio.run(run_attempt(url=url, token=token, top=Path(FOLDER).absolute()))


def _start_again_without_secrets() -> None:
    """Replace this process by the same program without secrets in its environment.

    A process's first environment stays readable in `/proc` for its user. The secrets go through a pipe.

    Raises:
        OSError: The program cannot be started.
    """
    if jobs_url := os.environ.pop("GOBLIN_JOBS_URL", ""):
        os.environ["GOBLIN_URL"] = jobs_url
    values = "\n".join(os.environ.pop(name, "").replace("\n", "") for name in SECRETS)
    reading, writing = os.pipe()
    os.write(writing, values.encode())
    os.close(writing)
    os.set_inheritable(reading, True)
    words = [sys.executable, *sys.orig_argv[1:]]
    os.execve(sys.executable, words, {**os.environ, HANDED: str(reading)})  # noqa: S606 - it is this program.


if __name__ == "__main__":
    sys.exit(main())
