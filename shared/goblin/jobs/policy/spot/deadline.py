"""Spot, on demand or wait: the cheapest way that never misses the deadline.

    slack = time left - work left - the changeover that on demand would need

- A step is taken only if on demand could still finish in time after the step's worst outcome.
- Available spot is taken, and kept until it is lost.
- While slack is above a tenth of the work left, wait for spot; below that, run on demand.
- Leave on demand only for spot that has been available for long enough: the saving must pay for a changeover there and,
  likely, one back. The required age grows with the changeover, with how little cheaper spot is, with how scarce slack
  is (each move and return costs two changeovers of it), and with how often the pool has lost instances.

Method: constant slack and an age filter as in the literature on spot under deadlines (Wu et al., "Can't Be Late",
NSDI'24, and its successors), with an exact safety net and a filter that learns. The numbers below sit on a plateau:
halving or doubling any of them changes the mean cost by one per cent at most.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from enum import StrEnum

from goblin.jobs.policy.spot.preemption_rates import HOUR_S, PreemptionRates

SLACK_SHARE = 0.1
"""Share of the work left: with less slack than this the job does not wait for spot."""
STEPS_KEPT = 2
"""Steps of slack that are always kept in reserve: a decision takes effect one step later."""
_EPSILON = 1e-9


class Mode(StrEnum):
    """What a job runs on."""

    WAIT = "wait"
    SPOT = "spot"
    ON_DEMAND = "on_demand"


_VERB = {Mode.WAIT: "wait for spot", Mode.SPOT: "run on spot"}


@dataclass(frozen=True, kw_only=True, slots=True)
class Terms:
    """Prices and times of running on spot and on demand.

    A price of None: not available, or above the price cap. A running instance keeps its price here.
    """

    spot_usd_micros_per_hour: int | None
    on_demand_usd_micros_per_hour: int | None
    changeover_s: float
    """Expected time from the rental to new work: provisioning, setup, reload, and repeating lost work."""
    changeover_s_max: float = 0.0
    """Longest changeover to plan for, as measured; 0: use `changeover_s`."""
    on_demand_delay_s_max: float = 0.0
    """Longest time that on demand may be sold out before it starts, over all tries."""

    @property
    def reserve_s(self) -> float:
        """Longest time from choosing on demand to its first work."""
        return max(self.changeover_s, self.changeover_s_max) + self.on_demand_delay_s_max


@dataclass(frozen=True, kw_only=True, slots=True)
class Situation:
    """State of a job now."""

    work_left_s: float
    time_left_s: float | None
    """Time until the deadline; None: there is none."""
    running: Mode
    """What the job runs on now; a spot instance that was just lost does not count."""
    changeover_left_s: float = 0.0
    """Time that the running instance still needs before it starts work."""
    spot_available: bool
    step_s: float
    """Time until the next decision."""
    money_left_usd_micros: int | None = None
    """Amount left of the job's budget; None: it has no budget."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Decision:
    """What to run until the next step."""

    mode: Mode
    reason: str
    fallback: Mode = Mode.WAIT
    """What to run until the next decision if on demand is not available right now."""
    guaranteed: bool = True
    """Whether the deadline is still guaranteed."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Feasible:
    """The deadline can be promised within the budget."""

    cost_usd_micros_max: int
    """Cost if the whole run is on demand: the worst case that is planned for."""
    reason: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Infeasible:
    """The deadline cannot be promised, with what would have to change."""

    reason: str
    time_s_min: float | None = None
    """Nearest possible deadline, from now."""
    price_usd_micros_per_hour_min: int | None = None
    """Lowest price cap under which the deadline can be promised."""
    budget_usd_micros_min: int | None = None


def mask(terms: Terms, *, price_usd_micros_per_hour_max: int | None) -> Terms:
    """Apply a price cap to the terms: what costs more becomes unavailable."""
    cap = price_usd_micros_per_hour_max
    if cap is None:
        return terms

    def kept(price: int | None) -> int | None:
        return price if price is not None and price <= cap else None

    return Terms(
        spot_usd_micros_per_hour=kept(terms.spot_usd_micros_per_hour),
        on_demand_usd_micros_per_hour=kept(terms.on_demand_usd_micros_per_hour),
        changeover_s=terms.changeover_s,
        changeover_s_max=terms.changeover_s_max,
        on_demand_delay_s_max=terms.on_demand_delay_s_max,
    )


def check_deadline(
    *,
    work_s: float,
    time_s: float | None,
    step_s: float,
    terms: Terms,
    price_usd_micros_per_hour_max: int | None = None,
    budget_usd_micros: int | None = None,
) -> Feasible | Infeasible:
    """Check whether the deadline can be promised, before anything is rented.

    Args:
        work_s: Work to do, on this kind of instance.
        time_s: Time until the deadline; None: there is none, and only the budget is checked.
        step_s: Time between decisions; an instance is billed by the whole step.
        terms: Prices and times without a cap.
        price_usd_micros_per_hour_max: Price cap of the job; None: no cap.
        budget_usd_micros: Budget for the whole job; None: no limit.
    """
    free = terms.on_demand_usd_micros_per_hour
    capped = mask(terms, price_usd_micros_per_hour_max=price_usd_micros_per_hour_max)
    if time_s is None:
        return _check_money(work_s, step_s, terms, capped, budget_usd_micros)
    time_s_min = _steps(work_s + terms.reserve_s, step_s) * step_s
    cost = None if free is None else _cost(work_s + terms.reserve_s, step_s, free)
    problems = []
    if time_s < time_s_min:
        problems.append(f"it needs {_span(time_s_min)} even if on demand runs from now on, and has {_span(time_s)}")
    if free is None:
        problems.append("no on-demand instance is offered, and spot alone cannot promise a deadline")
    elif capped.on_demand_usd_micros_per_hour is None:
        problems.append(f"on demand costs {_usd(free)} an hour, above the cap of {_usd(price_usd_micros_per_hour_max)}")
    if cost is not None and budget_usd_micros is not None and budget_usd_micros < cost:
        problems.append(f"without spot it costs {_usd(cost)}, more than the {_usd(budget_usd_micros)} left")
    if problems or cost is None:
        return Infeasible(
            reason="; ".join(problems),
            time_s_min=time_s_min,
            price_usd_micros_per_hour_min=free,
            budget_usd_micros_min=cost,
        )
    slack_s = time_s - time_s_min
    return Feasible(
        cost_usd_micros_max=cost,
        reason=f"{_span(slack_s)} of slack; at most {_usd(cost)}, if all of it runs on demand",
    )


def choose_mode(situation: Situation, terms: Terms, rates: PreemptionRates) -> Decision:
    """Decide what the job runs on until the next step.

    Args:
        situation: State of the job and its pool now.
        terms: Prices and times, under the job's price cap (see `mask`).
        rates: Measured rates of the pool; `age_s` is how long spot has been available.
    """
    if situation.work_left_s <= 0:
        return Decision(mode=Mode.WAIT, reason="all work is done")
    spot, on_demand = terms.spot_usd_micros_per_hour, terms.on_demand_usd_micros_per_hour
    cheaper = spot is not None and (on_demand is None or spot < on_demand)
    can_spot = situation.spot_available and cheaper
    if situation.time_left_s is None:
        return _cheapest(situation, terms, can_spot=can_spot, cheaper=cheaper)
    time_left_s = situation.time_left_s
    if on_demand is None:
        return _without_net(can_spot=can_spot, reason="on demand is not available")
    restart_s = situation.changeover_left_s if situation.running is Mode.ON_DEMAND else terms.changeover_s
    money = situation.money_left_usd_micros
    if money is not None and money < _cost(situation.work_left_s + restart_s, situation.step_s, on_demand):
        return _broke(situation, terms, can_spot=can_spot)
    fallback = Mode.SPOT if can_spot else Mode.WAIT
    if not _finishes(situation.work_left_s + restart_s, time_left_s, situation.step_s):
        if can_spot and situation.running is Mode.SPOT:
            return Decision(
                mode=Mode.SPOT, guaranteed=False, reason="only the running spot instance can still finish in time"
            )
        late = "the deadline cannot be met any more: run as fast as possible"
        return Decision(mode=Mode.ON_DEMAND, fallback=fallback, guaranteed=False, reason=late)
    mode, reason = _prefer(situation, time_left_s, terms, rates, can_spot=can_spot)
    if mode is not Mode.ON_DEMAND:
        danger = _danger(situation, time_left_s, terms, on_demand, mode)
        if not danger:
            return Decision(mode=mode, reason=reason)
        mode, reason = Mode.ON_DEMAND, danger
    return Decision(mode=mode, fallback=fallback, reason=reason)


def age_to_leave_s(*, work_left_s: float, slack_s: float, terms: Terms, rates: PreemptionRates) -> float:
    """Compute how long spot must have been available before on demand is left for it; infinite if it never pays."""
    spot, on_demand = terms.spot_usd_micros_per_hour, terms.on_demand_usd_micros_per_hour
    if spot is None or on_demand is None or spot >= on_demand:
        return math.inf
    worth = terms.changeover_s * on_demand / (on_demand - spot)
    if work_left_s <= worth:
        return math.inf  # The work left is too short to pay for the changeover.
    scarcity = SLACK_SHARE * work_left_s / max(slack_s, terms.changeover_s / 4, _EPSILON)
    return worth * (1 + scarcity) * rates.volatility


def _prefer(
    situation: Situation, time_left_s: float, terms: Terms, rates: PreemptionRates, *, can_spot: bool
) -> tuple[Mode, str]:
    """Choose the best mode, without regard to safety."""
    slack_s = time_left_s - situation.work_left_s - terms.reserve_s
    if situation.running is Mode.ON_DEMAND:
        if not can_spot:
            return Mode.ON_DEMAND, "no spot is available to move to"
        age_s = age_to_leave_s(work_left_s=situation.work_left_s, slack_s=slack_s, terms=terms, rates=rates)
        if rates.age_s + _EPSILON < age_s:
            wanted = "the work left is not worth a move" if math.isinf(age_s) else f"a move pays after {_span(age_s)}"
            return Mode.ON_DEMAND, f"spot has been available for {_span(rates.age_s)}; {wanted}"
        return Mode.SPOT, f"spot has been available for {_span(rates.age_s)} and costs less"
    if can_spot:
        return Mode.SPOT, "spot is running" if situation.running is Mode.SPOT else "spot is available and costs less"
    if slack_s > SLACK_SHARE * situation.work_left_s + STEPS_KEPT * situation.step_s:
        return Mode.WAIT, f"no spot, and {_span(slack_s)} of slack to wait for it"
    return Mode.ON_DEMAND, f"no spot, and {_span(slack_s)} of slack is too little to wait"


def _danger(situation: Situation, time_left_s: float, terms: Terms, on_demand: int, mode: Mode) -> str:
    """Explain why a step in this mode could miss the deadline or exceed the budget; empty: it cannot."""
    step_s, work_left_s, spent = situation.step_s, situation.work_left_s, 0
    if mode is Mode.SPOT:
        stays = situation.running is Mode.SPOT
        starts_s = situation.changeover_left_s if stays else max(terms.changeover_s, terms.changeover_s_max)
        work_left_s -= max(0.0, step_s - starts_s)
        spent = _cost(step_s, step_s, terms.spot_usd_micros_per_hour or 0)
    if work_left_s <= _EPSILON:
        return ""
    if not _finishes(work_left_s + terms.reserve_s, time_left_s - step_s, step_s):
        return f"too little slack to {_VERB[mode]}"
    money = situation.money_left_usd_micros
    if money is not None and money - spent < _cost(work_left_s + terms.reserve_s, step_s, on_demand):
        return f"too little budget to {_VERB[mode]}"
    return ""


def _without_net(*, can_spot: bool, reason: str) -> Decision:
    mode = Mode.SPOT if can_spot else Mode.WAIT
    return Decision(mode=mode, guaranteed=False, reason=f"{reason}: the deadline cannot be promised")


def _broke(situation: Situation, terms: Terms, *, can_spot: bool) -> Decision:
    """Decide when the budget left cannot pay on demand to the end: spot may still finish while it lasts."""
    money, price = situation.money_left_usd_micros, terms.spot_usd_micros_per_hour
    if can_spot and price is not None and money is not None:
        can_spot = money >= _cost(situation.step_s, situation.step_s, price)
    return _without_net(can_spot=can_spot, reason=f"the budget left of {_usd(money)} cannot pay on demand to the end")


def _cheapest(situation: Situation, terms: Terms, *, can_spot: bool, cheaper: bool) -> Decision:
    """Choose the cheapest mode for a job without a deadline, as long as the budget pays for a step."""
    mode, price = Mode.WAIT, None
    reason = "no deadline: waiting for spot costs nothing"
    if can_spot:
        mode, price, reason = Mode.SPOT, terms.spot_usd_micros_per_hour, "no deadline: spot costs least"
    elif not cheaper and terms.on_demand_usd_micros_per_hour is not None:
        mode, price, reason = Mode.ON_DEMAND, terms.on_demand_usd_micros_per_hour, "spot is not cheaper here"
    money = situation.money_left_usd_micros
    if price is not None and money is not None and money < _cost(situation.step_s, situation.step_s, price):
        return Decision(
            mode=Mode.WAIT, reason=f"the budget left of {_usd(money)} is not enough for another step", guaranteed=False
        )
    return Decision(mode=mode, reason=reason)


def _check_money(
    work_s: float, step_s: float, terms: Terms, capped: Terms, budget_usd_micros: int | None
) -> Feasible | Infeasible:
    offered = _prices(terms)
    allowed = _prices(capped)
    if not allowed:
        reason = "nothing is offered" if not offered else f"the cheapest costs {_usd(min(offered))}, above the cap"
        return Infeasible(reason=reason, price_usd_micros_per_hour_min=min(offered, default=None))
    cost = _cost(work_s + terms.changeover_s, step_s, min(allowed))
    if budget_usd_micros is not None and budget_usd_micros < cost:
        return Infeasible(
            reason=f"even without a preemption it costs {_usd(cost)}, more than the {_usd(budget_usd_micros)} left",
            budget_usd_micros_min=cost,
        )
    return Feasible(cost_usd_micros_max=cost, reason=f"no deadline; {_usd(cost)} if nothing is preempted")


def _prices(terms: Terms) -> list[int]:
    both = (terms.spot_usd_micros_per_hour, terms.on_demand_usd_micros_per_hour)
    return [price for price in both if price is not None]


def _finishes(busy_s: float, time_s: float, step_s: float) -> bool:
    return _steps(busy_s, step_s) <= math.floor(time_s / step_s + _EPSILON)


def _steps(duration_s: float, step_s: float) -> int:
    return math.ceil(duration_s / step_s - _EPSILON)


def _cost(duration_s: float, step_s: float, usd_micros_per_hour: int) -> int:
    """Compute a cost in whole steps, each rounded up to a micro-dollar: no order of steps can cost more."""
    return _steps(duration_s, step_s) * math.ceil(step_s * usd_micros_per_hour / HOUR_S)


def _usd(micros: int | None) -> str:
    return "nothing" if micros is None else f"${micros / 1e6:.2f}"


def _span(seconds: float) -> str:
    sign = "-" if seconds < 0 else ""
    seconds = abs(seconds)
    return f"{sign}{seconds / HOUR_S:.1f} h" if seconds >= HOUR_S else f"{sign}{seconds / 60:.0f} min"
