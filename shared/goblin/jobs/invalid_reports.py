"""Lies written down: in the job, in our log, and in the reputation of the machine that told them."""

from __future__ import annotations

import logging

from goblin.core.errors import LeaseHeld, StoreUnavailable
from goblin.jobs.domain.job import Job
from goblin.jobs.lifecycle import JobDeps, act, change
from goblin.jobs.policy import worker_reports as policy
from goblin.jobs.policy.spot import market_history
from goblin.jobs.policy.state_machine import Transition

log = logging.getLogger(__name__)

SAVES_MAX = 3


async def record_invalid_report(job: Job, what: str, deps: JobDeps) -> None:
    """The current attempt's host lied. Never raises: the refusal is what matters, and it is under way.

    Args:
        job: As it was when the host's token was checked; another attempt's history is left alone.
        what: The lie, for a person.
        deps: Where it is written.
    """
    log.warning("job %s: the host of attempt %d lied: %s", job.job_id, job.attempt, what)
    first = False

    def decide(now: Job) -> Transition | None:
        nonlocal first
        if now.attempt != job.attempt:
            return None
        first = policy.invalid_reports_of_attempt(now) == 0
        return policy.note_invalid_report(now, what, now=deps.clock.now())

    try:
        transition = await change(deps, job.job_id, decide)
        if transition is not None:
            await act(transition, deps)
            if first:
                await _blame(transition.job, deps)
    except (StoreUnavailable, LeaseHeld) as error:
        log.warning("job %s: the lie is not written down: %s", job.job_id, error)


async def record_foreign_token(job: Job, deps: JobDeps) -> None:
    """A token for this job that is not its current attempt's. Never raises."""
    log.warning("job %s: a token that is not of attempt %d was refused", job.job_id, job.attempt)
    try:
        await change(deps, job.job_id, lambda now: policy.note_foreign_token(now, now=deps.clock.now()))
    except (StoreUnavailable, LeaseHeld) as error:
        log.warning("job %s: the refusal is not written down: %s", job.job_id, error)


async def _blame(job: Job, deps: JobDeps) -> None:
    """Once for an attempt: a machine that lies is left alone for a while."""
    machine = job.placement.offer.machine if job.placement else None
    if machine is None:
        return
    for _ in range(SAVES_MAX):
        history, version = await deps.market.load()
        if await deps.market.save(market_history.blame(history, machine, kind="lie", now=deps.clock.now()), version):
            return
