"""What `goblin.toml` declares: endpoints by model, prices, and how to choose."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from enum import StrEnum

from goblin.core.endpoints import Endpoint, Price


class Strategy(StrEnum):
    """How the endpoints that could serve a request are put in order."""

    LOWEST_LATENCY = "lowest_latency"
    LOWEST_COST = "lowest_cost"
    ROUND_ROBIN = "round_robin"
    WEIGHTED_RANDOM = "weighted_random"
    FAILOVER = "failover"


@dataclass(frozen=True, kw_only=True, slots=True)
class Routing:
    """How to choose and how long to wait."""

    strategy: Strategy = Strategy.LOWEST_LATENCY
    attempts_max: int = 3
    first_token_timeout_s: float = 60.0
    between_tokens_timeout_s: float = 30.0
    explore_share: float = 0.02
    """Of `lowest_latency`'s requests, how many go to whoever was not heard of for longest."""
    wake: bool = True
    """Whether a quicker endpoint that sleeps may be woken beside a request that is served elsewhere."""
    deadline_ms: int | None = None
    """For requests that bring none: until the first token of a stream, or all of another answer."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ModelSettings:
    """What the file says of one model, with the defaults filled in."""

    routing: Routing
    endpoints: tuple[Endpoint, ...] | None = None
    """Those that serve it, and nobody else does, each with what is different for this model; None: whoever has it."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Catalog:
    """Everything `goblin.toml` says once the environment is filled in."""

    routing: Routing = field(default_factory=Routing)
    endpoints: tuple[Endpoint, ...] = ()
    """In the order of the file, which is the order of `failover`. Those that lack a variable are left out."""
    models: Mapping[str, ModelSettings] = field(default_factory=dict)
    """What is said of a model by name; the others go by the defaults."""
    prices: Mapping[tuple[str, str], Price] = field(default_factory=dict)
    """By provider and model; a model's own price goes before its endpoint's."""

    def prices_in_use(self) -> dict[tuple[str, str], Price]:
        """Of providers that are configured."""
        configured = {endpoint.provider for endpoint in self.endpoints}
        return {key: price for key, price in self.prices.items() if key[0] in configured}

    def routing_of(self, model: str) -> Routing:
        """How to choose for a model."""
        said = self.models.get(model)
        return self.routing if said is None else said.routing

    def endpoints_of(self, model: str) -> tuple[Endpoint, ...]:
        """Who may serve a model, each as it serves this one, in order."""
        said = self.models.get(model)
        return self.endpoints if said is None or said.endpoints is None else said.endpoints

    def connected(self, endpoints: Mapping[str, Endpoint]) -> Catalog:
        """The same, with what each endpoint's provider knows of it: what it lacks, and where its keys come from."""

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
