"""How often to save: the cost of saving against the cost of a preemption.

Young 1974 and Daly 2006 give the interval; the time to finish is exact for memoryless lifetimes and close for others.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

INTERVAL_S_MIN = 30.0
"""Shortest interval: more often would leave no time for work."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Interval:
    """Work between two checkpoints, with the reason."""

    interval_s: float
    reason: str


def choose_interval(*, save_s: float, life_s: float, interval_s_max: float) -> Interval:
    """Choose how much work to do between two checkpoints.

    Args:
        save_s: Measured time that a checkpoint interrupts the work; of an asynchronous one only the blocking part.
        life_s: Expected time to the next preemption, at the instance's current age.
        interval_s_max: The job's `checkpoint_minutes` in seconds: at most this much work is lost.

    Raises:
        ValueError: `save_s` is negative, or another argument is not above 0.
    """
    if save_s < 0 or life_s <= 0 or interval_s_max <= 0:
        raise ValueError("save_s must not be negative, and life_s and interval_s_max must be above 0.")
    best_s = _daly_s(save_s, life_s)
    least_s = min(max(INTERVAL_S_MIN, save_s), interval_s_max)
    interval_s = min(max(best_s, least_s), interval_s_max)
    cause = f"saving takes {save_s:.0f} s and the next preemption is expected in {life_s / 60:.0f} min"
    if interval_s < best_s:
        why = f"{cause}, which would allow {best_s / 60:.0f} min; the job allows {interval_s_max / 60:.0f}"
    elif interval_s > best_s:
        why = f"{cause}; saving more often than every {interval_s:.0f} s would leave no time for work"
    else:
        why = cause
    return Interval(interval_s=interval_s, reason=why)


def run_s(*, work_s: float, interval_s: float, save_s: float, restart_s: float, life_s: float) -> float:
    """Compute the expected time from start to end of the work, with saves, preemptions and repeated work.

    Restarts are included, waiting for a new instance is not. Infinite if the work would never end.
    """
    segment = (interval_s + save_s) / life_s
    restart = restart_s / life_s
    if segment + restart > 60.0:
        return math.inf
    return life_s * math.exp(restart) * math.expm1(segment) * work_s / interval_s


def _daly_s(save_s: float, life_s: float) -> float:
    if save_s >= 2 * life_s:
        return life_s
    ratio = save_s / (2 * life_s)
    return math.sqrt(2 * save_s * life_s) * (1 + math.sqrt(ratio) / 3 + ratio / 9) - save_s
