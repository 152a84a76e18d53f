"""A host that runs batch attempts against the real services, one step at a time, so that a test can stop it."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from typing import Any

from goblin.core.events import JobRequested
from goblin.jobs import worker_api
from goblin.jobs.domain.checkpoints import Artifact
from goblin.jobs.lifecycle import JobDeps
from tests.fakes.jobs import BUCKET, World, crc32c


def item(number: int, **changes: Any) -> dict[str, Any]:
    body = {"model": "m", "messages": [{"role": "user", "content": f"say {number}"}]}
    return {"custom_id": f"item-{number}", "method": "POST", "url": "/v1/chat/completions", "body": body, **changes}


def dataset(count: int) -> bytes:
    return b"".join(json.dumps(item(number)).encode() + b"\n" for number in range(count))


def spec(job_id: str = "j", **changes: Any) -> JobRequested:
    fields: dict[str, Any] = {
        "job_id": job_id, "kind": "batch", "dataset_uri": f"gs://{BUCKET}/datasets/{job_id}.jsonl",
        "output_uri": f"gs://{BUCKET}/outputs/{job_id}.jsonl", "checkpoint_every": 3,
    }  # fmt: skip
    return JobRequested(**{**fields, **changes})


def given(world: World, count: int = 10, job_id: str = "j") -> JobRequested:
    """A dataset in the bucket, and the job that asks for it."""
    wanted = spec(job_id)
    assert wanted.dataset_uri
    world.objects.write(wanted.dataset_uri, dataset(count))
    return wanted


def results(start: int, end: int, attempt: int) -> bytes:
    """The lines of output of some items; each says which attempt made it."""
    lines = []
    for number in range(start, end):
        response = {"status_code": 200, "request_id": f"r-{number}", "body": {"attempt": attempt}}
        line = {"id": f"b-{number}", "custom_id": f"item-{number}", "response": response, "error": None}
        lines.append(json.dumps(line).encode() + b"\n")
    return b"".join(lines)


def announce(data: bytes, name: str = "part.jsonl") -> Artifact:
    return Artifact(name=name, size=len(data), crc32c=crc32c(data), sha256=hashlib.sha256(data).hexdigest())


def output_ids(world: World, job_id: str = "j") -> list[str]:
    data = world.objects.objects[f"gs://{BUCKET}/outputs/{job_id}.jsonl"].data
    return [json.loads(line)["custom_id"] for line in data.splitlines()]


class Host:
    """One instance that claims a job, works through its items one checkpoint at a time, and finishes."""

    def __init__(
        self, world: World, job_id: str, token: str, *, made: Callable[[int, int, int], bytes] = results
    ) -> None:
        self._made = made
        self._world = world
        self._deps: JobDeps = world.deps
        self.job_id = job_id
        self.token = token
        self.attempt = int(token.split(".", 2)[1])
        self.saved: int | None = None
        """None until it has claimed."""
        self.total = 0
        self.every = 0
        self.done = False

    async def step(self) -> None:
        """The next thing it has to do."""
        if self.saved is None:
            work = await worker_api.claim(self.job_id, self.token, self._deps)
            self.saved, self.total, self.every = work.step, work.total, work.checkpoint_every
        elif self.saved < self.total:
            await self.checkpoint()
        elif not self.done:
            await worker_api.finish(self.job_id, self.token, self._deps)
            self.done = True

    async def checkpoint(self) -> None:
        assert self.saved is not None
        step = min(self.total, self.saved + self.every)
        data = self._made(self.saved, step, self.attempt)
        files = [announce(data)]
        upload_id, grants = await worker_api.begin_checkpoint(self.job_id, self.token, step, files, self._deps)
        assert self._world.objects.put(grants["part.jsonl"], data) == 200
        await worker_api.commit_checkpoint(self.job_id, self.token, step, self.saved, upload_id, files, self._deps)
        self.saved = step

    async def run(self) -> None:
        """All of it."""
        while not self.done:
            await self.step()
