"""Inputs and results of routing: what a request needs, what is known about each endpoint, and the route."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum

from msgspec import Struct

from goblin.core.endpoints import Capability, Endpoint
from goblin.gateway.domain.catalog import Strategy
from goblin.gateway.domain.endpoint_health import Status


class Demand(Struct, frozen=True, kw_only=True):
    """What one request needs, in the router's terms."""

    model: str
    kind: Capability = Capability.CHAT
    """The class of request: chat, completions or embeddings. A failure in one says nothing about the others."""
    needs: frozenset[Capability] = frozenset()
    prompt_tokens: int = 0
    """An estimate, used for prices and latencies."""
    prompt_tokens_min: int = 0
    """A lower bound, used to refuse prompts that are too long."""
    output_tokens_max: int | None = None
    """The caller's limit; None: no limit."""
    output_tokens_expected: float = 0.0
    """The recent length of answers of this model, within the caller's limit."""
    n: int = 1
    """Answers to each prompt."""
    choices: int = 1
    """Answers to all prompts together, each of them so long."""
    stream: bool = True
    """Whether the caller waits for the first token only, or for the whole answer."""
    provider: str | None = None
    """The endpoint or provider that the caller demands, by name."""
    max_cost_usd_micros: int | None = None
    deadline_ms: int | None = None
    """Deadline for the first token of a stream, or for a whole answer that is not streamed."""
    allow_external: bool = True
    arrivals_per_s: float = 0.0
    """The recent arrival rate of requests for this model."""


class LatencyForecast(Struct, frozen=True, kw_only=True, gc=False):
    """The latency estimate for one request at one endpoint: queue, start, prefill and decode."""

    demand: Demand = Demand(model="")
    """The request."""
    first_token_ms: float = 1000.0
    """Time to first token, all waiting included. Always positive."""
    total_ms: float = 1000.0
    awake_ms: float = 1000.0
    """Time to first token if the endpoint were warm and idle."""
    queue_ms: float = 0.0
    busy: float = 0.0
    """Requests in flight there, divided by how many it is trusted to serve at once."""
    asleep: float = 0.0
    """The chance of a cold start, from 0 to 1."""
    waking: bool = False
    """Whether a cold start is in progress."""
    late_ms: float = 3000.0
    """The 95th percentile of the time to first token."""
    service_ms: float = 1000.0
    """How long the endpoint works on the request once it has begun."""
    doubt: float = 0.0
    """How far the forecast may be off because few answers were seen, as a share of the forecast."""
    failed_share: float = 0.0
    unheard_s: float = 0.0
    """Time since its last answer; the age of this process, if it never answered."""


_UNKNOWN = LatencyForecast()


class EndpointFacts(Struct, frozen=True, kw_only=True):
    """What is known now about one endpoint and the requested model."""

    endpoint: Endpoint
    serves: bool | None
    """Whether it has the model; None when it has never listed its models."""
    status: Status = Status.UNKNOWN
    status_reason: str = ""
    open_until: datetime | None = None
    """Set while its breaker is open."""
    open_reason: str = ""
    frozen: str = ""
    """Why it is frozen; empty when it is not, or when it is free."""
    forecast: LatencyForecast = _UNKNOWN
    cost_usd_micros: int | None = None
    """The marginal cost of this request; None when the price is unknown, which is not zero."""
    cost_usd_micros_max: int | None = None
    """The same for the longest answer that the caller allows."""


class RouteChoice(Struct, frozen=True, kw_only=True):
    """An endpoint, with the reason for its place in the route, or for being left out."""

    endpoint: Endpoint
    reason: str
    forecast: LatencyForecast | None = None
    cost_usd_micros: int | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class Route:
    """The endpoints to try, in order, and those that were left out."""

    strategy: Strategy
    candidates: tuple[RouteChoice, ...]
    last_resort: bool = False
    """Whether no endpoint is healthy, so that unhealthy ones are tried anyway."""
    rejected: tuple[RouteChoice, ...] = ()
    wake: tuple[RouteChoice, ...] = ()
    """Endpoints to warm up without waiting for them: each would be quicker if it were warm."""
    hedge_after_ms: int | None = None
    """How long the first candidate may be silent before the request is hedged at the second; None: never."""


class Obstacle(StrEnum):
    """Why no endpoint can get a request. Bad health is not an obstacle."""

    UNKNOWN_MODEL = "unknown_model"
    """No endpoint has the model."""
    SILENT = "silent"
    """No endpoint is known to have the model, and at least one has not listed its models yet."""
    FROZEN = "frozen"
    """An endpoint could serve the request, but is frozen."""
    TOO_LONG = "too_long"
    """Endpoints could serve the request if it were shorter."""
    UNABLE = "unable"
    """Endpoints have the model, but none can serve the request within the caller's limits."""


@dataclass(frozen=True, kw_only=True, slots=True)
class NoRoute:
    """No endpoint can serve the request, and why."""

    obstacle: Obstacle
    reason: str
    rejected: tuple[RouteChoice, ...] = ()
    silent: bool = False
    """Whether an endpoint has not listed its models yet, and so might have this one."""

    @property
    def model_known(self) -> bool:
        """Whether any endpoint has the model."""
        return self.obstacle in (Obstacle.FROZEN, Obstacle.TOO_LONG, Obstacle.UNABLE)


Facts = Sequence[EndpointFacts]


def waited_ms(demand: Demand, forecast: LatencyForecast) -> float:
    """Return the caller's expected wait: for the first token of a stream, else for the whole answer."""
    return forecast.first_token_ms if demand.stream else forecast.total_ms
