"""One attempt of any kind: claim it, run it, and delete its files from the machine."""

from __future__ import annotations

import asyncio
import logging
import shutil
import signal
from pathlib import Path

import httpx

from goblin_agent.logs import Log, ship
from goblin_agent.task import Folders
from goblin_agent.training import run_training
from goblin_worker.attempt import run_batch, to_the_end
from goblin_worker.controller import Controller


async def run_attempt(*, url: str, token: str, top: Path) -> int:
    """Run an attempt until the job is done, the attempt is over or the machine is taken away.

    Args:
        url: The controller's URL.
        token: The attempt's token.
        top: The folder for all of the attempt's files. It is deleted at the end.

    Returns:
        The process's exit code: 0 for a regular end, which includes losing the attempt lease.
    """
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s")
    logging.getLogger("httpx").setLevel(logging.WARNING)
    log = Log()
    logging.getLogger().addHandler(log)
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    # No proxies and no redirects: the token must reach the configured URL and no other host.
    limits = httpx.Limits(max_connections=128, max_keepalive_connections=64)
    try:
        async with httpx.AsyncClient(trust_env=False, follow_redirects=False, limits=limits) as http:
            controller = Controller(http, url=url, token=token)

            async def whole() -> int:
                work = await controller.claim()
                shipping = asyncio.create_task(ship(log, http, controller))
                try:
                    if work.kind == "batch":
                        return await run_batch(http, controller, work, url=url, token=token, stop=stop)
                    return await run_training(http, controller, work, folders=Folders(top=top), log_=log, stop=stop)
                finally:
                    shipping.cancel()
                    await asyncio.gather(shipping, return_exceptions=True)

            return await to_the_end(controller, whole())
    finally:
        shutil.rmtree(top, ignore_errors=True)
