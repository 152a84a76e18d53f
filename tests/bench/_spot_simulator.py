"""One job on one instance, tick by tick: what is launched, lost, worked and billed.

A tick: what ran on spot is lost if spot is not there; the rule sees that and chooses; what it chose is billed for the
whole tick, and works unless it still changes over. A launch of either kind changes over for `changeover_s`.
"""

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

IDLE, SPOT, ON_DEMAND = 0, 1, 2


@dataclass(slots=True)
class View:
    """What a rule may see at a tick. Seconds throughout."""

    work_s: float
    deadline_s: float
    gap_s: int
    changeover_s: float
    ratio: float
    tick: int = 0
    done_s: float = 0.0
    running: int = IDLE
    """What runs now; what was just lost does not."""
    pending_s: float = 0.0
    """What the running instance still changes over."""
    there: bool = False
    age: int = 0
    """Ticks that spot has been there, this one included."""
    outage: int = 0
    """Ticks that it has been gone, this one included."""
    ran: int = IDLE
    """What ran in the last tick, lost or not."""
    ran_pending_s: float = 0.0
    spent: float = 0.0
    """Hours of on demand that the bill would buy."""

    @property
    def left_s(self) -> float:
        """Work left."""
        return self.work_s - self.done_s

    @property
    def time_s(self) -> float:
        """Time left."""
        return self.deadline_s - self.tick * self.gap_s


Rule = Callable[[View], int]


@dataclass
class Hazards:
    """What the plain protocol leaves out."""

    rng: random.Random
    launch_fails: float = 0.0
    """Share of on-demand launches that find none; then there is none for a while."""
    outage_s: tuple[float, float] = (600.0, 3600.0)
    changeover_tail: float = 0.0
    """Sigma of a log-normal factor on every changeover; 0: none."""
    changeover_s_max: float = float("inf")
    sold_out_until_s: float = field(default=-1.0, init=False)

    def on_demand_there(self, now_s: float) -> bool:
        """Whether a launch of on demand succeeds now."""
        if now_s < self.sold_out_until_s - 1e-6:
            return False
        if self.rng.random() < self.launch_fails:
            self.sold_out_until_s = now_s + self.rng.uniform(*self.outage_s)
            return False
        return True

    def changeover_s(self, expected_s: float) -> float:
        """How long this launch takes."""
        if not self.changeover_tail:
            return expected_s
        sigma = self.changeover_tail
        return min(expected_s * self.rng.lognormvariate(-sigma * sigma / 2, sigma), self.changeover_s_max)


@dataclass(frozen=True)
class Outcome:
    """A job's end. Costs are in hours of on demand."""

    cost_h: float
    late: bool
    spot_h: float
    on_demand_h: float
    launches: int


def simulate(
    rule: Rule,
    available: Sequence[bool],
    view: View,
    hazards: Hazards | None = None,
    fallback: Callable[[], int] | None = None,
) -> Outcome:
    """Run a job to its end, in time or not.

    Args:
        rule: Asked at every tick.
        available: Whether spot is there, by tick; after the last it is not.
        view: A fresh one.
        hazards: None: launches of on demand succeed, and every changeover takes as long as expected.
        fallback: What the rule wants when on demand could not be had; None: nothing.
    """
    gap, ticks = view.gap_s, {IDLE: 0, SPOT: 0, ON_DEMAND: 0}
    launches, patience = 0, 1000 + 20 * int(view.deadline_s / gap)
    while view.left_s > 1e-6:
        there = view.tick < len(available) and bool(available[view.tick])
        view.there = there
        view.age, view.outage = (view.age + 1, 0) if there else (0, view.outage + 1)
        view.ran, view.ran_pending_s = view.running, view.pending_s
        if view.running == SPOT and not there:
            view.running, view.pending_s = IDLE, 0.0
        choice = rule(view)
        if choice == SPOT and not there:
            choice = IDLE
        launched = choice == ON_DEMAND and view.running != ON_DEMAND
        if launched and hazards is not None and not hazards.on_demand_there(view.tick * gap):
            choice = fallback() if fallback else IDLE
        if choice not in (view.running, IDLE):
            expected = view.changeover_s
            view.pending_s = hazards.changeover_s(expected) if hazards else expected
            launches += 1
        if choice == IDLE:
            view.pending_s = 0.0
        else:
            worked_s = max(0.0, gap - view.pending_s)
            view.pending_s = max(0.0, view.pending_s - gap)
            view.done_s += worked_s
            view.spent += gap / 3600 * (1.0 if choice == ON_DEMAND else 1.0 / view.ratio)
        ticks[choice] += 1
        view.running = choice
        view.tick += 1
        if view.tick > patience:
            break
    late = view.left_s > 1e-6 or view.time_s < -1e-6
    hour = gap / 3600
    return Outcome(view.spent, late, ticks[SPOT] * hour, ticks[ON_DEMAND] * hour, launches)
