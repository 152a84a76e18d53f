"""The models that are served, and the route of a request: the router gathers the facts, `policy` decides."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime

from msgspec.structs import replace

from goblin.billing.budgets import FreezeView
from goblin.core.endpoints import Capability, Endpoint, Price
from goblin.core.errors import (
    BudgetExhausted,
    InvalidRequest,
    NotFound,
    ProviderUnavailable,
    StoreUnavailable,
    UnknownModel,
)
from goblin.core.money import USD_MICROS
from goblin.gateway.config_reload import ConfigReloader
from goblin.gateway.domain.catalog import Catalog, Strategy
from goblin.gateway.domain.endpoint_health import EndpointHealth, Status
from goblin.gateway.domain.requests import (
    InferenceRequest,
    Preferences,
    WholeRequest,
    choices_of,
    longest_prompt_bytes,
)
from goblin.gateway.endpoint_stats import EndpointStats, Outlook
from goblin.gateway.health import LOOK_AGAIN_S, HealthView
from goblin.gateway.keys import check_model, may_ask
from goblin.gateway.policy import attachments, fan_out, tokens
from goblin.gateway.policy.marginal_cost import marginal_cost
from goblin.gateway.policy.route import Demand, EndpointFacts, NoRoute, Obstacle, Route
from goblin.gateway.policy.routing import choose_route
from goblin.gateway.policy.traffic import arrivals_per_s, expect_output
from goblin.gateway.policy.worst_case import price_of
from goblin.gateway.ports import ApiKey

OUTPUT_TOKENS_MAX_GUESS = 4096
"""Output tokens assumed to check `max_cost_usd`, when neither the caller nor the price limits the length."""


KINDS = (
    Capability.CHAT, Capability.COMPLETIONS, Capability.EMBEDDINGS, Capability.RERANK, Capability.IMAGES,
    Capability.TRANSCRIPTIONS,
)  # fmt: skip


@dataclass(frozen=True, kw_only=True, slots=True)
class ServedModel:
    """A model, and the endpoints that serve it."""

    id: str
    endpoints: tuple[str, ...]
    context_tokens: int | None = None
    """The longest context of these endpoints; None if that of any is unknown."""
    sees: bool = False
    """Whether any of them takes images."""
    capabilities: frozenset[Capability] = frozenset()
    """What any of them can do."""
    loaded: bool = False
    """Whether any of them is known to have it in memory."""


@dataclass(kw_only=True, slots=True)
class Router:
    """The endpoints, what is known about them, and the choice among them."""

    catalog: Catalog
    """Replaced as a whole when `goblin.toml` has changed."""
    stats: EndpointStats
    health: HealthView
    freezes: FreezeView
    rng: Callable[[], float]
    """Returns a number from 0 up to, but not including, 1."""
    turns: Iterator[int]
    reloader: ConfigReloader | None = None

    async def choose(self, request: InferenceRequest, header: str | None) -> Route | NoRoute:
        """Choose the route of a request.

        The endpoints are probed first when no endpoint is known to have the model, or when those that have it cannot
        serve the request and the models of others are still unknown: right after a start the scheduled health check
        has not run yet.

        Args:
            request: The request, with the caller's routing preferences.
            header: The caller's strategy from the header `x-goblin-strategy`; None without one.
        """
        if self.reloader is not None:
            self.reloader.poke()
        strategy, demand = _strategy(request, header), demand_of(request)
        turn, rng = next(self.turns), self.rng()
        await self.freezes.current()
        found = self._decide(demand, await self.health.current(), strategy, turn, rng)
        if isinstance(found, NoRoute) and (not found.model_known or found.silent):
            found = self._decide(demand, await self.health.look(), strategy, turn, rng)
        if isinstance(found, Route):
            self.stats.arrived(demand.model)
        return found

    def _decide(
        self, demand: Demand, health: Mapping[str, EndpointHealth], strategy: Strategy | None, turn: int, rng: float
    ) -> Route | NoRoute:
        return decide(
            demand,
            self.catalog,
            stats=self.stats,
            health=health,
            why_frozen=self.freezes.why_frozen,
            strategy=strategy,
            turn=turn,
            rng=rng,
        )

    def must(self, found: Route | NoRoute) -> Route:
        """Return the route, or raise the error that says why there is none.

        Raises:
            UnknownModel: No endpoint has the model.
            ProviderUnavailable: It is not known yet which endpoint has the model.
            StoreUnavailable: The freezes could not be read.
            BudgetExhausted: The endpoints that could serve it are frozen.
            InvalidRequest: The request is too long, or no endpoint can serve it within the caller's limits.
        """
        if isinstance(found, Route):
            return found
        match found.obstacle:
            case Obstacle.UNKNOWN_MODEL:
                raise UnknownModel(found.reason, param="model")
            case Obstacle.SILENT:
                raise ProviderUnavailable(found.reason, retry_after_s=LOOK_AGAIN_S)
            case Obstacle.FROZEN if self.freezes.blind:
                raise StoreUnavailable(found.reason)
            case Obstacle.FROZEN:
                raise BudgetExhausted(found.reason)
            case Obstacle.TOO_LONG:
                raise InvalidRequest(found.reason, param="messages", code="context_length_exceeded")
            case Obstacle.UNABLE:
                raise InvalidRequest(found.reason, param="model", code="unsupported_by_endpoints")

    async def models(self, key: ApiKey) -> list[ServedModel]:
        """List the models that a key may use, sorted by id; the endpoints are probed when no model is known."""
        found = self._served(await self.health.current()) or self._served(await self.health.look())
        return [model for model in found if may_ask(key, model.id)]

    async def model(self, model_id: str, key: ApiKey) -> ServedModel:
        """Find one model. Raises `Forbidden` for one that the key may not use, and `NotFound`."""
        check_model(key, model_id)
        for health in (self.health.current, self.health.look):
            for model in self._served(await health()):
                if model.id == model_id:
                    return model
        raise NotFound(f"The model `{model_id}` does not exist.", param="model", code="model_not_found")

    async def meant(self, model: str) -> str:
        """Return the model that a name in Ollama's way means: `llama3:latest` is `llama3` where none is called so."""
        short = model.removesuffix(":latest")
        if short == model:
            return model
        known = {served.id for served in self._served(await self.health.current())}
        return short if model not in known else model

    def _served(self, health: Mapping[str, EndpointHealth]) -> list[ServedModel]:
        """List models with their endpoints; a discovered model counts while its endpoint's health still lists it."""
        found: dict[str, list[Endpoint]] = {}
        for model in self.catalog.models:
            serving = [
                endpoint
                for endpoint in self.catalog.endpoints_of(model)
                if _serves(endpoint, health[endpoint.name], endpoint.upstream_model or model)
            ]
            if serving:
                found[model] = serving
        for endpoint in self.catalog.endpoints:
            known = health[endpoint.name].models if endpoint.models is None else endpoint.models
            for model in known:
                if model not in self.catalog.models:
                    found.setdefault(model, []).append(endpoint)
        return [_served_model(model, endpoints, health) for model, endpoints in sorted(found.items())]


