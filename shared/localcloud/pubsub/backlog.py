"""One subscription's unacknowledged messages: the queue in memory, the journal on disk, and the waiting readers."""

import asyncio
import logging
from collections.abc import Callable, Iterable, Iterator, Sequence

from localcloud.pubsub.chaos import CALM, Duplicate, Fate
from localcloud.pubsub.deliveries import TWIN, AckId, Received
from localcloud.pubsub.errors import Refused
from localcloud.pubsub.filters import parse_filter
from localcloud.pubsub.journal import Delivery, Journal
from localcloud.pubsub.queue import Entry, Holder, Policy, Queue, duplicates
from localcloud.pubsub.wire import MICROS, PubsubMessage, Raw, duration_us

log = logging.getLogger(__name__)

WINDOW = 1000
"""Entries read from disk at a time. The queue holds more only while leases or ordering keys block these."""
ANSWER_BYTES_MAX = 3 << 20
"""Bytes in the answer to one pull: the Python client accepts gRPC's default of 4 MiB when it talks to an emulator."""
PUSH_BACKOFF_US_MIN = MICROS // 10
PUSH_BACKOFF_US_MAX = 60 * MICROS
"""Pause between push attempts without a retry policy: 100 ms to 60 s, as production documents."""


class Backlog:
    """The deliveries of one subscription: it leases messages, acknowledges them, and redelivers after the deadline."""

    def __init__(
        self,
        *,
        number: int,
        epoch: int,
        topic: int,
        resource: Raw,
        journal: Journal,
        now_us: Callable[[], int],
        bury: Callable[["Backlog", Raw, int], bool],
        keeps_bodies: Callable[[int], bool],
        fates: Iterator[Fate] | None,
    ) -> None:
        """Start with what the journal holds.

        Args:
            number: The subscription's id on disk.
            epoch: How often the subscription was sought; a seek voids all older ack ids.
            topic: The topic's id on disk.
            resource: The `Subscription` message.
            journal: The storage on disk.
            now_us: Microseconds since 1970.
            bury: Publishes (subscription, message, attempts) as a dead letter. False when the topic does not exist.
            keeps_bodies: Whether a topic retains messages that all subscriptions have acknowledged.
            fates: Injected faults, one for each message; None injects none.
        """
        self.number = number
        self.epoch = epoch
        self.topic = topic
        self.resource = resource
        self.matches = parse_filter(resource.filter)
        self.over: Refused | None = None
        """The error that every call answers once the subscription is deleted or detached; None before."""
        self._journal = journal
        self._now_us = now_us
        self._bury = bury
        self._keeps_bodies = keeps_bodies
        self._fates = fates
        self._queue = Queue(policy_of(resource))
        self._read_to = 0
        """The newest message that was read from disk into the queue."""
        self._more_on_disk = True
        self._listeners: set[asyncio.Event] = set()
        self._timer: asyncio.TimerHandle | None = None

    @property
    def name(self) -> str:
        """The subscription's full name."""
        return str(self.resource.name)

    @property
    def push_endpoint(self) -> str:
        """The URL that messages are pushed to; empty for a pull subscription."""
        return str(self.resource.push_config.push_endpoint)

    @property
    def shows_attempts(self) -> bool:
        """Whether answers carry the delivery attempt: only with a dead letter policy, as in production."""
        return bool(self.resource.HasField("dead_letter_policy"))

    # Waiting.

    def listen(self, bell: asyncio.Event) -> None:
        """Set an event whenever a message may have become deliverable or a lease has ended."""
        self._listeners.add(bell)
        bell.set()

    def unlisten(self, bell: asyncio.Event) -> None:
        """Stop setting an event that was passed to `listen`."""
        self._listeners.discard(bell)

    def ring(self) -> None:
        """Wake all readers that wait for a message."""
        for bell in self._listeners:
            bell.set()

    def wake(self) -> None:
        """End the leases and pauses that are due, dead-letter exhausted messages, and set the next timer."""
        self._expire()
        self.ring()
        self._set_timer()

    def resume(self) -> None:
        """Read the first messages after a start, and do what became due while the server was down."""
        if self.over is None:
            self._read_more()
            self.wake()

    def end(self, reason: Refused) -> None:
        """Stop delivering for good."""
        self.over = reason
        self._queue.clear()
        self._more_on_disk = False
        if self._timer is not None:
            self._timer.cancel()
        self.ring()

    def reconfigured(self) -> None:
        """Apply a changed `Subscription` resource."""
        self._queue.policy = policy_of(self.resource)
        self.wake()

    # Incoming messages.

    def debt(self, message_id: int, message: Raw, size: int) -> Delivery | None:
        """Return the delivery that a published message needs here, or None when the filter does not match."""
        if self.over is not None or not self.matches(message.attributes):
            return None
        return Delivery(message_id, size, self.key_of(message.ordering_key))

    def key_of(self, ordering_key: str) -> str:
        """Return the ordering key, or an empty string when the subscription does not order messages."""
        return ordering_key if self.resource.enable_message_ordering else ""

    def arrived(self, deliveries: Sequence[Delivery]) -> None:
        """Queue deliveries that the journal now holds; beyond the window they stay on disk."""
        if not self._more_on_disk and len(self._queue.entries) < WINDOW:
            self._admit(deliveries)
        else:
            self._more_on_disk = True
        self.ring()

    def restart(self) -> None:
        """Clear the queue and read the journal again, after a seek."""
        self.epoch += 1
        self._queue.clear()
        self._read_to = 0
        self._more_on_disk = True
        self.wake()

    def forget_before(self, message_id: int) -> bool:
        """Drop deliveries of messages older than the retention. Returns whether there were any."""
        if not self._journal.forget_before(self.number, message_id):
            return False
        for old in [one for one in self._queue.entries if one < message_id]:
            self._queue.remove(old, self._now_us())
        return True

    # Outgoing messages.

    def take(
        self,
        *,
        limit: int,
        deadline_s: float,
        holder: Holder | None = None,
        bytes_max: int = ANSWER_BYTES_MAX,
        run_max: int = WINDOW,
    ) -> list[Received]:
        """Lease the next messages; see `Queue.take`. The list is empty when no message may be delivered now."""
        if self.over is not None:
            raise self.over
        now_us = self._now_us()
        deadline_us = now_us + round(deadline_s * MICROS)
        self._expire()
        taken: list[Entry] = []
        size = 0
        while True:
            more = self._queue.take(
                limit=limit - len(taken),
                bytes_max=bytes_max - size,
                now_us=now_us,
                deadline_us=deadline_us,
                holder=holder,
                run_max=run_max,
                force_one=not taken,
            )
            taken += more
            size += sum(entry.size for entry in more)
            if len(taken) >= limit or self._queue.has_ready or not self._read_more():
                break
        if not taken:
            return []
        self._journal.count_attempts(self.number, [entry.message_id for entry in taken])
        self._set_timer()
        return self._with_bodies(taken)

    def acknowledge(self, ack_ids: Iterable[str]) -> dict[str, str]:
        """Store acknowledgements durably.

        Late ones count too, unless the subscription delivers exactly once. Returns ack id → reason for the ack ids
        that did not count.
        """
        done: list[int] = []
        failed: dict[str, str] = {}
        lost: list[Entry] = []
        self._expire()
        for text in ack_ids:
            ack = self._parse(text, failed)
            if ack is None:
                continue
            entry = self._queue.lease_of(ack.message_id, ack.attempt)
            if entry is not None and duplicates(entry, Duplicate.LOST_ACK):
                lost += self._queue.nack(entry, self._now_us())
            elif entry is None and self.resource.enable_exactly_once_delivery:
                failed[text] = "PERMANENT_FAILURE_INVALID_ACK_ID"
            else:
                done.append(ack.message_id)
        self._settle(done)
        self._after_return(lost)
        self.ring()
        self._set_timer()
        return failed

    def modify_deadline(self, ack_ids: Iterable[str], seconds: int) -> dict[str, str]:
        """Extend leases, or return messages to the queue with 0 seconds. Returns failures like `acknowledge`."""
        failed: dict[str, str] = {}
        returned: list[Entry] = []
        now_us = self._now_us()
        self._expire()
        for text in ack_ids:
            ack = self._parse(text, failed)
            if ack is None:
                continue
            entry = self._queue.lease_of(ack.message_id, ack.attempt)
            if entry is None:
                if self.resource.enable_exactly_once_delivery:
                    failed[text] = "PERMANENT_FAILURE_INVALID_ACK_ID"
            elif seconds:
                self._queue.extend(entry, now_us + seconds * MICROS)
            else:
                returned += self._queue.nack(entry, now_us)
        if returned:
            self._after_return(returned)
            self.ring()
        self._set_timer()
        return failed

    def _expire(self) -> None:
        """End the leases and pauses that are due, without waiting for the timer."""
        self._after_return(self._queue.expire(self._now_us()))

    def _parse(self, text: str, failed: dict[str, str]) -> AckId | None:
        """Return the delivery that an ack id names, or None when a seek or a recreated subscription made it void."""
        ack = AckId.parse(text)
        if ack.subscription == self.number and ack.epoch == self.epoch:
            return ack
        if self.resource.enable_exactly_once_delivery:
            failed[text] = "PERMANENT_FAILURE_INVALID_ACK_ID"
        return None

    def _settle(self, messages: Sequence[int]) -> None:
        if not messages:
            return
        self._journal.acknowledge(
            self.number,
            messages,
            retain=bool(self.resource.retain_acked_messages),
            keep_bodies=self._keeps_bodies(self.topic),
        )
        now_us = self._now_us()
        for message_id in messages:
            self._queue.remove(message_id, now_us)

    def _after_return(self, returned: Sequence[Entry]) -> None:
        """Store the pauses of returned messages, and dead-letter the exhausted ones."""
        paused = [(one.message_id, one.available_at_us) for one in returned if one.available_at_us]
        if paused and self._queue.policy.backoff_us_max:
            self._journal.delay(self.number, paused)
        exhausted, self._queue.exhausted = self._queue.exhausted, []
        for entry in exhausted:
            body = self._journal.bodies([entry.message_id]).get(entry.message_id)
            with self._journal.store.transaction():
                buried = body is None or self._bury(self, PubsubMessage.FromString(body), entry.attempts)
                if buried:
                    self._settle([entry.message_id])
            if not buried:
                self._queue.readmit(entry, self._now_us())

    def _admit(self, deliveries: Iterable[Delivery]) -> None:
        now_us = self._now_us()
        for one in deliveries:
            fate = self._next_fate()
            if one.key:
                fate = Fate(fate.duplicate)
            self._queue.add(Entry(one.message_id, one.size, one.key, one.attempts, one.available_at_us, fate), now_us)
            self._read_to = one.message_id
        self._after_return(())

    def _next_fate(self) -> Fate:
        """Return the next injected fault; subscriptions with exactly-once delivery get none."""
        if self._fates is None or self.resource.enable_exactly_once_delivery:
            return CALM
        return next(self._fates)

    def _read_more(self) -> bool:
        """Read the next window from disk. False when there is nothing left to read."""
        if not self._more_on_disk:
            return False
        some = self._journal.waiting(self.number, after=self._read_to, limit=WINDOW)
        self._more_on_disk = len(some) == WINDOW
        self._admit(some)
        return bool(some)

    def _with_bodies(self, taken: Sequence[Entry]) -> list[Received]:
        bodies = self._journal.bodies([entry.message_id for entry in taken])
        received = []
        for entry in taken:
            body = bodies.get(entry.message_id)
            if body is None:
                log.error("Subscription %s: message %d is missing on disk and is dropped.", self.name, entry.message_id)
                self._queue.remove(entry.message_id, self._now_us())
                continue
            message = PubsubMessage.FromString(body)
            ack_id = AckId(self.number, self.epoch, entry.message_id, entry.attempts).text()
            received.append(Received(ack_id, message, entry.attempts))
            if duplicates(entry, Duplicate.TWIN):
                received.append(Received(ack_id + TWIN, message, entry.attempts))
        return received

    def _set_timer(self) -> None:
        """Schedule `wake` for the end of the next lease or pause."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        next_us = self._queue.next_wake_us()
        if next_us is None or self.over is not None:
            return
        pause_s = max(0, next_us - self._now_us()) / MICROS
        self._timer = asyncio.get_running_loop().call_later(pause_s, self.wake)


def policy_of(resource: Raw) -> Policy:
    """Return the redelivery policy of a subscription."""
    attempts_max = None
    if resource.HasField("dead_letter_policy"):
        attempts_max = resource.dead_letter_policy.max_delivery_attempts
    if resource.HasField("retry_policy"):
        retry = resource.retry_policy
        least, most = duration_us(retry.minimum_backoff), duration_us(retry.maximum_backoff)
    elif resource.push_config.push_endpoint:
        least, most = PUSH_BACKOFF_US_MIN, PUSH_BACKOFF_US_MAX
    else:
        least = most = 0
    return Policy(backoff_us_min=least, backoff_us_max=most, attempts_max=attempts_max)
