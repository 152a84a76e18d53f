"""A host that trains against the real services, call by call, so that a test can send invalid reports or stop it."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from goblin.core.events import JobRequested
from goblin.jobs import checkpoints, lifecycle, worker_api
from goblin.jobs.domain.checkpoints import Artifact, Checkpoint
from goblin.jobs.domain.market import ExpectedRun, Offer, Placement
from goblin.jobs.domain.worker import Assignment
from goblin.jobs.reconcile import reconcile
from tests.fakes.batch_host import announce
from tests.fakes.jobs import BUCKET, World

MACHINE = Offer(
    offer_id="o", provider="fake", pool="fake", machine_id="m7", spot=True, price_usd_micros_per_hour=0,
    gpu_memory_mib=0,
)  # fmt: skip


def spec(job_id: str = "j", **changes: Any) -> JobRequested:
    fields: dict[str, Any] = {
        "job_id": job_id, "kind": "training", "task": "t", "dataset_uri": f"gs://{BUCKET}/datasets/{job_id}.txt",
        "output_uri": f"gs://{BUCKET}/outputs/{job_id}",
    }  # fmt: skip
    return JobRequested(**{**fields, **changes})


def placement(offer: Offer = MACHINE, **run: Any) -> Placement:
    fields: dict[str, Any] = {
        "price_usd_micros_per_hour": 0, "cost_usd_micros": 0, "duration_s": 7200.0, "interval_s": 600.0, "losses": 2.0
    }  # fmt: skip
    return Placement(
        offer=offer, bid_usd_micros_per_hour=None, run=ExpectedRun(**{**fields, **run}), reason="", candidates=()
    )  # fmt: skip


def files(step: int, attempt: int = 1) -> dict[str, bytes]:
    return {"weights": f"weights {step} a{attempt}".encode(), "momentum": f"momentum {step}".encode()}


async def training(**changes: Any) -> tuple[World, TrainingHost]:
    """A world where a training's first attempt has begun."""
    world = World()
    world.compute.kinds = frozenset({"training"})
    wanted = spec(**changes)
    if wanted.dataset_uri:
        world.objects.write(wanted.dataset_uri, b"text")
    await lifecycle.request(wanted, world.deps)
    return world, await next_host(world)


async def next_host(world: World) -> TrainingHost:
    """The next attempt's, which has claimed."""
    await reconcile(world.deps)
    host = TrainingHost(world, world.token())
    await host.claim()
    return host


class TrainingHost:
    """One rented instance that runs a training attempt."""

    def __init__(self, world: World, token: str) -> None:
        self.world = world
        self.token = token
        self.attempt = int(token.split(".", 2)[1])
        self.work: Assignment | None = None

    async def claim(self) -> Assignment:
        self.work = await worker_api.claim("j", self.token, self.world.deps)
        return self.work

    async def upload(self, step: int, data: dict[str, bytes] | None = None) -> tuple[str, list[Artifact]]:
        """Announce and upload, not commit."""
        data = files(step, self.attempt) if data is None else data
        announced = [announce(content, name) for name, content in data.items()]
        upload_id, grants = await worker_api.begin_checkpoint("j", self.token, step, announced, self.world.deps)
        for name, content in data.items():
            assert self.world.objects.put(grants[name], content) == 200
        return upload_id, announced

    async def commit(
        self, step: int, upload_id: str, announced: list[Artifact], *, loss: float | None = None, **said: Any
    ) -> Checkpoint:
        """Commit; `said` is what it claims of its first file, whatever was uploaded."""
        told = [replace(announced[0], **said), *announced[1:]]
        return await worker_api.commit_checkpoint("j", self.token, step, 0, upload_id, told, self.world.deps, loss=loss)

    async def save(self, step: int, *, loss: float | None = None, heard: bool = True) -> Checkpoint:
        """A whole checkpoint, and the event about it."""
        upload_id, announced = await self.upload(step)
        saved = await self.commit(step, upload_id, announced, loss=loss)
        events = [event for topic, event in self.world.bus.waiting if topic == "checkpoint-saved"]
        self.world.bus.waiting.clear()
        for event in events if heard else ():
            await checkpoints.note(event, self.world.deps)  # type: ignore[arg-type]
        return saved
