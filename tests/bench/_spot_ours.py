"""Our policy as a rule of the simulator: it looks at spot each tick, learns, and is asked."""

from collections.abc import Callable

from goblin.jobs.policy.spot.deadline import Decision, Mode, Situation, Terms, choose_mode
from goblin.jobs.policy.spot.preemption_rates import PreemptionRates, observe
from tests.bench._spot_simulator import IDLE, ON_DEMAND, SPOT, Rule, View

MODES = {IDLE: Mode.WAIT, SPOT: Mode.SPOT, ON_DEMAND: Mode.ON_DEMAND}
NUMBERS = {mode: number for number, mode in MODES.items()}
ON_DEMAND_USD_MICROS = 3_060_000


def terms_of(view: View, *, changeover_s_max: float = 0.0, on_demand_delay_s_max: float = 0.0) -> Terms:
    return Terms(
        spot_usd_micros_per_hour=round(ON_DEMAND_USD_MICROS / view.ratio),
        on_demand_usd_micros_per_hour=ON_DEMAND_USD_MICROS,
        changeover_s=view.changeover_s,
        changeover_s_max=changeover_s_max,
        on_demand_delay_s_max=on_demand_delay_s_max,
    )


def ours(
    view: View, terms: Terms | None = None, budget_usd_micros: int | None = None
) -> tuple[Rule, Callable[[], int]]:
    """A rule for one run that knows nothing of the pool at its start, and its fallback."""
    terms = terms or terms_of(view)
    rates = PreemptionRates()
    decision = Decision(mode=Mode.WAIT, reason="not asked yet")
    changing_s = 0.0

    def rule(view: View) -> int:
        nonlocal rates, decision, changing_s
        rates = observe(rates, available=view.there, elapsed_s=view.gap_s)
        # Nobody tells how long a changeover will take: until it works, the longest is reckoned with.
        changing_s = changing_s + view.gap_s if view.pending_s > 0 else 0.0
        longest_s = max(terms.changeover_s, terms.changeover_s_max)
        situation = Situation(
            work_left_s=view.left_s,
            time_left_s=view.time_s,
            running=MODES[view.running],
            changeover_left_s=max(view.pending_s, longest_s - changing_s) if view.pending_s > 0 else 0.0,
            spot_available=view.there,
            step_s=view.gap_s,
            money_left_usd_micros=None if budget_usd_micros is None else budget_usd_micros - micros(view.spent),
        )
        decision = choose_mode(situation, terms, rates)
        return NUMBERS[decision.mode]

    return rule, lambda: NUMBERS[decision.fallback]


def micros(on_demand_h: float) -> int:
    """Hours of on demand as money."""
    return round(on_demand_h * ON_DEMAND_USD_MICROS)
