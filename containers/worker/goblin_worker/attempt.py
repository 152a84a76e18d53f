"""One attempt from its claim to its end. Heartbeats renew its attempt lease all the time."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncGenerator, Coroutine
from typing import Any

import httpx

from goblin_worker import dataset
from goblin_worker.batch import Batch, NotUploaded
from goblin_worker.controller import Controller, Disbelieved, Over, Rejected, Unreachable, Work
from goblin_worker.items import Gateway, KeyRefused
from goblin_worker.retries import Hopeless

log = logging.getLogger(__name__)

LAST_WORDS_S_MAX = 5.0
"""Longest time for the last request: a machine that is being taken away has no time for long retries."""


TAKEN = "the host was taken away"


async def run_attempt(http: httpx.AsyncClient, *, url: str, jobs_url: str, token: str, stop: asyncio.Event) -> int:
    """Run one attempt at a batch job until it is done, the attempt is over or `stop` is set.

    Returns:
        The process's exit code: 0 for a regular end, which includes losing the attempt lease.
    """
    controller = Controller(http, url=jobs_url, token=token)

    async def whole() -> int:
        work = await controller.claim()
        if work.kind != "batch":
            raise Hopeless(f"this worker cannot run kind {work.kind!r}")
        return await run_batch(http, controller, work, url=url, token=token, stop=stop)

    return await to_the_end(controller, whole())


async def to_the_end(controller: Controller, attempt: Coroutine[Any, Any, int]) -> int:
    """Run an attempt and report its failure to the controller where it cannot do so itself. Returns the exit code."""
    try:
        return await attempt
    except Over as reason:
        log.info("The attempt is over: %s", reason)
        return 0
    except Unreachable as reason:
        log.error("The controller does not answer: %s", reason)
        return 1
    except (KeyRefused, dataset.Unreadable, NotUploaded, Disbelieved) as reason:
        log.info("The job is given back: %s", reason)
        return await last_words(controller, str(reason))
    except (Hopeless, Rejected, ValueError, KeyError) as reason:
        log.error("The attempt failed: %s", reason)
        return await broken(controller, f"{type(reason).__name__}: {reason}")


async def run_batch(
    http: httpx.AsyncClient, controller: Controller, work: Work, *, url: str, token: str, stop: asyncio.Event
) -> int:
    """Run a batch job that is claimed already. Returns the exit code."""
    if work.dataset is None:
        raise Hopeless("the batch has no dataset")
    log.info("Job %s, attempt %d: starting at item %d of %s.", work.job_id, work.attempt, work.step, work.total)
    gateway = Gateway(http, url.rstrip("/"), token, work.model)
    batch = Batch(work, controller, http, gateway.run)
    lines = dataset.lines(http, controller, work.dataset, work.dataset_offset)
    asked: list[str] = []
    beating = asyncio.create_task(_beat(controller, batch, work.heartbeat_s, stop, asked))
    working = asyncio.create_task(_work(controller, batch, lines, stop, asked))
    try:
        await asyncio.wait({beating, working}, return_when=asyncio.FIRST_COMPLETED)
        # The heartbeat task ends only by an error: the attempt is over, or the controller does not answer.
        return working.result() if working.done() else beating.result()
    finally:
        for task in (beating, working):
            task.cancel()
        await asyncio.gather(beating, working, return_exceptions=True)


async def _work(
    controller: Controller, batch: Batch, lines: AsyncGenerator[bytes, None], stop: asyncio.Event, asked: list[str]
) -> int:
    if not await batch.run(lines, stop):
        log.info("Stopped at item %d.", batch.step)
        return await last_words(controller, asked[0] if asked else TAKEN, step=batch.step)
    await finish(controller, stop)
    log.info("Done: %d items.", batch.step)
    return 0


async def finish(controller: Controller, stop: asyncio.Event, *, step: int = 0) -> None:
    """Report the job as done. The controller may end this machine before its answer arrives, which is no error."""
    finishing = asyncio.create_task(controller.finish(step))
    stopped = asyncio.create_task(stop.wait())
    await asyncio.wait({finishing, stopped}, return_when=asyncio.FIRST_COMPLETED)
    stopped.cancel()
    await asyncio.wait({finishing}, timeout=LAST_WORDS_S_MAX)
    if finishing.done():
        finishing.result()
    finishing.cancel()


async def _beat(controller: Controller, batch: Batch, every_s: float, stop: asyncio.Event, asked: list[str]) -> int:
    """Send heartbeats. When a reply says to stop, put its reason into `asked` and set `stop`."""
    while True:
        await asyncio.sleep(every_s)
        standing = await controller.heartbeat(batch.step)
        if standing.stop is not None and not stop.is_set():
            asked.append(standing.stop)
            stop.set()


async def last_words(controller: Controller, reason: str, *, step: int = 0) -> int:
    """Give the job back and return exit code 0. If the request fails, the controller notices the missing heartbeats."""
    controller.tries_s_max = LAST_WORDS_S_MAX
    try:
        await controller.withdraw(reason, step=step)
    except (Over, Rejected, Unreachable) as error:
        log.info("The job could not be given back: %s", error)
    return 0


async def broken(controller: Controller, reason: str) -> int:
    """Report that the job failed and no other attempt can do better. Returns exit code 1."""
    controller.tries_s_max = LAST_WORDS_S_MAX
    try:
        await controller.fail(reason)
    except (Over, Rejected, Unreachable) as error:
        log.info("The failure could not be reported: %s", error)
    return 1
