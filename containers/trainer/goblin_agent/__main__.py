"""`python -m goblin_agent`: run the attempt whose token is in the environment, then end.

`GOBLIN_URL` says where the controller is, `GOBLIN_ATTEMPT_TOKEN` who we are; `GOBLIN_TASKS` may name the image's list
of tasks. SIGTERM means that the machine is being taken away: what is done is saved, and the job is given back.
"""

from __future__ import annotations

import asyncio
import logging
import os
import shutil
import signal
import sys
from pathlib import Path

import httpx

from goblin_agent.logs import Log
from goblin_agent.task import Folders
from goblin_agent.training import run_training
from goblin_worker.attempt import run_batch, to_the_end
from goblin_worker.controller import Controller

FOLDER = "attempt"
"""In the working directory: what an agent that was killed has downloaded is there for the next one."""
SECRETS = ("GOBLIN_URL", "GOBLIN_ATTEMPT_TOKEN")
HANDED = "GOBLIN_HANDED_OVER"
"""The number of a pipe that holds them."""


def main() -> int:
    """The process's exit code: 0 unless the attempt broke."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s")
    logging.getLogger("httpx").setLevel(logging.WARNING)
    if HANDED not in os.environ:
        _start_again_without_secrets()
    with os.fdopen(int(os.environ.pop(HANDED)), "rb") as pipe:
        url, token = pipe.read().decode().split("\n")
    if not url or not token:
        sys.stderr.write("goblin_agent: GOBLIN_URL and GOBLIN_ATTEMPT_TOKEN say what to do; they are not set.\n")
        return 2
    return asyncio.run(_run(url, token, Folders(top=Path(FOLDER).absolute())))


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


async def _run(url: str, token: str, folders: Folders) -> int:
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    log = Log()
    logging.getLogger().addHandler(log)
    # No proxies and no redirects: the token goes where it was told to go and nowhere else.
    limits = httpx.Limits(max_connections=128, max_keepalive_connections=64)
    try:
        async with httpx.AsyncClient(trust_env=False, follow_redirects=False, limits=limits) as http:
            controller = Controller(http, url=url, token=token)

            async def whole() -> int:
                work = await controller.claim()
                if work.kind == "batch":
                    return await run_batch(http, controller, work, url=url, token=token, stop=stop)
                return await run_training(http, controller, work, folders=folders, log_=log, stop=stop)

            return await to_the_end(controller, whole())
    finally:
        shutil.rmtree(folders.top, ignore_errors=True)


if __name__ == "__main__":
    sys.exit(main())
