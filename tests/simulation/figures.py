"""Measurements of simulation runs: how long orphaned instances billed, how soon work resumed, how much was lost."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from datetime import datetime
from typing import TYPE_CHECKING

from goblin.jobs.domain.job import ENDED, Job

if TYPE_CHECKING:
    from tests.simulation.market import Rented


@dataclass
class Figures:
    """Measurements of one run, or of many runs together."""

    lives: int = 0
    job_s: float = 0.0
    """From each request to its end."""
    world_s: float = 0.0
    orphan_s: list[float] = field(default_factory=list)
    """From the end of a lease to the end of its instance, where all that it takes answered all the time."""
    crash_orphan_s: list[float] = field(default_factory=list)
    """Those of them with a crash in between, or just before."""
    resumed_s: list[float] = field(default_factory=list)
    """From an instance's stop to the next attempt's first work."""
    lost_s: list[float] = field(default_factory=list)
    """Work done and not saved, each time an attempt was lost."""
    rented: int = 0
    late: int = 0
    promised: int = 0
    """Jobs whose deadline was accepted, in worlds that let it be kept."""
    crashes: int = 0
    messages: int = 0
    ends: Counter[str] = field(default_factory=Counter)
    crashed_at: datetime | None = None
    answered: bool = True
    """Whether all providers answer now and did since the last orphan."""
    _stopped: dict[str, datetime] = field(default_factory=dict)
    _silent_at: dict[str, datetime] = field(default_factory=dict)

    def moved(self, before: Job | None, after: Job, now: datetime) -> None:
        """A job changed its state."""
        if after.state in ENDED:
            self.ends[after.state] += 1
            self.job_s += (now - after.requested_at).total_seconds()
            self._stopped.pop(after.job_id, None)

    def silent(self, provider: str, now: datetime) -> None:
        """A provider does not answer, or what we ask before we ask it."""
        self._silent_at[provider] = now

    def stopped(self, job_id: str, now: datetime) -> None:
        """An instance at work was taken away."""
        self._stopped.setdefault(job_id, now)

    def worked(self, job_id: str, now: datetime) -> None:
        """An attempt begins to work."""
        if (at := self._stopped.pop(job_id, None)) is not None:
            self.resumed_s.append((now - at).total_seconds())

    def orphaned(self, rented: Rented, since: datetime, now: datetime) -> None:
        """An instance without a lease is gone."""
        seconds = (now - since).total_seconds()
        silent_at = self._silent_at.get(rented.provider)
        if silent_at is None or silent_at < since:
            self.orphan_s.append(seconds)
            if self.crashed_at is not None and (since - self.crashed_at).total_seconds() < 5:
                self.crash_orphan_s.append(seconds)

    def add(self, other: Figures) -> None:
        """Count another life too."""
        for name in ("lives", "job_s", "world_s", "rented", "late", "promised", "crashes", "messages"):
            setattr(self, name, getattr(self, name) + getattr(other, name))
        for name in ("orphan_s", "crash_orphan_s", "resumed_s", "lost_s"):
            getattr(self, name).extend(getattr(other, name))
        self.ends.update(other.ends)

    def __str__(self) -> str:
        return (
            f"{self.lives} lives, {self.job_s / 86400:.0f} job-days in {self.world_s / 86400:.0f} days, "
            f"{self.rented} instances, {self.crashes} crashes, {self.messages} messages; "
            f"{', '.join(f'{count} {end}' for end, count in sorted(self.ends.items()))}\n"
            f"orphan-seconds: {_told(self.orphan_s)}; after a crash: {_told(self.crash_orphan_s)}\n"
            f"seconds from a stop to the first resumed step: {_told(self.resumed_s)}\n"
            f"seconds of work lost per preemption: {_told(self.lost_s)}\n"
            f"late: {self.late} of {self.promised} promised"
        )


def _told(values: list[float]) -> str:
    if not values:
        return "none"
    order = sorted(values)
    mean, p95 = sum(order) / len(order), order[int(0.95 * (len(order) - 1))]
    return f"mean {mean:.0f}, p95 {p95:.0f}, max {order[-1]:.0f} of {len(order)}"
