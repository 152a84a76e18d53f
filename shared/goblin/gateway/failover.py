"""The one engine behind every inference route: ask the endpoints of a route until one of them answers.

a ──fails────────────▶ b ──fails──▶ a again, if its fault mends soon ──▶ … up to `attempts_max`
a ──slow─┬──────────▶ the first token wins; the other is cancelled and settled
         └▶ b (hedge)
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar

from goblin.core.endpoints import Endpoint
from goblin.core.errors import Fault, GoblinError, InvalidRequest, ProviderUnavailable, RateLimited, UnknownModel
from goblin.gateway.domain.catalog import Routing
from goblin.gateway.domain.chat import ChatChunk, Embeddings, Usage
from goblin.gateway.drains import Drain, Drains
from goblin.gateway.endpoint_stats import Live
from goblin.gateway.payments import Payment
from goblin.gateway.policy import retries
from goblin.gateway.policy.route import Choice
from goblin.gateway.steps import Step
from goblin.gateway.stream_usage import Tally
from goblin.gateway.upstream_attempt import Attempt

log = logging.getLogger(__name__)

T = TypeVar("T", ChatChunk, Embeddings)


class Silence(ProviderUnavailable):
    """It said nothing for as long as we were ready to wait."""


@dataclass(slots=True)
class Extras:
    """What this process may do beyond one attempt per request; shared by all requests."""

    retry: retries.Allowance = field(default_factory=lambda: retries.Allowance(share=0.2))
    hedge: retries.Allowance = field(default_factory=lambda: retries.Allowance(share=0.05))

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
class Spent:
    """What one attempt used up, whether or not the caller saw anything of it."""

    endpoint: Endpoint
    usage: Usage
    estimated: bool


@dataclass(slots=True)
class Underway(Generic[T]):
    """One endpoint at work on a request."""

    attempt: Attempt
    stream: AsyncGenerator[T, None]
    prompt_bytes: Callable[[], int]
    payment: Payment
    tally: Tally = field(default_factory=Tally)
    head: list[T] = field(default_factory=list)
    """What has come before it was chosen."""
    ended: bool = False
    """Nothing more will come."""
    silent: bool = False
    drain: Drain | None = None
    """Set where hanging up does not stop the bill: it reads on when we do not."""

    def spent(self) -> Spent | None:
        """What it has cost so far; None when it refused before it began."""
        tally = self.tally
        if tally.told is not None:
            return Spent(endpoint=self.attempt.endpoint, usage=tally.told, estimated=False)
        if tally.heard or self.silent or self.attempt.abandoned:
            # It took the request and nobody says what it did with it: the prompt was read at the least.
            usage = tally.estimate(self.prompt_bytes())
            return Spent(endpoint=self.attempt.endpoint, usage=usage, estimated=True)
        return None

    async def close(self, outcome: str = "left") -> None:
        """Let go of it, however far it is. A second time does nothing."""
        self.attempt.abandon(outcome)
        await self.stream.aclose()
        if self.drain is None:
            self.payment.leave(woke=self.spent() is not None)


@dataclass(frozen=True, kw_only=True, slots=True)
class Asking(Generic[T]):
    """What all attempts at one answer share."""

    model: str
    prompt_bytes: Callable[[], int]
    """Of what the model reads, in UTF-8."""
    pay: Callable[[Endpoint], Awaitable[Payment | None]]
    """Puts the worst case of an attempt aside before it is sent; None: there is no money for it."""
    why_unpaid: Callable[[], GoblinError | None]
    """What to say when nobody was asked for want of money; None when that was not the reason."""
    open_stream: Callable[[Endpoint, Any], AsyncGenerator[T, None]]
    """Sends a request, which the payment may have limited, to an endpoint."""
    starts: Callable[[T], bool]
    """Whether an item is the first thing a caller would notice."""
    whole: bool
    """Wait for the whole answer: while the caller has seen nothing, another endpoint can start over."""
    live: Live
    routing: Routing
    extras: Extras
    drains: Drains
    pause: Callable[[float], Awaitable[None]]
    dice: Callable[[], float]
    made: list[Underway[T]]
    """Every attempt of the request is added here, also when none answers."""

    async def begin(
        self, candidates: Sequence[Choice], *, last_resort: bool = False, hedge_after_s: float | None = None
    ) -> Underway[T]:
        """Ask until one has sent something the caller would notice.

        Args:
            candidates: Whom to ask, in order.
            last_resort: Ask them whatever their breakers say.
            hedge_after_s: How long the first may be silent before the second is asked beside it.

        Raises:
            InvalidRequest: an endpoint found fault with the request, and the others would too; or none can serve it.
            RateLimited, UnknownModel, ProviderUnavailable: nobody answered.
        """
        failures: list[tuple[Choice, ProviderUnavailable]] = []
        left = list(candidates)
        before = len(self.made)
        while left and len(self.made) - before < self.routing.attempts_max:
            choice = left.pop(0)
            force = last_resort or (not left and len(self.made) == before)
            underway = await self._start(choice, force=force)
            if underway is None:
                continue
            winner = await self._first_of(underway, choice, left, hedge_after_s, failures)
            if winner is not None:
                return winner
        return await self._again(failures, attempts_left=self.routing.attempts_max - (len(self.made) - before))

    async def _again(self, failures: list[tuple[Choice, ProviderUnavailable]], *, attempts_left: int) -> Underway[T]:
        """Everybody was asked: ask again who may be back soonest, or say why nobody answers."""
        everything = [error for _, error in failures]
        for number in range(attempts_left):
            again: tuple[float, Choice] | None = None
            for choice, error in failures:
                wait_s = retries.wait_before_retry(
                    error.fault,
                    silent=isinstance(error, Silence),
                    retry_after_s=error.retry_after_s,
                    retries=number,
                    dice=self.dice(),
                )
                if wait_s is not None and (again is None or wait_s < again[0]):
                    again = wait_s, choice
            if again is None or not self.extras.may_retry():
                break
            await self.pause(again[0])
            once_more = Choice(endpoint=again[1].endpoint, reason="asked again", forecast=again[1].forecast)
            underway = await self._start(once_more, force=True)
            if underway is None:
                break  # The money ran out meanwhile.
            failures = [pair for pair in failures if pair[0] is not again[1]]
            seen = len(failures)
            winner = await self._first_of(underway, again[1], [], None, failures)
            if winner is not None:
                return winner
            everything += [error for _, error in failures[seen:]]
        if not everything and (unpaid := self.why_unpaid()) is not None:
            raise unpaid
        raise nobody_answered(self.model, everything)

    async def _start(self, choice: Choice, *, force: bool) -> Underway[T] | None:
        payment = await self.pay(choice.endpoint)
        if payment is None:
            return None
        attempt = self.live.start(
            choice.endpoint, self.model, reason=choice.reason, force=force, forecast=choice.forecast
        )
        if attempt is None:
            await payment.settle(None)
            return None
        stream, tally = self.open_stream(choice.endpoint, payment.request), Tally()
        underway = Underway(attempt, stream, self.prompt_bytes, payment, tally)
        if not choice.endpoint.cancel_stops_bill:
            underway.drain = self.drains.over(stream, tally)
            underway.stream = underway.drain.follow()
        self.made.append(underway)
        return underway

    async def _first_of(
        self,
        underway: Underway[T],
        choice: Choice,
        left: list[Choice],
        hedge_after_s: float | None,
        failures: list[tuple[Choice, ProviderUnavailable]],
    ) -> Underway[T] | None:
        """The attempt, or the one that hedges it, once it has begun; None when neither does."""
        if hedge_after_s is None or not left:
            return await self._judged(underway, choice, failures, self._await_head(underway))
        waiting = {asyncio.create_task(self._await_first(underway)): (underway, choice)}
        ending = "left"
        try:
            done, _ = await asyncio.wait(waiting, timeout=hedge_after_s)
            if not done and self.extras.may_hedge():
                spare = left.pop(0)
                beside = Choice(endpoint=spare.endpoint, reason=f"hedge; {spare.reason}", forecast=spare.forecast)
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
        underway: Underway[T],
        choice: Choice,
        failures: list[tuple[Choice, ProviderUnavailable]],
        wait: Awaitable[None],
    ) -> Underway[T] | None:
        """Wait for it; a failure is noted, and whoever does not go on is closed."""
        going_on = False
        try:
            await wait
            going_on = True
        except ProviderUnavailable as error:
            underway.attempt.fail(error)
            failures.append((choice, error))
            log.warning("%s (attempt %d)", error.message, len(self.made))
            return None
        except GoblinError:
            # The endpoint is well; it read the request and found fault with it.
            underway.attempt.succeed()
            raise
        finally:
            if not going_on:
                await underway.close()
        return underway

    async def _await_head(self, underway: Underway[T]) -> None:
        await self._await_first(underway)
        await self._await_rest(underway)

    async def _await_first(self, underway: Underway[T]) -> None:
        """Read up to the first thing the caller would notice."""
        loop = asyncio.get_running_loop()
        deadline = loop.time() + self.routing.first_token_timeout_s
        while (item := await next_item(underway, deadline - loop.time())) is not None:
            underway.head.append(item)
            if self.starts(item):
                underway.attempt.first_token()
                return
        raise ProviderUnavailable(f"{underway.attempt.endpoint.name} sent an empty answer.")

    async def _await_rest(self, underway: Underway[T]) -> None:
        """Read on to the end, if nothing may be shown before."""
        while self.whole and (item := await next_item(underway, self.routing.between_tokens_timeout_s)) is not None:
            underway.head.append(item)


async def next_item(underway: Underway[T], timeout_s: float) -> T | None:
    """The next item; None, and `ended`, when there is none.

    Raises:
        ProviderUnavailable: it broke off, said nothing for `timeout_s` (`Silence`), or the time that it was paid for
            is over.
    """
    if underway.ended:
        return None
    if (left_s := underway.payment.left_s()) <= 0:
        raise _overtime(underway)
    scope: asyncio.Timeout | None = None
    try:
        step = Step(anext(underway.stream))
        if step.waits:  # Most of a burst does not, and a deadline costs more than reading an item.
            async with asyncio.timeout(min(timeout_s, left_s)) as scope:
                item = await step
        else:
            item = await step
    except StopAsyncIteration:
        underway.ended = True
        return None
    except TimeoutError as error:
        if scope is None or not scope.expired():
            raise
        underway.silent = True
        if left_s <= timeout_s:
            raise _overtime(underway) from error
        underway.attempt.timed_out()
        raise Silence(f"{underway.attempt.endpoint.name} fell silent.") from error
    underway.tally.add(item)
    return item


def _overtime(underway: Underway[Any]) -> ProviderUnavailable:
    name = underway.attempt.endpoint.name
    return ProviderUnavailable(f"{name} took longer than the {underway.payment.endpoint.request_s_max:g} s it may.")


async def _settled(task: asyncio.Task[None]) -> None:
    task.result()


def nobody_answered(model: str, failures: Sequence[ProviderUnavailable]) -> GoblinError:
    """What to tell the caller when the route is used up."""
    faults = {error.fault for error in failures}
    reasons = " ".join(dict.fromkeys(error.message for error in failures)) or "Every endpoint is paused."
    waits = [error.retry_after_s for error in failures if error.retry_after_s is not None]
    wait_s = min(waits) if waits else None
    if faults == {Fault.MISSING}:
        return UnknownModel(f"The model `{model}` is not there any more. {reasons}", param="model")
    if faults == {Fault.UNSUPPORTED}:
        return InvalidRequest(
            f"No endpoint of `{model}` can serve this request. {reasons}", code="unsupported_by_endpoints"
        )
    if faults == {Fault.RATE}:
        return RateLimited(f"Every endpoint of `{model}` is at its limit. {reasons}", retry_after_s=wait_s)
    return ProviderUnavailable(f"No endpoint of `{model}` answered. {reasons}", retry_after_s=wait_s)
