"""What this process has seen of each endpoint and model: breakers, paces, starts, and the requests under way."""

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
    """Whether one model of one endpoint is awake, as far as we noticed."""

    heard_s: float | None = None
    """Last sign of life."""
    waking_s: float | None = None
    """When a start began that has not ended."""


@dataclass(slots=True)
class TargetStats:
    """One class of requests to one model of one endpoint."""

    warmth: ModelWarmth
    estimate: LatencyEstimate
    breaker: Breaker = field(default_factory=Breaker)
    in_flight: int = 0
    waiting: dict[InFlight, None] = field(default_factory=dict)
    """Requests without a first token, the oldest first."""
    answered_s: float = 0.0
    """Of the last first token."""
    well_at: datetime | None = None
    """Of the last answer; what others said before it is old."""


@dataclass(frozen=True, eq=False, slots=True)
class InFlight:
    """One request that was counted in."""

    endpoint: Endpoint
    model: str
    target: TargetStats
    forecast: LatencyForecast
    started_s: float


TARGETS_MAX = 4096
"""Endpoints times models times classes; an endpoint that lists models without end must not fill the memory."""
ASLEEP_FROM = 0.5
"""From this chance on a request that is sent there is taken for the one that wakes it."""
WAKING_MAX = 3.0
"""A start that takes so many times as long as expected is taken for lost."""
_ACCOUNT_FAULTS = frozenset({Fault.AUTH, Fault.MONEY})
"""They are about the key, and so about all that it opens."""
_SAYS_NOTHING = frozenset({Fault.UNSUPPORTED, Fault.MISSING})
"""They say what it does not have, and nothing of how reliable it is."""
_ANYTHING = Demand(model="")


class Outlook(Struct, frozen=True, kw_only=True):
    """What to expect of the next request."""

    open_until: datetime | None
    open_reason: str
    forecast: LatencyForecast
    in_flight: int
    cold_ms: float

    @property
    def first_token_ms(self) -> float:
        return self.forecast.first_token_ms


class EndpointStats:
    """Passive signals, kept in memory; each request adds to them while it runs and when it ends."""

    def __init__(self, clock: Clock, *, tell: Callable[[str, Pause], None] | None = None) -> None:
        """Start knowing nothing.

        Args:
            clock: Both its times are used: the steady one for durations, the other for what others must understand.
            tell: Called with an endpoint's name when a breaker opens or closes, to let other processes know.
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
        """What the next request to this model there is to expect, waiting included.

        Args:
            endpoint: Who would be asked.
            model: As the caller calls it.
            demand: What is asked.
            health: What the last looks at it found.
            at: Both readings of the clock, when many are asked about at once.
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
                        waking_for_ms = None  # The start that somebody began is over.
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
    ) -> InFlight | None:
        """Count a request in; None when the breaker lets nothing through and `force` is not set.

        Args:
            endpoint: Who is asked.
            model: As the caller calls it.
            force: Ask in spite of the breaker.
            forecast: What the route expected, and of which request; without it, of a short chat.
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
        request = InFlight(endpoint, model, target, forecast, self.clock.monotonic())
        if forecast.asleep >= ASLEEP_FROM and not forecast.waking:
            target.warmth.waking_s = request.started_s
        target.in_flight += 1
        target.waiting[request] = None
        return request

    def arrived(self, model: str) -> None:
        """A request for a model that somebody has came in; how many do decides whether a start pays."""
        known = self._traffic.get(model) or Traffic()
        if len(self._traffic) >= TARGETS_MAX and model not in self._traffic:
            del self._traffic[next(iter(self._traffic))]
        self._traffic[model] = observe_arrival(known, now_s=self.clock.monotonic())

    def traffic(self, model: str) -> Traffic:
        """How many come, and how long their answers are."""
        return self._traffic.get(model) or Traffic()

    def wake_begun(self, endpoint: Endpoint, model: str) -> None:
        """Somebody has started to wake it, and no request waits for that."""
        self._warmth_of(endpoint.name, model).waking_s = self.clock.monotonic()

    def wake_ended(self, endpoint: Endpoint, model: str, *, awake: bool) -> None:
        """It is awake, or it could not be woken."""
        warmth = self._warmth_of(endpoint.name, model)
        if awake:
            warmth.heard_s = self.clock.monotonic()
        warmth.waking_s = None

    def believe(self, endpoint: Endpoint, pauses: tuple[Pause, ...]) -> None:
        """Take over what other processes found out. What we have seen ourselves since is newer."""
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
        """An answer of so many tokens has ended."""
        if model in self._traffic:
            self._traffic[model] = observe_answer(self._traffic[model], output_tokens=output_tokens)

    def well(self, endpoint: Endpoint, model: str, kind: Capability, target: TargetStats) -> None:
        """It answered: its breakers close."""
        was_open = target.breaker.open_until is not None
        target.breaker, target.well_at = breaker.succeed(target.breaker), self.clock.now()
        if was_open:
            self._share(endpoint.name, model, kind, target.breaker)
        if self._accounts.pop(endpoint.name, None) is not None:
            self._share(endpoint.name, "", None, target.breaker)

    def failed(
        self, endpoint: Endpoint, model: str, kind: Capability, target: TargetStats, error: ProviderUnavailable
    ) -> None:
        """It did not answer: the breaker concerned learns of it, the account's if it is about our key."""
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
    """What the last look says of one model: the endpoint may be awake and this model not in its memory."""
    if health.loaded is not None and health.warmth in (Warmth.UNKNOWN, Warmth.WARM):
        return Warmth.WARM if model in health.loaded else Warmth.ASLEEP
    return health.warmth
