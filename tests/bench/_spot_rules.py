"""The rules that ours is compared with, each as its authors describe or run it.

`need` and `left` are ticks: what the work and some changeovers take, and what the deadline leaves.
"""

import math

from tests.bench._spot_simulator import IDLE, ON_DEMAND, SPOT, Rule, View


def need(view: View, changeovers: int) -> int:
    return math.ceil((view.left_s + changeovers * view.changeover_s) / view.gap_s - 1e-9)


def left(view: View) -> int:
    return math.floor(view.time_s / view.gap_s + 1e-9)


def works_on_spot(view: View) -> bool:
    return view.running == SPOT and view.pending_s <= 1e-9


def on_demand() -> Rule:
    return lambda view: ON_DEMAND


def with_safety_net(prefer: Rule) -> Rule:
    """Greedy's and Uniform Progress's net: on demand to the end once it would not fit another time."""
    stuck = False

    def rule(view: View) -> int:
        nonlocal stuck
        if stuck:
            return ON_DEMAND
        choice = prefer(view)
        if need(view, 1) >= left(view):
            return SPOT if works_on_spot(view) else ON_DEMAND
        if need(view, 2) >= left(view) and view.running != SPOT:
            stuck = True
            return ON_DEMAND
        return choice

    return rule


def greedy() -> Rule:
    """Spot when it is there, on demand when it must be (Wu et al., NSDI'24)."""
    return with_safety_net(lambda view: SPOT if view.there else IDLE)


def behind(view: View, ahead_s: float = 0.0) -> bool:
    """Whether progress is less than even progress would be by then."""
    elapsed_s = view.deadline_s - view.time_s
    return view.done_s < (elapsed_s + ahead_s) * view.work_s / view.deadline_s


def uniform_progress() -> Rule:
    """Uniform Progress as its authors run it: on demand is left for spot only, and only once well ahead."""

    def prefer(view: View) -> int:
        if view.running == ON_DEMAND:
            return SPOT if view.there and not behind(view, 2 * view.changeover_s) else ON_DEMAND
        if view.there:
            return SPOT
        return ON_DEMAND if behind(view) else IDLE

    return with_safety_net(prefer)


def time_sliced(slices: int = 8) -> Rule:
    """Equal slices, greedy in each: by the end of slice i, i shares of the work are done."""

    def prefer(view: View) -> int:
        if view.there:
            return SPOT
        elapsed_s = view.deadline_s - view.time_s
        number = min(slices, math.floor(elapsed_s * slices / view.deadline_s) + 1)
        left_s = number * view.work_s / slices - view.done_s
        time_s = number * view.deadline_s / slices - elapsed_s
        if left_s <= 0:
            return IDLE
        return ON_DEMAND if view.running == ON_DEMAND or time_s < left_s + 2 * view.changeover_s else IDLE

    return with_safety_net(prefer)


def next_spot_oracle(life: list[int]) -> Rule:
    """Uniform Progress that knows how long spot will stay, and leaves on demand for nothing else.

    Args:
        life: At each tick, how many ticks spot is there without a break, that one included.
    """

    def prefer(view: View) -> int:
        if view.running == SPOT and view.there:
            return SPOT
        worth_s = view.ratio * view.changeover_s / (view.ratio - 1)
        stays_s = (life[view.tick] if view.tick < len(life) else 0) * view.gap_s
        if view.there and stays_s > worth_s:
            return SPOT
        return ON_DEMAND if view.running == ON_DEMAND or behind(view) else IDLE

    return with_safety_net(prefer)


def lives(available: tuple[bool, ...]) -> list[int]:
    """At each tick, for how many ticks spot will be there without a break."""
    ahead = [0] * (len(available) + 1)
    for tick in reversed(range(len(available))):
        ahead[tick] = ahead[tick + 1] + 1 if available[tick] else 0
    return ahead[:-1]


def in_the_harness(prefer: Rule) -> Rule:
    """The net around evolved rules. It asks for a spot instance just lost: a tick passes idle, some runs end late."""

    def rule(view: View) -> int:
        if need(view, 1) >= left(view):
            return SPOT if view.ran == SPOT and view.ran_pending_s <= 1e-9 else ON_DEMAND
        return prefer(view)

    return rule


def gepa() -> Rule:
    """Evolved by GEPA (2026)."""

    def prefer(view: View) -> int:
        work, time, d = view.left_s, view.time_s, view.changeover_s
        slack = time - work - d
        share = slack / work
        if time <= work + d * (view.running == SPOT) + 0.5:
            return ON_DEMAND
        if view.there:
            stays = view.running == ON_DEMAND and (work < 1.5 * 2 * d / 0.7 or slack < 3 * d)
            return ON_DEMAND if stays else SPOT
        gone = view.outage
        pressed = slack < max(2.0, 4 * d) or share < 0.10
        impatient = (share < 0.20 and gone > 5) or (share < 0.25 and gone > 10) or (share < 0.40 and gone > 20)
        return ON_DEMAND if view.running == ON_DEMAND or pressed or impatient else IDLE

    return in_the_harness(prefer)


def levi() -> Rule:
    """Evolved by LEVI (2026): the best published for one zone."""

    def prefer(view: View) -> int:
        work, time, d, gap = view.left_s, view.time_s, view.changeover_s, view.gap_s
        if time <= work + d + gap:
            return SPOT if view.running == SPOT else ON_DEMAND
        if view.there:
            return SPOT
        if view.running == ON_DEMAND:
            return ON_DEMAND
        return IDLE if time > work + d + 2 * gap + 0.10 * work else ON_DEMAND

    return in_the_harness(prefer)


def constant_slack_age(alpha: float = 3.0, share: float = 0.12) -> Rule:
    """A constant share of slack, and on demand left only for spot that has been there for three changeovers."""

    def rule(view: View) -> int:
        if need(view, 1) + 1 >= left(view):
            return ON_DEMAND
        if view.there:
            waits = view.running == ON_DEMAND and view.age * view.gap_s < alpha * view.changeover_s - 1e-9
            return ON_DEMAND if waits else SPOT
        if view.running == ON_DEMAND:
            return ON_DEMAND
        kept_s = view.changeover_s + 2 * view.gap_s + share * view.left_s
        return IDLE if view.time_s > view.left_s + kept_s else ON_DEMAND

    return rule
