"""A job on a RunPod queue as a stream: put in line, listened to, and taken out of line when nobody listens any more.

    POST /run ─▶ GET /stream/{id} … until the job has ended and nothing is left ─▶ the end
                     └─ whoever waits leaves: POST /cancel/{id}

Source: runpod/docs and runpod-python 1.12, read 2026-11-23. `/stream` gives what was written since it was last asked,
once, and holds for about ten seconds when there is nothing; so a lost answer is lost text, and is never asked for
again. A job without anybody to cancel it ends with its `ttl`.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncGenerator, Mapping
from typing import Any

import msgspec

from goblin.core.errors import Fault, GoblinError, ProviderUnavailable
from goblin.providers.common.http import Upstream

log = logging.getLogger(__name__)

POLL_TIMEOUT_S = 30.0
"""Three times what an empty `/stream` holds."""
PAUSE_S = 0.25
"""After an empty answer that did not hold."""
CANCEL_TIMEOUT_S = 5.0
OVER = frozenset({"COMPLETED", "FAILED", "CANCELLED", "TIMED_OUT"})


class Submitted(msgspec.Struct, frozen=True, kw_only=True):
    id: str


class QueuePiece(msgspec.Struct, frozen=True, kw_only=True):
    output: Any = None


class Poll(msgspec.Struct, frozen=True, kw_only=True):
    """What `/stream` and `/status` say; a status we do not know is one under way."""

    status: str = ""
    stream: tuple[QueuePiece, ...] = ()
    output: Any = None


class RunPodQueue:
    """One endpoint's queue."""

    def __init__(self, upstream: Upstream, *, execution_s: int, life_s: int) -> None:
        """Keep where jobs go.

        Args:
            upstream: `https://api.runpod.ai/v2/{endpoint}`.
            execution_s: The longest a job may run.
            life_s: The longest it may live, waiting included; what bounds the bill of a job that is lost.
        """
        self._upstream = upstream
        self._policy = {"executionTimeout": execution_s * 1000, "ttl": life_s * 1000}
        self._farewells: set[asyncio.Task[None]] = set()
        """Cancellations under way: a task that nothing refers to may vanish."""

    async def run(self, work: Mapping[str, Any]) -> AsyncGenerator[Any, None]:
        """What a worker writes for one input, as it comes.

        Raises:
            ProviderUnavailable: the job failed, was lost, or was never taken.
            InvalidRequest: the queue finds fault with the input.
        """
        job_id = await self._submit(work)
        over = False
        try:
            said_something = False
            while True:
                poll = await self._poll(f"/stream/{job_id}")
                for piece in poll.stream:
                    said_something = True
                    yield piece.output
                # What is left is still given after the end.
                if over := poll.status in OVER and not poll.stream:
                    break
                if not poll.stream:
                    await asyncio.sleep(PAUSE_S)
            if poll.status != "COMPLETED":
                raise ProviderUnavailable(f"{self._upstream.name}: the job is {poll.status}.")
            if not said_something:
                # A worker that does not stream has its whole output here.
                yield (await self._poll(f"/status/{job_id}")).output
        finally:
            if not over:
                await asyncio.shield(self._say_goodbye(job_id))

    async def _submit(self, work: Mapping[str, Any]) -> str:
        """The new job's id. One whose caller leaves before its id is known is cancelled when it is."""
        submitting = asyncio.create_task(self._post(work))
        try:
            return await asyncio.shield(submitting)
        except asyncio.CancelledError:
            self._keep(asyncio.create_task(self._cancel_when_known(submitting)))
            raise

    async def _post(self, work: Mapping[str, Any]) -> str:
        body = {"input": work, "policy": self._policy}
        answer = await self._upstream.json("POST", "/run", body=body, timeout_s=POLL_TIMEOUT_S)
        return self._upstream.convert(answer, Submitted).id

    async def _cancel_when_known(self, submitting: asyncio.Task[str]) -> None:
        try:
            job_id = await submitting
        except GoblinError:
            return  # It was never taken.
        await self._cancel(job_id)

    async def _poll(self, path: str) -> Poll:
        """One look. A limit on looking is no reason to give the job up; a job that is gone is."""
        try:
            data = await self._upstream.exchange("GET", path, timeout_s=POLL_TIMEOUT_S, again=False)
        except ProviderUnavailable as error:
            if error.fault is Fault.RATE:
                await asyncio.sleep(min(error.retry_after_s or 1.0, POLL_TIMEOUT_S))
                return Poll()
            if error.fault is Fault.MISSING:
                raise ProviderUnavailable(f"{self._upstream.name} has lost the job.") from error
            raise
        said = self._upstream.decode(data)
        if isinstance(said, list):
            # The documentation's example of `/stream` is the list alone.
            pieces = self._upstream.convert(said, tuple[QueuePiece, ...])
            return Poll(stream=pieces) if pieces else await self._poll(path.replace("/stream/", "/status/"))
        return self._upstream.convert(said, Poll)

    def _say_goodbye(self, job_id: str) -> asyncio.Task[None]:
        return self._keep(asyncio.create_task(self._cancel(job_id)))

    def _keep(self, task: asyncio.Task[None]) -> asyncio.Task[None]:
        self._farewells.add(task)
        task.add_done_callback(self._farewells.discard)
        return task

    async def _cancel(self, job_id: str) -> None:
        try:
            await self._upstream.exchange("POST", f"/cancel/{job_id}", body={}, timeout_s=CANCEL_TIMEOUT_S)
        except GoblinError as error:
            log.warning("%s: job %.64s was not cancelled and ends by itself: %s", self._upstream.name, job_id, error)
