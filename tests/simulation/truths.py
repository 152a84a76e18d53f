"""The jobs of a simulation run, and their true state, whatever is reported."""

from __future__ import annotations

import json
import math
import random
from dataclasses import dataclass
from datetime import datetime, timedelta
from decimal import Decimal
from typing import TYPE_CHECKING, Any

from goblin.core.events import JobRequested
from goblin.jobs.domain.job import JobKind
from tests.fakes.batch_host import dataset
from tests.fakes.jobs import BUCKET
from tests.simulation.hosts import saved_state

if TYPE_CHECKING:
    from tests.simulation.life import Life

STEP_S_MAX = 600.0
"""An attempt that gets no further for half an hour is taken for a stalled one."""
GPUS = ("RTX_4090", "A100_PCIE")


@dataclass(frozen=True)
class Truth:
    """True state of one job."""

    spec: JobRequested
    total: int
    step_s: float
    save_s: float

    @property
    def may_be_refused(self) -> bool:
        return self.spec.deadline is not None or self.spec.kind == JobKind.INFERENCE

    def check_output(self, life: Life, job: Any) -> None:
        """The output is whole: every item once and in order; or the last state."""
        assert self.spec.output_uri is not None
        if self.spec.kind == JobKind.BATCH:
            lines = life.objects.objects[self.spec.output_uri].data.splitlines()
            found = [json.loads(line)["custom_id"] for line in lines]
            assert found == [f"item-{number}" for number in range(self.total)], f"{job.job_id}: {found}"
            return
        data = life.objects.objects[f"{self.spec.output_uri}/part.jsonl"].data
        assert data == saved_state(job.job_id, self.total, job.checkpoint.attempt), data


def job(rng: random.Random, name: str, now: datetime, life: Life, *, promise: bool) -> Truth:
    """A job as people ask for them; what it reads lies in the bucket."""
    kind = rng.choices([JobKind.TRAINING, JobKind.BATCH, JobKind.INFERENCE], [50, 45, 0 if promise else 5])[0]
    hours = min(120.0, life.weather.hours * rng.lognormvariate(0, 0.8))
    training = kind is JobKind.TRAINING
    total = rng.randint(20, 400) if training else rng.randint(1, 40)
    total = max(total, math.ceil(hours * 3600 / STEP_S_MAX))
    step_s = hours * 3600 / total
    fields: dict[str, Any] = {}
    if rng.random() < (1.0 if promise else 0.6):
        fields["est_hours"] = hours * (1.0 if promise else rng.choice([0.8, 1.0, 1.0, 1.3]))
    if promise or (rng.random() < life.weather.deadlines and "est_hours" in fields):
        time = hours * rng.choice([0.9, 1.1, 1.5, 2.0, 4.0]) + rng.uniform(0.3, 1.5)
        fields["deadline"] = now + timedelta(hours=time)
    if not promise and rng.random() < 0.25:
        fields["budget_usd"] = Decimal(rng.choice(["0.05", "0.30", "1.5", "20"]))
    if not promise and rng.random() < 0.15:
        fields["max_price_per_hour"] = Decimal(rng.choice(["0.05", "0.25", "0.60"]))
    if rng.random() < 0.5:
        fields["gpu_types"] = (rng.choice(GPUS),)
    spec = JobRequested(
        job_id=name, kind=kind, priority=rng.choice(["high", "default", "default", "low"]),
        dataset_uri=f"gs://{BUCKET}/datasets/{name}.jsonl", output_uri=f"gs://{BUCKET}/outputs/{name}",
        checkpoint_every=rng.randint(1, 6), checkpoint_minutes=rng.choice([5, 15, 30]), retries=rng.choice([4, 8]),
        **fields,
    )  # fmt: skip
    assert spec.dataset_uri is not None
    life.objects.write(spec.dataset_uri, dataset(1 if training else total))
    save_s = rng.choice([2.0, 8.0, 10.0, *([] if promise else [40.0])])
    return Truth(spec=spec, total=total, step_s=step_s, save_s=save_s)
