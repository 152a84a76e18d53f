"""What a training's host may say, and how often it saves."""

from __future__ import annotations

import math

from goblin.jobs.domain.checkpoints import STEP_MAX
from goblin.jobs.domain.job import Job, JobKind
from goblin.jobs.domain.worker import WorkerReport
from goblin.jobs.policy.spot.checkpoint_interval import choose_interval

NUMBER_MAX = 1e12
SAVE_S_MAX = 24 * 3600.0


def impossible(job: Job, step: int, told: WorkerReport) -> str | None:
    """Why what a host says of its work cannot be so; None when it may be.

    Args:
        job: As it was read.
        step: Where the host says it is.
        told: The rest of what it says.
    """
    total = told.total
    if not 0 <= step <= STEP_MAX:
        return f"step {step} is none"
    if total is not None and not max(1, step, job.saved_step) <= total <= STEP_MAX:
        return f"{total} steps in all, at step {step}, with step {job.saved_step} saved"
    ranges = (
        ("loss", told.loss, -NUMBER_MAX, NUMBER_MAX),
        ("steps_per_s", told.steps_per_s, 0.0, NUMBER_MAX),
        ("gpu_share", told.gpu_share, 0.0, 1.0),
        ("gpu_errors", told.gpu_errors, 0, NUMBER_MAX),
        ("save_s", told.save_s, 0.0, SAVE_S_MAX),
    )
    for name, value, least, most in ranges:
        if value is not None and not (math.isfinite(value) and least <= value <= most):
            return f"{name} {value}"
    return None


def checkpoint_s(job: Job) -> float | None:
    """How much work is done between two checkpoints, in seconds; None: the job counts items.

    What a save takes is the attempt's own measure; how long the instance will live is what its placement expects.
    Where uploads cost something it is never less than what the placement counted with: that is what is paid for.
    """
    if job.spec.kind != JobKind.TRAINING:
        return None
    most_s = job.spec.checkpoint_minutes * 60.0
    placement = job.placement
    run = placement.run if placement else None
    save_s = job.progress.save_s if job.progress else None
    if placement is None or run is None or run.losses <= 0 or run.duration_s <= 0:
        return most_s
    planned_s = min(most_s, run.interval_s) if run.interval_s > 0 else most_s
    if save_s is None:
        return planned_s
    chosen = choose_interval(save_s=save_s, life_s=run.duration_s / run.losses, interval_s_max=most_s)
    return max(chosen.interval_s, planned_s) if placement.offer.upload_usd_micros_per_gib else chosen.interval_s
