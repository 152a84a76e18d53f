"""Fan-out: several requests to one endpoint as one answer, where the endpoint cannot make several answers in one.

It is one upstream attempt: reserved, recorded and cancelled as a whole. Where one request fails, all of it does.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable, Iterator, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field
from typing import NamedTuple

from msgspec import UNSET
from msgspec.structs import replace

from goblin.core.errors import ProviderUnavailable
from goblin.gateway.domain.chat import ChatChunk, Usage
from goblin.gateway.policy import attachments
from goblin.gateway.policy.fan_out import AnyRequest, Part, added_usage, told_usage
from goblin.gateway.stream_usage import StreamUsage

AHEAD_MAX = 64
"""Chunks that are read before the caller takes them."""


@dataclass(eq=False, slots=True)
class _Sending:
    """One of the requests, as far as it is."""

    part: Part
    stream_usage: StreamUsage = field(default_factory=lambda: StreamUsage(keeps_text=False))
    sent: bool = False
    answers: bool = False
    """Whether anything came that the caller would notice."""
    refused: bool = False
    """Whether it failed before anything came, so that it cost nothing."""

    def counted(self) -> tuple[Usage, bool]:
        """Count its usage, and say whether any of it is an estimate of ours."""
        return self.stream_usage.counted(lambda: attachments.prompt_bytes(self.part.request))


class _End(NamedTuple):
    """The end of one sender, with its error if it failed."""

    error: Exception | None


class UsageSum(NamedTuple):
    """What all requests used so far, and whether any of it is an estimate of ours."""

    usage: Usage
    estimated: bool


class FanOut:
    """The requests of one upstream attempt, and their chunks in one stream."""

    def __init__(
        self,
        parts: Sequence[Part],
        send: Callable[[AnyRequest], AsyncGenerator[ChatChunk, None]],
        *,
        parallel: int,
        name: str,
    ) -> None:
        """Prepare it; nothing is sent before the stream is read.

        Args:
            parts: The requests.
            send: Sends one of them.
            parallel: How many are in flight at once.
            name: The endpoint's name, for errors.
        """
        self._sendings = [_Sending(part) for part in parts]
        self._waiting: Iterator[_Sending] = iter(self._sendings)
        self._send = send
        self._name = name
        self._queue: asyncio.Queue[ChatChunk | _End] = asyncio.Queue(AHEAD_MAX)
        self.width = min(max(parallel, 1), len(parts))
        """How many requests are in flight at once."""

    @property
    def starting(self) -> bool:
        """Whether a request was sent that has not begun to answer."""
        return any(one.sent and not one.answers for one in self._sendings)

    def stop(self) -> None:
        """Send no further request; those in flight go on. A second call does nothing."""
        self._waiting = iter(())

    def spent(self) -> UsageSum | None:
        """Add up what was used so far; None when the endpoint refused everything."""
        used = [one.counted() for one in self._sendings if one.sent and not one.refused]
        if not used:
            return None
        return UsageSum(added_usage([usage for usage, _ in used]), any(estimated for _, estimated in used))

    async def stream(self) -> AsyncGenerator[ChatChunk, None]:
        """Stream the chunks of all requests with the caller's indexes, then the usage if all told it.

        Raises:
            GoblinError: As the first request that failed; the others are cancelled.
        """
        senders = [asyncio.create_task(self._work()) for _ in range(self.width)]
        try:
            going = len(senders)
            while going:
                item = await self._queue.get()
                if not isinstance(item, _End):
                    yield item
                elif item.error is not None:
                    raise item.error
                else:
                    going -= 1
            counted = {one.part: one.counted() for one in self._sendings}
            if not any(estimated for _, estimated in counted.values()):
                yield ChatChunk(usage=told_usage({part: usage for part, (usage, _) in counted.items()}))
        finally:
            self.stop()
            for sender in senders:
                sender.cancel()
            await asyncio.gather(*senders, return_exceptions=True)

    async def _work(self) -> None:
        """Send one request after another until none is left."""
        error: Exception | None = None
        try:
            # Not a `for` loop: `stop` replaces the iterator.
            while (sending := next(self._waiting, None)) is not None:
                await self._forward(sending)
        except Exception as found:  # noqa: BLE001  Raised again to the reader.
            error = found
        await self._queue.put(_End(error))

    async def _forward(self, sending: _Sending) -> None:
        sending.sent = True
        try:
            async with aclosing(self._send(sending.part.request)) as chunks:
                async for chunk in chunks:
                    sending.stream_usage.add(chunk)
                    if ours := self._ours(sending, chunk):
                        await self._queue.put(ours)
        except Exception:
            sending.refused = not sending.stream_usage.heard
            raise
        if not sending.answers:
            raise ProviderUnavailable(f"Endpoint {self._name} sent an empty answer.")

    def _ours(self, sending: _Sending, chunk: ChatChunk) -> ChatChunk | None:
        """Give the choices of a chunk the caller's indexes; None when it has none."""
        part = sending.part
        choices = tuple(
            replace(choice, index=part.first_index + choice.index)
            for choice in chunk.choices
            if 0 <= choice.index < part.choices
        )
        if not choices:
            return None
        ours = replace(chunk, choices=choices, usage=UNSET)
        sending.answers = sending.answers or ours.starts_answer
        return ours
