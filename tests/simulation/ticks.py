"""Scheduler ticks of a simulation run. Minutes in which nothing changed are skipped.

A tick is never late: every event schedules one within a minute.
"""

from __future__ import annotations

from datetime import timedelta
from typing import TYPE_CHECKING

from goblin.jobs.domain.job import Job, JobState
from goblin.jobs.lifecycle import JobDeps
from goblin.jobs.reconcile import reconcile
from tests.simulation.hosts import BEAT_S

if TYPE_CHECKING:
    from tests.simulation.life import Life

TICK_S = 60.0
LULL_S_MAX = 480.0
"""Shorter than the gap after which nobody knows what the market did meanwhile."""
RENEWED_S = 720.0
"""Before the end of what is paid a renewal is asked for."""


class Ticks:
    """Times at which `reconcile` runs, and at which machines send heartbeats before it."""

    def __init__(self, life: Life) -> None:
        self._life = life
        self._next_at, self._number, self._quiet = 0.0, 0, 0

    async def _tick(self, number: int) -> None:
        if number != self._number:
            return  # It was called for earlier.
        missed = not self._life.calm and not self._life.weather.promise and self._life.rng.random() < 0.01
        self._quiet += 1
        self.plan(self._lull_s() + self._life.rng.uniform(-2, 2) + (180 if missed else 0))
        begin, deps, doubled = (
            self._life.now,
            self._life.function(),
            not self._life.calm and self._life.rng.random() < 0.02,
        )
        if doubled and self._life.weather.overlap:
            self._life.later(0, lambda: self.reconcile(self._life.function()))
        known = [name for name, cloud in self._life.providers.items() if not cloud.unknown and not cloud.deaf]
        await self.reconcile(deps)
        for name in known:
            cloud = self._life.providers[name]
            if not cloud.unknown and not cloud.deaf:
                self._life.promises.whole[name].append((begin, self._life.now))
        self._life.promises.ticked()

    def plan(self, seconds: float) -> None:
        """Let the next one come so much later, and none before."""
        self._number += 1
        self._next_at = self._life.t + seconds
        self._life.later(seconds, lambda number=self._number: self._tick(number))
        self._life.later(seconds - BEAT_S, lambda number=self._number: self._beats(number))

    def _lull_s(self) -> float:
        """How long ticks would find nothing new: they are not simulated."""
        now = self._life.now
        open_jobs = [one.job for one in self._life.jobs.stored.values() if one.job.open]
        rough = self._life.network.down or any(cloud.unknown or cloud.deaf for cloud in self._life.providers.values())
        if self._quiet < 1 or rough or self._life.weather.promise:
            return TICK_S
        if any(not self._is_steady(job) for job in open_jobs):
            return TICK_S
        # Money is prolonged in time, and taken over by the next day.
        dues = [
            (job.not_before - now).total_seconds() + self._life.rng.uniform(0, TICK_S)
            for job in open_jobs
            if job.not_before is not None and job.not_before > now
        ]
        dues += [
            (reservation.until - now).total_seconds() - RENEWED_S
            for job in open_jobs
            for reservation in job.reservations
        ]
        midnight_s = (timedelta(days=1) - (now - now.replace(hour=0, minute=0, second=0))).total_seconds()
        return max(TICK_S, min(LULL_S_MAX, midnight_s + 10, *dues))

    def _is_steady(self, job: Job) -> bool:
        """Whether only events can change it."""
        if job.spec.deadline is not None or job.stop is not None:
            return False
        return job.state in (JobState.QUEUED, JobState.RUNNING)

    def asked_to_stop(self, label: str) -> None:
        """Its machine hears of it with its next sign of life."""
        if (host := self._life.hosts.get(label)) is not None:
            self._life.later(self._life.rng.uniform(0, BEAT_S), host.beat)

    def hurry(self) -> None:
        """Something has happened that the next tick, at most a minute away, will see."""
        self._quiet = 0
        if self._next_at - self._life.t > TICK_S:
            self.plan(self._life.rng.uniform(0, TICK_S))

    async def reconcile(self, deps: JobDeps) -> None:
        """One run, whose machines were heard of just before."""
        for host in list(self._life.hosts.values()):
            await host.freshen()
        report = await reconcile(deps)
        for line in report.errors:
            self._life.log(f"reconcile: {line}")

    def _beats(self, number: int) -> None:
        """Each machine's last sign of life before the next tick: those in between change nothing that anybody sees."""
        if number != self._number:
            return
        for host in self._life.hosts.values():
            self._life.later(self._life.rng.uniform(0, BEAT_S - 0.1), host.beat)
