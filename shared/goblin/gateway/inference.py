"""Inference: authenticate, route, attempt, stream, meter, record. One `InferenceCall` per request of any operation.

arrive ─ authenticate ─ admit ─ route ─ attempt(s) ─ first token ─ … ─ last token ─ settle
                                            │                      │
                    another endpoint starts over      another one continues, or the caller gets `StreamCut`
"""

from __future__ import annotations

import uuid
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any, TypeVar

from goblin.core.errors import GoblinError, InvalidRequest, TooLarge
from goblin.core.ports import Clock
from goblin.gateway import payments, receipts
from goblin.gateway.admission import AdmissionControl
from goblin.gateway.cache import AnswerCache, replay
from goblin.gateway.dispatch import DispatchDeps, Dispatcher, settle
from goblin.gateway.domain.chat import ChatChunk, Embeddings, PassedAnswer, Usage
from goblin.gateway.domain.requests import (
    ChatRequest,
    CompletionRequest,
    EmbeddingsRequest,
    InferenceRequest,
    PassedRequest,
    WholeRequest,
)
from goblin.gateway.drains import Drain
from goblin.gateway.failover import ActiveAttempt, AttemptUsage, Failover
from goblin.gateway.idempotency import AnswerProduction, AnswerSource, IdempotentRequests
from goblin.gateway.keys import Keys, check_model
from goblin.gateway.policy import blind, caching
from goblin.gateway.policy.continuation import AnyRequest
from goblin.gateway.policy.route import NoRoute, Obstacle, Route
from goblin.gateway.ports import ApiKey, CachedAnswer, HttpReply, Meter, ReceiptStore, Scope, Tracer
from goblin.gateway.streams import AnswerStream
from goblin.gateway.upstream_attempt import UpstreamAttempt
from goblin.gateway.warm_up import WarmUps

W = TypeVar("W", Embeddings, PassedAnswer)
UNKNOWN_MODEL_LABEL = "unknown"
"""The label for models that do not exist: callers must not be able to create new label values."""


@dataclass(frozen=True, kw_only=True, slots=True)
class InferenceDeps(DispatchDeps):
    """What it takes to serve requests, in addition to sending them."""

    keys: Keys
    receipts: ReceiptStore
    meter: Meter
    clock: Clock
    admission: AdmissionControl
    answers: AnswerCache
    once: IdempotentRequests
    warm_ups: WarmUps
    tracer: Tracer | None = None
    """None: requests are not traced."""


