"""The one engine behind every inference route: try the endpoints of a route until one of them answers."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncGenerator, Callable
from dataclasses import dataclass, field
from typing import Generic, TypeVar

from goblin.domain.models import Endpoint, Routing
from goblin.errors import Fault, GoblinError, InvalidRequest, ProviderUnavailable, RateLimited, UnknownModel
from goblin.policy.routing import Route
from goblin.services.live import Attempt, Live

log = logging.getLogger(__name__)

T = TypeVar("T")


@dataclass(slots=True)
class Underway(Generic[T]):
    """An answer that has begun: nobody else will be asked."""

    attempt: Attempt
    stream: AsyncGenerator[T, None]
    head: list[T] = field(default_factory=list)
    """What has come so far, and was not passed on yet."""
    ended: bool = False
    """The head is all of it."""


async def begin(
    route: Route,
    model: str,
    open_stream: Callable[[Endpoint], AsyncGenerator[T, None]],
    *,
    starts: Callable[[T], bool],
    whole: bool,
    live: Live,
    routing: Routing,
    attempts: list[Attempt],
) -> Underway[T]:
    """Try the candidates in order until one has sent something the caller would notice.

    Args:
        route: Whom to try.
        model: The model's name at the endpoints.
        open_stream: Starts a request at one endpoint.
        starts: Whether an item is the first thing a caller would notice.
        whole: Wait for the whole answer: while the caller has seen nothing, another endpoint can start over.
        live: Where attempts are counted.
        routing: How many attempts, and how long to wait.
        attempts: Every attempt made is added here, also when this raises.

    Raises:
        InvalidRequest: an endpoint found fault with the request, and the others would too; or none can serve it.
        RateLimited, UnknownModel, ProviderUnavailable: nobody answered.
    """
    failures: list[ProviderUnavailable] = []
    candidates = route.candidates[: routing.attempts_max]
    for number, choice in enumerate(candidates, start=1):
        force = route.last_resort or (number == len(candidates) and not attempts)
        attempt = live.start(choice.endpoint, model, reason=choice.reason, force=force)
        if attempt is None:
            continue
        attempts.append(attempt)
        underway = Underway(attempt, open_stream(choice.endpoint))
        try:
            await _await_head(underway, starts, whole=whole, routing=routing)
        except ProviderUnavailable as error:
            attempt.fail(error)
            failures.append(error)
            log.warning("%s (%d of %d)", error.message, number, len(candidates))
        except GoblinError:
            # The endpoint is well; it read the request and found fault with it.
            attempt.succeed()
            raise
        else:
            return underway
        finally:
            if not underway.head:
                attempt.abandon()
                await underway.stream.aclose()
    raise nobody_answered(model, failures)


async def follow(underway: Underway[T], routing: Routing) -> AsyncGenerator[T, None]:
    """The whole answer, head included. Raises `ProviderUnavailable` where it breaks off."""
    for item in underway.head:
        yield item
    while not underway.ended:
        item_or_end = await _next(underway, routing.between_tokens_timeout_s)
        if item_or_end is not None:
            yield item_or_end


async def _await_head(underway: Underway[T], starts: Callable[[T], bool], *, whole: bool, routing: Routing) -> None:
    """Read up to the first token, or to the end."""
    head: list[T] = []
    begun = False
    loop = asyncio.get_running_loop()
    deadline = loop.time() + routing.first_token_timeout_s
    while not underway.ended and (whole or not begun):
        timeout_s = routing.between_tokens_timeout_s if begun else deadline - loop.time()
        item = await _next(underway, timeout_s)
        if item is None:
            continue
        head.append(item)
        if not begun and starts(item):
            begun = True
            underway.attempt.first_token()
    if not begun:
        raise ProviderUnavailable(f"{underway.attempt.endpoint.name} sent an empty answer.")
    underway.head = head


async def _next(underway: Underway[T], timeout_s: float) -> T | None:
    """The next item; None, and `ended`, when there is none. Silence beyond the timeout is a failure."""
    scope = asyncio.timeout(timeout_s)
    try:
        async with scope:
            return await anext(underway.stream)
    except StopAsyncIteration:
        underway.ended = True
        return None
    except TimeoutError as error:
        if not scope.expired():
            raise
        underway.attempt.timed_out()
        raise ProviderUnavailable(f"{underway.attempt.endpoint.name} fell silent.") from error


def nobody_answered(model: str, failures: list[ProviderUnavailable]) -> GoblinError:
    """What to tell the caller when the route is used up."""
    faults = {error.fault for error in failures}
    reasons = " ".join(error.message for error in failures) or "Every endpoint is paused."
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
