"""A training: download the inputs, run the task as a child process, upload checkpoints until it is done or stopped."""

from __future__ import annotations

import asyncio
import json
import logging
import os
from collections.abc import Callable, Coroutine, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import httpx

from goblin_agent import gpu, tasks
from goblin_agent.ending import Ending, Verdict, judge
from goblin_agent.fetch import Unreadable, fetch, tidy
from goblin_agent.logs import Log, ship_once
from goblin_agent.task import Child, Folders, Progress, Said
from goblin_agent.uploads import BadCheckpoint, NotUploaded, Uploader
from goblin_worker.attempt import TAKEN, broken, finish, last_words
from goblin_worker.controller import Controller, File, Grant, Inputs, Rejected, Standing, Unreachable, Work
from goblin_worker.retries import Hopeless

log = logging.getLogger(__name__)

SAVE_S_MAX = 60.0
"""Longest time for a task to save and end after it is asked to stop."""
LOOK_S = 0.2
"""Time between two polls for new checkpoints and progress."""
LAST_LOG_S_MAX = 5.0
FIRST_BEAT_S = 2.0
LOSSES_MAX = 10_000
CHECKPOINT_S = 900.0
"""Time between checkpoints if the controller gives none."""


class Training:
    """One attempt at a training job that is claimed already."""

    def __init__(
        self, http: httpx.AsyncClient, controller: Controller, work: Work, folders: Folders, log_: Log,
        stop: asyncio.Event,
    ) -> None:  # fmt: skip
        """Prepare the attempt. Nothing starts yet.

        Args:
            http: Client for the bucket.
            controller: Client of the controller.
            work: The controller's assignment.
            folders: The attempt's folders.
            log_: Collects the task's output.
            stop: Set by the caller when the machine is being taken away.
        """
        self._http = http
        self._controller = controller
        self._work = work
        self._folders = folders
        self._log = log_
        self._stop = stop
        self._why_stop: str | None = None
        self._said = Said(step=work.step)
        self._uploader = Uploader(http, controller, folders.checkpoints, work.step)
        self._child: Child | None = None

    async def run(self) -> int:
        """Run the attempt to its end. Returns the process's exit code.

        Raises:
            Over: The attempt is not the current one any more. The task is killed.
            Unreachable: The controller did not answer for too long. The task is killed.
        """
        beating = asyncio.create_task(self._beat())
        working = asyncio.create_task(self._lead())
        try:
            await asyncio.wait({beating, working}, return_when=asyncio.FIRST_COMPLETED)
            # The heartbeat task ends only by an error: the attempt is over, or the controller does not answer.
            return (working if working.done() else beating).result()
        finally:
            if self._child is not None:
                self._child.kill()
            for one in (beating, working):
                one.cancel()
            await asyncio.gather(beating, working, return_exceptions=True)

    async def _lead(self) -> int:
        """Run the task, then report its end to the controller."""
        try:
            command = tasks.command(self._work.task, os.environ.get("GOBLIN_TASKS"))
            if not await self._unless_stopped(self._prepare()):
                verdict, why = Verdict.WITHDRAW, self._why_stop or TAKEN
            else:
                verdict, why = await self._train(command)
        except (tasks.UnknownTask, BadCheckpoint, Hopeless) as reason:
            verdict, why = Verdict.FAIL, str(reason)
        except (Unreadable, NotUploaded, Rejected, OSError) as reason:
            # Another machine, with another disk and network, may succeed.
            verdict, why = Verdict.WITHDRAW, f"{type(reason).__name__}: {reason}"
        log.info("%s: %s", verdict, why)
        with suppress(TimeoutError, Unreachable):
            await asyncio.wait_for(ship_once(self._log, self._http, self._controller), LAST_LOG_S_MAX)
        match verdict:
            case Verdict.FINISH:
                await finish(self._controller, self._stop, step=self._uploader.saved)
                return 0
            case Verdict.FAIL:
                return await broken(self._controller, why)
            case Verdict.WITHDRAW:
                return await last_words(self._controller, why, step=self._uploader.saved)

    async def _unless_stopped(self, work: Coroutine[Any, Any, None]) -> bool:
        """Return whether the work finished before the stop. Otherwise it is cancelled."""
        working, stopping = asyncio.create_task(work), asyncio.create_task(self._stop.wait())
        try:
            await asyncio.wait({working, stopping}, return_when=asyncio.FIRST_COMPLETED)
            if working.done():
                working.result()
            return working.done()
        finally:
            for one in (working, stopping):
                one.cancel()
            await asyncio.gather(working, stopping, return_exceptions=True)

    async def _prepare(self) -> None:
        """Download and verify everything that the task reads."""
        work, folders = self._work, self._folders
        tidy(folders.inputs, work.inputs.files)
        tidy(folders.resume, work.inputs.checkpoint)
        await asyncio.gather(
            *(self._fetch(file, folders.inputs, lambda inputs: inputs.files) for file in work.inputs.files),
            *(self._fetch(file, folders.resume, lambda inputs: inputs.checkpoint) for file in work.inputs.checkpoint),
        )
        parameters = {**work.parameters, **({"model": work.model} if work.model else {})}
        folders.parameters.write_text(json.dumps(parameters))
        folders.say_checkpoint_s(work.checkpoint_s or CHECKPOINT_S)

    async def _fetch(self, file: File, folder: Path, among: Callable[[Inputs], Sequence[File]]) -> None:
        async def renew() -> Grant:
            found = [one for one in among(await self._controller.inputs()) if one.name == file.name]
            if not found or (found[0].size, found[0].crc32c) != (file.size, file.crc32c):
                raise Unreadable(f"{file.name} in the bucket has changed")
            return found[0].grant

        await fetch(self._http, file, folder, renew)
        log.info("Downloaded and verified %s: %d bytes.", file.name, file.size)

    async def _train(self, command: Sequence[str]) -> tuple[Verdict, str]:
        environment = self._folders.environment(resuming=bool(self._work.inputs.checkpoint), given=os.environ)
        log.info(
            "Job %s, attempt %d: the task starts at step %d.", self._work.job_id, self._work.attempt, self._work.step
        )
        child = await Child.start(command, cwd=self._folders.work, environment=environment, output=self._log.write)
        self._child = child
        ending = asyncio.create_task(child.wait())
        stopping = asyncio.create_task(self._stop.wait())
        saving = asyncio.create_task(self._save_all(ending))
        killed = False
        try:
            await asyncio.wait({ending, stopping, saving}, return_when=asyncio.FIRST_COMPLETED)
            if saving.done():
                saving.result()  # The upload task ends before the task only by an error: raise it.
            if not ending.done():
                child.ask_to_save()
                await asyncio.wait({ending}, timeout=SAVE_S_MAX)
                killed = not ending.done()
                child.kill()
            code = await ending
            await saving
        finally:
            child.kill()
            for one in (ending, stopping, saving):
                one.cancel()
            await asyncio.gather(ending, stopping, saving, return_exceptions=True)
        stopped = (self._why_stop or TAKEN) if self._stop.is_set() else None
        return judge(
            Ending(
                code=code, saved=self._uploader.saved, total=self._said.total_from(self._uploader.saved),
                stopped=stopped, killed=killed, last_lines=self._log.last_lines(),
            )
        )  # fmt: skip

    async def _save_all(self, ending: asyncio.Task[int]) -> None:
        """Upload checkpoints as they appear, the last one after the task has ended."""
        progress = Progress(self._folders.progress)
        while True:
            last = ending.done()
            for line in progress.read():
                self._hear(line)
            step = self._uploader.newest()
            if step is not None:
                await self._uploader.save(step)
            elif last:
                return
            else:
                await asyncio.wait({ending}, timeout=LOOK_S)

    def _hear(self, line: bytes) -> None:
        self._said.hear(line)
        one = Said()
        one.hear(line)
        if one.loss is not None and one.step > self._uploader.saved:
            self._uploader.losses[one.step] = one.loss
            while len(self._uploader.losses) > LOSSES_MAX:
                self._uploader.losses.pop(next(iter(self._uploader.losses)))

    async def _beat(self) -> int:
        """Send heartbeats and obey the replies. The first one comes early, for a person who watches."""
        wait_s = min(FIRST_BEAT_S, self._work.heartbeat_s)
        errors_before = (await gpu.look()).errors
        while True:
            await asyncio.sleep(wait_s)
            wait_s = self._work.heartbeat_s
            said, saved, gpus = self._said, self._uploader.saved, await gpu.look()
            errors = None if gpus.errors is None or errors_before is None else max(0, gpus.errors - errors_before)
            try:
                standing = await self._controller.heartbeat(
                    max(said.step, saved), total=said.total_from(saved), loss=said.loss,
                    steps_per_s=said.steps_per_s, save_s=said.save_s, gpu_share=gpus.share,
                    gpu_errors=errors,
                )  # fmt: skip
            except Rejected as reason:
                standing = Standing(stop=f"the controller refuses its heartbeats: {reason}")
            if standing.checkpoint_s is not None:
                self._folders.say_checkpoint_s(standing.checkpoint_s)
            if standing.stop is not None and not self._stop.is_set():
                self._why_stop = standing.stop
                self._stop.set()


async def run_training(
    http: httpx.AsyncClient, controller: Controller, work: Work, *, folders: Folders, log_: Log, stop: asyncio.Event
) -> int:
    """Run one attempt at a training job that is claimed already. Returns the process's exit code."""
    folders.make()
    return await Training(http, controller, work, folders, log_, stop).run()
