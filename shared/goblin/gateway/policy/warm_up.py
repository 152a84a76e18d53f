"""Warm-ups and hedges: which endpoint to warm up beside the request, and when to hedge a slow first candidate.

asleep and quick ──warm-up──▶ starting ─────▶ awake: the router sends later requests there
awake and slow   ──this request is served here──▶
"""

from __future__ import annotations

from collections.abc import Sequence

from goblin.gateway.domain.catalog import Strategy
from goblin.gateway.policy.ordering import choice
from goblin.gateway.policy.route import Demand, EndpointFacts, RouteChoice

ASLEEP_FROM = 0.5
QUICKER = 2.0
"""How many times quicker than the current route an endpoint must be when warm, to be worth a warm-up."""
USERS_MIN = 3.0
"""How many requests must be expected while it stays awake, for a warm-up that no deadline demands."""
HEDGE_AFTER_MS_MIN = 20.0


def choose_warm_ups(
    demand: Demand, facts: Sequence[EndpointFacts], first: RouteChoice, *, strategy: Strategy
) -> tuple[RouteChoice, ...]:
    """Choose the endpoint to warm up, if any.

    A warm-up costs the start and the idle tail, so it must be worth that: the deadline would be missed without it, or
    the strategy is `lowest_latency` and enough requests arrive to use it. One warm-up at a time.

    Args:
        demand: The request, with its deadline and the arrival rate.
        facts: All endpoints that are healthy and allowed.
        first: The candidate that serves the request meanwhile; if it sleeps itself, the request wakes it.
        strategy: The strategy of the request.
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
        return (choice(best, f"warm-up: awake it would answer in {awake_ms:.0f} ms, within the deadline"),)
    awake_s = best.endpoint.sleeps_after_s or 0
    users = demand.arrivals_per_s * awake_s
    if strategy is Strategy.LOWEST_LATENCY and now_ms > QUICKER * awake_ms and users >= USERS_MIN:
        return (choice(best, f"warm-up: awake it would answer in {awake_ms:.0f} ms, not {now_ms:.0f} ms"),)
    return ()


def hedge_after_ms(demand: Demand, candidates: Sequence[RouteChoice]) -> int | None:
    """Compute how long to wait for the first candidate before hedging at the second; None: do not hedge.

    The second must be awake, must be expected before the first is as late again, and both together must be within the
    caller's cost limit. `RetryBudget` limits the number of hedges.
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
        # The first is being explored: the caller should wait no longer than for a late answer of the second.
        late_ms = min(late_ms, max(second.forecast.late_ms, HEDGE_AFTER_MS_MIN))
    if second.forecast.first_token_ms > late_ms:
        return None
    if demand.max_cost_usd_micros is not None:
        costs = (first.cost_usd_micros, second.cost_usd_micros)
        if None in costs or sum(cost or 0 for cost in costs) > demand.max_cost_usd_micros:
            return None
    return round(late_ms)