@dataclass(slots=True)
class InferenceCall:
    """One request, from its arrival until it is settled. It is settled exactly once, however it ends."""

    deps: InferenceDeps
    operation: str
    request_id: str = field(default_factory=lambda: uuid.uuid4().hex)
    traceparent: str | None = None
    """The caller's W3C trace context, unchanged."""
    headers: Mapping[str, str] = field(default_factory=dict)
    """The headers of the request."""
    provider: str | None = None
    """The endpoint that answers; None until one does."""
    usage: Usage | None = None
    """The caller's tokens. The cost is a different number: the sum over all attempts."""
    usage_estimated: bool = False
    cache: str = "skip"
    """`hit`, `miss`, or `skip`: neither read from the cache nor written to it."""
    timings_ms: dict[str, float] = field(default_factory=dict)
    """Duration of each phase up to the first token, for the header `server-timing`."""
    _started: float = 0.0
    _created_at: Any = None
    _key: ApiKey | None = None
    _request: InferenceRequest | None = None
    _route: Route | NoRoute | None = None
    _outcome: str = "left"
    """`left` until another outcome is known."""
    _label: str = ""
    """The outcome in metrics, where it differs from `_outcome`."""
    _stream: AnswerStream | None = None
    _dispatcher: Dispatcher | None = None
    _cache_key: str | None = None
    _production: AnswerProduction | None = None
    """The production that makes the answer and settles this call, for an idempotent request."""
    _inside: bool = False
    """Whether admission control has counted it in."""
    _settled: bool = False

    def __post_init__(self) -> None:
        self._started = self.deps.clock.monotonic()
        self._created_at = self.deps.clock.now()

    @property
    def attempts(self) -> list[UpstreamAttempt]:
        """Every upstream attempt, in order."""
        return [active.attempt for active in self._active_attempts]

    @property
    def _active_attempts(self) -> list[ActiveAttempt[Any]]:
        return self._dispatcher.attempts if self._dispatcher is not None else []

    @property
    def tenant(self) -> str:
        """The owner of the API key; empty until it is known."""
        return self._key.owner if self._key is not None else ""

    def prompt_tokens_told(self) -> int | None:
        """Return the prompt's tokens by the count of the endpoint that answers; None until it tells them."""
        told = self._stream.active.stream_usage.told if self._stream is not None else None
        return told.prompt_tokens if told is not None else None

    @property
    def dropped(self) -> tuple[str, ...]:
        """What of the request the endpoint that answers was not sent, by name."""
        return next((one.dropped for one in reversed(self.attempts) if one.endpoint.name == self.provider), ())

    @property
    def whole(self) -> bool:
        """Whether a complete answer was passed on."""
        return (self._stream.outcome if self._stream is not None else self._outcome) == "ok"

    async def authenticate(self, authorization: str | None) -> None:
        """Authenticate the caller, who then may send the body.

        Raises:
            Unauthenticated, Forbidden, RateLimited, StoreUnavailable: As `Keys.authenticate`.
        """
        with self._noting(), self._timing("auth"):
            self._key = await self.deps.keys.authenticate(authorization, Scope.INFERENCE)

    async def admit(self) -> None:
        """Pass admission control, once the body is there: a body that never ends must not hold a place.

        Raises:
            RateLimited: There are too many requests.
        """
        if self._key is None:
            raise AssertionError("a request is authenticated before it is admitted")
        with self._noting(), self._timing("admission"):
            await self.deps.admission.enter(self._key)
            self._inside = True

    def check(self, request: InferenceRequest) -> None:
        """Check the request against the key and the limits, before an earlier answer to it is looked up.

        Raises:
            Forbidden: The key may not use the model.
            TooLarge: The request has too many messages.
        """
        with self._noting():
            self._accept(request)

    async def chat(self, request: ChatRequest, *, strategy: str | None = None) -> AsyncGenerator[ChatChunk, None]:
        """Begin an answer. Returns once its first token has arrived, or all of it if it is not streamed.

        Returns:
            The chunks. The last one has the usage and no choices; an answer that was cut has no such chunk.

        Raises:
            GoblinError: No endpoint answered.
            StreamCut: The answer broke off. Raised by the chunks.
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
            answer = self._taken(await self._begin(self._dispatch().vectors(request), route), request)
            return Embeddings(data=answer.data, usage=self.usage)

    async def pass_on(self, request: PassedRequest, *, strategy: str | None = None) -> PassedAnswer:
        """Get the answer of a request that an endpoint gets as it came; like `embed`."""
        with self._noting():
            self._accept(request)
            route = await self._choose(request, strategy)
            answer: PassedAnswer = self._taken(await self._begin(self._dispatch().passed(request), route), request)
            return answer

    def _taken(self, active: ActiveAttempt[W], request: InferenceRequest) -> W:
        """Return the one answer of an attempt, and note its usage."""
        (answer,) = active.head
        active.attempt.succeed()
        told = active.stream_usage.told
        self.usage = told or active.stream_usage.estimate(request.prompt_bytes())
        self.usage_estimated = told is None
        self._outcome = "ok"
        return answer

    async def find_model(self, request: InferenceRequest) -> None:
        """Serve a request that asks for nothing but a model: check that it is there and that the key may use it.

        Raises:
            Forbidden: The key may not use the model.
            NotFound: There is no such model.
        """
        with self._noting():
            self._accept(request)
            if self._key is not None:
                await self.deps.router.model(request.model, self._key)
            self._outcome = "ok"

    def failed(self, error: Exception) -> None:
        """Set the outcome of a request that failed before anything was answered."""
        if not isinstance(error, GoblinError):
            self._outcome = self._label = "internal_error"
            return
        self._outcome = error.code or error.type
        # The code may come from a provider, and metric labels must stay few.
        self._label = "invalid_request" if isinstance(error, InvalidRequest) else self._outcome

    async def once(self, operation: str, key: str, body: bytes, make: Callable[[], Awaitable[HttpReply]]) -> HttpReply:
        """Answer a request with an `Idempotency-Key`: by this call, or with the answer of an earlier one.

        Raises:
            Conflict, InvalidRequest: As `IdempotentRequests.answer`.
        """
        work = AnswerSource(make=make, settle=self.settle, is_whole=lambda: self.whole, taken=self._hand_over)
        answer = await self.deps.once.answer(self.tenant, operation, key, body, work)
        if self._production is None:
            self._outcome = "replayed"
            self._request = None  # The receipt is that of the first request.
        return answer

    def _hand_over(self, production: AnswerProduction) -> None:
        """Leave settling to the production that makes the answer, because it may have other readers."""
        self._production = production

    async def leave(self) -> None:
        """Settle, unless the answer continues for other readers."""
        if self._production is None:
            await self.settle()
        else:
            await self._production.settled()

    async def settle(self) -> None:
        """Close the attempts, update metrics and write the receipt. Never raises; a second call does nothing."""
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
            # The caller does not wait for drains, and their cost is not known yet.
            self.deps.drains.later(self._finish_after(drains, duration_s))
        else:
            await self._finish(duration_s)

    async def _finish_after(self, drains: Sequence[Drain], duration_s: float) -> None:
        for drain in drains:
            await drain.wait()
        await self._finish(duration_s)

    async def _finish(self, duration_s: float) -> None:
        """Settle the money, write the receipt and fill the cache: all numbers are final now."""
        if self._stream is not None:
            self.usage, self.usage_estimated = self._stream.usage()
        # Before the receipt: if the process is killed meanwhile, the money is settled.
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
            if isinstance(self._request, ChatRequest):
                request = self._request  # Without pictures, perhaps.
            self._wake(route, request)
            active = await self._begin(self._dispatch().answer(request), route)
        self._stream = AnswerStream(
            request, route, active, self._dispatch().answer, answer_id=answer_id, created=created
        )
        return self._stream.chunks()

    def _dispatch(self) -> Dispatcher:
        if self._dispatcher is None:
            key = self._key
            self._dispatcher = Dispatcher(
                self.deps,
                request_id=self.request_id,
                key_name=key.name if key else "",
                asker_name=key.asker_name if key else "",
            )
        return self._dispatcher

    def _accept(self, request: InferenceRequest) -> None:
        """Check the request against the key and the limits. Raises `Forbidden` or `TooLarge`."""
        self._request = request
        if self._key is not None:
            check_model(self._key, request.model)
        most = self.deps.admission.limits.messages_max
        if isinstance(request, ChatRequest) and len(request.messages) > most:
            raise TooLarge(f"The request has more than {most} messages. Send fewer.", param="messages")

    async def _find(self, request: AnyRequest) -> CachedAnswer | None:
        """Find a cached answer, if the request allows one."""
        if caching.why_skip(request) is not None:
            return None
        self._cache_key = caching.cache_key(self.tenant, request)
        found = await self.deps.answers.find(self._cache_key, shared=caching.opted_in(request))
        self.cache = "miss" if found is None else "hit"
        if found is not None:
            self.usage, self.provider, self._outcome = found.usage, "cache", "ok"
        return found

    async def _keep(self) -> None:
        """Write a good answer to the cache."""
        stream, request = self._stream, self._request
        if stream is None or self._cache_key is None or self._outcome != "ok" or self.usage is None:
            return
        if stream.active.attempt.dropped:
            return  # Another endpoint would have been sent more, and a cached answer does not say what it lacks.
        stream_usage, text = stream.active.stream_usage, stream.text
        if text is None or stream_usage.finish_reason is None or isinstance(request, WholeRequest | None):
            return
        if caching.may_keep(
            finish_reason=stream_usage.finish_reason, plain=stream_usage.plain, unbroken=stream.unbroken, text=text
        ):
            await self.deps.answers.keep(
                self._cache_key, text, stream_usage.finish_reason, self.usage, shared=caching.opted_in(request)
            )

    async def _choose(self, request: InferenceRequest, strategy: str | None) -> Route:
        """Choose a route. A request with pictures that no endpoint of the model sees goes on without them."""
        with self._timing("route"):
            first = self._route = await self.deps.router.choose(request, strategy)
            if isinstance(first, NoRoute) and first.obstacle in (Obstacle.TOO_LONG, Obstacle.UNABLE):
                for plainer in blind.without_pictures(request):
                    found = await self.deps.router.choose(plainer, strategy)
                    if isinstance(found, Route):
                        self._route, self._request = found, plainer
                        break
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
        """Start warm-ups for later requests; this one does not wait for them."""
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
        """Set the outcome when the block fails, and re-raise."""
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
        """List what each attempt used, in order; attempts that were refused are left out."""
        return [spent for active in self._active_attempts if (spent := active.spent()) is not None]

    def cost_usd_micros(self) -> int:
        """Sum up what all attempts cost so far."""
        return self._dispatcher.cost_usd_micros() if self._dispatcher is not None else 0

    async def _tell(self, key: ApiKey, request: InferenceRequest, duration_s: float) -> None:
        """Write the receipt, and pass it to the tracer."""
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
