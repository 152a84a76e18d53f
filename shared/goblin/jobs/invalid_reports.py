"""Record invalid reports of hosts: in the job, in the log, and in the reputation of the machine."""

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
    """Record an invalid report of the current attempt's host. Never raises: the report is refused in any case.

    Args:
        job: The job as read when the host's token was checked; if another attempt runs by now, nothing is recorded.
        what: What is not true, for a person.
        deps: Where the job and the market history are stored.
    """
    log.warning("Job %s: the host of attempt %d sent an invalid report: %s", job.job_id, job.attempt, what)
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
        log.warning("Job %s: the invalid report could not be recorded: %s", job.job_id, error)


async def record_foreign_token(job: Job, deps: JobDeps) -> None:
    """Record the use of a token of this job that is not its current attempt's. Never raises."""
    log.warning("Job %s: refused a token that is not the one of attempt %d", job.job_id, job.attempt)
    try:
        await change(deps, job.job_id, lambda now: policy.note_foreign_token(now, now=deps.clock.now()))
    except (StoreUnavailable, LeaseHeld) as error:
        log.warning("Job %s: the refused token could not be recorded: %s", job.job_id, error)


async def _blame(job: Job, deps: JobDeps) -> None:
    """Note a failure of the machine, once for each attempt, so that it is not rented for a while."""
    machine = job.placement.offer.machine if job.placement else None
    if machine is None:
        return
    for _ in range(SAVES_MAX):
        history, version = await deps.market.load()
        if await deps.market.save(market_history.blame(history, machine, kind="lie", now=deps.clock.now()), version):
            return
