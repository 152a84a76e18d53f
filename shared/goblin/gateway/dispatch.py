"""How one request asks endpoints, whatever its kind: sent, paid for, and counted in the same way."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from goblin.billing.budget_client import BudgetClient
from goblin.core.endpoints import Endpoint
from goblin.gateway import warm_up as waking
from goblin.gateway.domain.chat import ChatChunk, Embeddings
from goblin.gateway.domain.requests import ChatRequest, EmbeddingsRequest, InferenceRequest
from goblin.gateway.drains import Drains
from goblin.gateway.failover import ActiveAttempt, Failover, RetryBudget
from goblin.gateway.payments import Payer, payment_error, spent_of
from goblin.gateway.policy.continuation import AnyRequest
from goblin.gateway.policy.route import RouteChoice
from goblin.gateway.ports import ChatProvider
from goblin.gateway.router import Router
from goblin.gateway.uptime import UptimeSessions


@dataclass(frozen=True, kw_only=True, slots=True)
class DispatchDeps:
    """What it takes to ask; shared by all requests of a process."""

    router: Router
    providers: Mapping[str, ChatProvider]
    """By endpoint name."""
    budget_client: BudgetClient
    uptime: UptimeSessions
    retry_budget: RetryBudget = field(default_factory=RetryBudget)
    drains: Drains = field(default_factory=Drains)
    pause: Callable[[float], Awaitable[None]] = asyncio.sleep
    """Waits so many seconds, before an endpoint is asked again."""


class Dispatcher:
    """Asks for one request, and keeps what was asked."""

    def __init__(self, deps: DispatchDeps, *, request_id: str, key_name: str) -> None:
        self._deps = deps
        self.made: list[ActiveAttempt[Any]] = []
        """Every attempt, in order."""
        self.payer = Payer(
            deps.budget_client,
            deps.uptime,
            deps.router.catalog.prices,
            request_id=request_id,
            key_name=key_name,
            why_frozen=deps.router.freezes.why_payer_frozen,
        )

    def answer(self, request: AnyRequest) -> Failover[ChatChunk]:
        """For a chat, or the continuation of a text."""

        def open_stream(endpoint: Endpoint, limited: Any) -> AsyncGenerator[ChatChunk, None]:
            provider, model = self._deps.providers[endpoint.name], endpoint.upstream_model or request.model
            if isinstance(request, ChatRequest):
                return provider.chat(limited, model=model)
            return provider.complete(limited, model=model)

        return self._asking(request, open_stream, starts=_starts_answer, whole=not request.stream)

    def vectors(self, request: EmbeddingsRequest) -> Failover[Embeddings]:
        """For embeddings, which come all at once."""

        async def one(endpoint: Endpoint, limited: Any) -> AsyncGenerator[Embeddings, None]:
            model = endpoint.upstream_model or request.model
            yield await self._deps.providers[endpoint.name].embed(limited, model=model)

        return self._asking(request, one, starts=lambda _: True, whole=True)

    async def nudge(self, choice: RouteChoice, like: AnyRequest) -> None:
        """Start an endpoint by asking it for one token of the same kind. Raises as `Failover.begin`."""
        asking = self.answer(waking.warm_up_request(like))
        patient = replace(asking.routing, attempts_max=1, first_token_timeout_s=waking.WARM_UP_S_MAX)
        asking = replace(asking, made=[], routing=patient)
        try:
            await asking.begin([choice], last_resort=True)
        finally:
            await settle(asking.made)

    def cost_usd_micros(self) -> int:
        """What all attempts cost so far."""
        return sum(one.payment.cost_usd_micros(spent_of(one)[0]) for one in self.made)

    def _asking(
        self,
        request: InferenceRequest,
        open_stream: Callable[[Endpoint, Any], AsyncGenerator[Any, None]],
        *,
        starts: Callable[[Any], bool],
        whole: bool,
    ) -> Failover[Any]:
        deps = self._deps
        return Failover(
            pay=lambda endpoint: self.payer.pay(endpoint, request),
            why_unpaid=lambda: payment_error(self.payer.refusals),
            model=request.model,
            prompt_bytes=request.prompt_bytes,
            open_stream=open_stream,
            starts=starts,
            whole=whole,
            stats=deps.router.stats,
            routing=deps.router.catalog.routing_of(request.model),
            retry_budget=deps.retry_budget,
            drains=deps.drains,
            pause=deps.pause,
            rng=deps.router.rng,
            made=self.made,
        )


async def settle(made: Sequence[ActiveAttempt[Any]]) -> None:
    """Let go of attempts, and replace what was put aside for each by what it cost."""
    for one in made:
        await one.close()
        usage, estimated = spent_of(one)
        await one.payment.settle(usage, estimated=estimated)


def _starts_answer(chunk: ChatChunk) -> bool:
    return chunk.starts_answer
