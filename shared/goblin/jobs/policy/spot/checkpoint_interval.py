"""How often to save: what saving costs against what a preemption would cost.

Young 1974 and Daly 2006 give the interval; the time to finish is exact for lives without memory and good for others.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

INTERVAL_S_MIN = 30.0
"""More often would be all saving and no work."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Interval:
    """Work between two checkpoints, and why."""

    interval_s: float
    reason: str


def choose_interval(*, save_s: float, life_s: float, interval_s_max: float) -> Interval:
    """Choose how much work to do between two checkpoints.

    Args:
        save_s: What a checkpoint holds the work up, as measured; of an asynchronous one only the blocking part.
        life_s: Expected time to the next preemption, at the instance's present age.
        interval_s_max: The job's `checkpoint_minutes`: never more work than this is at stake.
    """
    if save_s < 0 or life_s <= 0 or interval_s_max <= 0:
        raise ValueError("a save cannot take less than no time, nor a life or an interval none at all")
    best_s = _daly_s(save_s, life_s)
    least_s = min(max(INTERVAL_S_MIN, save_s), interval_s_max)
    interval_s = min(max(best_s, least_s), interval_s_max)
    cause = f"saving takes {save_s:.0f} s and the next preemption is expected in {life_s / 60:.0f} min"
    if interval_s < best_s:
        why = f"{cause}, which would allow {best_s / 60:.0f} min; the job allows {interval_s_max / 60:.0f}"
    elif interval_s > best_s:
        why = f"{cause}; more often than every {interval_s:.0f} s would be all saving"
    else:
        why = cause
    return Interval(interval_s=interval_s, reason=why)


def run_s(*, work_s: float, interval_s: float, save_s: float, restart_s: float, life_s: float) -> float:
    """Expected time from start to end of the work, with saves, preemptions and work done again.

    Restarts are counted, waiting for a new instance is not. Infinite when the work would never end.
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
