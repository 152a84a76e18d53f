"""Several pools of one recording at once: a job moves to whichever is there and should stay."""

import math
from collections.abc import Sequence

from goblin.jobs.policy.spot.deadline import Mode, Situation, Terms, choose_mode
from goblin.jobs.policy.spot.pools import Pool, choose_pool
from goblin.jobs.policy.spot.preemption_rates import PreemptionRates, observe
from tests.bench._spot_ours import ON_DEMAND_USD_MICROS
from tests.bench._spot_simulator import Outcome
from tests.bench._spot_traces import Window


def run_pools(pools: Sequence[Window], *, work_s: float, deadline_s: float, changeover_s: float) -> Outcome:
    """One job over pools that share the clock. Every pool is looked at in every tick."""
    gap, prices = pools[0].gap_s, [round(ON_DEMAND_USD_MICROS / pool.ratio) for pool in pools]
    rates = [PreemptionRates() for _ in pools]
    mode, at, pending_s, done_s, spent, launches = Mode.WAIT, -1, 0.0, 0.0, 0.0, 0
    ticks = dict.fromkeys(Mode, 0)
    tick = 0
    while done_s < work_s - 1e-6 and tick < 1000 + 20 * deadline_s / gap:
        there = [tick < len(pool.available) and pool.available[tick] for pool in pools]
        rates = [observe(one, available=up, elapsed_s=gap) for one, up in zip(rates, there, strict=True)]
        if mode is Mode.SPOT and not there[at]:
            mode, pending_s = Mode.WAIT, 0.0
        if mode is not Mode.SPOT:
            offered = {
                str(number): Pool(price_usd_micros_per_hour=prices[number], available=up, rates=rates[number])
                for number, up in enumerate(there)
            }
            choice = choose_pool(offered, changeover_s=changeover_s, work_left_s=work_s - done_s)
            at = int(choice.pool) if choice else -1
        terms = Terms(
            spot_usd_micros_per_hour=prices[at] if at >= 0 else min(prices),
            on_demand_usd_micros_per_hour=ON_DEMAND_USD_MICROS,
            changeover_s=changeover_s,
        )
        situation = Situation(
            work_left_s=work_s - done_s,
            time_left_s=deadline_s - tick * gap,
            running=mode,
            changeover_left_s=pending_s,
            spot_available=at >= 0,
            step_s=gap,
        )
        chosen = choose_mode(situation, terms, rates[at] if at >= 0 else PreemptionRates()).mode
        if chosen not in (mode, Mode.WAIT):
            pending_s, launches = changeover_s, launches + 1
        if chosen is not Mode.WAIT:
            done_s += max(0.0, gap - pending_s)
            pending_s = max(0.0, pending_s - gap)
            spent += gap / 3600 * (1.0 if chosen is Mode.ON_DEMAND else 1.0 / pools[at].ratio)
        ticks[chosen] += 1
        mode, tick = chosen, tick + 1
    late = done_s < work_s - 1e-6 or tick > math.floor(deadline_s / gap + 1e-9)
    hour = gap / 3600
    return Outcome(spent, late, ticks[Mode.SPOT] * hour, ticks[Mode.ON_DEMAND] * hour, launches)
