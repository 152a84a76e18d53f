"""What this process has seen of each endpoint and model: breakers, time to first token, requests under way."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import datetime

from goblin.domain.models import Endpoint
from goblin.errors import ProviderUnavailable
from goblin.policy import breaker, latency
from goblin.policy.breaker import Breaker, Gate
from goblin.policy.latency import Estimate
from goblin.ports import AttemptRecord, Clock

TARGETS_MAX = 4096
"""Endpoints times models; an endpoint that lists models without end must not fill the memory."""


@dataclass(slots=True)
class _Target:
    breaker: Breaker = field(default_factory=Breaker)
    estimate: Estimate = field(default_factory=Estimate)
    in_flight: int = 0


@dataclass(frozen=True, kw_only=True, slots=True)
class Outlook:
    """What to expect of the next request."""

    open_until: datetime | None
    open_reason: str
    first_token_ms: float


class Live:
    """Passive signals, kept in memory; each request adds to them when it ends."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._targets: dict[tuple[str, str], _Target] = {}

    def outlook(self, endpoint: Endpoint, model: str) -> Outlook:
        now = self._clock.now()
        target = self._targets.get((endpoint.name, model)) or _Target()
        shut = breaker.gate(target.breaker, now=now) is Gate.OPEN
        return Outlook(
            open_until=(target.breaker.open_until or now) if shut else None,
            open_reason=target.breaker.reason,
            first_token_ms=latency.predict_ms(
                target.estimate,
                prior_ms=endpoint.first_token_prior_ms,
                in_flight=target.in_flight,
                parallel=endpoint.parallel,
                now=now,
            ),
        )

    def start(self, endpoint: Endpoint, model: str, *, reason: str, force: bool) -> Attempt | None:
        """Count a request in; None when the breaker lets nothing through and `force` is not set."""
        target = self._target(endpoint.name, model)
        now = self._clock.now()
        if not force and breaker.gate(target.breaker, now=now) is Gate.OPEN:
            return None
        target.breaker = breaker.start(target.breaker, now=now)
        target.in_flight += 1
        return Attempt(self._clock, target, endpoint, reason)

    def _target(self, endpoint: str, model: str) -> _Target:
        key = (endpoint, model)
        if key not in self._targets:
            idle = [k for k, t in self._targets.items() if not t.in_flight]
            if len(self._targets) >= TARGETS_MAX and idle:
                del self._targets[idle[0]]
            self._targets[key] = _Target()
        return self._targets[key]


class Attempt:
    """One request to one endpoint. Ends once; whatever is said after that is ignored."""

    def __init__(self, clock: Clock, target: _Target, endpoint: Endpoint, reason: str) -> None:
        self.endpoint = endpoint
        self._clock = clock
        self._target = target
        self._reason = reason
        self._started = clock.monotonic()
        self._first_token_ms: float | None = None
        self._ended_ms: float | None = None
        self._outcome = ""
        self._error = ""

    @property
    def first_token_ms(self) -> float | None:
        return self._first_token_ms

    @property
    def abandoned(self) -> bool:
        """Whether it was let go while it was well."""
        return self._outcome in ("left", "lost")

    def first_token(self) -> None:
        """The first thing a caller would notice has come."""
        if self._first_token_ms is None:
            self._first_token_ms = self._elapsed_ms()
            self._observe(self._first_token_ms)

    def succeed(self) -> None:
        """The answer is whole, or the endpoint has shown in another way that it is well."""
        if self._end("ok"):
            self._target.breaker = breaker.succeed(self._target.breaker)

    def fail(self, error: ProviderUnavailable, *, cut: bool = False) -> None:
        """The endpoint is to blame."""
        if not self._end("cut" if cut else str(error.fault)):
            return
        self._error = error.message
        self._target.breaker = breaker.fail(
            self._target.breaker,
            error.fault,
            reason=error.message,
            retry_after_s=error.retry_after_s,
            now=self._clock.now(),
        )

    def abandon(self, outcome: str = "left") -> None:
        """It ended through no doing of the endpoint's: the caller left, or another was quicker (`lost`)."""
        if self._end(outcome):
            self._target.breaker = breaker.abandon(self._target.breaker)

    def timed_out(self) -> None:
        """Silence is an observation too: without it a hanging endpoint would keep its good name."""
        self._observe(self._elapsed_ms())

    def record(self) -> AttemptRecord:
        return AttemptRecord(
            endpoint=self.endpoint.name,
            reason=self._reason,
            outcome=self._outcome,
            error=self._error,
            first_token_ms=_whole(self._first_token_ms),
            duration_ms=_whole(self._ended_ms),
        )

    def _end(self, outcome: str) -> bool:
        if self._ended_ms is not None:
            return False
        self._ended_ms = self._elapsed_ms()
        self._outcome = outcome
        self._target.in_flight -= 1
        return True

    def _observe(self, sample_ms: float) -> None:
        self._target.estimate = latency.observe(self._target.estimate, sample_ms, now=self._clock.now())

    def _elapsed_ms(self) -> float:
        return (self._clock.monotonic() - self._started) * 1000


def _whole(value: float | None) -> int | None:
    return None if value is None else round(value)
