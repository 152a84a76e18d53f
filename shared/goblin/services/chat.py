"""Inference: authenticate, route, attempt, stream, meter, record. One `Call` per request, whatever the route.

arrive ─ authenticate ─ route ─ attempt(s) ─ first token ─ … ─ last token ─ settle
                                    │                      │
                    another endpoint may be asked     an error is said aloud
"""

from __future__ import annotations

import logging
import uuid
from collections.abc import AsyncGenerator, Callable, Iterator, Mapping
from contextlib import aclosing, contextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any

from msgspec import UNSET

from goblin.domain.chat import ChatChunk, Embeddings, Usage
from goblin.domain.requests import (
    ChatRequest,
    CompletionRequest,
    EmbeddingsRequest,
    InferenceRequest,
)
from goblin.errors import (
    GoblinError,
    InvalidRequest,
    NotFound,
    ProviderUnavailable,
    StoreUnavailable,
    StreamCut,
)
from goblin.policy import tokens
from goblin.policy.routing import NoRoute, Route
from goblin.ports import ApiKey, ChatProvider, Clock, Meter, RequestRecord, RequestStore
from goblin.services import attempts as engine
from goblin.services import budget
from goblin.services.keys import Keys
from goblin.services.live import Attempt
from goblin.services.routes import Router

log = logging.getLogger(__name__)

RECEIPT_LIFE = timedelta(days=30)
UNKNOWN_MODEL_LABEL = "unknown"
"""Callers must not be able to make new label values by asking for models that do not exist."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Deps:
    router: Router
    providers: Mapping[str, ChatProvider]
    """By endpoint name."""
    keys: Keys
    spend: budget.Deps
    receipts: RequestStore
    meter: Meter
    clock: Clock


async def find_receipt(deps: Deps, key: ApiKey, request_id: str) -> RequestRecord:
    """The receipt of a request of the same caller. Raises `NotFound`, also for somebody else's."""
    found = await deps.receipts.get(request_id) if request_id.isalnum() and len(request_id) <= 64 else None
    if found is None or found.key_digest != key.digest:
        raise NotFound(f"There is no receipt `{request_id[:64]}`.")
    return found


