"""A job on a RunPod queue as a stream: submit it, poll its output, and cancel it when the reader leaves.

    POST /run ─▶ GET /stream/{id} … until the job has ended and no output is left ─▶ end
                     └─ the reader leaves: POST /cancel/{id}

Source: runpod/docs and runpod-python 1.12, read 2026-11-23. `/stream` returns the output since the last request, once,
and waits about ten seconds when there is none. So a lost response is lost text, and the request is never retried. A job
whose caller crashed before it could cancel ends with its `ttl`.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncGenerator, Mapping
from typing import Annotated, Any

import msgspec
from msgspec import Meta

from goblin.core.decoding import UNREADABLE
from goblin.core.errors import Fault, GoblinError, ProviderUnavailable
from goblin.providers.common.http import Upstream
from goblin.providers.common.reading import leniently, parsed

log = logging.getLogger(__name__)

POLL_TIMEOUT_S = 30.0
"""Three times as long as `/stream` waits when there is no output."""
PAUSE_S = 0.25
"""Pause after an empty response, in case it did not wait."""
CANCEL_TIMEOUT_S = 5.0
OVER = frozenset({"COMPLETED", "FAILED", "CANCELLED", "TIMED_OUT"})


class Submitted(msgspec.Struct, frozen=True, kw_only=True):
    id: Annotated[str, Meta(pattern=r"^[A-Za-z0-9_.-]{1,128}\Z")]
    """It goes into the paths of later requests."""


class QueuePiece(msgspec.Struct, frozen=True, kw_only=True):
    output: Any = None


class Poll(msgspec.Struct, frozen=True, kw_only=True):
    """A response of `/stream` or `/status`; an unknown status counts as running."""

    status: str = ""
    stream: tuple[QueuePiece, ...] | None = ()
    output: Any = None


class RunPodQueue:
    """One endpoint's queue."""

    def __init__(self, upstream: Upstream, *, execution_s: int, life_s: int) -> None:
        """Keep the upstream and the limits of jobs.

        Args:
            upstream: `https://api.runpod.ai/v2/{endpoint}`.
            execution_s: Longest run of a job, in seconds.
            life_s: Longest time from submission to end, in seconds; bounds the bill of a job that is lost.
        """
        self._upstream = upstream
        self._policy = {"executionTimeout": execution_s * 1000, "ttl": life_s * 1000}
        self._farewells: set[asyncio.Task[None]] = set()
        """Running cancellations: asyncio may drop a task that nothing refers to."""

    async def run(self, work: Mapping[str, Any]) -> AsyncGenerator[Any, None]:
        """Run one job and yield a worker's outputs as they arrive; cancel it when the reader leaves.

        Args:
            work: The job's input.

        Raises:
            ProviderUnavailable: The job failed, was lost, or was never accepted.
            InvalidRequest: The queue refuses the input.
        """
        job_id = await self._submit(work)
        over = False
        try:
            said_something = False
            while True:
                poll = await self._poll(f"/stream/{job_id}")
                for piece in poll.stream or ():
                    said_something = True
                    yield piece.output
                # After the job has ended, `/stream` still returns the rest of its output.
                if over := poll.status in OVER and not poll.stream:
                    break
                if not poll.stream:
                    await asyncio.sleep(PAUSE_S)
            if poll.status != "COMPLETED":
                raise ProviderUnavailable(f"{self._upstream.name}: the job ended with status {poll.status}.")
            if not said_something:
                # A worker that does not stream has its whole output here.
                yield (await self._poll(f"/status/{job_id}")).output
        finally:
            if not over:
                await asyncio.shield(self._say_goodbye(job_id))

    async def _submit(self, work: Mapping[str, Any]) -> str:
        """Submit a job and return its id. If the caller leaves before, the job is cancelled once its id is known."""
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
            return  # The job was never accepted.
        await self._cancel(job_id)

    async def _poll(self, path: str) -> Poll:
        """Poll a job once. A rate limit on polling does not fail the job; a job that is missing does."""
        try:
            data = await self._upstream.exchange("GET", path, timeout_s=POLL_TIMEOUT_S, again=False)
        except ProviderUnavailable as error:
            if error.fault is Fault.RATE:
                await asyncio.sleep(min(error.retry_after_s or 1.0, POLL_TIMEOUT_S))
                return Poll()
            if error.fault is Fault.MISSING:
                raise ProviderUnavailable(f"{self._upstream.name} has lost the job.") from error
            raise
        try:
            said = parsed(data)
            poll = leniently({"stream": said} if isinstance(said, list) else said, Poll)
        except UNREADABLE as error:
            raise self._upstream.nonsense() from error
        # The documentation's example of `/stream` is the list alone, which does not say when the job has ended.
        return (
            poll
            if poll.stream or not isinstance(said, list)
            else await self._poll(path.replace("/stream/", "/status/"))
        )

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
            log.warning("%s: cancelling job %.64s failed; it ends with its ttl: %s", self._upstream.name, job_id, error)
