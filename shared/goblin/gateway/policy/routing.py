"""Routing: which endpoints to try for one request, in which order, and why."""

from __future__ import annotations

from goblin.core.endpoints import Capability
from goblin.gateway.domain.catalog import Strategy
from goblin.gateway.domain.endpoint_health import Status
from goblin.gateway.policy.ordering import choice, order
from goblin.gateway.policy.route import (
    Demand,
    EndpointFacts,
    Facts,
    NoRoute,
    Obstacle,
    Route,
    RouteChoice,
    waited_ms,
)
from goblin.gateway.policy.warm_up import choose_warm_ups, hedge_after_ms

__all__ = ["Demand", "EndpointFacts", "NoRoute", "Obstacle", "Route", "RouteChoice", "choose_route"]


def choose_route(
    demand: Demand,
    facts: Facts,
    *,
    strategy: Strategy,
    turn: int = 0,
    rng: float = 0.0,
    explore_share: float = 0.0,
    may_wake: bool = True,
) -> Route | NoRoute:
    """Put the endpoints that can serve a request in the order to try them.

    Args:
        demand: The request.
        facts: One per configured endpoint, in the order of the file.
        strategy: The caller's strategy, or the default.
        turn: A counter that grows by one per request, for `round_robin` and for exploring.
        rng: A random number from 0 up to, but not including, 1, for `weighted_random` and for ties.
        explore_share: The share of `lowest_latency` requests that may explore an endpoint without a recent answer.
        may_wake: Whether a warm-up may be started beside the request.

    Returns:
        The route. Endpoints that are frozen or over the cost limit are never tried. Unhealthy endpoints are left out
        while any other endpoint is left; if none is, they are tried anyway, soonest expected back first. Degraded
        endpoints, and those that would miss the deadline, come after the others.
    """
    able: list[EndpointFacts] = []
    rejected: list[RouteChoice] = []
    for fact in facts:
        reason = _why_not_able(demand, fact) or _why_not_allowed(demand, fact)
        if reason is None:
            able.append(fact)
        else:
            rejected.append(choice(fact, reason))
    if not able:
        return _no_route(demand, facts, rejected)

    well: list[EndpointFacts] = []
    ill: list[RouteChoice] = []
    for fact in able:
        reason = _why_not_well(fact)
        if reason is None:
            well.append(fact)
        else:
            ill.append(choice(fact, reason))
    if not well:
        return Route(strategy=strategy, candidates=_last_resort(able), last_resort=True, rejected=tuple(rejected))

    good = [fact for fact in well if fact.status is not Status.DEGRADED]
    degraded = [fact for fact in well if fact.status is Status.DEGRADED]
    candidates = _in_time_first(demand, good or degraded, strategy, turn, rng, explore_share)
    if good and degraded:
        why = {fact.endpoint.name: fact.status_reason for fact in degraded}
        second = order(demand, degraded, strategy=strategy, turn=turn, rng=rng)
        candidates += [_after(c, f"degraded: {why[c.endpoint.name]}") for c in second]
    return Route(
        strategy=strategy,
        candidates=tuple(candidates),
        rejected=tuple(rejected + ill),
        wake=choose_warm_ups(demand, well, candidates[0], strategy=strategy) if may_wake else (),
        hedge_after_ms=hedge_after_ms(demand, candidates),
    )


_LACKING = {
    Capability.TOKEN_IDS: (
        "not among its capabilities, because ids of another tokenizer mean another text to its model; send text"
    )
}


def _why_not_able(demand: Demand, fact: EndpointFacts) -> str | None:
    endpoint = fact.endpoint
    if fact.serves is None:
        return f"has not listed its models yet: {fact.status_reason}"
    if not fact.serves:
        return f"does not serve {demand.model}"
    if demand.provider is not None and demand.provider not in (endpoint.name, endpoint.provider):
        return f"the caller asked for {demand.provider}"
    if not demand.needs <= endpoint.capabilities or endpoint.lacks:
        for need in sorted(demand.needs):
            if need in endpoint.lacks:
                return f"{need}: {endpoint.lacks[need]}"
            if need not in endpoint.capabilities:
                return f"{need}: {_LACKING.get(need, 'not among its capabilities')}"
    if endpoint.context_tokens is not None and demand.prompt_tokens_min > endpoint.context_tokens:
        return f"context: at least {demand.prompt_tokens_min} prompt tokens, the limit is {endpoint.context_tokens}"
    return None


