"""Who goes next: a queue for each kind of job, with so many places; high before default before low, nobody for ever.

A job whose deadline was promised keeps a place until it has ended, also while it waits for spot: a promise is worth
nothing without one. So it is promised only when there is one.

Within a priority the first to ask is the first to go. A job that has waited for long counts as of the next priority, so
that a steady stream of urgent work cannot starve the rest.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from datetime import datetime, timedelta

from goblin.jobs.domain.job import LEASED, Job, JobPriority, JobState

PROMOTED_AFTER = timedelta(hours=6)
"""Waiting this long is worth one priority."""


def order_queue(jobs: Collection[Job], *, now: datetime) -> Sequence[Job]:
    """The queued jobs that may be placed now, in the order in which free places are offered to them."""

    def rank(job: Job) -> tuple[bool, int, datetime, str]:
        waited = (now - job.requested_at) // PROMOTED_AFTER
        priority = max(0, list(JobPriority).index(JobPriority(job.spec.priority)) - waited)
        return not keeps_place(job), priority, job.requested_at, job.job_id

    def waits(job: Job) -> bool:
        return job.state is JobState.QUEUED and (job.not_before is None or now >= job.not_before)

    return sorted((job for job in jobs if waits(job)), key=rank)


def keeps_place(job: Job) -> bool:
    """Whether a place is kept for a job that is not at work just now."""
    return job.spec.deadline is not None and job.state in (JobState.QUEUED, JobState.PREEMPTED)


def places_taken(jobs: Collection[Job]) -> Counter[str]:
    """How many jobs of each kind are at work, about to be, or have a place kept for them."""
    return Counter(job.spec.kind for job in jobs if job.state in LEASED or keeps_place(job))


def has_place(kind: str, taken: Mapping[str, int], limits: Mapping[str, int]) -> bool:
    """Whether another job of the kind may start; a kind without a limit runs none."""
    return taken.get(kind, 0) < limits.get(kind, 0)
