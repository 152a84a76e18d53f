"""The inference services on fakes: scripted providers, stores in memory, and a clock that tests move."""

from __future__ import annotations

import asyncio
import itertools
from collections import Counter
from collections.abc import AsyncGenerator, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any

from goblin.billing import budgets
from goblin.billing.budget_client import BudgetClient
from goblin.billing.policy.allocation import ThresholdEvent
from goblin.core.endpoints import Endpoint, Price
from goblin.gateway import health
from goblin.gateway import inference as chat
from goblin.gateway.admission import AdmissionControl
from goblin.gateway.cache import AnswerCache
from goblin.gateway.domain.catalog import Catalog, Routing, Strategy
from goblin.gateway.domain.chat import ChatChunk, ChunkChoice, Delta, Embedding, Embeddings, Usage
from goblin.gateway.domain.endpoint_health import Finding, Probe
from goblin.gateway.domain.requests import ChatRequest, CompletionRequest, EmbeddingsRequest
from goblin.gateway.endpoint_stats import EndpointStats
from goblin.gateway.idempotency import IdempotentRequests
from goblin.gateway.keys import Keys, digest_of
from goblin.gateway.policy.admission import AdmissionLimits
from goblin.gateway.ports import ApiKey
from goblin.gateway.router import Router
from goblin.gateway.uptime import UptimeSessions
from goblin.gateway.warm_up import WarmUps
from tests.fakes.ledger import MemoryLedger
from tests.fakes.stores import MemoryAnswers, MemoryHealth, MemoryKeys, MemoryReceipts, MemoryReplies

HANG = "hang"
KEY = "sk-goblin-test"
FREE = Price(input_usd_micros_per_mtok=0, output_usd_micros_per_mtok=0)
USAGE = Usage(prompt_tokens=11, completion_tokens=2, total_tokens=13)


class Words(str):
    """A piece of an answer."""

    __slots__ = ()


Step = Words | str | Exception | ChatChunk


def says(*words: str, finish: str | None = "stop", usage: Usage | None = USAGE) -> list[Step]:
    """The steps of a whole answer."""
    steps: list[Step] = [chunk(Delta(role="assistant", content="")), *(Words(word) for word in words)]
    if finish is not None:
        steps.append(chunk(Delta(), finish))
    if usage is not None:
        steps.append(ChatChunk(usage=usage))
    return steps


def chunk(delta: Delta, finish: str | None = None) -> ChatChunk:
    return ChatChunk(choices=(ChunkChoice(delta=delta, finish_reason=finish),))


@dataclass
class ScriptedProvider:
    """A provider that plays its steps for every request: words, chunks, an exception to raise, or `HANG`."""

    steps: Sequence[Step] = field(default_factory=lambda: says("Hel", "lo"))
    found: Probe = field(default_factory=lambda: Probe(finding=Finding.OK, models=("m",), latency_ms=5))
    requests: int = 0
    closed: int = 0
    asked: list[ChatRequest | CompletionRequest] = field(default_factory=list)
    probes: int = 0

    async def _play(self) -> AsyncGenerator[ChatChunk, None]:
        self.requests += 1
        try:
            for step in self.steps:
                match step:
                    case Exception():
                        raise step
                    case Words():
                        yield chunk(Delta(content=str(step)))
                    case ChatChunk():
                        yield step
                    case _:
                        await asyncio.Event().wait()
        finally:
            self.closed += 1

    def chat(self, request: ChatRequest, *, model: str) -> AsyncGenerator[ChatChunk, None]:
        self.asked.append(request)
        return self._play()

    def complete(self, request: CompletionRequest, *, model: str) -> AsyncGenerator[ChatChunk, None]:
        self.asked.append(request)
        return self._play()

    async def embed(self, request: EmbeddingsRequest, *, model: str) -> Embeddings:
        async for _ in self._play():
            pass
        return Embeddings(data=(Embedding(index=0, embedding=[1.0, 2.0]),))

    async def probe(self) -> Probe:
        self.probes += 1
        return self.found


@dataclass
class FakeClock:
    at: datetime = datetime(2026, 11, 23, 12, tzinfo=UTC)

    def now(self) -> datetime:
        return self.at

    def monotonic(self) -> float:
        return self.at.timestamp()

    def forward(self, seconds: float) -> None:
        self.at += timedelta(seconds=seconds)

    async def pause(self, seconds: float) -> None:
        self.forward(seconds)


@dataclass
class CountingMeter:
    requests: Counter[tuple[str, str, str]] = field(default_factory=Counter)
    errors: Counter[tuple[str, str, str]] = field(default_factory=Counter)

    def request(self, *, provider: str, model: str, outcome: str, duration_s: float) -> None:
        self.requests[provider, model, outcome] += 1

    def provider_error(self, *, provider: str, model: str, outcome: str) -> None:
        self.errors[provider, model, outcome] += 1


@dataclass
class World:
    """The services and every fake that a test may change."""

    providers: dict[str, ScriptedProvider]
    clock: FakeClock
    keys: MemoryKeys
    health: MemoryHealth
    receipts: MemoryReceipts
    meter: CountingMeter
    deps: chat.InferenceDeps
    health_deps: health.HealthDeps
    ledger: MemoryLedger
    answers: MemoryAnswers
    replies: MemoryReplies


def world(
    *, endpoints: dict[str, dict[str, Any]] | None = None, routing: Routing | None = None, **providers: ScriptedProvider
) -> World:
    """Endpoints named like the arguments, in their order, each serving the model `m`."""
    clock, keys, stored, receipts = FakeClock(), MemoryKeys(), MemoryHealth(), MemoryReceipts()
    ledger = MemoryLedger()
    spend = budgets.BudgetDeps(ledger=ledger, clock=clock)

    async def told(threshold_event: ThresholdEvent) -> None:
        threshold_events.append(threshold_event)

    threshold_events: list[ThresholdEvent] = []
    said = endpoints or {}
    rows = [
        Endpoint(
            **{"name": name, "provider": "openai", "url": "http://x", "models": ("m",), "price": FREE}
            | said.get(name, {})
        )
        for name in providers
    ]
    quick = Routing(strategy=Strategy.FAILOVER, first_token_timeout_s=0.05, between_tokens_timeout_s=0.05)
    catalog = Catalog(routing=routing or quick, endpoints=tuple(rows))
    health_deps = health.HealthDeps(catalog=catalog, providers=providers, store=stored, clock=clock)
    meter = CountingMeter()
    answers, replies = MemoryAnswers(), MemoryReplies()
    digest = digest_of(KEY)
    keys.keys[digest] = ApiKey(digest=digest, name="tests", created_at=clock.now())
    router = Router(
        catalog=catalog,
        stats=EndpointStats(clock),
        health=health.HealthView(health_deps),
        freezes=budgets.FreezeView(spend),
        rng=lambda: 0.0,
        turns=itertools.count(),
    )
    deps = chat.InferenceDeps(
        router=router,
        providers=providers,
        keys=Keys(keys, clock),
        budget_client=BudgetClient(ledger, ledger, clock, announce=told),
        uptime=UptimeSessions(clock),
        receipts=receipts,
        meter=meter,
        clock=clock,
        pause=clock.pause,
        admission=AdmissionControl(AdmissionLimits(), clock),
        answers=AnswerCache(answers, clock),
        once=IdempotentRequests(replies, clock),
        warm_ups=WarmUps(router.stats),
    )
    return World(providers, clock, keys, stored, receipts, meter, deps, health_deps, ledger, answers, replies)
