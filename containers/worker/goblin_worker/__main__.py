"""`python -m goblin_worker`: run the attempt whose token is in the environment, then exit.

`GOBLIN_URL` is the gateway's URL, `GOBLIN_JOBS_URL` the controller's (default: the same), `GOBLIN_ATTEMPT_TOKEN` the
attempt's token. SIGTERM means that the machine is being taken away: the worker saves a checkpoint and gives the job
back.
"""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import sys

import httpx

from goblin_worker.attempt import run_attempt


def main() -> int:
    """Run the attempt and return the process's exit code: 0 unless the attempt failed."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s")
    logging.getLogger("httpx").setLevel(logging.WARNING)
    # Removed from the environment, so that no child process inherits the token.
    url, token = os.environ.pop("GOBLIN_URL", ""), os.environ.pop("GOBLIN_ATTEMPT_TOKEN", "")
    jobs_url = os.environ.pop("GOBLIN_JOBS_URL", "") or url
    if not url or not token:
        sys.stderr.write("goblin_worker: GOBLIN_URL or GOBLIN_ATTEMPT_TOKEN is not set. Set both.\n")
        return 2
    return asyncio.run(_run(url, jobs_url, token))


async def _run(url: str, jobs_url: str, token: str) -> int:
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    # No proxies and no redirects: the token must reach the configured URL and no other host.
    limits = httpx.Limits(max_connections=128, max_keepalive_connections=64)
    async with httpx.AsyncClient(trust_env=False, follow_redirects=False, limits=limits) as http:
        return await run_attempt(http, url=url, jobs_url=jobs_url, token=token, stop=stop)


if __name__ == "__main__":
    sys.exit(main())