def _served_model(model: str, endpoints: Sequence[Endpoint], health: Mapping[str, EndpointHealth]) -> ServedModel:
    contexts = [endpoint.context_tokens for endpoint in endpoints]
    known = [tokens for tokens in contexts if tokens is not None]
    return ServedModel(
        id=model,
        endpoints=tuple(endpoint.name for endpoint in endpoints),
        context_tokens=max(known) if len(known) == len(contexts) else None,
        sees=any(Capability.VISION in e.capabilities and Capability.VISION not in e.lacks for e in endpoints),
        capabilities=frozenset(can for e in endpoints for can in e.capabilities if can not in e.lacks),
        loaded=any((e.upstream_model or model) in (health[e.name].loaded or ()) for e in endpoints),
    )


def decide(
    demand: Demand,
    catalog: Catalog,
    *,
    stats: EndpointStats,
    health: Mapping[str, EndpointHealth],
    why_frozen: Callable[[Endpoint], str],
    strategy: Strategy | None,
    turn: int,
    rng: float,
) -> Route | NoRoute:
    """Gather the facts about each endpoint, and let policy choose.

    Args:
        demand: The caller's request; the model's traffic and default deadline are filled in here.
        catalog: What `goblin.toml` declares.
        stats: What this process has seen of the endpoints.
        health: The judged health by endpoint; an endpoint without one is unknown.
        why_frozen: Returns why an endpoint is frozen; empty when it may be used.
        strategy: The caller's strategy; None: the model's.
        turn: As in `choose_route`.
        rng: As in `choose_route`.
    """
    routing, traffic = catalog.routing_of(demand.model), stats.traffic(demand.model)
    at = stats.clock.now(), stats.clock.monotonic()
    demand = replace(
        demand,
        output_tokens_expected=expect_output(traffic, output_tokens_max=demand.output_tokens_max),
        arrivals_per_s=arrivals_per_s(traffic, now_s=at[1]),
        deadline_ms=routing.deadline_ms if demand.deadline_ms is None else demand.deadline_ms,
    )
    facts = [
        _fact(demand, endpoint, stats, health.get(endpoint.name), why_frozen, catalog.prices, at)
        for endpoint in catalog.endpoints_of(demand.model)
    ]
    return choose_route(
        demand,
        facts,
        strategy=strategy or routing.strategy,
        turn=turn,
        rng=rng,
        explore_share=routing.explore_share,
        may_wake=routing.wake,
    )


