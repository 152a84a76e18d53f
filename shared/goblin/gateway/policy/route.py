"""What one request asks for, what is known of those who might serve it, and what was decided."""

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
    """What one request asks for."""

    model: str
    kind: Capability = Capability.CHAT
    """The class of endpoint: chat, completions or embeddings. What fails in one says nothing of the others."""
    needs: frozenset[Capability] = frozenset()
    prompt_tokens: int = 0
    """An estimate, for prices and times."""
    prompt_tokens_min: int = 0
    """A lower bound, to refuse by."""
    output_tokens_max: int | None = None
    """What the caller allows; None: as many as it takes."""
    output_tokens_expected: float = 0.0
    """What such answers have had of late, within what the caller allows."""
    stream: bool = True
    """Whether the caller waits for the first token or for all of them."""
    provider: str | None = None
    """The caller's pin: an endpoint's name, or a provider's."""
    max_cost_usd_micros: int | None = None
    deadline_ms: int | None = None
    """Until the first token of a stream, or all of another answer."""
    allow_external: bool = True
    arrivals_per_s: float = 0.0
    """How many requests for this model have come of late."""


class LatencyForecast(Struct, frozen=True, kw_only=True, gc=False):
    """What to expect of one endpoint for one request."""

    demand: Demand = Demand(model="")
    """The request."""
    first_token_ms: float = 1000.0
    """All waiting included. Always positive."""
    total_ms: float = 1000.0
    awake_ms: float = 1000.0
    """To the first token if it were awake and nobody before us."""
    queue_ms: float = 0.0
    busy: float = 0.0
    """Requests there now, as a share of what it is trusted to serve at once."""
    asleep: float = 0.0
    """The chance that it must start first."""
    waking: bool = False
    """Somebody has begun to wake it."""
    late_ms: float = 3000.0
    """By when the first token has come in all but a twentieth of such cases."""
    service_ms: float = 1000.0
    """How long it is at work on the request, once begun."""
    doubt: float = 0.0
    """How far the prediction may be off, as a share of it, because little was seen."""
    failed_share: float = 0.0
    unheard_s: float = 0.0
    """Since it last answered us; as long as we live, if never."""


_UNKNOWN = LatencyForecast()


class EndpointFacts(Struct, frozen=True, kw_only=True):
    """What is known now about one endpoint and the model asked for."""

    endpoint: Endpoint
    serves: bool | None
    """Whether it has the model; None when it has never said what it has."""
    status: Status = Status.UNKNOWN
    status_reason: str = ""
    open_until: datetime | None = None
    """Set while its breaker lets nothing through."""
    open_reason: str = ""
    frozen: str = ""
    """Why nothing may be spent on it now; empty when it may, or when it costs nothing."""
    forecast: LatencyForecast = _UNKNOWN
    cost_usd_micros: int | None = None
    """The marginal price of this request; None when a price is unknown, which is not zero."""
    cost_usd_micros_max: int | None = None
    """The same, if the answer is as long as the caller allows."""


class RouteChoice(Struct, frozen=True, kw_only=True):
    """An endpoint and the reason it stands where it stands, or does not."""

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
    """Nobody is well: these are tried all the same."""
    rejected: tuple[RouteChoice, ...] = ()
    wake: tuple[RouteChoice, ...] = ()
    """To be woken beside the request, not to be waited for: each would be quicker if it were awake."""
    hedge_after_ms: int | None = None
    """Silent for so long, the first candidate is late, and the second is asked beside it; None: never."""


class Obstacle(StrEnum):
    """What kept a request from every endpoint; health is none."""

    UNKNOWN_MODEL = "unknown_model"
    """Nobody has the model."""
    SILENT = "silent"
    """Nobody is known to have it, and somebody has not said yet what it has."""
    FROZEN = "frozen"
    """Somebody could serve it, and may not spend."""
    UNABLE = "unable"
    """Somebody has the model, and cannot do what is asked, or not within what the caller allows."""


@dataclass(frozen=True, kw_only=True, slots=True)
class NoRoute:
    """Nobody can serve it."""

    obstacle: Obstacle
    reason: str
    rejected: tuple[RouteChoice, ...] = ()
    silent: bool = False
    """Somebody has not said yet what it has, and could be the one."""

    @property
    def model_known(self) -> bool:
        """Whether anybody has the model."""
        return self.obstacle in (Obstacle.FROZEN, Obstacle.UNABLE)


Facts = Sequence[EndpointFacts]


def waited_ms(demand: Demand, forecast: LatencyForecast) -> float:
    """What the caller is expected to wait: for the first token of a stream, else for the whole answer."""
    return forecast.first_token_ms if demand.stream else forecast.total_ms
