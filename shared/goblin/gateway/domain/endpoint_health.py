"""Health of an endpoint, and what one probe of it found."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum

from goblin.core.endpoints import Capability


class Status(StrEnum):
    """Health status as `/providers` shows it."""

    HEALTHY = "healthy"
    DEGRADED = "degraded"
    """It answers, but slowly, or it has just failed once, or has just recovered."""
    UNHEALTHY = "unhealthy"
    UNKNOWN = "unknown"
    """It was never probed, or not lately, or the probe itself failed. Not a reason to avoid it."""


class Finding(StrEnum):
    """What one probe found."""

    OK = "ok"
    LOADING = "loading"
    """It is up and reports that it is not ready yet."""
    REFUSED = "refused"
    """It refuses our key or our account."""
    FAILED = "failed"
    """No connection, no answer in time, or HTTP 5xx."""
    UNCLEAR = "unclear"
    """Its answer could not be understood, or the probe itself failed."""


class Warmth(StrEnum):
    """Whether the next request meets a ready machine, as far as signals that cost nothing tell."""

    WARM = "warm"
    """A machine is ready, or busy and soon free."""
    STARTING = "starting"
    """A cold start is under way."""
    ASLEEP = "asleep"
    """No machine is running; a request begins a cold start."""
    FULL = "full"
    """No machine is running and the provider has none free: a request waits until one is released."""
    UNKNOWN = "unknown"


@dataclass(frozen=True, kw_only=True, slots=True)
class Probe:
    """The result of one probe of an endpoint, which cost nothing."""

    finding: Finding
    reason: str = ""
    """For people; empty when the finding is `ok`."""
    latency_ms: int | None = None
    """Round trip of the cheapest request; None when there was no answer."""
    models: tuple[str, ...] | None = None
    """The models that it lists; None when it did not list any."""
    loaded: tuple[str, ...] | None = None
    """Models in memory; None when it does not report them. The others need a cold start."""
    warmth: Warmth = Warmth.UNKNOWN


@dataclass(frozen=True, kw_only=True, slots=True)
class Pause:
    """A breaker's opening, shared with other processes: an endpoint gets no requests until it ends."""

    model: str
    """Empty when the pause is for the whole account."""
    kind: Capability | None
    """The class of requests; None when the pause is for the whole account: every model and class."""
    open_until: datetime
    """The end of the pause."""
    reason: str
    openings: int
    """Openings in a row."""
    told_at: datetime


@dataclass(frozen=True, kw_only=True, slots=True)
class EndpointHealth:
    """Health of one endpoint, judged from its probes; one document per endpoint in Firestore."""

    endpoint: str
    provider: str
    status: Status
    reason: str = ""
    latency_ms: int | None = None
    checked_at: datetime | None = None
    models: tuple[str, ...] = ()
    """Models as last discovered; kept while it is down, so that they do not vanish from `/v1/models`."""
    loaded: tuple[str, ...] | None = None
    warmth: Warmth = Warmth.UNKNOWN
    failures: int = 0
    """Failed probes in a row."""
    successes: int = 0
    """Successful probes in a row."""
    pauses: tuple[Pause, ...] = ()
    """Breakers that requests opened, in any process. Probes do not write them."""
