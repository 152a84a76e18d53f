"""Beyond the protocol: what breaks safety nets outside of simulations.

On-demand launches that fail, changeovers with a long tail, other price ratios, budgets and caps, several pools. What
the policy refuses as infeasible is counted and not run.
"""

import random
from collections.abc import Callable, Iterable
from itertools import groupby, product
from typing import Any

from goblin.jobs.policy.spot.deadline import Feasible, check_deadline
from tests.bench import _spot_rules as rules
from tests.bench._spot_ours import ON_DEMAND_USD_MICROS, micros, ours, terms_of
from tests.bench._spot_pools import run_pools
from tests.bench._spot_simulator import Hazards, Outcome, Rule, View, simulate
from tests.bench._spot_traces import PRICE_ON_DEMAND_USD, PRICE_RATIO, WINDOWS, Window

WORK_H = 48
DEADLINES_H = (52, 70, 92)
CHANGEOVERS_H = (0.02, 0.2, 0.4)
DELAY_S_MAX = 3 * 3600.0
"""What on demand may be sold out for in a row: three of the longest outages."""
TAIL_SIGMA = 0.8
TAIL_MAX = 4.0
"""The longest changeover planned for, against the expected one."""
RATIOS = (1.5, 2.0, PRICE_RATIO, 5.5)
SEED = 7


def view_of(window: Window, deadline_h: float, changeover_h: float, ratio: float | None = None) -> View:
    return View(
        work_s=WORK_H * 3600.0,
        deadline_s=deadline_h * 3600.0,
        gap_s=window.gap_s,
        changeover_s=round(changeover_h * 3600),
        ratio=ratio or window.ratio,
    )


def summary(outcomes: Iterable[Outcome | None]) -> dict[str, Any]:
    """Mean cost, late and refused runs. None: refused."""
    listed = list(outcomes)
    ran = [one for one in listed if one is not None]
    mean = sum(one.cost_h for one in ran) / len(ran) * PRICE_ON_DEMAND_USD if ran else None
    return {
        "mean_usd": mean,
        "late": sum(one.late for one in ran),
        "runs": len(ran),
        "refused": len(listed) - len(ran),
    }


def measure(windows: list[Window]) -> dict[str, dict[str, Any]]:
    """Every case, on two of the eight windows of each trace."""
    some = [window for number, window in enumerate(windows) if number % WINDOWS in (1, 5)]
    jobs = [(window, deadline, d) for window in some for deadline, d in product(DEADLINES_H, CHANGEOVERS_H)]
    cases = {
        "plain": summary(hostile(job) for job in jobs),
        "on demand fails 2 %": summary(hostile(job, fails=0.02) for job in jobs),
        "on demand fails 10 %": summary(hostile(job, fails=0.10) for job in jobs),
        "changeover with a long tail": summary(hostile(job, tail=TAIL_SIGMA) for job in jobs),
        "both": summary(hostile(job, fails=0.10, tail=TAIL_SIGMA) for job in jobs),
        "budget of the worst case": summary(on_budget(job, 1.0) for job in jobs),
        "budget of 105 % of it": summary(on_budget(job, 1.05) for job in jobs),
        "budget of 95 % of it": summary(on_budget(job, 0.95) for job in jobs),
        "price cap below on demand": summary(capped(job, 0.9) for job in jobs),
    }
    contestants: dict[str, Callable[[View], Rule]] = {
        "ours": lambda view: ours(view)[0],
        "constant slack + age": lambda view: rules.constant_slack_age(),
        "greedy": lambda view: rules.greedy(),
    }
    for ratio, (name, make) in product(RATIOS, contestants.items()):
        views = [(window, view_of(window, deadline, d, ratio)) for window, deadline, d in jobs]
        cases[f"on demand {ratio:g}x spot, {name}"] = summary(
            simulate(make(view), window.available, view) for window, view in views
        )
    return cases | pooled(windows)


def hostile(job: tuple[Window, float, float], *, fails: float = 0.0, tail: float = 0.0) -> Outcome | None:
    """One run in a worse world, if the policy promises it."""
    window, deadline_h, changeover_h = job
    view = view_of(window, deadline_h, changeover_h)
    longest_s = view.changeover_s * TAIL_MAX if tail else 0.0
    terms = terms_of(view, changeover_s_max=longest_s, on_demand_delay_s_max=DELAY_S_MAX if fails else 0.0)
    promised = check_deadline(work_s=view.work_s, time_s=view.deadline_s, step_s=view.gap_s, terms=terms)
    if not isinstance(promised, Feasible):
        return None
    rng = random.Random(f"{SEED} {window.trace} {deadline_h} {changeover_h} {fails} {tail}")
    hazards = Hazards(rng, launch_fails=fails, changeover_tail=tail, changeover_s_max=longest_s or float("inf"))
    rule, fallback = ours(view, terms)
    return simulate(rule, window.available, view, hazards, fallback)


def on_budget(job: tuple[Window, float, float], share: float) -> Outcome | None:
    """One run within a share of what the worst case costs; spending more counts as late."""
    window, deadline_h, changeover_h = job
    view = view_of(window, deadline_h, changeover_h)
    facts = {"work_s": view.work_s, "time_s": view.deadline_s, "step_s": view.gap_s}
    worst = check_deadline(**facts, terms=terms_of(view))
    budget = round(worst.cost_usd_micros_max * share) if isinstance(worst, Feasible) else 0
    if not isinstance(check_deadline(**facts, terms=terms_of(view), budget_usd_micros=budget), Feasible):
        return None
    rule, fallback = ours(view, budget_usd_micros=budget)
    ended = simulate(rule, window.available, view, fallback=fallback)
    overspent = micros(ended.cost_h) > budget
    return Outcome(ended.cost_h, ended.late or overspent, ended.spot_h, ended.on_demand_h, ended.launches)


def capped(job: tuple[Window, float, float], share: float) -> Outcome | None:
    """One run under a price cap; none when the policy says at once that the cap is too low."""
    window, deadline_h, changeover_h = job
    view = view_of(window, deadline_h, changeover_h)
    promised = check_deadline(
        work_s=view.work_s,
        time_s=view.deadline_s,
        step_s=view.gap_s,
        terms=terms_of(view),
        price_usd_micros_per_hour_max=round(ON_DEMAND_USD_MICROS * share),
    )
    return simulate(ours(view)[0], window.available, view) if isinstance(promised, Feasible) else None


def pooled(windows: list[Window]) -> dict[str, dict[str, Any]]:
    """Each pool alone, and all pools of one recording together."""
    alone, together = [], []
    shared = [window for window in windows if window.family != "aws 2022"]  # Those mix kinds of GPU.
    numbered = [(window, number % WINDOWS) for number, window in enumerate(shared)]

    def recording(pair: tuple[Window, int]) -> tuple[str, int]:
        return pair[0].trace.split("/")[0], pair[1]

    for _, group in groupby(sorted(numbered, key=recording), key=recording):
        pools = [window for window, _ in group]
        for deadline_h, changeover_h in product(DEADLINES_H, CHANGEOVERS_H):
            for chosen, outcomes in ([[pool] for pool in pools], alone), ([pools], together):
                outcomes += [
                    run_pools(
                        some,
                        work_s=WORK_H * 3600.0,
                        deadline_s=deadline_h * 3600.0,
                        changeover_s=round(changeover_h * 3600),
                    )
                    for some in chosen
                ]
    return {"each pool alone": summary(alone), "all pools together": summary(together)}