def _fact(
    demand: Demand,
    endpoint: Endpoint,
    stats: EndpointStats,
    health: EndpointHealth | None,
    why_frozen: Callable[[Endpoint], str],
    prices: Mapping[tuple[str, str], Price],
    at: tuple[datetime, float],
) -> EndpointFacts:
    upstream = endpoint.upstream_model or demand.model
    serves = _serves(endpoint, health, upstream)
    status, reason = (Status.UNKNOWN, "not checked yet") if health is None else (health.status, health.reason)
    if not serves:
        return EndpointFacts(endpoint=endpoint, serves=serves, status=status, status_reason=reason)
    outlook = stats.outlook(endpoint, demand.model, demand, health, at)
    price = price_of(prices, endpoint, upstream)
    expected = _cost(endpoint, price, outlook, demand, demand.output_tokens_expected)
    most = expected
    if demand.max_cost_usd_micros is not None:
        longest = demand.output_tokens_max
        if longest is None:  # Then this limit is sent upstream with the request.
            longest = OUTPUT_TOKENS_MAX_GUESS if price is None else price.output_tokens_default
        most = _cost(endpoint, price, outlook, demand, longest)
    return EndpointFacts(
        endpoint=endpoint,
        serves=True,
        status=status,
        status_reason=reason,
        open_until=outlook.open_until,
        open_reason=outlook.open_reason,
        frozen=why_frozen(endpoint),
        forecast=outlook.forecast,
        cost_usd_micros=expected,
        cost_usd_micros_max=most,
    )


def _cost(
    endpoint: Endpoint, price: Price | None, outlook: Outlook, demand: Demand, output_tokens: float
) -> int | None:
    return marginal_cost(
        endpoint,
        price,
        outlook.forecast,
        prompt_tokens=demand.prompt_tokens * fan_out.readings(demand.n, endpoint),
        output_tokens=output_tokens * demand.choices,
        in_flight=outlook.in_flight,
        cold_ms=outlook.cold_ms,
    )


def _serves(endpoint: Endpoint, health: EndpointHealth | None, model: str) -> bool | None:
    """Return whether the endpoint has the model; None when it has never listed its models and is not healthy now."""
    if endpoint.models is not None:
        return model in endpoint.models
    if health is None:
        return None
    said = health.models or health.status in (Status.HEALTHY, Status.DEGRADED)
    return model in health.models if said else None


def demand_of(request: InferenceRequest) -> Demand:
    """Describe a request in the router's terms."""
    prompt_bytes = request.prompt_bytes()
    wish = request.goblin or Preferences()
    needs = request.needs()
    n = 1 if isinstance(request, WholeRequest) else request.n or 1
    return Demand(
        model=request.model,
        kind=next(kind for kind in KINDS if kind in needs),
        needs=needs,
        prompt_tokens=tokens.estimate_tokens(prompt_bytes) + attachments.attachment_tokens(request),
        prompt_tokens_min=tokens.fewest_tokens(longest_prompt_bytes(request)),
        output_tokens_max=request.output_tokens_max,
        n=n,
        choices=choices_of(request),
        stream=not isinstance(request, WholeRequest) and bool(request.stream),
        provider=wish.provider,
        # Rounded down, so that the limit is never exceeded.
        max_cost_usd_micros=None if wish.max_cost_usd is None else math.floor(wish.max_cost_usd * USD_MICROS),
        deadline_ms=wish.deadline_ms,
        allow_external=wish.allow_external is not False,
    )


def _strategy(request: InferenceRequest, header: str | None) -> Strategy | None:
    """Return the caller's strategy; the body takes precedence over the header."""
    if request.goblin is not None and request.goblin.strategy is not None:
        return request.goblin.strategy
    if header is None:
        return None
    try:
        return Strategy(header.strip())
    except ValueError:
        raise InvalidRequest(
            f"Unknown strategy `{header[:64]}`. Use one of: {', '.join(Strategy)}.", param="x-goblin-strategy"
        ) from None
