"""Checks of worker reports and logs, the interval between checkpoints, and invalid reports."""

from __future__ import annotations

import math
import re
from dataclasses import replace
from datetime import datetime

from goblin.jobs.domain.checkpoints import STEP_MAX
from goblin.jobs.domain.job import ENDED, REASONS_MAX, Job, JobKind, Reason
from goblin.jobs.domain.worker import WorkerReport
from goblin.jobs.policy import state_machine
from goblin.jobs.policy.spot.checkpoint_interval import choose_interval
from goblin.jobs.policy.state_machine import Transition, Trigger

NUMBER_MAX = 1e12
SAVE_S_MAX = 24 * 3600.0


def why_impossible(job: Job, step: int, told: WorkerReport) -> str | None:
    """Explain why a worker report cannot be true; None if it can.

    Args:
        job: The job as read.
        step: The step that the host reports.
        told: The rest of the report.
    """
    total = told.total
    if not 0 <= step <= STEP_MAX:
        return f"step {step} does not exist"
    if total is not None and not max(1, step, job.saved_step) <= total <= STEP_MAX:
        return f"{total} steps in all, but it is at step {step} and step {job.saved_step} is saved"
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
    """Choose the work between two checkpoints, in seconds; None: a batch counts items.

    The duration of a save is measured by the attempt; the expected life of the instance comes from its placement.
    Where uploads cost money, the result is never shorter than the placement assumed: only that many saves are reserved.
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


LARGE_PIECES = 100


PIECE_BYTES_MAX = 256 * 1024


SMALL_PIECE_BYTES_MAX = 8 * 1024


PIECES_MAX = 10_000
"""Pieces of one log. The first may be large, later ones are small: 107 MB in all, without a count being stored."""


SHOWN_BYTES_MAX = 512 * 1024


_CONTROL = re.compile(r"\x1b(?:\[[0-?]*[ -/]*[@-~]|\][^\x07\x1b]*(?:\x07|\x1b\\)?|[@-_])|[\x00-\x08\x0b-\x1f\x7f-\x9f]")


def piece_bytes_max(number: int) -> int:
    """Return the size limit of the log piece with this number; 0: the number does not exist."""
    if not 0 <= number < PIECES_MAX:
        return 0
    return PIECE_BYTES_MAX if number < LARGE_PIECES else SMALL_PIECE_BYTES_MAX


def readable(data: bytes) -> str:
    """Decode a log without control characters and escape sequences; updates of a progress bar become lines."""
    text = data.decode(errors="replace").replace("\r\n", "\n").replace("\r", "\n")
    return _CONTROL.sub("", text)


INVALID_REPORTS_MAX = 3
"""Invalid reports of one attempt; the last one ends the attempt, and the job is placed again."""


SAID_MAX = 300


def note_invalid_report(job: Job, what: str, *, now: datetime) -> Transition:
    """Note an invalid report of the current attempt's host; the `INVALID_REPORTS_MAX`th ends the attempt."""
    line = Reason(at=now, state=job.state, text=f"{_refuse_attempt(job)}: {what[:SAID_MAX]}")
    job = replace(job, invalid_reports=job.invalid_reports + 1, reasons=(*job.reasons, line)[-REASONS_MAX:])
    if invalid_reports_of_attempt(job) >= INVALID_REPORTS_MAX:
        reason = f"attempt {job.attempt} is over: its host sent {INVALID_REPORTS_MAX} invalid reports"
        ended = state_machine.apply(job, Trigger.WITHDRAWN, now=now, reason=reason)
        if ended is not None:
            return ended
    return Transition(job=job, actions=())


def note_foreign_token(job: Job, *, now: datetime) -> Transition | None:
    """Note the use of a token that is not the current attempt's, old or forged; None: it was noted often enough.

    It says nothing about the current attempt's host. After a job has ended its last line stays: it says why it ended.
    """
    text = "a token that is not the current attempt's was refused"
    if not job.open or job.state in ENDED or sum(line.text == text for line in job.reasons) >= INVALID_REPORTS_MAX:
        return None
    line = Reason(at=now, state=job.state, text=text)
    return Transition(
        job=replace(job, invalid_reports=job.invalid_reports + 1, reasons=(*job.reasons, line)[-REASONS_MAX:]),
        actions=(),
    )


def invalid_reports_of_attempt(job: Job) -> int:
    """Count the invalid reports of the current attempt's host in the job's history."""
    return sum(line.text.startswith(_refuse_attempt(job)) for line in job.reasons)


def _refuse_attempt(job: Job) -> str:
    return f"attempt {job.attempt}'s host lied"
