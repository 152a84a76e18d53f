"""What is known about an endpoint's health, and what one look at it found."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum

from goblin.core.endpoints import Capability


class Status(StrEnum):
    """The client's words for it, in `/providers`."""

    HEALTHY = "healthy"
    DEGRADED = "degraded"
    """It answers, but slowly, or it has just failed, or just come back."""
    UNHEALTHY = "unhealthy"
    UNKNOWN = "unknown"
    """Not looked at, not lately, or the look itself went wrong. Not a reason to avoid it."""


class Finding(StrEnum):
    """What one probe found."""

    OK = "ok"
    LOADING = "loading"
    """Up, and not ready: it says so itself."""
    REFUSED = "refused"
    """It refuses our key or our account."""
    FAILED = "failed"
    """No connection, no answer in time, or a 5xx."""
    UNCLEAR = "unclear"
    """It answered what we cannot read, or the probe itself broke."""


class Warmth(StrEnum):
    """Whether the next request meets a machine that is ready; from signals that cost nothing."""

    WARM = "warm"
    """Somebody is ready, or busy and fast to free."""
    STARTING = "starting"
    """A cold start is under way."""
    ASLEEP = "asleep"
    """Nobody is there; a request begins a cold start."""
    FULL = "full"
    """Nobody is there and the provider has no machine to give: a request waits for somebody to leave."""
    UNKNOWN = "unknown"


@dataclass(frozen=True, kw_only=True, slots=True)
class Probe:
    """One look at an endpoint that cost nothing."""

    finding: Finding
    reason: str = ""
    """For a person; empty when all is well."""
    latency_ms: int | None = None
    """Round trip of the cheapest request; None when there was no answer."""
    models: tuple[str, ...] | None = None
    """What it says it serves; None when it did not say."""
    loaded: tuple[str, ...] | None = None
    """Those ready in memory; None when it does not say. The others need a cold start."""
    warmth: Warmth = Warmth.UNKNOWN


@dataclass(frozen=True, kw_only=True, slots=True)
class Pause:
    """An endpoint is left alone for a while, because requests to it failed; said so that other processes know."""

    model: str
    """Empty when it is about the account."""
    kind: Capability | None
    """The class of requests; None when it is about the account: every model and class."""
    open_until: datetime
    """Over when this is past."""
    reason: str
    openings: int
    """In a row."""
    told_at: datetime


@dataclass(frozen=True, kw_only=True, slots=True)
class EndpointHealth:
    """The judgement over an endpoint's probes; one document each in Firestore."""

    endpoint: str
    provider: str
    status: Status
    reason: str = ""
    latency_ms: int | None = None
    checked_at: datetime | None = None
    models: tuple[str, ...] = ()
    """As last discovered; kept while it is down, so that its models do not vanish from `/v1/models`."""
    loaded: tuple[str, ...] | None = None
    warmth: Warmth = Warmth.UNKNOWN
    failures: int = 0
    """Probes in a row that went wrong."""
    successes: int = 0
    """Probes in a row that went well."""
    pauses: tuple[Pause, ...] = ()
    """What requests found out, each of its own process: breakers that opened. Not the probes' to write."""