def _why_not_allowed(demand: Demand, fact: EndpointFacts) -> str | None:
    """Return what the caller or a freeze forbids; None when nothing does."""
    if fact.endpoint.external and not demand.allow_external:
        return "external: the caller keeps the request on our own machines"
    limit = demand.max_cost_usd_micros
    if limit is not None:
        if fact.cost_usd_micros_max is None:
            return "cost: the price is unknown, and the caller set a limit"
        if fact.cost_usd_micros_max > limit:
            return f"cost: up to {fact.cost_usd_micros_max} micro-dollars, the caller allows {limit}"
    return f"frozen: {fact.frozen}" if fact.frozen else None


def _why_not_well(fact: EndpointFacts) -> str | None:
    if fact.open_until is not None:
        return f"breaker open: {fact.open_reason}"
    if fact.status is Status.UNHEALTHY:
        return f"unhealthy: {fact.status_reason}"
    return None


def _in_time_first(
    demand: Demand, facts: list[EndpointFacts], strategy: Strategy, turn: int, rng: float, explore_share: float
) -> list[RouteChoice]:
    """Order by the strategy, with endpoints that would miss the deadline last; if all would, the quickest first."""
    if demand.deadline_ms is None:
        return order(demand, facts, strategy=strategy, turn=turn, rng=rng, explore_share=explore_share)
    late = [fact for fact in facts if waited_ms(demand, fact.forecast) > demand.deadline_ms]
    candidates: list[RouteChoice] = []
    if len(late) < len(facts):
        in_time = [fact for fact in facts if waited_ms(demand, fact.forecast) <= demand.deadline_ms]
        candidates = order(demand, in_time, strategy=strategy, turn=turn, rng=rng, explore_share=explore_share)
    if late:
        least_late = order(demand, late, strategy=Strategy.LOWEST_LATENCY, turn=turn, rng=rng)
        candidates += [_late(demand, found) for found in least_late]
    return candidates


def _late(demand: Demand, found: RouteChoice) -> RouteChoice:
    expected = waited_ms(demand, found.forecast) if found.forecast else 0.0
    return _after(found, f"late: about {expected:.0f} ms, the deadline is {demand.deadline_ms} ms")


def _after(found: RouteChoice, why: str) -> RouteChoice:
    return RouteChoice(
        endpoint=found.endpoint,
        reason=f"{found.reason}; after the others, {why}",
        forecast=found.forecast,
        cost_usd_micros=found.cost_usd_micros,
    )


def _no_route(demand: Demand, facts: Facts, rejected: list[RouteChoice]) -> NoRoute:
    serving = {fact.endpoint.name for fact in facts if fact.serves}
    silent = {fact.endpoint.name for fact in facts if fact.serves is None}
    reasons = "; ".join(f"{c.endpoint.name}: {c.reason}" for c in rejected if c.endpoint.name in serving | silent)
    if not serving and not silent:
        obstacle, reason = Obstacle.UNKNOWN_MODEL, f"The model `{demand.model}` does not exist or is not served here."
    elif not serving:
        obstacle, reason = Obstacle.SILENT, f"It is not known yet whether `{demand.model}` is served. {reasons}."
    else:
        # If an endpoint is only frozen, the request could be served: report that to the caller.
        only_frozen = any(c.reason.startswith("frozen: ") for c in rejected)
        too_long = any(c.reason.startswith("context: ") for c in rejected)
        obstacle = Obstacle.FROZEN if only_frozen else Obstacle.TOO_LONG if too_long else Obstacle.UNABLE
        reason = f"No endpoint of `{demand.model}` can serve this request. {reasons}."
    return NoRoute(obstacle=obstacle, reason=reason, rejected=tuple(rejected), silent=bool(silent))


def _last_resort(facts: list[EndpointFacts]) -> tuple[RouteChoice, ...]:
    def back_first(fact: EndpointFacts) -> tuple[float, bool, str]:
        until = fact.open_until.timestamp() if fact.open_until is not None else 0.0
        return until, fact.status is Status.UNHEALTHY, fact.endpoint.name

    return tuple(choice(fact, f"last resort, {_why_not_well(fact)}") for fact in sorted(facts, key=back_first))
