"""Inference: authenticate, route, attempt, stream, meter, record. One `InferenceCall` per request, whatever the route.

arrive ─ authenticate ─ route ─ attempt(s) ─ first token ─ … ─ last token ─ settle
                                    │                      │
                    another endpoint starts over      another one goes on, or the cut is said aloud
"""

from __future__ import annotations

import uuid
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from goblin.core.errors import GoblinError, InvalidRequest, TooLarge
from goblin.core.ports import Clock
from goblin.gateway import payments, receipts
from goblin.gateway.admission import AdmissionControl
from goblin.gateway.cache import AnswerCache, replay
from goblin.gateway.dispatch import DispatchDeps, Dispatcher, settle
from goblin.gateway.domain.chat import ChatChunk, Embeddings, Usage
from goblin.gateway.domain.requests import ChatRequest, CompletionRequest, EmbeddingsRequest, InferenceRequest
from goblin.gateway.drains import Drain
from goblin.gateway.failover import ActiveAttempt, AttemptUsage, Failover
from goblin.gateway.idempotency import AnswerProduction, AnswerSource, IdempotentRequests
from goblin.gateway.keys import Keys, check_model
from goblin.gateway.policy import caching
from goblin.gateway.policy.continuation import AnyRequest
from goblin.gateway.policy.route import NoRoute, Route
from goblin.gateway.ports import ApiKey, CachedAnswer, HttpReply, Meter, ReceiptStore, Scope, Tracer
from goblin.gateway.streams import AnswerStream
from goblin.gateway.upstream_attempt import UpstreamAttempt
from goblin.gateway.warm_up import WarmUps

UNKNOWN_MODEL_LABEL = "unknown"
"""Callers must not be able to make new label values by asking for models that do not exist."""


@dataclass(frozen=True, kw_only=True, slots=True)
class InferenceDeps(DispatchDeps):
    """What it takes to serve, beside what it takes to ask."""

    keys: Keys
    receipts: ReceiptStore
    meter: Meter
    clock: Clock
    admission: AdmissionControl
    answers: AnswerCache
    once: IdempotentRequests
    warm_ups: WarmUps
    tracer: Tracer | None = None
    """None: nobody traces."""