@dataclass(slots=True)
class Call:
    """One request, from its arrival until it is settled, which happens exactly once, however it ends."""

    deps: Deps
    operation: str
    request_id: str = field(default_factory=lambda: uuid.uuid4().hex)
    provider: str | None = None
    """The endpoint that answers, once one does."""
    attempts: list[Attempt] = field(default_factory=list)
    usage: Usage | None = None
    usage_estimated: bool = False
    timings_ms: dict[str, float] = field(default_factory=dict)
    """Phases up to the first token, for `server-timing`."""
    _started: float = 0.0
    _created_at: Any = None
    _key: ApiKey | None = None
    _request: InferenceRequest | None = None
    _route: Route | NoRoute | None = None
    _outcome: str = "left"
    """Holds unless something better is known at the end."""
    _label: str = ""
    """The outcome in metrics, where it is another."""
    _underway: engine.Underway[Any] | None = None
    _settled: bool = False

    def __post_init__(self) -> None:
        self._started = self.deps.clock.monotonic()
        self._created_at = self.deps.clock.now()

    async def authenticate(self, authorization: str | None) -> None:
        """Raises `Unauthenticated`, or `StoreUnavailable` when nobody can tell."""
        with self._noting(), self._timing("auth"):
            self._key = await self.deps.keys.authenticate(authorization)

    async def chat(self, request: ChatRequest, *, strategy: str | None = None) -> AsyncGenerator[ChatChunk, None]:
        """Begin an answer. Returns once its first token is here, or all of it if it is not streamed.

        Returns:
            The chunks. The last has the usage and no choices, and only a whole answer has it.

        Raises:
            GoblinError: nothing was answered; from the chunks, `StreamCut`: the answer broke off.
        """
        return await self._generate(request, strategy, lambda provider, model: provider.chat(request, model=model))

    async def complete(
        self, request: CompletionRequest, *, strategy: str | None = None
    ) -> AsyncGenerator[ChatChunk, None]:
        """Begin the continuation of a text; otherwise like `chat`."""
        return await self._generate(request, strategy, lambda provider, model: provider.complete(request, model=model))

    async def embed(self, request: EmbeddingsRequest, *, strategy: str | None = None) -> Embeddings:
        """Compute vectors; `usage` is always set."""

        async def one(provider: ChatProvider, model: str) -> AsyncGenerator[Embeddings, None]:
            yield await provider.embed(request, model=model)

        with self._noting():
            underway = await self._begin(request, strategy, one, starts=lambda _: True, whole=True)
            (answer,) = underway.head
            underway.attempt.succeed()
            self.usage = answer.usage or self._count(0)
            self._outcome = "ok"
            return Embeddings(data=answer.data, usage=self.usage)

    def failed(self, error: Exception) -> None:
        """Remember how it failed, before anything was answered."""
        if not isinstance(error, GoblinError):
            self._outcome = self._label = "internal_error"
            return
        self._outcome = error.code or error.type
        # Its code may be a provider's word, and labels must stay few.
        self._label = "invalid_request" if isinstance(error, InvalidRequest) else self._outcome

    async def settle(self) -> None:
        """Let go of the provider, count, and write the receipt. Never raises; a second time does nothing."""
        if self._settled:
            return
        self._settled = True
        if self._underway is not None:
            self._underway.attempt.abandon()
            await self._underway.stream.aclose()
        duration_s = self.deps.clock.monotonic() - self._started
        model = self._model_label()
        self.deps.meter.request(
            provider=self.provider or "none", model=model, outcome=self._label or self._outcome, duration_s=duration_s
        )
        for attempt in self.attempts:
            record = attempt.record()
            if record.outcome not in ("ok", "left"):
                self.deps.meter.provider_error(provider=record.endpoint, model=model, outcome=record.outcome)
        if self._key is not None and self._request is not None:
            await self._write_receipt(self._key, self._request, duration_s)
        await self._book()

    async def _generate(
        self,
        request: ChatRequest | CompletionRequest,
        strategy: str | None,
        ask: Callable[[ChatProvider, str], AsyncGenerator[ChatChunk, None]],
    ) -> AsyncGenerator[ChatChunk, None]:
        with self._noting():
            self._underway = await self._begin(
                request, strategy, ask, starts=lambda chunk: chunk.starts_answer, whole=not request.stream
            )
        return self._chunks(self._underway, request)

    async def _chunks(
        self, underway: engine.Underway[ChatChunk], request: ChatRequest | CompletionRequest
    ) -> AsyncGenerator[ChatChunk, None]:
        """Pass chunks on under our own id, keep the usage back, and say it at the end."""
        prefix = "chatcmpl-" if isinstance(request, ChatRequest) else "cmpl-"
        answer_id, created = prefix + self.request_id, int(self._created_at.timestamp())
        written = 0
        told: Usage | None = None

        def ours(chunk_choices: Any, usage: Any = UNSET, fingerprint: Any = UNSET) -> ChatChunk:
            return ChatChunk(
                id=answer_id,
                created=created,
                model=request.model,
                choices=chunk_choices,
                usage=usage,
                system_fingerprint=fingerprint,
            )

        try:
            async with aclosing(engine.follow(underway, self.deps.router.catalog.routing)) as chunks:
                async for chunk in chunks:
                    if isinstance(chunk.usage, Usage):
                        told = chunk.usage
                    for choice in chunk.choices:
                        written += len(choice.delta.text.encode("utf-8", "surrogatepass"))
                    if chunk.choices:
                        yield ours(chunk.choices, fingerprint=chunk.system_fingerprint)
        except ProviderUnavailable as error:
            underway.attempt.fail(error, cut=True)
            self._outcome = "cut"
            raise StreamCut(f"The answer broke off. {error.message}", fault=error.fault) from error
        finally:
            self.usage = told or self._count(written)
        underway.attempt.succeed()
        self._outcome = "ok"
        yield ours((), self.usage)

    async def _begin(
        self,
        request: InferenceRequest,
        strategy: str | None,
        ask: Callable[[ChatProvider, str], AsyncGenerator[Any, None]],
        *,
        starts: Callable[[Any], bool],
        whole: bool,
    ) -> engine.Underway[Any]:
        self._request = request
        with self._timing("route"):
            self._route = await self.deps.router.choose(request, strategy)
            route = self.deps.router.must(self._route)
        with self._timing("first_token"):
            underway: engine.Underway[Any] = await engine.begin(
                route,
                request.model,
                lambda endpoint: ask(self.deps.providers[endpoint.name], request.model),
                starts=starts,
                whole=whole,
                live=self.deps.router.live,
                routing=self.deps.router.catalog.routing,
                attempts=self.attempts,
            )
        self.provider = underway.attempt.endpoint.name
        return underway

    def _model_label(self) -> str:
        if self._request is None or self._route is None:
            return UNKNOWN_MODEL_LABEL
        known = isinstance(self._route, Route) or self._route.model_known
        return self._request.model if known else UNKNOWN_MODEL_LABEL

    def _count(self, written_bytes: int) -> Usage:
        """Usage by our own count, for a provider that tells none."""
        self.usage_estimated = True
        asked = tokens.estimate_tokens(self._request.prompt_bytes()) if self._request else 0
        answered = tokens.estimate_tokens(written_bytes)
        return Usage(prompt_tokens=asked, completion_tokens=answered, total_tokens=asked + answered)

    @contextmanager
    def _noting(self) -> Iterator[None]:
        """Remember how it failed."""
        try:
            yield
        except GoblinError as error:
            self.failed(error)
            raise

    @contextmanager
    def _timing(self, phase: str) -> Iterator[None]:
        started = self.deps.clock.monotonic()
        try:
            yield
        finally:
            self.timings_ms[phase] = (self.deps.clock.monotonic() - started) * 1000

    async def _book(self) -> None:
        """Write what the request cost into the ledger."""
        if self.usage is None or not self.attempts or self.provider is None:
            return
        try:
            await budget.book(self.request_id, self.attempts[-1].endpoint, self.usage, self.deps.spend)
        except StoreUnavailable as error:
            log.error("the cost of request %s is not in the ledger: %s", self.request_id, error.message)

    async def _write_receipt(self, key: ApiKey, request: InferenceRequest, duration_s: float) -> None:
        usage = self.usage or Usage()
        rejected = self._route.rejected if self._route is not None else ()
        served = self.attempts[-1].first_token_ms if self.attempts and self.provider else None
        record = RequestRecord(
            request_id=self.request_id,
            key_digest=key.digest,
            key_name=key.name,
            operation=self.operation,
            model=request.model,
            stream=not isinstance(request, EmbeddingsRequest) and bool(request.stream),
            strategy=self._route.strategy if isinstance(self._route, Route) else "",
            outcome=self._outcome,
            provider=self.provider,
            attempts=tuple(attempt.record() for attempt in self.attempts),
            rejected={choice.endpoint.name: choice.reason for choice in rejected},
            prompt_tokens=usage.prompt_tokens,
            completion_tokens=usage.completion_tokens,
            usage_estimated=self.usage_estimated,
            first_token_ms=None if served is None else round(served),
            duration_ms=round(duration_s * 1000),
            created_at=self._created_at,
            expires_at=self._created_at + RECEIPT_LIFE,
        )
        try:
            await self.deps.receipts.put(record)
        except StoreUnavailable as error:
            # The answer was served; a receipt that cannot be written must not take it back.
            log.warning("no receipt for request %s: %s", self.request_id, error.message)
