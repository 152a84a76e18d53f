"""What this process has seen of each endpoint and model: breakers, latency estimates, warmth, requests in flight."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import datetime

from msgspec import Struct

from goblin.core.endpoints import Capability, Endpoint
from goblin.core.errors import Fault, ProviderUnavailable
from goblin.core.ports import Clock
from goblin.gateway.domain.endpoint_health import EndpointHealth, Pause, Warmth
from goblin.gateway.policy import breaker, latency, prediction
from goblin.gateway.policy.breaker import Breaker, Gate
from goblin.gateway.policy.latency import LatencyEstimate
from goblin.gateway.policy.route import Demand, LatencyForecast
from goblin.gateway.policy.traffic import Traffic, observe_answer, observe_arrival


@dataclass(slots=True)
class ModelWarmth:
    """Warmth of one model of one endpoint, as far as this process noticed."""

    heard_s: float | None = None
    """When it last answered or was woken, in monotonic seconds; None: never."""
    waking_s: float | None = None
    """When a cold start began that has not ended, in monotonic seconds; None: no start is in progress."""


@dataclass(slots=True)
class TargetStats:
    """Stats of one target: a class of requests to one model of one endpoint."""

    warmth: ModelWarmth
    estimate: LatencyEstimate
    breaker: Breaker = field(default_factory=Breaker)
    in_flight: int = 0
    waiting: dict[InFlight, None] = field(default_factory=dict)
    """Requests that have no first token yet, the oldest first."""
    answered_s: float = 0.0
    """When the last first token arrived, in monotonic seconds."""
    well_at: datetime | None = None
    """When the last answer ended well; older pauses of other processes are ignored."""


@dataclass(frozen=True, eq=False, slots=True)
class InFlight:
    """One request in flight."""

    endpoint: Endpoint
    model: str
    target: TargetStats
    forecast: LatencyForecast
    started_s: float
    width: int = 1
    """How many requests it is at the endpoint."""


TARGETS_MAX = 4096
"""Bound on the targets in memory, because an endpoint could list any number of models."""
ASLEEP_FROM = 0.5
"""With this chance of a cold start or more, a request that is sent counts as the one that starts the endpoint."""
WAKING_MAX = 3.0
"""A cold start that takes this many times as long as expected is taken as failed."""
_ACCOUNT_FAULTS = frozenset({Fault.AUTH, Fault.MONEY})
"""Faults of the account: they affect every model and class of the endpoint."""
_SAYS_NOTHING = frozenset({Fault.UNSUPPORTED, Fault.MISSING})
"""Faults that say what the endpoint does not offer, and nothing about its reliability."""
_ANYTHING = Demand(model="")


class Outlook(Struct, frozen=True, kw_only=True):
    """What the next request to an endpoint can expect."""

    open_until: datetime | None
    open_reason: str
    forecast: LatencyForecast
    in_flight: int
    cold_ms: float

    @property
    def first_token_ms(self) -> float:
        return self.forecast.first_token_ms


class EndpointStats:
    """Passive health signals in memory. Each request adds to them while it runs and when it ends."""

    def __init__(self, clock: Clock, *, tell: Callable[[str, Pause], None] | None = None) -> None:
        """Start without observations.

        Args:
            clock: Its monotonic time is used for durations, its UTC time for pauses that other processes read.
            tell: Called with an endpoint's name when a breaker opens or closes, to share that with other processes.
        """
        self.clock = clock
        self._tell = tell
        self._born_s = clock.monotonic()
        self._targets: dict[tuple[str, str, Capability], TargetStats] = {}
        self._warmths: dict[tuple[str, str], ModelWarmth] = {}
        self._accounts: dict[str, Breaker] = {}
        self._traffic: dict[str, Traffic] = {}

    def outlook(
        self,
        endpoint: Endpoint,
        model: str,
        demand: Demand = _ANYTHING,
        health: EndpointHealth | None = None,
        at: tuple[datetime, float] | None = None,
    ) -> Outlook:
        """Forecast the next request to a model of an endpoint, waiting included.

        Args:
            endpoint: The endpoint that would get the request.
            model: The model as the caller names it.
            demand: The request.
            health: The health that the last probes found.
            at: UTC and monotonic time, so that one reading of the clock serves many calls.
        """
        now, now_s = at or (self.clock.now(), self.clock.monotonic())
        target = self._targets.get((endpoint.name, model, demand.kind))
        if target is None:
            warmth = self._warmths.get((endpoint.name, model)) or ModelWarmth()
            target = TargetStats(warmth, LatencyEstimate(prior=latency.prior_of(endpoint)))
        shut = target.breaker
        if shut.open_until is None or breaker.gate(shut, now=now) is not Gate.OPEN:
            shut = self._accounts.get(endpoint.name, shut)
        is_shut = shut.open_until is not None and breaker.gate(shut, now=now) is Gate.OPEN
        return Outlook(
            open_until=(shut.open_until or now) if is_shut else None,
            open_reason=shut.reason,
            forecast=self._forecast(endpoint, model, target, demand, health, now, now_s),
            in_flight=target.in_flight,
            cold_ms=latency.cold_start_ms(target.estimate),
        )

    def _forecast(
        self,
        endpoint: Endpoint,
        model: str,
        target: TargetStats,
        demand: Demand,
        health: EndpointHealth | None,
        now: datetime,
        now_s: float,
    ) -> LatencyForecast:
        warmth, estimate = target.warmth, target.estimate
        waking_for_ms = None
        if warmth.waking_s is not None:
            waking_for_ms = (now_s - warmth.waking_s) * 1000.0
            if waking_for_ms > WAKING_MAX * latency.cold_start_ms(estimate):
                waking_for_ms = None
        heard_ago_s = None if warmth.heard_s is None else now_s - warmth.heard_s
        told_asleep = None
        told = Warmth.UNKNOWN if health is None else _warmth(health, endpoint.upstream_model or model)
        if told is not Warmth.UNKNOWN and health is not None and health.checked_at is not None:
            seen_ago_s = (now - health.checked_at).total_seconds()
            if heard_ago_s is None or seen_ago_s < heard_ago_s:
                if told is Warmth.WARM:
                    heard_ago_s = seen_ago_s
                    if waking_for_ms is not None and seen_ago_s * 1000.0 < waking_for_ms:
                        waking_for_ms = None  # The cold start is over.
                elif told is Warmth.STARTING and waking_for_ms is None:
                    waking_for_ms = seen_ago_s * 1000.0
                else:
                    told_asleep = True
        silent_ms = silence_expected_ms = 0.0
        if target.waiting:
            oldest = next(iter(target.waiting))
            silent_ms = (now_s - max(oldest.started_s, target.answered_s)) * 1000.0
            silence_expected_ms = oldest.forecast.first_token_ms
        return prediction.predict(
            estimate,
            demand,
            in_flight=target.in_flight,
            parallel=endpoint.parallel,
            asleep=prediction.chance_asleep(
                sleeps_after_s=endpoint.sleeps_after_s, heard_ago_s=heard_ago_s, told_asleep=told_asleep
            ),
            waking_for_ms=waking_for_ms,
            silent_ms=silent_ms,
            silence_expected_ms=silence_expected_ms,
            network_ms=float(health.latency_ms or 0) if health is not None else 0.0,
            unheard_s=now_s - (self._born_s if warmth.heard_s is None else warmth.heard_s),
            now_s=now_s,
        )

    def start(
        self,
        endpoint: Endpoint,
        model: str,
        *,
        force: bool,
        forecast: LatencyForecast | None = None,
        width: int = 1,
    ) -> InFlight | None:
        """Count a request as in flight; None when the breaker is open and `force` is not set.

        Args:
            endpoint: The endpoint that gets the request.
            model: The model as the caller names it.
            force: Send even if the breaker is open.
            forecast: The route's forecast for this request; without it, the forecast for a short chat is used.
            width: How many requests it is at the endpoint.
        """
        demand = _ANYTHING if forecast is None else forecast.demand
        now, now_s = self.clock.now(), self.clock.monotonic()
        target = self._target(endpoint, model, demand.kind)
        account = self._accounts.get(endpoint.name)
        if not force and (
            breaker.gate(target.breaker, now=now) is Gate.OPEN
            or (account is not None and breaker.gate(account, now=now) is Gate.OPEN)
        ):
            return None
        if forecast is None:
            forecast = self._forecast(endpoint, model, target, demand, None, now, now_s)
        target.breaker = breaker.start(target.breaker, now=now)
        if account is not None:
            self._accounts[endpoint.name] = breaker.start(account, now=now)
        request = InFlight(endpoint, model, target, forecast, self.clock.monotonic(), width)
        if forecast.asleep >= ASLEEP_FROM and not forecast.waking:
            target.warmth.waking_s = request.started_s
        target.in_flight += width
        target.waiting[request] = None
        return request

    def arrived(self, model: str) -> None:
        """Count a request for a served model: the arrival rate decides whether a warm-up is worth its cost."""
        known = self._traffic.get(model) or Traffic()
        if len(self._traffic) >= TARGETS_MAX and model not in self._traffic:
            del self._traffic[next(iter(self._traffic))]
        self._traffic[model] = observe_arrival(known, now_s=self.clock.monotonic())

    def traffic(self, model: str) -> Traffic:
        """Return the arrival rate and the answer lengths of a model."""
        return self._traffic.get(model) or Traffic()

    def wake_begun(self, endpoint: Endpoint, model: str) -> None:
        """Record that a warm-up has begun."""
        self._warmth_of(endpoint.name, model).waking_s = self.clock.monotonic()

    def wake_ended(self, endpoint: Endpoint, model: str, *, awake: bool) -> None:
        """Record that a warm-up has ended: the endpoint is awake, or the warm-up failed."""
        warmth = self._warmth_of(endpoint.name, model)
        if awake:
            warmth.heard_s = self.clock.monotonic()
        warmth.waking_s = None

    def believe(self, endpoint: Endpoint, pauses: tuple[Pause, ...]) -> None:
        """Apply the pauses that other processes shared. What this process has seen since takes precedence."""
        now = self.clock.now()
        for pause in pauses:
            if pause.open_until <= now:
                continue
            theirs = Breaker(failures=1, openings=pause.openings, open_until=pause.open_until, reason=pause.reason)
            if pause.kind is None:
                ours = self._accounts.get(endpoint.name)
                if ours is None or ours.open_until is None:
                    self._accounts[endpoint.name] = theirs
                continue
            target = self._target(endpoint, pause.model, pause.kind)
            seen_since = target.well_at is not None and target.well_at >= pause.told_at
            if target.breaker.open_until is None and not seen_since:
                target.breaker = theirs

    def answered(self, model: str, output_tokens: int) -> None:
        """Record the length of an answer."""
        if model in self._traffic:
            self._traffic[model] = observe_answer(self._traffic[model], output_tokens=output_tokens)

    def well(self, endpoint: Endpoint, model: str, kind: Capability, target: TargetStats) -> None:
        """Close the breakers of a target and of its account after a success."""
        was_open = target.breaker.open_until is not None
        target.breaker, target.well_at = breaker.succeed(target.breaker), self.clock.now()
        if was_open:
            self._share(endpoint.name, model, kind, target.breaker)
        if self._accounts.pop(endpoint.name, None) is not None:
            self._share(endpoint.name, "", None, target.breaker)

    def failed(
        self, endpoint: Endpoint, model: str, kind: Capability, target: TargetStats, error: ProviderUnavailable
    ) -> None:
        """Record a failure in the breaker of the target, or of the account if the fault is about our key or credit."""
        now, now_s = self.clock.now(), self.clock.monotonic()
        about_account = error.fault in _ACCOUNT_FAULTS
        before = self._accounts.get(endpoint.name, Breaker()) if about_account else target.breaker
        after = breaker.fail(before, error.fault, reason=error.message, retry_after_s=error.retry_after_s, now=now)
        if about_account:
            self._accounts[endpoint.name] = after
            target.breaker = breaker.abandon(target.breaker)
        else:
            target.breaker = after
            account = self._accounts.get(endpoint.name)
            if account is not None:
                self._accounts[endpoint.name] = breaker.abandon(account)
        if error.fault not in _SAYS_NOTHING:
            target.estimate = latency.observe_outcome(target.estimate, failed=True, now_s=now_s)
        if error.fault is Fault.LOADING:
            target.warmth.waking_s = now_s if target.warmth.waking_s is None else target.warmth.waking_s
        if after.open_until is not None and after.open_until != before.open_until:
            self._share(endpoint.name, "" if about_account else model, None if about_account else kind, after)

    def _share(self, endpoint: str, model: str, kind: Capability | None, state: Breaker) -> None:
        if self._tell is None:
            return
        now = self.clock.now()
        until = now if state.open_until is None else state.open_until
        self._tell(
            endpoint,
            Pause(model=model, kind=kind, open_until=until, reason=state.reason, openings=state.openings, told_at=now),
        )

    def _target(self, endpoint: Endpoint, model: str, kind: Capability) -> TargetStats:
        key = (endpoint.name, model, kind)
        found = self._targets.get(key)
        if found is None:
            idle = [k for k, t in self._targets.items() if not t.in_flight]
            if len(self._targets) >= TARGETS_MAX and idle:
                del self._targets[idle[0]]
            warmth = self._warmth_of(endpoint.name, model)
            found = self._targets[key] = TargetStats(warmth, LatencyEstimate(prior=latency.prior_of(endpoint)))
        return found

    def _warmth_of(self, endpoint: str, model: str) -> ModelWarmth:
        key = (endpoint, model)
        if key not in self._warmths:
            if len(self._warmths) >= TARGETS_MAX:
                del self._warmths[next(iter(self._warmths))]
            self._warmths[key] = ModelWarmth()
        return self._warmths[key]


def _warmth(health: EndpointHealth, model: str) -> Warmth:
    """Return the probed warmth of one model: the endpoint may be awake without having this model in memory."""
    if health.loaded is not None and health.warmth in (Warmth.UNKNOWN, Warmth.WARM):
        return Warmth.WARM if model in health.loaded else Warmth.ASLEEP
    return health.warmth
