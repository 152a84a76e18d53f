"""What a job would have cost with the whole future known: exact, by backward induction over ticks and work left.

State: idle, or the kind that runs and how far its changeover is. Work is counted in the largest unit that divides what
each tick of a launch yields, so nothing is rounded. All windows of one gap are solved side by side.
"""

import math

import numpy as np
import numpy.typing as npt

INFINITE = np.float32(1e9)


def yields_s(gap_s: int, changeover_s: int) -> list[int]:
    """Work done in the first, second, … tick of a launch, up to the first whole one."""
    done = [max(0, (tick + 1) * gap_s - changeover_s) for tick in range(-(-changeover_s // gap_s) + 1)]
    return [now - before for now, before in zip(done, [0, *done], strict=False)]


def optimum_h(
    available: npt.NDArray[np.bool_],
    ratios: list[float],
    *,
    gap_s: int,
    changeover_s: int,
    work_s: int,
    deadline_s: int,
) -> npt.NDArray[np.float64]:
    """The least cost of each window, in hours of on demand; infinite where even on demand would be late.

    Args:
        available: Windows by ticks.
        ratios: On-demand against spot price, by window.
    """
    worked = yields_s(gap_s, changeover_s)
    last = len(worked) - 1
    unit = math.gcd(*(one for one in worked if one))
    steps = [one // unit for one in worked]
    total, ticks = -(-work_s // unit), deadline_s // gap_s
    full, count = steps[last], len(ratios)
    spot_price = np.array([1 / ratio for ratio in ratios], np.float32)[:, None]
    # value[state][window, work]: state 0 idle, 1..last spot with that many ticks behind it, then on demand alike.
    value = [np.full((count, total + 1), INFINITE, np.float32) for _ in range(2 * last + 1)]
    for state in value:
        state[:, 0] = 0

    for tick in reversed(range(ticks)):
        # Work that cannot be left by now, or cannot be done any more, is not looked at: nothing reads it.
        low = max(1, total - tick * full)
        high = min(total, (ticks - tick) * full)
        if low > high:
            continue
        there = available[:, tick] if tick < available.shape[1] else np.zeros(count, bool)

        def after(state: int, step: int, low: int = low, high: int = high) -> npt.NDArray[np.float32]:
            """What the rest costs from a state once this tick has done its share."""
            source = value[state]
            if step == 0:
                return source[:, low : high + 1]
            if low - step >= 0:
                return source[:, low - step : high + 1 - step]
            out = np.zeros((count, high + 1 - low), np.float32)
            first = step - low  # Work below one step is done within the tick.
            if high - step >= 0:
                out[:, first:] = source[:, : high + 1 - step]
            return out

        spot, demand = [], []
        for behind, step in enumerate(steps):
            grown = min(behind + 1, last)
            cost = after(grown, step) + spot_price
            cost[~there] = INFINITE
            spot.append(cost)
            demand.append(after(last + grown, step) + np.float32(1))
        idle = after(0, 0)
        fresh = np.minimum(spot[0], demand[0])
        new = [np.minimum(idle, fresh)]
        best_idle_demand = np.minimum(idle, demand[0])
        best_idle_spot = np.minimum(idle, spot[0])
        new += [np.minimum(best_idle_demand, spot[behind]) for behind in range(1, last + 1)]
        new += [np.minimum(best_idle_spot, demand[behind]) for behind in range(1, last + 1)]
        for state, found in zip(value, new, strict=True):
            state[:, low : high + 1] = found
    least = value[0][:, total].astype(float)
    return np.where(least >= INFINITE / 2, np.inf, least * gap_s / 3600)
