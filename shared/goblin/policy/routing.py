"""Which endpoints to try for one request, in which order, and why."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum

from goblin.domain.health import Status
from goblin.domain.models import Capability, Endpoint, Strategy


@dataclass(frozen=True, kw_only=True, slots=True)
class Demand:
    """What one request asks for."""

    model: str
    needs: frozenset[Capability] = frozenset()
    prompt_tokens: int = 0
    """An estimate, for prices."""
    prompt_tokens_min: int = 0
    """A lower bound, to refuse by."""
    output_tokens: int = 0
    """What the caller allows, or what we guess."""
    provider: str | None = None
    """The caller's pin: an endpoint's name, or a provider's."""


@dataclass(frozen=True, kw_only=True, slots=True)
class EndpointFacts:
    """What is known now about one endpoint and the model asked for."""

    endpoint: Endpoint
    serves: bool | None
    """Whether it has the model; None when it has never said what it has."""
    status: Status = Status.UNKNOWN
    status_reason: str = ""
    open_until: datetime | None = None
    """Set while its breaker lets nothing through."""
    open_reason: str = ""
    first_token_ms: float = 1000.0
    """Predicted for this request."""
    frozen: str = ""
    """Why nothing may be spent on it now; empty when it may, or when it costs nothing."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Choice:
    """An endpoint and the reason it stands where it stands, or does not."""

    endpoint: Endpoint
    reason: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Route:
    """The endpoints to try, in order, and those that were left out."""

    strategy: Strategy
    candidates: tuple[Choice, ...]
    last_resort: bool = False
    """Nobody is well: these are tried all the same."""
    rejected: tuple[Choice, ...] = ()


class Obstacle(StrEnum):
    """What kept a request from every endpoint; health is none."""

    UNKNOWN_MODEL = "unknown_model"
    """Nobody has the model."""
    SILENT = "silent"
    """Nobody is known to have it, and somebody has not said yet what it has."""
    FROZEN = "frozen"
    """Somebody could serve it, and may not spend."""
    UNABLE = "unable"
    """Somebody has the model, and cannot do what is asked."""


@dataclass(frozen=True, kw_only=True, slots=True)
class NoRoute:
    """Nobody can serve it."""

    obstacle: Obstacle
    reason: str
    rejected: tuple[Choice, ...] = ()

    @property
    def model_known(self) -> bool:
        """Whether anybody has the model."""
        return self.obstacle in (Obstacle.FROZEN, Obstacle.UNABLE)


def choose_route(
    demand: Demand,
    facts: Sequence[EndpointFacts],
    *,
    strategy: Strategy,
    turn: int = 0,
    dice: float = 0.0,
) -> Route | NoRoute:
    """Put the endpoints that can serve a request in the order to try them.

    Args:
        demand: What is asked for.
        facts: One per configured endpoint, in the order of the file.
        strategy: The default, or what the caller asked for.
        turn: A counter that grows by one per request, for `round_robin`.
        dice: From 0 up to 1, for `weighted_random`.

    Returns:
        The route. The frozen are never tried. The unhealthy are left out while anybody else is there; when
        nobody is, they are tried all the same, soonest expected back first.
    """
    able: list[EndpointFacts] = []
    rejected: list[Choice] = []
    for fact in facts:
        reason = _why_not_able(demand, fact)
        if reason is None and fact.frozen:
            reason = f"frozen: {fact.frozen}"
        if reason is None:
            able.append(fact)
        else:
            rejected.append(Choice(endpoint=fact.endpoint, reason=reason))
    if not able:
        return _no_route(demand, facts, rejected)

    well: list[EndpointFacts] = []
    ill: list[Choice] = []
    for fact in able:
        reason = _why_not_well(fact)
        if reason is None:
            well.append(fact)
        else:
            ill.append(Choice(endpoint=fact.endpoint, reason=reason))
    if not well:
        return Route(strategy=strategy, candidates=_last_resort(able), last_resort=True, rejected=tuple(rejected))

    ordered = _order(demand, well, strategy, turn, dice)
    # A degraded endpoint is somebody's second choice, whatever the strategy thinks of it.
    degraded = {fact.endpoint.name for fact in well if fact.status is Status.DEGRADED}
    first = [choice for choice in ordered if choice.endpoint.name not in degraded]
    second = [choice for choice in ordered if choice.endpoint.name in degraded]
    return Route(
        strategy=strategy,
        candidates=tuple(first + [_mark_degraded(choice, well) for choice in second]),
        rejected=tuple(rejected + ill),
    )


def _why_not_able(demand: Demand, fact: EndpointFacts) -> str | None:
    endpoint = fact.endpoint
    if fact.serves is None:
        return f"has not said what it serves: {fact.status_reason}"
    if not fact.serves:
        return f"does not serve {demand.model}"
    if demand.provider is not None and demand.provider not in (endpoint.name, endpoint.provider):
        return f"the caller asked for {demand.provider}"
    for need in sorted(demand.needs):
        if need in endpoint.lacks:
            return f"{need}: {endpoint.lacks[need]}"
        if need not in endpoint.capabilities:
            return f"{need}: not among its capabilities"
    if endpoint.context_tokens is not None and demand.prompt_tokens_min > endpoint.context_tokens:
        return f"context: the prompt has at least {demand.prompt_tokens_min} tokens, it takes {endpoint.context_tokens}"
    return None


def _why_not_well(fact: EndpointFacts) -> str | None:
    if fact.open_until is not None:
        return f"breaker open: {fact.open_reason}"
    if fact.status is Status.UNHEALTHY:
        return f"unhealthy: {fact.status_reason}"
    return None


def _no_route(demand: Demand, facts: Sequence[EndpointFacts], rejected: list[Choice]) -> NoRoute:
    serving = {fact.endpoint.name for fact in facts if fact.serves}
    silent = {fact.endpoint.name for fact in facts if fact.serves is None}
    reasons = "; ".join(f"{c.endpoint.name}: {c.reason}" for c in rejected if c.endpoint.name in serving | silent)
    if not serving and not silent:
        obstacle, reason = Obstacle.UNKNOWN_MODEL, f"The model `{demand.model}` does not exist or is not served here."
    elif not serving:
        obstacle, reason = Obstacle.SILENT, f"Nobody can tell yet who serves `{demand.model}`. {reasons}."
    else:
        # What only lacks money could be served: that is what the caller has to hear.
        frozen = any(fact.frozen and _why_not_able(demand, fact) is None for fact in facts)
        obstacle = Obstacle.FROZEN if frozen else Obstacle.UNABLE
        reason = f"No endpoint of `{demand.model}` can serve this request. {reasons}."
    return NoRoute(obstacle=obstacle, reason=reason, rejected=tuple(rejected))


def _last_resort(facts: list[EndpointFacts]) -> tuple[Choice, ...]:
    def back_first(fact: EndpointFacts) -> tuple[float, bool, str]:
        until = fact.open_until.timestamp() if fact.open_until is not None else 0.0
        return until, fact.status is Status.UNHEALTHY, fact.endpoint.name

    return tuple(
        Choice(endpoint=fact.endpoint, reason=f"last resort, {_why_not_well(fact)}")
        for fact in sorted(facts, key=back_first)
    )


def _mark_degraded(choice: Choice, facts: list[EndpointFacts]) -> Choice:
    why = next(fact.status_reason for fact in facts if fact.endpoint.name == choice.endpoint.name)
    return Choice(endpoint=choice.endpoint, reason=f"{choice.reason}; after the others, degraded: {why}")


def _order(demand: Demand, facts: list[EndpointFacts], strategy: Strategy, turn: int, dice: float) -> list[Choice]:
    match strategy:
        case Strategy.LOWEST_LATENCY:
            by_latency = sorted(facts, key=lambda fact: (fact.first_token_ms, fact.endpoint.name))
            return [_choice(fact, f"first token in about {fact.first_token_ms:.0f} ms") for fact in by_latency]
        case Strategy.LOWEST_COST:
            return _by_cost(demand, facts)
        case Strategy.ROUND_ROBIN:
            start = turn % len(facts)
            return [_choice(fact, "its turn") for fact in facts[start:] + facts[:start]]
        case Strategy.WEIGHTED_RANDOM:
            return _by_weight(facts, dice)
        case Strategy.FAILOVER:
            return [_choice(fact, f"number {n} in order") for n, fact in enumerate(facts, start=1)]


def _by_cost(demand: Demand, facts: list[EndpointFacts]) -> list[Choice]:
    """Known prices first: an unknown one may be anything, so it is the last thing to try."""
    priced: list[tuple[int, str, EndpointFacts]] = []
    unpriced: list[EndpointFacts] = []
    for fact in facts:
        price = fact.endpoint.price
        if price is None:
            unpriced.append(fact)
            continue
        cost = price.cost_usd_micros(input_tokens=demand.prompt_tokens, output_tokens=demand.output_tokens)
        priced.append((cost, fact.endpoint.name, fact))
    priced.sort(key=lambda row: row[:2])
    unpriced.sort(key=lambda fact: fact.endpoint.name)
    known = [_choice(fact, f"about {cost} millionths of a dollar") for cost, _, fact in priced]
    return known + [_choice(fact, "its price is unknown") for fact in unpriced]


def _by_weight(facts: list[EndpointFacts], dice: float) -> list[Choice]:
    """One throw names the first; the rest stand by in order of weight."""
    total = sum(fact.endpoint.weight for fact in facts)
    heaviest = sorted(facts, key=lambda fact: (-fact.endpoint.weight, fact.endpoint.name))
    drawn, mark = heaviest[0], dice * total
    for fact in heaviest:
        if mark < fact.endpoint.weight:
            drawn = fact
            break
        mark -= fact.endpoint.weight
    rest = [fact for fact in heaviest if fact is not drawn]
    return [_choice(drawn, f"drawn with weight {drawn.endpoint.weight} of {total}")] + [
        _choice(fact, f"stands by with weight {fact.endpoint.weight}") for fact in rest
    ]


def _choice(fact: EndpointFacts, reason: str) -> Choice:
    return Choice(endpoint=fact.endpoint, reason=reason)