@dataclass(slots=True)
class InferenceCall:
    """One request, from its arrival until it is settled, which happens exactly once, however it ends."""

    deps: InferenceDeps
    operation: str
    request_id: str = field(default_factory=lambda: uuid.uuid4().hex)
    traceparent: str | None = None
    """The caller's trace context, as it came."""
    provider: str | None = None
    """The endpoint that answers, once one does."""
    usage: Usage | None = None
    """What the caller used; what it cost is the sum over the attempts."""
    usage_estimated: bool = False
    cache: str = "skip"
    """`hit`, `miss`, or `skip`: neither taken from the cache nor left there."""
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
    _stream: AnswerStream | None = None
    _dispatcher: Dispatcher | None = None
    _cache_key: str | None = None
    _production: AnswerProduction | None = None
    """Who makes the answer in its stead."""
    _inside: bool = False
    """Counted in at the door."""
    _settled: bool = False

    def __post_init__(self) -> None:
        self._started = self.deps.clock.monotonic()
        self._created_at = self.deps.clock.now()

    @property
    def attempts(self) -> list[UpstreamAttempt]:
        """Every attempt, in order."""
        return [active.attempt for active in self._active_attempts]

    @property
    def _active_attempts(self) -> list[ActiveAttempt[Any]]:
        return self._dispatcher.attempts if self._dispatcher is not None else []

    @property
    def tenant(self) -> str:
        """Whose request it is, once that is known."""
        return self._key.owner if self._key is not None else ""

    @property
    def whole(self) -> bool:
        """Whether all of a good answer was passed on."""
        return (self._stream.outcome if self._stream is not None else self._outcome) == "ok"

    async def authenticate(self, authorization: str | None) -> None:
        """Let the caller in.

        Raises:
            Unauthenticated, Forbidden, StoreUnavailable: as `Keys.authenticate`.
            RateLimited: there are too many requests.
        """
        with self._noting(), self._timing("auth"):
            self._key = await self.deps.keys.authenticate(authorization, Scope.INFERENCE)
            await self.deps.admission.enter(self._key)
            self._inside = True

    async def chat(self, request: ChatRequest, *, strategy: str | None = None) -> AsyncGenerator[ChatChunk, None]:
        """Begin an answer. Returns once its first token is here, or all of it if it is not streamed.

        Returns:
            The chunks. The last has the usage and no choices, and only a whole answer has it.

        Raises:
            GoblinError: nothing was answered; from the chunks, `StreamCut`: the answer broke off.
        """
        return await self._generate(request, strategy)

    async def complete(
        self, request: CompletionRequest, *, strategy: str | None = None
    ) -> AsyncGenerator[ChatChunk, None]:
        """Begin the continuation of a text; otherwise like `chat`."""
        return await self._generate(request, strategy)

    async def embed(self, request: EmbeddingsRequest, *, strategy: str | None = None) -> Embeddings:
        """Compute vectors; `usage` is always set."""

        with self._noting():
            self._accept(request)
            route = await self._choose(request, strategy)
            active = await self._begin(self._dispatch().vectors(request), route)
            (answer,) = active.head
            active.attempt.succeed()
            self.usage = answer.usage or active.stream_usage.estimate(request.prompt_bytes())
            self.usage_estimated = answer.usage is None
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

    async def once(self, operation: str, key: str, body: bytes, make: Callable[[], Awaitable[HttpReply]]) -> HttpReply:
        """The answer to a request with an `Idempotency-Key`: made by this call, or by an earlier one.

        Raises:
            Conflict, InvalidRequest: as `IdempotentRequests.answer`.
        """
        work = AnswerSource(make=make, settle=self.settle, is_whole=lambda: self.whole, taken=self._hand_over)
        answer = await self.deps.once.answer(self.tenant, operation, key, body, work)
        if self._production is None:
            self._outcome = "replayed"
        return answer

    def _hand_over(self, production: AnswerProduction) -> None:
        """From here on it is settled by who makes the answer: others may listen to it, too."""
        self._production = production

    async def leave(self) -> None:
        """Settle, unless the answer goes on for others."""
        if self._production is None:
            await self.settle()
        else:
            await self._production.settled()

    async def settle(self) -> None:
        """Let go of the provider, count, and write the receipt. Never raises; a second time does nothing."""
        if self._settled:
            return
        self._settled = True
        if self._inside and self._key is not None:
            self.deps.admission.leave(self._key)
        for active in self._active_attempts:
            await active.close()
        if self._stream is not None:
            self._outcome = self._stream.outcome
            self.provider = self._stream.active.attempt.endpoint.name
        duration_s = self.deps.clock.monotonic() - self._started
        model = self._model_label()
        self.deps.meter.request(
            provider=self.provider or "none", model=model, outcome=self._label or self._outcome, duration_s=duration_s
        )
        for attempt in self.attempts:
            record = attempt.record()
            if record.outcome not in ("ok", "left", "lost"):
                self.deps.meter.provider_error(provider=record.endpoint, model=model, outcome=record.outcome)
        drains = [one.drain for one in self._active_attempts if one.drain is not None and not one.drain.done]
        if drains:
            # Nobody waits for these, and nobody knows yet what they cost.
            self.deps.drains.later(self._finish_after(drains, duration_s))
        else:
            await self._finish(duration_s)

    async def _finish_after(self, drains: Sequence[Drain], duration_s: float) -> None:
        for drain in drains:
            await drain.wait()
        await self._finish(duration_s)

    async def _finish(self, duration_s: float) -> None:
        """Write down what is known now, and will not change."""
        if self._stream is not None:
            self.usage, self.usage_estimated = self._stream.usage()
        # Before the receipt: if time runs out, the money is in order.
        await settle(self._active_attempts)
        if self._key is not None and self._request is not None:
            await self._tell(self._key, self._request, duration_s)
        await self._keep()

    async def _generate(self, request: AnyRequest, strategy: str | None) -> AsyncGenerator[ChatChunk, None]:
        answer_id = ("chatcmpl-" if isinstance(request, ChatRequest) else "cmpl-") + self.request_id
        created = int(self._created_at.timestamp())
        with self._noting():
            self._accept(request)
            if (found := await self._find(request)) is not None:
                return replay(found, answer_id=answer_id, created=created, model=request.model)
            route = await self._choose(request, strategy)
            self._wake(route, request)
            active = await self._begin(self._dispatch().answer(request), route)
        self._stream = AnswerStream(
            request, route, active, self._dispatch().answer, answer_id=answer_id, created=created
        )
        return self._stream.chunks()

    def _dispatch(self) -> Dispatcher:
        if self._dispatcher is None:
            self._dispatcher = Dispatcher(
                self.deps, request_id=self.request_id, key_name=self._key.name if self._key else ""
            )
        return self._dispatcher

    def _accept(self, request: InferenceRequest) -> None:
        """Raises `Forbidden` or `TooLarge`."""
        self._request = request
        if self._key is not None:
            check_model(self._key, request.model)
        most = self.deps.admission.limits.messages_max
        if isinstance(request, ChatRequest) and len(request.messages) > most:
            raise TooLarge(f"There are over {most} messages.", param="messages")

    async def _find(self, request: AnyRequest) -> CachedAnswer | None:
        """An answer given before, if one will do."""
        if caching.why_skip(request) is not None:
            return None
        self._cache_key = caching.cache_key(self.tenant, request)
        found = await self.deps.answers.find(self._cache_key, shared=caching.opted_in(request))
        self.cache = "miss" if found is None else "hit"
        if found is not None:
            self.usage, self.provider, self._outcome = found.usage, "cache", "ok"
        return found

    async def _keep(self) -> None:
        """Leave a good answer in the cache."""
        stream, request = self._stream, self._request
        if stream is None or self._cache_key is None or self._outcome != "ok" or self.usage is None:
            return
        stream_usage, text = stream.active.stream_usage, stream.text
        if text is None or stream_usage.finish_reason is None or isinstance(request, EmbeddingsRequest | None):
            return
        if caching.may_keep(
            finish_reason=stream_usage.finish_reason, plain=stream_usage.plain, unbroken=stream.unbroken, text=text
        ):
            await self.deps.answers.keep(
                self._cache_key, text, stream_usage.finish_reason, self.usage, shared=caching.opted_in(request)
            )

    async def _choose(self, request: InferenceRequest, strategy: str | None) -> Route:
        with self._timing("route"):
            self._route = await self.deps.router.choose(request, strategy)
            return self.deps.router.must(self._route)

    async def _begin(self, failover: Failover[Any], route: Route) -> ActiveAttempt[Any]:
        self.deps.retry_budget.earn()
        hedge_after_ms = route.hedge_after_ms
        with self._timing("first_token"):
            active = await failover.begin(
                route.candidates,
                last_resort=route.last_resort,
                hedge_after_s=None if hedge_after_ms is None else hedge_after_ms / 1000,
            )
        self.provider = active.attempt.endpoint.name
        return active

    def _wake(self, route: Route, request: AnyRequest) -> None:
        """Start who should be awake for the next ones; this one does not wait."""
        for choice in route.wake:
            self.deps.warm_ups.begin(choice.endpoint, request.model, partial(self._dispatch().warm_up, choice, request))

    def _model_label(self) -> str:
        if self._request is not None and self.cache == "hit":
            return self._request.model
        if self._request is None or self._route is None:
            return UNKNOWN_MODEL_LABEL
        known = isinstance(self._route, Route) or self._route.model_known
        return self._request.model if known else UNKNOWN_MODEL_LABEL

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

    def spent(self) -> list[AttemptUsage]:
        """What each attempt used up, in order; those that refused are left out."""
        return [spent for active in self._active_attempts if (spent := active.spent()) is not None]

    def cost_usd_micros(self) -> int:
        """What all attempts cost so far."""
        return self._dispatcher.cost_usd_micros() if self._dispatcher is not None else 0

    async def _tell(self, key: ApiKey, request: InferenceRequest, duration_s: float) -> None:
        """Write the receipt, and tell whoever traces."""
        record = receipts.record_of(
            request_id=self.request_id,
            operation=self.operation,
            key=key,
            request=request,
            route=self._route,
            unpaid=payments.rejected(self._dispatcher.payer.refusals) if self._dispatcher is not None else {},
            attempts=self.attempts,
            provider=self.provider,
            outcome=self._outcome,
            usage=self.usage,
            usage_estimated=self.usage_estimated,
            cost_usd_micros=self.cost_usd_micros(),
            created_at=self._created_at,
            started_s=self._started,
            duration_s=duration_s,
        )
        if self.deps.tracer is not None:
            self.deps.tracer.request(record, traceparent=self.traceparent, model_label=self._model_label())
        await receipts.put(self.deps.receipts, record)
