"""The five strategies: each puts endpoints in the order to try them, with a reason for each place."""

from __future__ import annotations

from goblin.gateway.domain.catalog import Strategy
from goblin.gateway.policy.route import Demand, EndpointFacts, RouteChoice, waited_ms

TIE = 1.1
"""Forecasts within this factor of the best, less their doubt, are a tie: the cheaper endpoint goes first, then the
less busy one, then a random one, so that many processes with the same data do not all choose the same endpoint."""
FAILURE_MS = 1000.0
"""Assumed cost of a failed attempt beyond its own time, because another endpoint starts over."""
EXPLORE_UNHEARD_S = 20.0
"""An endpoint is explored only if it has not answered for longer than this, times how much slower it seems."""
EXPLORE_SLOWER_MAX = 20.0
"""An endpoint that seems more times slower than the best than this is not explored with a caller's request."""


def order(
    demand: Demand,
    facts: list[EndpointFacts],
    *,
    strategy: Strategy,
    turn: int,
    rng: float,
    explore_share: float = 0.0,
) -> list[RouteChoice]:
    """Put all given endpoints in order.

    Args:
        demand: The request.
        facts: At least one endpoint, in the order of the file.
        strategy: The strategy to order by.
        turn: A counter that grows by one per request.
        rng: A random number from 0 up to, but not including, 1.
        explore_share: The most `lowest_latency` requests that may explore, as a share; chosen by `turn`, not by chance.
    """
    match strategy:
        case Strategy.LOWEST_LATENCY:
            return _by_latency(demand, facts, turn, rng, explore_share)
        case Strategy.LOWEST_COST:
            return _by_cost(demand, facts)
        case Strategy.ROUND_ROBIN:
            start = turn % len(facts)
            return [choice(fact, "its turn") for fact in facts[start:] + facts[:start]]
        case Strategy.WEIGHTED_RANDOM:
            return _by_weight(facts, rng)
        case Strategy.FAILOVER:
            return [choice(fact, f"number {n} in order") for n, fact in enumerate(facts, start=1)]


def choice(fact: EndpointFacts, reason: str) -> RouteChoice:
    """Build the choice of an endpoint, with the reason for its place."""
    return RouteChoice(
        endpoint=fact.endpoint, reason=reason, forecast=fact.forecast, cost_usd_micros=fact.cost_usd_micros
    )


def expect(demand: Demand, fact: EndpointFacts) -> str:
    """Put the forecast into words."""
    forecast = fact.forecast
    words = f"{'first token' if demand.stream else 'answer'} in about {waited_ms(demand, forecast):.0f} ms"
    if forecast.waking:
        return f"{words}, it is starting"
    return f"{words}, with a cold start at {forecast.asleep:.0%}" if forecast.asleep else words


def burden_ms(demand: Demand, fact: EndpointFacts) -> float:
    """Estimate the caller's wait, with the expected cost of failures."""
    wait = waited_ms(demand, fact.forecast)
    return wait + fact.forecast.failed_share * (wait + FAILURE_MS)


def _by_latency(
    demand: Demand, facts: list[EndpointFacts], turn: int, rng: float, explore_share: float
) -> list[RouteChoice]:
    burdens = sorted(((burden_ms(demand, fact), fact.endpoint.name, fact) for fact in facts), key=_by_burden)
    bar = burdens[0][0] * TIE
    near: list[EndpointFacts] = []
    far: list[EndpointFacts] = []
    for burden, _, fact in burdens:
        (near if burden * (1.0 - fact.forecast.doubt) <= bar else far).append(fact)
    ordered = _cheapest_first(near, rng) + far
    explored = _unheard(demand, ordered, turn, explore_share)
    if explored is None:
        return [choice(fact, expect(demand, fact)) for fact in ordered]
    rest = [choice(fact, expect(demand, fact)) for fact in ordered if fact is not explored]
    why = f"explored, no answer from it for {explored.forecast.unheard_s:.0f} s; {expect(demand, explored)}"
    return [choice(explored, why), *rest]


def _by_burden(row: tuple[float, str, EndpointFacts]) -> tuple[float, str]:
    return row[0], row[1]


def _cheapest_first(near: list[EndpointFacts], rng: float) -> list[EndpointFacts]:
    """Order endpoints that are equally quick: by price, unknown prices last; then by load, then at random."""
    if len(near) == 1:
        return near
    start = int(rng * len(near))
    turned = near[start:] + near[:start]
    return sorted(turned, key=_price_and_load)


def _price_and_load(fact: EndpointFacts) -> tuple[float, float]:
    return float("inf") if fact.cost_usd_micros is None else fact.cost_usd_micros, fact.forecast.busy


def _unheard(demand: Demand, ordered: list[EndpointFacts], turn: int, share: float) -> EndpointFacts | None:
    """Choose the awake endpoint without an answer for longest, if this request is one of those that explore."""
    if not share or len(ordered) < 2 or turn % max(round(1 / share), 1):
        return None
    best_ms = burden_ms(demand, ordered[0])
    strangers = []
    for fact in ordered[1:]:
        forecast = fact.forecast
        slower = burden_ms(demand, fact) / best_ms
        if forecast.asleep or forecast.waking or slower > EXPLORE_SLOWER_MAX:
            continue
        if forecast.unheard_s > EXPLORE_UNHEARD_S * max(slower, 1.0):
            strangers.append(fact)
    return max(strangers, key=lambda fact: (fact.forecast.unheard_s, fact.endpoint.name), default=None)


def _by_cost(demand: Demand, facts: list[EndpointFacts]) -> list[RouteChoice]:
    """Order by price, equal prices by time. Unknown prices come last, because they may be high."""
    known = [fact for fact in facts if fact.cost_usd_micros is not None]
    unknown = [fact for fact in facts if fact.cost_usd_micros is None]
    known.sort(key=lambda fact: (fact.cost_usd_micros, burden_ms(demand, fact), fact.endpoint.name))
    unknown.sort(key=lambda fact: (burden_ms(demand, fact), fact.endpoint.name))
    return [choice(fact, f"about {fact.cost_usd_micros} micro-dollars") for fact in known] + [
        choice(fact, "its price is unknown") for fact in unknown
    ]


def _by_weight(facts: list[EndpointFacts], rng: float) -> list[RouteChoice]:
    """Draw the first endpoint by weight; the others follow in order of weight."""
    total = sum(fact.endpoint.weight for fact in facts)
    heaviest = sorted(facts, key=lambda fact: (-fact.endpoint.weight, fact.endpoint.name))
    drawn, mark = heaviest[0], rng * total
    for fact in heaviest:
        if mark < fact.endpoint.weight:
            drawn = fact
            break
        mark -= fact.endpoint.weight
    rest = [fact for fact in heaviest if fact is not drawn]
    return [choice(drawn, f"drawn with weight {drawn.endpoint.weight} of {total}")] + [
        choice(fact, f"fallback with weight {fact.endpoint.weight}") for fact in rest
    ]
