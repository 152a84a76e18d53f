"""What is served, and by whom a request should be: facts are gathered here, the choice is policy's."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

from goblin.domain.health import EndpointHealth, Status
from goblin.domain.models import Catalog, Endpoint, Strategy
from goblin.domain.requests import InferenceRequest
from goblin.errors import (
    BudgetExhausted,
    InvalidRequest,
    NotFound,
    ProviderUnavailable,
    StoreUnavailable,
    UnknownModel,
)
from goblin.policy import tokens
from goblin.policy.routing import Demand, EndpointFacts, NoRoute, Obstacle, Route, choose_route
from goblin.services.budget import FreezeView
from goblin.services.health import LOOK_AGAIN_S, HealthView
from goblin.services.live import Live

OUTPUT_TOKENS_GUESS = 256
"""What an answer costs, for prices, when the caller sets no limit."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Model:
    """A model somebody serves."""

    id: str
    endpoints: tuple[str, ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class Router:
    """The endpoints, what is known of them, and the choice among them."""

    catalog: Catalog
    live: Live
    health: HealthView
    freezes: FreezeView
    dice: Callable[[], float]
    """From 0 up to 1."""
    turns: Iterator[int]

    async def choose(self, request: InferenceRequest, header: str | None) -> Route | NoRoute:
        """Whom to try for a request.

        When nobody is known to have the model, the endpoints are asked: right after a start the schedule has
        not come by yet.

        Args:
            request: What is asked for, with the caller's word on routing.
            header: The caller's strategy, if it came beside the body.
        """
        strategy = _strategy(request, header) or self.catalog.routing.strategy
        demand = _demand(request)
        turn, dice = next(self.turns), self.dice()
        await self.freezes.current()
        found = choose_route(
            demand, self._facts(request.model, await self.health.current()), strategy=strategy, turn=turn, dice=dice
        )
        if isinstance(found, NoRoute) and not found.model_known:
            asked = await self.health.look()
            found = choose_route(demand, self._facts(request.model, asked), strategy=strategy, turn=turn, dice=dice)
        return found

    def must(self, found: Route | NoRoute) -> Route:
        """The route, or the error that says why there is none."""
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
            case Obstacle.UNABLE:
                raise InvalidRequest(found.reason, param="model", code="unsupported_by_endpoints")

    async def models(self) -> list[Model]:
        """Every model, by id; the endpoints are asked when none is known."""
        return self._served(await self.health.current()) or self._served(await self.health.look())

    async def model(self, model_id: str) -> Model:
        """One model. Raises `NotFound`."""
        for health in (self.health.current, self.health.look):
            for model in self._served(await health()):
                if model.id == model_id:
                    return model
        raise NotFound(f"The model `{model_id}` does not exist.", param="model", code="model_not_found")

    def _served(self, health: Mapping[str, EndpointHealth]) -> list[Model]:
        """Discovered models count while their endpoint's health remembers them."""
        found: dict[str, list[str]] = {}
        for endpoint in self.catalog.endpoints:
            known = health[endpoint.name].models if endpoint.models is None else endpoint.models
            for model in known:
                found.setdefault(model, []).append(endpoint.name)
        return [Model(id=model, endpoints=tuple(names)) for model, names in sorted(found.items())]

    def _facts(self, model: str, health: Mapping[str, EndpointHealth]) -> list[EndpointFacts]:
        return [self._fact(endpoint, health[endpoint.name], model) for endpoint in self.catalog.endpoints]

    def _fact(self, endpoint: Endpoint, health: EndpointHealth, model: str) -> EndpointFacts:
        outlook = self.live.outlook(endpoint, model)
        return EndpointFacts(
            endpoint=endpoint,
            serves=_serves(endpoint, health, model),
            status=health.status,
            status_reason=health.reason,
            open_until=outlook.open_until,
            open_reason=outlook.open_reason,
            first_token_ms=outlook.first_token_ms,
            frozen=self.freezes.why_frozen(endpoint),
        )


def _serves(endpoint: Endpoint, health: EndpointHealth, model: str) -> bool | None:
    """None when the endpoint never said what it has and cannot be asked now."""
    if endpoint.models is not None:
        return model in endpoint.models
    said = health.models or health.status in (Status.HEALTHY, Status.DEGRADED)
    return model in health.models if said else None


def _demand(request: InferenceRequest) -> Demand:
    prompt_bytes = request.prompt_bytes()
    limit = request.output_tokens_max
    return Demand(
        model=request.model,
        needs=request.needs(),
        prompt_tokens=tokens.estimate_tokens(prompt_bytes),
        prompt_tokens_min=tokens.fewest_tokens(prompt_bytes),
        output_tokens=OUTPUT_TOKENS_GUESS if limit is None else limit,
        provider=request.goblin.provider if request.goblin else None,
    )


def _strategy(request: InferenceRequest, header: str | None) -> Strategy | None:
    """What the caller asked for; the body is closer to the request than a header."""
    if request.goblin is not None and request.goblin.strategy is not None:
        return request.goblin.strategy
    if header is None:
        return None
    try:
        return Strategy(header.strip())
    except ValueError:
        raise InvalidRequest(
            f"Unknown strategy `{header[:64]}`; there are {', '.join(Strategy)}.", param="x-goblin-strategy"
        ) from None
