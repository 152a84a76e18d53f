"""`python -m goblin_worker`: run the attempt whose token is in the environment, then end.

`GOBLIN_URL` says where the controller and the gateway are, `GOBLIN_ATTEMPT_TOKEN` who we are. SIGTERM means that the
machine is being taken away: what is done is saved, and the job is given back.
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
    """The process's exit code: 0 unless the attempt broke."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s")
    logging.getLogger("httpx").setLevel(logging.WARNING)
    # Taken out of the environment: nothing that this process may start shall inherit the token.
    url, token = os.environ.pop("GOBLIN_URL", ""), os.environ.pop("GOBLIN_ATTEMPT_TOKEN", "")
    if not url or not token:
        sys.stderr.write("goblin_worker: GOBLIN_URL and GOBLIN_ATTEMPT_TOKEN say what to do; they are not set.\n")
        return 2
    return asyncio.run(_run(url, token))


async def _run(url: str, token: str) -> int:
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    # No proxies and no redirects: the token goes where it was told to go and nowhere else.
    limits = httpx.Limits(max_connections=128, max_keepalive_connections=64)
    async with httpx.AsyncClient(trust_env=False, follow_redirects=False, limits=limits) as http:
        return await run_attempt(http, url=url, token=token, stop=stop)


if __name__ == "__main__":
    sys.exit(main())
