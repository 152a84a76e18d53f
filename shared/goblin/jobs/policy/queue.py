"""Order of queued jobs: one queue per kind, with a limited number of places; high before default before low.

A job whose deadline was promised keeps a place until it has ended, also while it waits for spot: without a place it
could miss the deadline. So a deadline is promised only while a place is free.

Within a priority the oldest request goes first. A job that has waited for long counts as the next higher priority, so
that a steady stream of urgent jobs cannot starve the rest.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from datetime import datetime, timedelta

from goblin.jobs.domain.job import LEASED, Job, JobKind, JobPriority, JobState
from goblin.jobs.domain.market import NoPlacement

PLACES: Mapping[str, int] = {JobKind.BATCH: 2, JobKind.TRAINING: 2, JobKind.INFERENCE: 2}
"""Most jobs of each kind that run at once."""
_RANKS = {priority.value: rank for rank, priority in enumerate(JobPriority)}
PROMOTED_AFTER = timedelta(hours=6)
"""Waiting this long raises a job by one priority."""


def order_queue(jobs: Collection[Job], *, now: datetime) -> Sequence[Job]:
    """Sort the queued jobs that may be placed now, in the order in which they get free places."""

    def rank(job: Job) -> tuple[bool, int, datetime, str]:
        waited = (now - job.requested_at) // PROMOTED_AFTER
        # An unknown priority, which only another version can have stored, waits as the last and hides no other job.
        priority = max(0, _RANKS.get(job.spec.priority, len(_RANKS)) - waited)
        return not keeps_place(job), priority, job.requested_at, job.job_id

    def waits(job: Job) -> bool:
        return job.state is JobState.QUEUED and (job.not_before is None or now >= job.not_before)

    return sorted((job for job in jobs if waits(job)), key=rank)


def keeps_place(job: Job) -> bool:
    """Check whether a place is kept for a job that has no attempt at the moment."""
    return job.spec.deadline is not None and job.state in (JobState.QUEUED, JobState.PREEMPTED)


def places_taken(jobs: Collection[Job]) -> Counter[str]:
    """Count the jobs of each kind that have an attempt or a place kept for them."""
    return Counter(job.spec.kind for job in jobs if job.state in LEASED or keeps_place(job))


def no_place(kind: str, limits: Mapping[str, int]) -> NoPlacement:
    """Say that a job waits for another one of its kind to end."""
    limit = limits.get(kind, 0)
    places = "no place" if not limit else "the only place" if limit == 1 else f"all {limit} places"
    reason = f"{places} of kind {kind} {'is' if limit < 2 else 'are'} {'there' if not limit else 'taken'}"
    return NoPlacement(reason=reason, candidates=())


def has_place(kind: str, taken: Mapping[str, int], limits: Mapping[str, int]) -> bool:
    """Check whether another job of the kind may start; a kind without a limit runs none."""
    return taken.get(kind, 0) < limits.get(kind, 0)
