"""Beside the route: whom to wake without waiting for it, and when to stop waiting for the first candidate.

asleep and quick ──wake──▶ starting ────────▶ awake: the next requests shift to it by themselves
awake and slow   ──this request is served here──▶
"""

from __future__ import annotations

from collections.abc import Sequence

from goblin.gateway.domain.catalog import Strategy
from goblin.gateway.policy.ordering import choice
from goblin.gateway.policy.route import Demand, EndpointFacts, RouteChoice

ASLEEP_FROM = 0.5
QUICKER = 2.0
"""How many times quicker it must be when awake than what the caller gets now, to be worth waking."""
USERS_MIN = 3.0
"""How many requests must be expected while it stays awake, for a start that no deadline demands."""
HEDGE_AFTER_MS_MIN = 20.0


def choose_warm_ups(
    demand: Demand, facts: Sequence[EndpointFacts], first: RouteChoice, *, strategy: Strategy
) -> tuple[RouteChoice, ...]:
    """The endpoint to wake, or none.

    A start costs its time and its idle tail, so it must pay: a deadline breaks without it, or the strategy is
    `lowest_latency` and enough requests come to use it. One start at a time.

    Args:
        demand: With the deadline and how often requests come.
        facts: Of all that are well and allowed.
        first: Who serves the request meanwhile; if it sleeps itself, the request wakes it.
        strategy: The request's.
    """
    serving = first.forecast
    if serving is None or serving.asleep >= ASLEEP_FROM or serving.waking:
        return ()
    if any(fact.forecast.waking for fact in facts):
        return ()
    sleeping = [fact for fact in facts if fact.forecast.asleep >= ASLEEP_FROM]
    if not sleeping:
        return ()
    best = min(sleeping, key=lambda fact: (fact.forecast.awake_ms, fact.endpoint.name))
    awake_ms = best.forecast.awake_ms if demand.stream else best.forecast.service_ms
    now_ms = serving.first_token_ms if demand.stream else serving.total_ms
    if demand.deadline_ms is not None and now_ms > demand.deadline_ms >= awake_ms:
        return (choice(best, f"woken: awake it would answer in {awake_ms:.0f} ms, within the deadline"),)
    awake_s = best.endpoint.sleeps_after_s or 0
    users = demand.arrivals_per_s * awake_s
    if strategy is Strategy.LOWEST_LATENCY and now_ms > QUICKER * awake_ms and users >= USERS_MIN:
        return (choice(best, f"woken: awake it would answer in {awake_ms:.0f} ms instead of {now_ms:.0f}"),)
    return ()


def hedge_after_ms(demand: Demand, candidates: Sequence[RouteChoice]) -> int | None:
    """How long to wait for the first candidate before the second is asked beside it; None: do not.

    The second must be awake, expected before the first is as late again, and within what the caller pays for both.
    How many hedges there may be in all is the engine's to count.
    """
    if len(candidates) < 2:
        return None
    first, second = candidates[0], candidates[1]
    if first.forecast is None or second.forecast is None:
        return None
    if second.forecast.asleep >= ASLEEP_FROM or second.forecast.waking:
        return None
    late_ms = max(first.forecast.late_ms, HEDGE_AFTER_MS_MIN)
    if first.forecast.unheard_s > second.forecast.unheard_s and first.forecast.first_token_ms > (
        second.forecast.first_token_ms
    ):
        # It was sent there to learn: the caller is not to pay for that with more than a late answer of the other.
        late_ms = min(late_ms, max(second.forecast.late_ms, HEDGE_AFTER_MS_MIN))
    if second.forecast.first_token_ms > late_ms:
        return None
    if demand.max_cost_usd_micros is not None:
        costs = (first.cost_usd_micros, second.cost_usd_micros)
        if None in costs or sum(cost or 0 for cost in costs) > demand.max_cost_usd_micros:
            return None
    return round(late_ms)
