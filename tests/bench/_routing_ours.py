"""Ours: the production policy and its bookkeeping, fed with what the gateway would see and with nothing else."""

from __future__ import annotations

import itertools
import random
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

from goblin.core.endpoints import Capability, Endpoint, Price
from goblin.core.errors import Fault, ProviderUnavailable
from goblin.gateway.domain.catalog import Catalog, Routing, Strategy
from goblin.gateway.domain.endpoint_health import EndpointHealth, Status
from goblin.gateway.endpoint_stats import EndpointStats
from goblin.gateway.policy.route import Demand, NoRoute, Route
from goblin.gateway.router import decide
from goblin.gateway.upstream_attempt import UpstreamAttempt
from tests.bench._routing_world import Asked, Plan, Sent, Truth, World

EPOCH = datetime(2026, 11, 23, 12, tzinfo=UTC)
MODEL = "m"
HEALTH_EVERY_S = 60.0


class _Clock:
    def __init__(self, world: World) -> None:
        self._world = world

    def now(self) -> datetime:
        return EPOCH + timedelta(seconds=self._world.now_s)

    def monotonic(self) -> float:
        return self._world.now_s


def declared(truth: Truth) -> Endpoint:
    """What an operator would write into `goblin.toml`: prices, width, whether it sleeps; speeds are the defaults."""
    price = None
    if not truth.usd_per_hour:
        price = Price(
            input_usd_micros_per_mtok=round(truth.usd_per_mtok_in * 1e6),
            output_usd_micros_per_mtok=round(truth.usd_per_mtok_out * 1e6),
        )
    return Endpoint(
        name=truth.name,
        provider="openai",
        url="http://x",
        models=(MODEL,),
        price=price,
        parallel=truth.parallel,
        sleeps_after_s=None if truth.sleeps_after_s is None else round(truth.sleeps_after_s),
        price_usd_micros_per_hour=round(truth.usd_per_hour * 1e6) or None,
    )


class Ours:
    """The whole of it, hedges and wakes included, unless told otherwise."""

    def __init__(
        self,
        world: World,
        truths: Sequence[Truth],
        seed: int,
        *,
        strategy: Strategy = Strategy.LOWEST_LATENCY,
        hedge: bool = True,
        told: bool = True,
    ) -> None:
        """Start as a fresh process would.

        Args:
            world: Its clock, and what the minute's free check would find.
            truths: Only what `declared` passes on is used.
            seed: For the dice.
            strategy: The request's.
            hedge: Whether the engine hedges.
            told: Whether the providers say for free who is awake; Cloud Run, for one, does not.
        """
        self.world = world
        self._clock = _Clock(world)
        self._stats = EndpointStats(self._clock)
        self._dice = random.Random(seed)
        self._turns = itertools.count(seed)
        self._endpoints = [declared(truth) for truth in truths]
        self._numbers = {endpoint.name: n for n, endpoint in enumerate(self._endpoints)}
        self._strategy, self._hedge, self._told = strategy, hedge, told
        self._health: dict[str, EndpointHealth] = {}
        self._checked_s = -HEALTH_EVERY_S

    def plan(self, asked: Asked) -> Plan:
        demand = self._demand(asked)
        self._stats.arrived(MODEL)
        known = tuple(self._endpoints[n] for n in self.world.known())
        found = decide(
            demand,
            Catalog(routing=Routing(strategy=self._strategy), endpoints=known),
            stats=self._stats,
            health=self._check(known),
            why_frozen=lambda _: "",
            strategy=None,
            turn=next(self._turns),
            rng=self._dice.random(),
        )
        assert not isinstance(found, NoRoute), found.reason
        for waking in found.wake:
            self._stats.wake_begun(waking.endpoint, MODEL)
        after_ms = found.hedge_after_ms if self._hedge else None
        return Plan(
            order=lambda tried: self._next(found, tried),
            hedge_after_s=None if after_ms is None else after_ms / 1000.0,
            wake=tuple(self._numbers[c.endpoint.name] for c in found.wake),
            note=found,
        )

    def sent(self, endpoint: int, asked: Asked, plan: Plan) -> Sent:
        route: Any = plan.note
        forecast = next(c.forecast for c in route.candidates if self._numbers[c.endpoint.name] == endpoint)
        attempt = UpstreamAttempt.start(
            self._stats, self._endpoints[endpoint], MODEL, reason="", force=True, forecast=forecast
        )
        assert attempt is not None
        return _View(attempt)

    def woke(self, endpoint: int) -> None:
        """The engine's wake-up call has come back."""
        self._stats.wake_ended(self._endpoints[endpoint], MODEL, awake=True)

    def _next(self, route: Route, tried: frozenset[int]) -> int | None:
        numbers = [self._numbers[c.endpoint.name] for c in route.candidates]
        return next((n for n in numbers if n not in tried), None)

    def _demand(self, asked: Asked) -> Demand:
        return Demand(
            model=MODEL,
            needs=frozenset({Capability.CHAT}),
            prompt_tokens=asked.prompt_tokens,
        )

    def _check(self, known: Sequence[Endpoint]) -> dict[str, EndpointHealth]:
        """Once a minute, as the scheduled check does; newcomers are unseen until then."""
        if self.world.now_s - self._checked_s >= HEALTH_EVERY_S:
            self._checked_s = self.world.now_s
            for endpoint in known:
                loaded = None
                if self._told:
                    loaded = (MODEL,) if self.world.is_loaded(self._numbers[endpoint.name]) else ()
                self._health[endpoint.name] = EndpointHealth(
                    endpoint=endpoint.name,
                    provider=endpoint.provider,
                    status=Status.HEALTHY,
                    checked_at=self._clock.now(),
                    loaded=loaded,
                )
        return self._health


@dataclass
class _View:
    attempt: UpstreamAttempt

    def first_token(self) -> None:
        self.attempt.first_token()

    def succeeded(self, output_tokens: int) -> None:
        self.attempt.succeed(output_tokens=output_tokens)

    def failed(self, *, timed_out: bool) -> None:
        if timed_out:
            self.attempt.timed_out()
        self.attempt.fail(ProviderUnavailable("it failed", fault=Fault.TRANSIENT))

    def lost(self) -> None:
        self.attempt.abandon("lost")
