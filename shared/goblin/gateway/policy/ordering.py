"""The five strategies: those who could serve a request in the order to try them, each with its reason."""

from __future__ import annotations

from goblin.gateway.domain.catalog import Strategy
from goblin.gateway.policy.route import Demand, EndpointFacts, RouteChoice, waited_ms

TIE = 1.1
"""Predictions this close to the best, their doubt allowed for, are one: the cheaper is taken, among those the less
busy, and then the dice decide, so that many instances with the same old news do not all run to the same endpoint."""
FAILURE_MS = 1000.0
"""What a failed attempt costs the caller beyond its own time: somebody else starts over."""
EXPLORE_UNHEARD_S = 20.0
"""Whoever answered within this time needs no exploring; who seems so many times slower, within so many times that."""
EXPLORE_SLOWER_MAX = 20.0
"""How many times slower than the best it may seem: what is hopeless is not explored with a caller's request."""


def order(
    demand: Demand,
    facts: list[EndpointFacts],
    *,
    strategy: Strategy,
    turn: int,
    rng: float,
    explore_share: float = 0.0,
) -> list[RouteChoice]:
    """Put them in order; none is left out.

    Args:
        demand: What is asked for.
        facts: At least one, in the order of the file.
        strategy: By what.
        turn: A counter that grows by one per request.
        dice: From 0 up to 1.
        explore_share: Of `lowest_latency`'s requests; an upper bound, kept by `turn` and not by chance.
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
    """A fact with the reason for its place."""
    return RouteChoice(
        endpoint=fact.endpoint, reason=reason, forecast=fact.forecast, cost_usd_micros=fact.cost_usd_micros
    )


def expect(demand: Demand, fact: EndpointFacts) -> str:
    """The expectation in words."""
    forecast = fact.forecast
    words = f"{'first token' if demand.stream else 'answer'} in about {waited_ms(demand, forecast):.0f} ms"
    if forecast.waking:
        return f"{words}, it is waking"
    return f"{words}, asleep with a chance of {forecast.asleep:.0%}" if forecast.asleep else words


def burden_ms(demand: Demand, fact: EndpointFacts) -> float:
    """What the caller is expected to wait, what fails there included."""
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
    why = f"to learn how it does, unheard for {explored.forecast.unheard_s:.0f} s; {expect(demand, explored)}"
    return [choice(explored, why), *rest]


def _by_burden(row: tuple[float, str, EndpointFacts]) -> tuple[float, str]:
    return row[0], row[1]


def _cheapest_first(near: list[EndpointFacts], rng: float) -> list[EndpointFacts]:
    """Those that are as quick as each other: by price, the unknown last; then by load, then by dice."""
    if len(near) == 1:
        return near
    start = int(rng * len(near))
    turned = near[start:] + near[:start]
    return sorted(turned, key=_price_and_load)


def _price_and_load(fact: EndpointFacts) -> tuple[float, float]:
    return float("inf") if fact.cost_usd_micros is None else fact.cost_usd_micros, fact.forecast.busy


def _unheard(demand: Demand, ordered: list[EndpointFacts], turn: int, share: float) -> EndpointFacts | None:
    """Who is to be looked at with this request, if it is one of those that look: the awake one unheard for longest."""
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
    """Known prices first: an unknown one may be anything, so it is the last thing to try. Equal prices by time."""
    known = [fact for fact in facts if fact.cost_usd_micros is not None]
    unknown = [fact for fact in facts if fact.cost_usd_micros is None]
    known.sort(key=lambda fact: (fact.cost_usd_micros, burden_ms(demand, fact), fact.endpoint.name))
    unknown.sort(key=lambda fact: (burden_ms(demand, fact), fact.endpoint.name))
    return [choice(fact, f"about {fact.cost_usd_micros} millionths of a dollar") for fact in known] + [
        choice(fact, "its price is unknown") for fact in unknown
    ]


def _by_weight(facts: list[EndpointFacts], rng: float) -> list[RouteChoice]:
    """One throw names the first; the rest stand by in order of weight."""
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
        choice(fact, f"stands by with weight {fact.endpoint.weight}") for fact in rest
    ]
