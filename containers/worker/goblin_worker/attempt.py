"""One attempt from its claim to its end, its lease renewed all the while."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncGenerator

import httpx

from goblin_worker import dataset
from goblin_worker.batch import Batch
from goblin_worker.controller import Controller, Over, Rejected, Unreachable
from goblin_worker.items import Gateway, KeyRefused

log = logging.getLogger(__name__)

LAST_WORDS_S_MAX = 5.0
"""A machine that is being taken away has no time to ask for long."""


async def run_attempt(http: httpx.AsyncClient, *, url: str, token: str, stop: asyncio.Event) -> int:
    """Work until the job is done, the attempt is over or `stop` is set.

    Returns:
        The process's exit code: 0 when it ended as it should, also by being fenced off.
    """
    controller = Controller(http, url=url, token=token)
    try:
        return await _run(http, controller, url, token, stop)
    except Over as reason:
        log.info("the attempt is over: %s", reason)
        return 0
    except Unreachable as reason:
        log.error("the controller stays away: %s", reason)
        return 1
    except (KeyRefused, dataset.Unreadable) as reason:
        return await _last_words(controller, str(reason))
    except (Rejected, ValueError, KeyError) as reason:
        log.error("broken: %s", reason)
        return await _broken(controller, f"{type(reason).__name__}: {reason}")


async def _run(http: httpx.AsyncClient, controller: Controller, url: str, token: str, stop: asyncio.Event) -> int:
    work = await controller.claim()
    log.info("job %s, attempt %d: from item %d of %d", work.job_id, work.attempt, work.step, work.total)
    if work.kind != "batch":
        raise Rejected(f"this worker cannot run kind {work.kind!r}")
    gateway = Gateway(http, url.rstrip("/"), token, work.model)
    batch = Batch(work, controller, http, gateway.run)
    lines = dataset.lines(http, controller, work.dataset, work.dataset_offset)
    beating = asyncio.create_task(_beat(controller, batch, work.heartbeat_s))
    working = asyncio.create_task(_work(controller, batch, lines, stop))
    try:
        await asyncio.wait({beating, working}, return_when=asyncio.FIRST_COMPLETED)
        # A heartbeat ends only by an error: the attempt is over, or the controller is.
        return working.result() if working.done() else beating.result()
    finally:
        for task in (beating, working):
            task.cancel()
        await asyncio.gather(beating, working, return_exceptions=True)


async def _work(controller: Controller, batch: Batch, lines: AsyncGenerator[bytes, None], stop: asyncio.Event) -> int:
    if not await batch.run(lines, stop):
        log.info("taken away at item %d", batch.step)
        return await _last_words(controller, "the host was taken away", step=batch.step)
    finishing = asyncio.create_task(controller.finish())
    stopped = asyncio.create_task(stop.wait())
    # Once the controller knows, it may end this machine before its answer has arrived.
    await asyncio.wait({finishing, stopped}, return_when=asyncio.FIRST_COMPLETED)
    stopped.cancel()
    if finishing.done():
        finishing.result()
        log.info("done: %d items", batch.step)
    finishing.cancel()
    return 0


async def _beat(controller: Controller, batch: Batch, every_s: float) -> int:
    while True:
        await asyncio.sleep(every_s)
        await controller.heartbeat(batch.step)


async def _last_words(controller: Controller, reason: str, *, step: int = 0) -> int:
    """Give the job back; a controller that does not hear it finds out by itself."""
    controller.tries_s_max = LAST_WORDS_S_MAX
    try:
        await controller.withdraw(reason, step=step)
    except (Over, Rejected, Unreachable) as error:
        log.info("could not give the job back: %s", error)
    return 0


async def _broken(controller: Controller, reason: str) -> int:
    controller.tries_s_max = LAST_WORDS_S_MAX
    try:
        await controller.fail(reason)
    except (Over, Rejected, Unreachable) as error:
        log.info("could not say so: %s", error)
    return 1
