"""What `goblin.toml` declares: endpoints by model, prices, and routing."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from enum import StrEnum

from goblin.core.endpoints import Endpoint, Price


class Strategy(StrEnum):
    """The order in which the endpoints that can serve a request are tried."""

    LOWEST_LATENCY = "lowest_latency"
    LOWEST_COST = "lowest_cost"
    ROUND_ROBIN = "round_robin"
    WEIGHTED_RANDOM = "weighted_random"
    FAILOVER = "failover"


@dataclass(frozen=True, kw_only=True, slots=True)
class Routing:
    """How to choose endpoints, and how long to wait for them."""

    strategy: Strategy = Strategy.LOWEST_LATENCY
    attempts_max: int = 3
    first_token_timeout_s: float = 60.0
    between_tokens_timeout_s: float = 30.0
    explore_share: float = 0.02
    """Share of the `lowest_latency` requests that go first to the endpoint without an answer for longest."""
    wake: bool = True
    """Whether a quicker endpoint that sleeps may be warmed up while another endpoint serves the request."""
    deadline_ms: int | None = None
    """Default deadline of a request: for the first token of a stream, or for a whole answer that is not streamed."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ModelSettings:
    """The settings of one model in the file, with the defaults filled in."""

    routing: Routing
    endpoints: tuple[Endpoint, ...] | None = None
    """The only endpoints that serve it, each with its overrides for this model. None: every endpoint that has it."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Catalog:
    """Everything that `goblin.toml` declares, with environment variables filled in."""

    routing: Routing = field(default_factory=Routing)
    endpoints: tuple[Endpoint, ...] = ()
    """In the order of the file, which is the order of `failover`. Endpoints that lack a variable are left out."""
    models: Mapping[str, ModelSettings] = field(default_factory=dict)
    """Settings by model; other models use the defaults."""
    prices: Mapping[tuple[str, str], Price] = field(default_factory=dict)
    """By provider and model; a model's own price takes precedence over its endpoint's."""

    def prices_in_use(self) -> dict[tuple[str, str], Price]:
        """Return the prices of configured providers."""
        configured = {endpoint.provider for endpoint in self.endpoints}
        return {key: price for key, price in self.prices.items() if key[0] in configured}

    def routing_of(self, model: str) -> Routing:
        """Return the routing of a model."""
        said = self.models.get(model)
        return self.routing if said is None else said.routing

    def endpoints_of(self, model: str) -> tuple[Endpoint, ...]:
        """List the endpoints that may serve a model, in order, each with its overrides for this model."""
        said = self.models.get(model)
        return self.endpoints if said is None or said.endpoints is None else said.endpoints

    def connected(self, endpoints: Mapping[str, Endpoint]) -> Catalog:
        """Add to each endpoint what its provider's adapter knows of it: what it lacks, and where its keys come from."""

        def known(said: Endpoint) -> Endpoint:
            there = endpoints[said.name]
            return replace(
                said,
                lacks=there.lacks,
                api_key=there.api_key,
                account_key=there.account_key,
                credentials=there.credentials,
            )

        models = {
            name: replace(said, endpoints=None if said.endpoints is None else tuple(map(known, said.endpoints)))
            for name, said in self.models.items()
        }
        return replace(self, endpoints=tuple(map(known, self.endpoints)), models=models)
