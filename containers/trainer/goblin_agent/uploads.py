"""Checkpoint uploads: announce, upload, commit. A checkpoint exists once the controller has verified it."""

from __future__ import annotations

import asyncio
import logging
import re
import shutil
from collections.abc import AsyncGenerator
from pathlib import Path
from typing import Any

import httpx

from goblin_agent.digests import CHUNK, NAME, describe
from goblin_worker.controller import Controller, Grant
from goblin_worker.retries import LOST, Tries, said

log = logging.getLogger(__name__)

FILES_MAX = 64
FILE_BYTES_MAX = 5 * 1024**3
STEP_MAX = 99_999_999
PARALLEL = 4
TIMEOUT = httpx.Timeout(300.0, connect=15.0)
_STEP = re.compile(r"^step-([0-9]{1,8})\Z")


class BadCheckpoint(Exception):
    """The task's folder cannot be a checkpoint. Another machine would not change that."""


class NotUploaded(Exception):
    """The bucket does not take the files. Another attempt may succeed."""


class Uploader:
    """Uploads the checkpoints of a task, the newest first. Older ones are skipped."""

    def __init__(self, http: httpx.AsyncClient, controller: Controller, folder: Path, saved: int) -> None:
        """Prepare the uploads. Nothing starts yet.

        Args:
            http: Client for the bucket.
            controller: Gives signed requests and verifies uploads.
            folder: Where the task writes `step-N.tmp` and renames it to `step-N`.
            saved: The step that the attempt started from.
        """
        self._http = http
        self._controller = controller
        self._folder = folder
        self._at_once = asyncio.Semaphore(PARALLEL)
        self.saved = saved
        """The last step that the controller has verified."""
        self.losses: dict[int, float] = {}
        """Losses by step, as the task reported them. They are stored with the checkpoint."""

    def newest(self) -> int | None:
        """Return the step of the newest complete checkpoint that is not saved yet; None if there is none."""
        steps = [int(found[1]) for entry in self._folder.iterdir() if (found := _STEP.match(entry.name))]
        return max((step for step in steps if step > self.saved), default=None)

    async def save(self, step: int) -> None:
        """Upload a step and commit it, then delete it and older ones from the disk.

        Raises:
            BadCheckpoint: The folder has no files, too many, too large ones or invalid names.
            Over: The attempt is not the current one any more.
            Disbelieved: The upload is not what was announced.
            NotUploaded: The bucket did not take the files.
            Rejected: The controller refuses the checkpoint.
            Unreachable: The controller did not answer for too long.
        """
        where = self._folder / f"step-{step}"
        paths = _files(where)
        files = [await asyncio.to_thread(describe, path) for path in paths]
        upload_id = await self._upload(step, where, files)
        loss = self.losses.get(step)
        await self._controller.commit_checkpoint(step, self.saved, upload_id, files, loss=loss)
        log.info("Saved step %d: %d bytes.", step, sum(file["size"] for file in files))
        self.saved = step
        self.losses = {at: loss for at, loss in self.losses.items() if at > step}
        await asyncio.to_thread(self._clear)

    async def _upload(self, step: int, where: Path, files: list[dict[str, Any]]) -> str:
        """Upload the files and return the upload's id. Each try has its own folder: a torn upload disturbs no other."""
        tries = Tries()
        while True:
            upload_id, grants = await self._controller.begin_checkpoint(step, files)
            putting = (self._put(where / file["name"], file["size"], grants[file["name"]]) for file in files)
            failed = next((one for one in await asyncio.gather(*putting) if one is not None), None)
            if failed is None:
                return upload_id
            log.info("Step %d is not uploaded yet: %s", step, said(failed))
            if not await tries.failed(failed):
                raise NotUploaded(f"the upload of step {step} to the bucket failed: {said(failed)}")

    async def _put(self, path: Path, size: int, grant: Grant) -> httpx.Response | Exception | None:
        """Upload one file. Returns what came instead of success; None on success."""
        headers = {**grant.headers, "content-length": str(size)}
        try:
            async with self._at_once:
                answer = await self._http.put(grant.url, content=_chunks(path), headers=headers, timeout=TIMEOUT)
        except LOST as error:
            return error
        return None if answer.is_success else answer

    def _clear(self) -> None:
        for entry in self._folder.iterdir():
            found = _STEP.match(entry.name)
            if found and int(found[1]) <= self.saved:
                shutil.rmtree(entry, ignore_errors=True)


def _files(where: Path) -> list[Path]:
    found = sorted(where.iterdir())
    if not 1 <= len(found) <= FILES_MAX:
        raise BadCheckpoint(f"{where.name} has {len(found)} files; a checkpoint has 1 to {FILES_MAX}")
    for path in found:
        if not path.is_file() or path.is_symlink() or not NAME.match(path.name):
            raise BadCheckpoint(f"{where.name} may hold only plain files with plain names, not {path.name!r}")
        if not 0 < (size := path.stat().st_size) <= FILE_BYTES_MAX:
            raise BadCheckpoint(f"{where.name}/{path.name} has {size} bytes; a file has 1 to {FILE_BYTES_MAX}")
    return found


async def _chunks(path: Path) -> AsyncGenerator[bytes, None]:
    with path.open("rb") as file:
        while chunk := await asyncio.to_thread(file.read, CHUNK):
            yield chunk
