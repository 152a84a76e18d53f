"""How one request asks endpoints, whatever its kind: sent, paid for, and counted in the same way."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from goblin.billing.budget_client import Spender
from goblin.core.endpoints import Endpoint
from goblin.gateway import warm_up as waking
from goblin.gateway.domain.chat import ChatChunk, Embeddings
from goblin.gateway.domain.requests import ChatRequest, EmbeddingsRequest, InferenceRequest
from goblin.gateway.drains import Drains
from goblin.gateway.failover import Asking, Extras, Underway
from goblin.gateway.payments import Payer, spent_of, why_nobody_is_paid
from goblin.gateway.policy.continuation import AnyRequest
from goblin.gateway.policy.route import Choice
from goblin.gateway.ports import ChatProvider
from goblin.gateway.router import Router
from goblin.gateway.uptime import Rides


@dataclass(frozen=True, kw_only=True, slots=True)
class Means:
    """What it takes to ask; shared by all requests of a process."""

    router: Router
    providers: Mapping[str, ChatProvider]
    """By endpoint name."""
    spender: Spender
    rides: Rides
    extras: Extras = field(default_factory=Extras)
    drains: Drains = field(default_factory=Drains)
    pause: Callable[[float], Awaitable[None]] = asyncio.sleep
    """Waits so many seconds, before an endpoint is asked again."""


class Asker:
    """Asks for one request, and keeps what was asked."""

    def __init__(self, means: Means, *, request_id: str, key_name: str) -> None:
        self._means = means
        self.made: list[Underway[Any]] = []
        """Every attempt, in order."""
        self.payer = Payer(
            means.spender,
            means.rides,
            means.router.catalog.prices,
            request_id=request_id,
            key_name=key_name,
            why_frozen=means.router.freezes.why_payer_frozen,
        )

    def answer(self, request: AnyRequest) -> Asking[ChatChunk]:
        """For a chat, or the continuation of a text."""

        def open_stream(endpoint: Endpoint, limited: Any) -> AsyncGenerator[ChatChunk, None]:
            provider, model = self._means.providers[endpoint.name], endpoint.upstream_model or request.model
            if isinstance(request, ChatRequest):
                return provider.chat(limited, model=model)
            return provider.complete(limited, model=model)

        return self._asking(request, open_stream, starts=_starts_answer, whole=not request.stream)

    def vectors(self, request: EmbeddingsRequest) -> Asking[Embeddings]:
        """For embeddings, which come all at once."""

        async def one(endpoint: Endpoint, limited: Any) -> AsyncGenerator[Embeddings, None]:
            model = endpoint.upstream_model or request.model
            yield await self._means.providers[endpoint.name].embed(limited, model=model)

        return self._asking(request, one, starts=lambda _: True, whole=True)

    async def nudge(self, choice: Choice, like: AnyRequest) -> None:
        """Start an endpoint by asking it for one token of the same kind. Raises as `Asking.begin`."""
        asking = self.answer(waking.nudge(like))
        patient = replace(asking.routing, attempts_max=1, first_token_timeout_s=waking.WAKE_S_MAX)
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
    ) -> Asking[Any]:
        means = self._means
        return Asking(
            pay=lambda endpoint: self.payer.pay(endpoint, request),
            why_unpaid=lambda: why_nobody_is_paid(self.payer.refusals),
            model=request.model,
            prompt_bytes=request.prompt_bytes,
            open_stream=open_stream,
            starts=starts,
            whole=whole,
            live=means.router.live,
            routing=means.router.catalog.routing_of(request.model),
            extras=means.extras,
            drains=means.drains,
            pause=means.pause,
            dice=means.router.dice,
            made=self.made,
        )


async def settle(made: Sequence[Underway[Any]]) -> None:
    """Let go of attempts, and replace what was put aside for each by what it cost."""
    for one in made:
        await one.close()
        usage, estimated = spent_of(one)
        await one.payment.settle(usage, estimated=estimated)


def _starts_answer(chunk: ChatChunk) -> bool:
    return chunk.starts_answer
