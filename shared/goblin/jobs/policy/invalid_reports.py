"""What is written down when a host says or uploads what is not so, and when it has said enough.

Anybody can send requests, so what they write into a job is bounded: a few lines, and no write after those.
"""

from __future__ import annotations

from dataclasses import replace
from datetime import datetime

from goblin.jobs.domain.job import REASONS_MAX, Job, Reason
from goblin.jobs.policy import state_machine as policy
from goblin.jobs.policy.state_machine import Transition, Trigger

LIES_MAX = 3
"""Of one attempt; then the job goes on elsewhere."""
SAID_MAX = 300


def caught(job: Job, what: str, *, now: datetime) -> Transition:
    """The current attempt's host lied, proven by its token; the last lie that is borne ends the attempt."""
    line = Reason(at=now, state=job.state, text=f"{_liar(job)}: {what[:SAID_MAX]}")
    job = replace(job, invalid_reports=job.invalid_reports + 1, reasons=(*job.reasons, line)[-REASONS_MAX:])
    if told_by_attempt(job) >= LIES_MAX:
        reason = f"attempt {job.attempt} is over: its host lied {LIES_MAX} times"
        ended = policy.apply(job, Trigger.WITHDRAWN, now=now, reason=reason)
        if ended is not None:
            return ended
    return Transition(job=job, actions=())


def strange(job: Job, *, now: datetime) -> Transition | None:
    """Somebody used a token that is not the current attempt's: an old one, or an invented one. None: enough is said.

    It says nothing about the current attempt's host.
    """
    text = "a token that is not the current attempt's was refused"
    if not job.open or sum(line.text == text for line in job.reasons) >= LIES_MAX:
        return None
    line = Reason(at=now, state=job.state, text=text)
    return Transition(
        job=replace(job, invalid_reports=job.invalid_reports + 1, reasons=(*job.reasons, line)[-REASONS_MAX:]),
        actions=(),
    )


def told_by_attempt(job: Job) -> int:
    """Lies of the current attempt's host that stand in the job's history."""
    return sum(line.text.startswith(_liar(job)) for line in job.reasons)


def _liar(job: Job) -> str:
    return f"attempt {job.attempt}'s host lied"
