"""A batch job: items run in parallel at the gateway, results in the dataset's order, a checkpoint every N items."""

from __future__ import annotations

import asyncio
import hashlib
from collections import deque
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import aclosing
from typing import Any

import httpx

from goblin_worker.controller import Controller, Work
from goblin_worker.crc32c import crc32c, text
from goblin_worker.retries import LOST, Tries, said

PARALLEL = 4
PARALLEL_MAX = 64
AHEAD = 4
"""How many items may be started and not yet written, in multiples of the parallelism."""
PART_BYTES_MAX = 8 * 1024 * 1024
"""Size at which a part is saved early, because it is held in memory until then."""
UPLOAD_S_MAX = 300.0
PART = "part.jsonl"


class NotUploaded(Exception):
    """The bucket does not take the part. Another attempt may succeed."""


class Batch:
    """One attempt's work on a batch job."""

    def __init__(
        self, work: Work, controller: Controller, http: httpx.AsyncClient, run_item: Callable[[bytes], Awaitable[bytes]]
    ) -> None:
        """Prepare the attempt. Nothing starts yet.

        Args:
            work: The controller's assignment.
            controller: Client that announces and commits checkpoints.
            http: Client for uploads.
            run_item: Turns a line of the dataset into a line of output.
        """
        self._work = work
        self._controller = controller
        self._http = http
        self._run_item = run_item
        self._saved = work.step
        self._part: list[bytes] = []
        self._part_bytes = 0

    @property
    def step(self) -> int:
        """Number of items done, saved or not."""
        return self._saved + len(self._part)

    async def run(self, lines: AsyncGenerator[bytes, None], stop: asyncio.Event) -> bool:
        """Run items until all are checkpointed or `stop` is set. Finished items are checkpointed in both cases.

        Returns:
            Whether every item is done.
        """
        parallel = self._work.parameters.get("parallel", PARALLEL)
        parallel = max(1, min(PARALLEL_MAX, parallel)) if isinstance(parallel, int) else PARALLEL
        async with aclosing(_in_order(lines, self._run_item, parallel, stop)) as results:
            async for result in results:
                self._part.append(result)
                self._part_bytes += len(result)
                if len(self._part) >= self._work.checkpoint_every or self._part_bytes >= PART_BYTES_MAX:
                    await self._save()
        if self._part:
            await self._save()
        return self._saved >= (self._work.total or 0)

    async def _save(self) -> None:
        """Upload the part and commit it. Its items count as saved only after the controller has verified it.

        Raises:
            NotUploaded: The bucket did not take it.
        """
        part, step = b"".join(self._part), self.step
        files = [await asyncio.to_thread(_announce, part)]
        upload_id = await self._upload(step, files, part)
        await self._controller.commit_checkpoint(step, self._saved, upload_id, files)
        self._saved, self._part, self._part_bytes = step, [], 0

    async def _upload(self, step: int, files: list[dict[str, Any]], part: bytes) -> str:
        """Upload the part. Returns the upload's id. Each try has its own signed request and its own folder."""
        tries = Tries()
        while True:
            upload_id, grants = await self._controller.begin_checkpoint(step, files)
            grant = grants[PART]
            answer: httpx.Response | Exception
            try:
                answer = await self._http.put(grant.url, content=part, headers=grant.headers, timeout=UPLOAD_S_MAX)
            except LOST as error:
                answer = error
            else:
                if answer.is_success:
                    return upload_id
            if not await tries.failed(answer):
                raise NotUploaded(f"the upload of step {step} to the bucket failed: {said(answer)}")


def _announce(part: bytes) -> dict[str, Any]:
    return {"name": PART, "size": len(part), "crc32c": text(crc32c(part)), "sha256": hashlib.sha256(part).hexdigest()}


async def _in_order(
    lines: AsyncGenerator[bytes, None], run: Callable[[bytes], Awaitable[bytes]], parallel: int, stop: asyncio.Event
) -> AsyncGenerator[bytes, None]:
    """Run several lines at once and yield their results in order. After `stop`, yield those done without a gap."""
    running: deque[asyncio.Task[bytes]] = deque()
    free = asyncio.Semaphore(parallel)
    stopped = asyncio.create_task(stop.wait())

    async def one(line: bytes) -> bytes:
        async with free:
            return await run(line)

    try:
        async with aclosing(lines):
            async for line in lines:
                running.append(asyncio.create_task(one(line)))
                if len(running) >= parallel * AHEAD and not await _done(running[0], stopped):
                    break
                while running and running[0].done():
                    yield running.popleft().result()
                if stop.is_set():
                    break
        while running and await _done(running[0], stopped):
            yield running.popleft().result()
    finally:
        for task in (*running, stopped):
            task.cancel()
        await asyncio.gather(*running, stopped, return_exceptions=True)


async def _done(task: asyncio.Task[bytes], stopped: asyncio.Task[bool]) -> bool:
    """Wait for the task or for the stop; returns whether the task is done."""
    await asyncio.wait({task, stopped}, return_when=asyncio.FIRST_COMPLETED)
    return task.done()
