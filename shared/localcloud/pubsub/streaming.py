"""StreamingPull: send messages while the client holds fewer than its flow control limit.

One task reads the client's acknowledgements and deadlines, another writes messages; either may end the call.
"""

import asyncio
from collections.abc import Callable
from typing import Any, Protocol

from localcloud.pubsub import names
from localcloud.pubsub.backlog import ANSWER_BYTES_MAX, Backlog
from localcloud.pubsub.errors import invalid
from localcloud.pubsub.queue import Holder
from localcloud.pubsub.subscriber import check_deadline, refuse_push
from localcloud.pubsub.subscriptions import ACK_DEADLINE_S_MAX, ACK_DEADLINE_S_MIN
from localcloud.pubsub.wire import Raw, raw

BATCH_MESSAGES_MAX = 100
"""Messages in one answer, so that several streams of a subscription share its messages."""
UNLIMITED = 1 << 62


class Call(Protocol):
    """The server's side of one stream: a `grpc.aio.ServicerContext`."""

    async def read(self) -> Any:
        """Return the next request, or `grpc.aio.EOF`."""

    async def write(self, message: Any) -> None:
        """Send one answer; waits while the client is slow to read."""


class Stream:
    """One client's stream on one subscription."""

    def __init__(self, backlog: Backlog, first: Raw) -> None:
        """Open with the client's first request.

        Args:
            backlog: The subscription that the request names.
            first: The first request, with the deadline and the flow control limits; 0 or less means no limit.
        """
        refuse_push(backlog)
        self._messages_max = first.max_outstanding_messages if first.max_outstanding_messages > 0 else UNLIMITED
        self._bytes_max = first.max_outstanding_bytes if first.max_outstanding_bytes > 0 else UNLIMITED
        self._backlog = backlog
        self._holder = Holder()
        self._bell = asyncio.Event()
        self._deadline_s = 0
        self._set_deadline(first.stream_ack_deadline_seconds, required=True)

    async def serve(self, first: Raw, call: Call, eof: Any) -> None:
        """Deliver until the client hangs up or the subscription ends."""
        self._obey(first, first=True)
        self._backlog.listen(self._bell)
        tasks = [asyncio.create_task(self._listen(call, eof)), asyncio.create_task(self._deliver(call))]
        try:
            await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        finally:
            self._backlog.unlisten(self._bell)
            for task in tasks:
                task.cancel()
            outcomes = await asyncio.gather(*tasks, return_exceptions=True)
        for outcome in outcomes:
            if isinstance(outcome, Exception):
                raise outcome

    async def _listen(self, call: Call, eof: Any) -> None:
        while (request := await call.read()) is not eof:
            self._obey(request)

    async def _deliver(self, call: Call) -> None:
        properties = raw("StreamingPullResponse").SubscriptionProperties
        while True:
            self._bell.clear()
            refuse_push(self._backlog)
            messages = min(self._messages_max - self._holder.messages, BATCH_MESSAGES_MAX)
            size = self._bytes_max - self._holder.bytes
            received = []
            if messages > 0 and size > 0:
                received = self._backlog.take(
                    limit=messages,
                    bytes_max=min(size, ANSWER_BYTES_MAX),
                    deadline_s=self._deadline_s,
                    holder=self._holder,
                )
            elif self._backlog.over is not None:
                raise self._backlog.over
            if not received:
                await self._bell.wait()
                continue
            resource = self._backlog.resource
            with_attempt = self._backlog.shows_attempts
            await call.write(
                raw("StreamingPullResponse")(
                    received_messages=[one.wire(with_attempt=with_attempt) for one in received],
                    subscription_properties=properties(
                        exactly_once_delivery_enabled=resource.enable_exactly_once_delivery,
                        message_ordering_enabled=resource.enable_message_ordering,
                    ),
                )
            )

    def _obey(self, request: Raw, *, first: bool = False) -> None:
        """Apply the acknowledgements and deadlines of a request."""
        if request.subscription and not first:
            raise invalid("Only the first request of a stream names the subscription.")
        if (request.max_outstanding_messages or request.max_outstanding_bytes) and not first:
            raise invalid("Only the first request of a stream sets its flow control.")
        if len(request.modify_deadline_seconds) != len(request.modify_deadline_ack_ids):
            raise invalid("modify_deadline_seconds and modify_deadline_ack_ids must have the same length.")
        if not first:
            self._set_deadline(request.stream_ack_deadline_seconds, required=False)
        if request.ack_ids:
            self._backlog.acknowledge(request.ack_ids)
        for ack_id, seconds in zip(request.modify_deadline_ack_ids, request.modify_deadline_seconds, strict=True):
            check_deadline(seconds)
            self._backlog.modify_deadline([ack_id], seconds)

    def _set_deadline(self, seconds: int, *, required: bool) -> None:
        if not seconds and not required:
            return
        if not ACK_DEADLINE_S_MIN <= seconds <= ACK_DEADLINE_S_MAX:
            raise invalid(
                f"stream_ack_deadline_seconds must be between {ACK_DEADLINE_S_MIN} and "
                f"{ACK_DEADLINE_S_MAX}, not {seconds}."
            )
        self._deadline_s = seconds


async def serve_stream(find: Callable[[str], Backlog], call: Call, eof: Any) -> None:
    """Answer one StreamingPull call."""
    first = await call.read()
    if first is eof:
        return
    names.check_name("subscriptions", first.subscription)
    await Stream(find(first.subscription), first).serve(first, call, eof)
