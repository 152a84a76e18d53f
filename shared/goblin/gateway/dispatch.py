"""Send one caller's request to endpoints: the same failover, payments and accounting whatever its kind."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from goblin.billing.budget_client import BudgetClient
from goblin.gateway import warm_up
from goblin.gateway.domain.chat import ChatChunk, Embeddings, PassedAnswer
from goblin.gateway.domain.requests import EmbeddingsRequest, PassedRequest
from goblin.gateway.drains import Drains
from goblin.gateway.failover import ActiveAttempt, Failover, RetryBudget
from goblin.gateway.payments import Payer
from goblin.gateway.policy.continuation import AnyRequest
from goblin.gateway.policy.route import RouteChoice
from goblin.gateway.ports import ChatProvider
from goblin.gateway.router import Router
from goblin.gateway.upstream_request import (
    EmbeddingsUpstreamRequest,
    PassedUpstreamRequest,
    TextUpstreamRequest,
    UpstreamRequest,
)
from goblin.gateway.uptime import UptimeSessions


@dataclass(frozen=True, kw_only=True, slots=True)
class DispatchDeps:
    """What it takes to send requests; shared by all requests of a process."""

    router: Router
    providers: Mapping[str, ChatProvider]
    """By endpoint name."""
    budget_client: BudgetClient
    uptime: UptimeSessions
    retry_budget: RetryBudget = field(default_factory=RetryBudget)
    drains: Drains = field(default_factory=Drains)
    pause: Callable[[float], Awaitable[None]] = asyncio.sleep
    """Waits so many seconds before a request to an endpoint is repeated."""


class Dispatcher:
    """Sends one caller's request, and keeps its upstream attempts."""

    def __init__(self, deps: DispatchDeps, *, request_id: str, key_name: str, asker_name: str = "") -> None:
        self._deps = deps
        self.attempts: list[ActiveAttempt[Any]] = []
        """Every attempt, in order."""
        self.payer = Payer(
            deps.budget_client,
            deps.uptime,
            deps.router.catalog.prices,
            request_id=request_id,
            key_name=key_name,
            asker_name=asker_name,
            why_frozen=deps.router.freezes.why_payer_frozen,
        )

    def answer(self, request: AnyRequest) -> Failover[ChatChunk]:
        """Build the failover of a chat, or of the continuation of a text."""
        return self._failover(TextUpstreamRequest(request, self._deps.providers, self.payer))

    def vectors(self, request: EmbeddingsRequest) -> Failover[Embeddings]:
        """Build the failover of embeddings."""
        return self._failover(EmbeddingsUpstreamRequest(request, self._deps.providers, self.payer))

    def passed(self, request: PassedRequest) -> Failover[PassedAnswer]:
        """Build the failover of a request that is passed on as it came."""
        return self._failover(PassedUpstreamRequest(request, self._deps.providers, self.payer))

    async def warm_up(self, choice: RouteChoice, like: AnyRequest) -> None:
        """Start an endpoint by sending it a request of the same kind for one token. Raises as `Failover.begin`."""
        failover = self.answer(warm_up.warm_up_request(like))
        patient = replace(failover.routing, attempts_max=1, first_token_timeout_s=warm_up.WARM_UP_S_MAX)
        failover = replace(failover, attempts=[], routing=patient)
        try:
            await failover.begin([choice], last_resort=True)
        finally:
            await settle(failover.attempts)

    def cost_usd_micros(self) -> int:
        """What all attempts cost so far."""
        return sum(attempt.cost_usd_micros() for attempt in self.attempts)

    def _failover(self, request: UpstreamRequest[Any]) -> Failover[Any]:
        deps = self._deps
        return Failover(
            request=request,
            stats=deps.router.stats,
            routing=deps.router.catalog.routing_of(request.model),
            retry_budget=deps.retry_budget,
            drains=deps.drains,
            pause=deps.pause,
            rng=deps.router.rng,
            attempts=self.attempts,
        )


async def settle(attempts: Sequence[ActiveAttempt[Any]]) -> None:
    """Close attempts, and replace what was reserved for each by what it cost. Never raises."""
    for attempt in attempts:
        await attempt.close()
        await attempt.settle()
