"""Invalid reports from machines, and calls for jobs that are not theirs. The controller must accept none of them."""

from __future__ import annotations

import hashlib
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from goblin.core.errors import Conflict, GoblinError
from goblin.jobs import checkpoints, worker_api
from goblin.jobs.domain.checkpoints import STEP_MAX, Artifact, manifest_uri
from goblin.jobs.domain.worker import WorkerReport
from goblin.jobs.lifecycle import JobDeps
from tests.fakes.batch_host import announce
from tests.fakes.jobs import BUCKET, Crash, crc32c

if TYPE_CHECKING:
    from tests.simulation.hosts import Host


async def _refused(host: Host, say: Callable[[JobDeps], Awaitable[Any]], what: str) -> None:
    """Whatever else goes wrong: it is not believed."""
    try:
        await say(host.life.function())
    except (GoblinError, Crash):
        return
    raise AssertionError(f"{host.rented.label}: {what} was believed")


async def lie(host: Host) -> None:
    step = min(host.total, host.saved + 1)
    if step <= host.saved:
        return
    kind = host.rng.choice(["absent", "torn", "forged", "huge", "beyond"])
    data = host.data(step)
    if host.life.weather.poison_s and host.work and host.work.checkpoint_s is None:
        # A batch's part is read: one that cannot be is a lie like any other.
        kind, data = "garbled", host.life.poison.garbled(data)
    if kind == "huge":
        huge = Artifact(name="part.jsonl", size=6 * 1024**3, crc32c=crc32c(data), sha256="0" * 64)
        say = lambda deps: worker_api.begin_checkpoint(host.job_id, host.token, step, [huge], deps)  # noqa: E731
        await _refused(host, say, kind)
        return
    if kind == "beyond":
        said = (
            WorkerReport(total=max(1, host.total))
            if host.work and host.work.checkpoint_s is not None
            else WorkerReport()
        )
        far = STEP_MAX + 1
        say = lambda deps: worker_api.heartbeat(host.job_id, host.token, far, deps, told=said)  # noqa: E731
        await _refused(host, say, kind)
        return
    shown = hashlib.sha256(b"another").hexdigest()
    file = announce(data, "part.jsonl")
    file = replace(file, sha256=shown) if kind == "forged" else file
    answer = await host.ask(lambda deps: worker_api.begin_checkpoint(host.job_id, host.token, step, [file], deps))
    if not isinstance(answer, tuple):
        return
    upload_id, grants = answer
    if kind == "torn":
        assert host.life.objects.put(grants["part.jsonl"], data[:-1]) == 400
    if kind in ("forged", "garbled"):
        assert host.life.objects.put(grants["part.jsonl"], data) == 200

    async def commit(deps: JobDeps) -> None:
        await worker_api.commit_checkpoint(host.job_id, host.token, step, host.saved, upload_id, [file], deps)
        made = await checkpoints.read_manifest(manifest_uri(BUCKET, host.job_id, step, host.attempt), deps)
        # The step may have been saved before; then that is what the host is told.
        if made is not None and upload_id not in made[0].files[0].uri:
            raise Conflict("it was saved before")

    await _refused(host, commit, kind)


async def steal(host: Host) -> None:
    """Old tokens, and its own at another's door."""
    tries = [(host.job_id, token) for token in host.life.old_tokens(host.job_id, host.token)]
    tries += [(other, host.token) for other in sorted(host.life.truths) if other != host.job_id][:3]
    for job_id, token in tries[-4:]:
        for name, say in _doors(job_id, token).items():
            await _refused(host, say, f"{name} of {job_id} with a foreign token")


def _doors(job_id: str, token: str) -> Mapping[str, Callable[[JobDeps], Awaitable[Any]]]:
    file = announce(b"mine\n")
    return {
        "claim": lambda deps: worker_api.claim(job_id, token, deps),
        "inputs": lambda deps: worker_api.inputs(job_id, token, deps),
        "heartbeat": lambda deps: worker_api.heartbeat(job_id, token, 1, deps),
        "upload": lambda deps: worker_api.begin_checkpoint(job_id, token, 1, [file], deps),
        "commit": lambda deps: worker_api.commit_checkpoint(job_id, token, 1, 0, "secret-0000", [file], deps),
        "finish": lambda deps: worker_api.finish(job_id, token, deps),
        "withdraw": lambda deps: worker_api.withdraw(job_id, token, "mine", deps),
        "fail": lambda deps: worker_api.fail(job_id, token, "mine", deps),
    }
