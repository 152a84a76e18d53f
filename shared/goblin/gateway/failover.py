"""Failover: try the endpoints of a route until one of them answers. Used by every inference operation.

a ──fails────────────▶ b ──fails──▶ a again, if its fault is short-lived ──▶ … up to `attempts_max`
a ──slow─┬──────────▶ the first to send a token wins; the other is cancelled and settled
         └▶ b (hedge)
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncGenerator, Awaitable, Callable, Generator, Sequence
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar

from goblin.core.endpoints import Endpoint
from goblin.core.errors import Fault, GoblinError, InvalidRequest, ProviderUnavailable, RateLimited, UnknownModel
from goblin.gateway.domain.catalog import Routing
from goblin.gateway.domain.chat import ChatChunk, Embeddings, PassedAnswer, Usage
from goblin.gateway.drains import Drain, Drains
from goblin.gateway.endpoint_stats import EndpointStats
from goblin.gateway.fan_out import FanOut
from goblin.gateway.payments import Payment
from goblin.gateway.policy import retries
from goblin.gateway.policy.route import RouteChoice
from goblin.gateway.stream_usage import StreamUsage
from goblin.gateway.upstream_attempt import UpstreamAttempt
from goblin.gateway.upstream_request import UpstreamRequest

log = logging.getLogger(__name__)

T = TypeVar("T", ChatChunk, Embeddings, PassedAnswer)


class EndpointSilent(ProviderUnavailable):
    """The endpoint sent nothing within the timeout."""


@dataclass(slots=True)
class RetryBudget:
    """How many retries and hedges this process may add to its requests; shared by all requests."""

    retry: retries.RetryAllowance = field(default_factory=lambda: retries.RetryAllowance(share=retries.RETRIES_SHARE))
    hedge: retries.RetryAllowance = field(default_factory=lambda: retries.RetryAllowance(share=retries.HEDGES_SHARE))

    def earn(self) -> None:
        self.retry, self.hedge = retries.earn(self.retry), retries.earn(self.hedge)

    def may_retry(self) -> bool:
        if (left := retries.spend(self.retry)) is None:
            return False
        self.retry = left
        return True

    def may_hedge(self) -> bool:
        if (left := retries.spend(self.hedge)) is None:
            return False
        self.hedge = left
        return True


@dataclass(frozen=True, kw_only=True, slots=True)
class AttemptUsage:
    """What one attempt used, whether or not the caller saw any of it."""

    endpoint: Endpoint
    usage: Usage
    estimated: bool


@dataclass(slots=True)
class ActiveAttempt(Generic[T]):
    """An upstream attempt with its stream, its payment and its usage so far."""

    attempt: UpstreamAttempt
    stream: AsyncGenerator[T, None]
    prompt_bytes: Callable[[], int]
    payment: Payment
    stream_usage: StreamUsage = field(default_factory=StreamUsage)
    head: list[T] = field(default_factory=list)
    """Items that arrived before the attempt was chosen."""
    ended: bool = False
    """Whether the stream has ended."""
    silent: bool = False
    drain: Drain | None = None
    """Set where cancelling does not stop the bill: it reads the stream to its end after the reader left."""
    fan_out: FanOut | None = None
    """Set where the stream is that of several requests to the endpoint."""

    def spent(self) -> AttemptUsage | None:
        """Return what it has used so far; None when the endpoint refused the request."""
        if self.fan_out is not None:
            found = self.fan_out.spent()
            if found is None:
                return None
            return AttemptUsage(endpoint=self.attempt.endpoint, usage=found.usage, estimated=found.estimated)
        stream_usage = self.stream_usage
        if stream_usage.told is not None or stream_usage.heard or self.silent or self.attempt.abandoned:
            # Where the endpoint took the request and did not report usage, it has read the prompt at least.
            usage, estimated = stream_usage.counted(self.prompt_bytes)
            return AttemptUsage(endpoint=self.attempt.endpoint, usage=usage, estimated=estimated)
        return None

    def cost_usd_micros(self) -> int:
        """Compute what it has cost so far, in micro-dollars."""
        spent = self.spent()
        if spent is None:
            return self.payment.cost_usd_micros(None)
        return self.payment.cost_usd_micros(spent.usage)

    async def settle(self) -> None:
        """Replace what was reserved for it by what it cost. A second call does nothing. Never raises."""
        spent = self.spent()
        if spent is None:
            await self.payment.settle(None)
        else:
            await self.payment.settle(spent.usage, estimated=spent.estimated)

    async def close(self, outcome: str = "left") -> None:
        """Cancel it, however far it is. A second call does nothing."""
        self.attempt.abandon(outcome)
        if self.fan_out is not None:
            self.fan_out.stop()
        await self.stream.aclose()
        if self.drain is None:
            self.payment.leave(woke=self.spent() is not None)


@dataclass(frozen=True, kw_only=True, slots=True)
class Failover(Generic[T]):
    """Tries endpoints until one answers; holds what all attempts at one answer share."""

    request: UpstreamRequest[T]
    stats: EndpointStats
    routing: Routing
    retry_budget: RetryBudget
    drains: Drains
    pause: Callable[[float], Awaitable[None]]
    rng: Callable[[], float]
    attempts: list[ActiveAttempt[T]]
    """Every attempt of the request is added here, even when none answers."""

    async def begin(
        self, candidates: Sequence[RouteChoice], *, last_resort: bool = False, hedge_after_s: float | None = None
    ) -> ActiveAttempt[T]:
        """Try endpoints until one has sent something that the caller would notice.

        Args:
            candidates: The endpoints to try, in order.
            last_resort: Try them even if their breakers are open.
            hedge_after_s: How long the first may be silent before the request is hedged at the second; None: never.

        Raises:
            InvalidRequest: An endpoint rejected the request, as the others would; or no endpoint can serve it.
            RateLimited, UnknownModel, ProviderUnavailable: No endpoint answered.
            BudgetExhausted, StoreUnavailable: No attempt could be paid.
        """
        failures: list[tuple[RouteChoice, ProviderUnavailable]] = []
        left = list(candidates)
        before = len(self.attempts)
        while left and len(self.attempts) - before < self.routing.attempts_max:
            choice = left.pop(0)
            force = last_resort or (not left and len(self.attempts) == before)
            active = await self._start(choice, force=force)
            if active is None:
                continue
            winner = await self._first_of(active, choice, left, hedge_after_s, failures)
            if winner is not None:
                return winner
        return await self._again(failures, attempts_left=self.routing.attempts_max - (len(self.attempts) - before))

    async def _again(
        self, failures: list[tuple[RouteChoice, ProviderUnavailable]], *, attempts_left: int
    ) -> ActiveAttempt[T]:
        """Retry the failed endpoint that may recover first, or raise why no endpoint answers."""
        everything = [error for _, error in failures]
        for number in range(attempts_left):
            again: tuple[float, RouteChoice] | None = None
            for choice, error in failures:
                wait_s = retries.wait_before_retry(
                    error.fault,
                    silent=isinstance(error, EndpointSilent),
                    retry_after_s=error.retry_after_s,
                    retries=number,
                    rng=self.rng(),
                )
                if wait_s is not None and (again is None or wait_s < again[0]):
                    again = wait_s, choice
            if again is None or not self.retry_budget.may_retry():
                break
            await self.pause(again[0])
            once_more = RouteChoice(endpoint=again[1].endpoint, reason="retried", forecast=again[1].forecast)
            active = await self._start(once_more, force=True)
            if active is None:
                break  # The budget ran out meanwhile.
            failures = [pair for pair in failures if pair[0] is not again[1]]
            seen = len(failures)
            winner = await self._first_of(active, again[1], [], None, failures)
            if winner is not None:
                return winner
            everything += [error for _, error in failures[seen:]]
        if not everything and (unpaid := self.request.payment_error()) is not None:
            raise unpaid
        raise no_endpoint_answered(self.request.model, everything)

    async def _start(self, choice: RouteChoice, *, force: bool) -> ActiveAttempt[T] | None:
        payment = await self.request.pay(choice.endpoint)
        if payment is None:
            return None
        sent = self.request.send(choice.endpoint, payment.request)
        attempt = UpstreamAttempt.start(
            self.stats,
            choice.endpoint,
            self.request.model,
            reason=choice.reason,
            force=force,
            forecast=choice.forecast,
            width=1 if sent.fan_out is None else sent.fan_out.width,
        )
        if attempt is None:
            await payment.settle(None)
            return None
        attempt.dropped = payment.dropped
        active = ActiveAttempt(
            attempt, sent.stream, self.request.prompt_bytes, payment, StreamUsage(), fan_out=sent.fan_out
        )
        if not choice.endpoint.cancel_stops_bill:
            active.drain = self.drains.over(sent.stream, active.stream_usage)
            active.stream = active.drain.follow()
        self.attempts.append(active)
        return active

    async def _first_of(
        self,
        active: ActiveAttempt[T],
        choice: RouteChoice,
        left: list[RouteChoice],
        hedge_after_s: float | None,
        failures: list[tuple[RouteChoice, ProviderUnavailable]],
    ) -> ActiveAttempt[T] | None:
        """Return the attempt or its hedge, whichever begins to answer first; None when neither does."""
        if hedge_after_s is None or not left:
            return await self._judged(active, choice, failures, self._await_head(active))
        waiting = {asyncio.create_task(self._await_first(active)): (active, choice)}
        ending = "left"
        try:
            done, _ = await asyncio.wait(waiting, timeout=hedge_after_s)
            if not done and self.retry_budget.may_hedge():
                spare = left.pop(0)
                beside = RouteChoice(endpoint=spare.endpoint, reason=f"hedge; {spare.reason}", forecast=spare.forecast)
                rival = await self._start(beside, force=False)
                if rival is not None:
                    waiting[asyncio.create_task(self._await_first(rival))] = (rival, spare)
            while waiting:
                done, _ = await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
                for task in done:
                    one, its_choice = waiting.pop(task)
                    found = await self._judged(one, its_choice, failures, _settled(task))
                    if found is not None:
                        ending = "lost"
                        return await self._judged(one, its_choice, failures, self._await_rest(one))
            return None
        finally:
            for task in waiting:
                task.cancel()
            await asyncio.gather(*waiting, return_exceptions=True)
            for one, _ in waiting.values():
                await one.close(ending)

    async def _judged(
        self,
        active: ActiveAttempt[T],
        choice: RouteChoice,
        failures: list[tuple[RouteChoice, ProviderUnavailable]],
        wait: Awaitable[None],
    ) -> ActiveAttempt[T] | None:
        """Wait for an attempt; on failure, add it to `failures`, close it and return None."""
        going_on = False
        try:
            await wait
            going_on = True
        except ProviderUnavailable as error:
            active.attempt.fail(error)
            failures.append((choice, error))
            log.warning("%s (attempt %d)", error.message, len(self.attempts))
            return None
        except GoblinError:
            # The endpoint works: it read the request and rejected it.
            active.attempt.succeed()
            raise
        finally:
            if not going_on:
                await active.close()
        return active

    async def _await_head(self, active: ActiveAttempt[T]) -> None:
        await self._await_first(active)
        await self._await_rest(active)

    async def _await_first(self, active: ActiveAttempt[T]) -> None:
        """Read up to the first item that the caller would notice."""
        loop = asyncio.get_running_loop()
        deadline = loop.time() + self.routing.first_token_timeout_s
        while (item := await next_item(active, deadline - loop.time())) is not None:
            active.head.append(item)
            if self.request.starts_answer(item):
                active.attempt.first_token()
                return
        raise ProviderUnavailable(f"Endpoint {active.attempt.endpoint.name} sent an empty answer.")

    async def _await_rest(self, active: ActiveAttempt[T]) -> None:
        """Read the rest, if the caller gets the answer as a whole."""
        while self.request.whole and (item := await next_item(active, self.silence_s_max(active))) is not None:
            active.head.append(item)

    def silence_s_max(self, active: ActiveAttempt[T]) -> float:
        """Return how long an attempt that has begun to answer may be silent: longer while more requests begin."""
        if active.fan_out is not None and active.fan_out.starting:
            return max(self.routing.first_token_timeout_s, self.routing.between_tokens_timeout_s)
        return self.routing.between_tokens_timeout_s


async def next_item(active: ActiveAttempt[T], timeout_s: float) -> T | None:
    """Read the next item; None, with `ended` set, when the stream has ended.

    Raises:
        ProviderUnavailable: It broke off, sent nothing for `timeout_s` (`EndpointSilent`), or its paid time is over.
    """
    if active.ended:
        return None
    if (left_s := active.payment.left_s()) <= 0:
        raise _overtime(active)
    scope: asyncio.Timeout | None = None
    try:
        step = EagerAwait(anext(active.stream))
        if step.waits:  # In a burst most items are ready at once, and a timeout costs more than reading an item.
            async with asyncio.timeout(min(timeout_s, left_s)) as scope:
                item = await step
        else:
            item = await step
    except StopAsyncIteration:
        active.ended = True
        return None
    except TimeoutError as error:
        if scope is None or not scope.expired():
            raise
        active.silent = True
        if left_s <= timeout_s:
            raise _overtime(active) from error
        active.attempt.timed_out()
        raise EndpointSilent(f"Endpoint {active.attempt.endpoint.name} stopped sending data.") from error
    active.stream_usage.add(item)
    if too_much := active.stream_usage.too_much:
        raise ProviderUnavailable(f"Endpoint {active.attempt.endpoint.name} sent {too_much}.")
    return item


def _overtime(active: ActiveAttempt[Any]) -> ProviderUnavailable:
    name = active.attempt.endpoint.name
    return ProviderUnavailable(f"Endpoint {name} exceeded its limit of {active.payment.endpoint.request_s_max:g} s.")


async def _settled(task: asyncio.Task[None]) -> None:
    task.result()


def no_endpoint_answered(model: str, failures: Sequence[ProviderUnavailable]) -> GoblinError:
    """Choose the error for the caller when every endpoint of the route has failed."""
    faults = {error.fault for error in failures}
    reasons = " ".join(dict.fromkeys(error.message for error in failures)) or "Every endpoint is paused."
    waits = [error.retry_after_s for error in failures if error.retry_after_s is not None]
    wait_s = min(waits) if waits else None
    if faults == {Fault.MISSING}:
        return UnknownModel(f"The model `{model}` no longer exists at any endpoint. {reasons}", param="model")
    if faults == {Fault.UNSUPPORTED}:
        return InvalidRequest(
            f"No endpoint of `{model}` can serve this request. {reasons}", code="unsupported_by_endpoints"
        )
    if faults == {Fault.RATE}:
        return RateLimited(f"Every endpoint of `{model}` is at its limit. {reasons}", retry_after_s=wait_s)
    return ProviderUnavailable(f"No endpoint of `{model}` answered. {reasons}", retry_after_s=wait_s)


A = TypeVar("A")


class EagerAwait(Generic[A]):
    """An awaitable that was started: it has finished already, or it `waits` and must be awaited next."""

    __slots__ = ("_result", "_running", "_wanted", "waits")

    def __init__(self, awaitable: Awaitable[A]) -> None:
        """Run the awaitable up to its first wait. Raises what it raises."""
        self._running = awaitable.__await__()
        self.waits = True
        """Whether it did not finish at once."""
        try:
            self._wanted = next(self._running)
        except StopIteration as end:
            self.waits = False
            self._result: A = end.value

    def __await__(self) -> Generator[Any, Any, A]:
        """Wait until it finishes. May be awaited only once."""
        if not self.waits:
            return self._result
        wanted = self._wanted
        try:
            while True:
                try:
                    told = yield wanted
                except BaseException as error:  # noqa: BLE001  Passed on, so that it sees its cancellation.
                    wanted = self._running.throw(error)
                else:
                    wanted = self._running.send(told)
        except StopIteration as end:
            result: A = end.value
            return result
