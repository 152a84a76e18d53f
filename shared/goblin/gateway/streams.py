"""One answer as its caller sees it, even if several endpoints wrote it.

a: "The cap"  ──breaks off──▶  b continues "The cap"  ──▶  "ital is Rome."  ──▶  usage
                                └─ no endpoint can, or it would not be sound ──▶  `StreamCut`
"""

from __future__ import annotations

import logging
from collections.abc import AsyncGenerator, Callable
from typing import Any

from msgspec import UNSET
from msgspec.structs import replace

from goblin.core.endpoints import Endpoint
from goblin.core.errors import GoblinError, ProviderUnavailable, StreamCut
from goblin.gateway.domain.chat import ChatChunk, ChunkChoice, Usage
from goblin.gateway.domain.requests import choices_of
from goblin.gateway.failover import ActiveAttempt, EndpointSilent, Failover, next_item
from goblin.gateway.policy import continuation
from goblin.gateway.policy.continuation import AnyRequest
from goblin.gateway.policy.route import Route, RouteChoice

log = logging.getLogger(__name__)

CONTINUATIONS_MAX = 3


class AnswerStream:
    """The chunks of one answer under one id, with the endpoint that writes it now."""

    def __init__(
        self,
        request: AnyRequest,
        route: Route,
        active: ActiveAttempt[ChatChunk],
        ask: Callable[[AnyRequest], Failover[ChatChunk]],
        *,
        answer_id: str,
        created: int,
    ) -> None:
        self._request = request
        self._route = route
        self._active = active
        self._ask = ask
        self._failover = ask(request)
        self._id = answer_id
        self._created = created
        self._before = ""
        """Text from the endpoints that broke off."""
        self._tokens_before = 0
        self._held = ""
        self._seam: continuation.Seam | None = None
        self._continuations = 0
        self.outcome = "left"
        """`left` while it runs or if the caller left, `ok` once all of it was passed on, `cut` once it broke off."""

    @property
    def active(self) -> ActiveAttempt[ChatChunk]:
        """The attempt that writes now, or wrote last."""
        return self._active

    @property
    def text(self) -> str | None:
        """The whole text so far; None if the answer has anything but text."""
        return self._before + self._written() if self._active.stream_usage.plain else None

    @property
    def unbroken(self) -> bool:
        """Whether one endpoint wrote all of it."""
        return self._continuations == 0

    async def chunks(self) -> AsyncGenerator[ChatChunk, None]:
        """Stream the answer. The last chunk has the usage and no choices; an answer that was cut has no such chunk.

        Raises:
            StreamCut: The answer broke off, and no endpoint can continue it.
        """
        timeout_s = self._failover.routing.between_tokens_timeout_s
        while True:
            here = self._active
            several = here.fan_out is not None
            try:
                for item in here.head:
                    if item.choices and (ours := self._ours(item)) is not None:
                        yield ours
                while (
                    more := await next_item(here, self._failover.silence_s_max(here) if several else timeout_s)
                ) is not None:
                    if more.choices and (ours := self._ours(more)) is not None:
                        yield ours
                break
            except ProviderUnavailable as error:
                await self._go_on(error)
        tokens = here.stream_usage.counted(self._request.prompt_bytes)[0].completion_tokens
        # Several answers side by side say nothing of how long one is, or how quickly it comes.
        here.attempt.succeed(output_tokens=tokens if choices_of(self._request) == 1 else None)
        self.outcome = "ok"
        yield ChatChunk(
            id=self._id, created=self._created, model=self._request.model, choices=(), usage=self.usage()[0]
        )

    def usage(self) -> tuple[Usage, bool]:
        """Count the caller's tokens, and say whether the count is an estimate of ours.

        A continuation gets the text written so far as a part of its prompt; for the caller it is a part of the answer.
        """
        stream_usage = self._active.stream_usage
        used, estimated = stream_usage.counted(self._request.prompt_bytes)
        if not self._tokens_before:
            return used, estimated
        # An estimate of the prompt is of the caller's own, without what was written before.
        told = stream_usage.told
        before = self._tokens_before if told is not None and told.prompt_tokens else 0
        return _usage(max(used.prompt_tokens - before, 1), self._tokens_before + used.completion_tokens), True

    def _ours(self, item: ChatChunk) -> ChatChunk | None:
        """Put our id and model on a provider's chunk; None when nothing in it is new."""
        choices = item.choices if self._seam is None else self._trimmed(item.choices, self._seam)
        if not choices:
            return None
        return ChatChunk(
            id=self._id,
            created=self._created,
            model=self._request.model,
            choices=choices,
            system_fingerprint=item.system_fingerprint,
        )

    def _trimmed(self, choices: tuple[ChunkChoice, ...], seam: continuation.Seam) -> tuple[ChunkChoice, ...]:
        """Remove the repeated role, and the white space that the caller already has."""
        kept = []
        for choice in choices:
            changes: dict[str, Any] = {"role": UNSET, "event": UNSET}
            if choice.delta.content and not seam.closed:
                changes["content"] = seam.trim(choice.delta.content)
            delta = replace(choice.delta, **changes)
            if choice.finish_reason or delta.says_something:
                kept.append(replace(choice, delta=delta))
        return tuple(kept)

    def _written(self) -> str:
        """Return the text that the present endpoint has added to the answer."""
        return continuation.Seam(self._held).trim(self._active.stream_usage.text)

    async def _go_on(self, error: ProviderUnavailable) -> None:
        """Continue the answer at another endpoint. Raises `StreamCut`."""
        here = self._active
        here.attempt.fail(error, cut=True)
        await here.stream.aclose()
        candidates = self._who_can(here, error)
        if (why := self._why_not(here, candidates)) is not None:
            log.warning("Answer of model %s was cut: %s", self._request.model, why)
            self.outcome = "cut"
            raise StreamCut(f"The answer broke off. {error.message}", fault=error.fault) from error
        before = self._before + self._written()
        tokens_before = self._tokens_before + here.stream_usage.completion_tokens()
        kept, held = continuation.seam(before)
        rest = continuation.continued(self._request, kept, tokens_written=tokens_before)
        try:
            self._active = await self._ask(rest).begin(candidates)
        except GoblinError as failure:
            self.outcome = "cut"
            raise StreamCut(f"The answer broke off. {error.message} {failure.message}", fault=error.fault) from failure
        self._before, self._tokens_before = before, tokens_before
        self._held, self._seam = held, continuation.Seam(held)
        self._continuations += 1

    def _why_not(self, here: ActiveAttempt[ChatChunk], candidates: list[RouteChoice]) -> str | None:
        if not here.stream_usage.plain:
            return "the answer so far has more than text"
        if (why := continuation.why_not(self._request)) is not None:
            return why
        if self._continuations >= CONTINUATIONS_MAX:
            return "it was continued too often already"
        return None if candidates else "no other endpoint continues answers"

    def _who_can(self, here: ActiveAttempt[ChatChunk], error: ProviderUnavailable) -> list[RouteChoice]:
        """List untried endpoints in the order of the route, then the one that broke off, unless it fell silent."""
        need = continuation.needed(self._request)

        def able(endpoint: Endpoint) -> bool:
            return need in endpoint.capabilities and need not in endpoint.lacks

        tried = {active.attempt.endpoint.name for active in self._failover.attempts}
        fresh = [c for c in self._route.candidates if c.endpoint.name not in tried and able(c.endpoint)]
        back = here.attempt.endpoint
        if able(back) and not isinstance(error, EndpointSilent):
            fresh.append(RouteChoice(endpoint=back, reason="it broke off"))
        return [RouteChoice(endpoint=c.endpoint, reason=f"continues the answer; {c.reason}") for c in fresh]


def _usage(asked: int, answered: int) -> Usage:
    return Usage(prompt_tokens=asked, completion_tokens=answered, total_tokens=asked + answered)
