"""Delivery states of one subscription's messages: a state machine without clock, disk or network.

    add ──▶ ready ──take──▶ leased ──ack──▶ (gone)
              ▲               │
              │◀──no backoff──┤ nack, or the deadline passed
              │               │
            delayed ◀─backoff─┤
                              └──deliveries used up──▶ exhausted ──▶ dead letter

Messages of one ordering key are in a `Line`. Its first messages may be leased together, as a run. Nothing more
of the key is delivered until the whole run is acknowledged; when one of the run comes back, those after it
come back too.
"""

import heapq
from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass, field

from localcloud.pubsub.chaos import CALM, Duplicate, Fate


@dataclass(slots=True)
class Holder:
    """The holder of leases, for example a stream; counts them for flow control."""

    messages: int = 0
    bytes: int = 0


@dataclass(slots=True, eq=False)
class Entry:
    """One unacknowledged message of one subscription; its body stays on disk."""

    message_id: int
    size: int
    """Size of the message in bytes."""
    key: str = ""
    """The ordering key; empty when order does not matter."""
    attempts: int = 0
    """Deliveries so far."""
    available_at_us: int = 0
    fate: Fate = CALM
    leased: bool = False
    deadline_us: int = 0
    holder: Holder | None = None
    gone: bool = False
    """Whether the message was acknowledged while it waited; the next reader of the queue drops it."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Policy:
    """How a message is redelivered."""

    backoff_us_min: int = 0
    backoff_us_max: int = 0
    attempts_max: int | None = None
    """Deliveries before a message is exhausted; None means no limit."""

    def backoff_us(self, attempts: int) -> int:
        """Return the pause after the n-th delivery failed; it doubles each time."""
        return min(self.backoff_us_max, self.backoff_us_min << min(max(attempts - 1, 0), 40))

    def exhausts(self, entry: Entry) -> bool:
        """Return whether the entry has used up its deliveries."""
        return self.attempts_max is not None and entry.attempts >= self.attempts_max


@dataclass(slots=True, eq=False)
class Line:
    """The waiting and the leased messages of one ordering key."""

    key: str
    waiting: list[tuple[int, Entry]] = field(default_factory=list)
    """A heap with the oldest message first."""
    run: dict[int, Entry] = field(default_factory=dict)
    """The leased messages, oldest first."""
    queued: bool = False


class Queue:
    """The queue in memory of one subscription's unacknowledged messages. Instants are microseconds."""

    def __init__(self, policy: Policy) -> None:
        """Start empty; `policy` may be replaced at any time."""
        self.policy = policy
        self.entries: dict[int, Entry] = {}
        self.exhausted: list[Entry] = []
        """Entries that used up their deliveries. The owner must `remove` or `readmit` each at once."""
        self._ready: deque[Entry | Line] = deque()
        self._lines: dict[str, Line] = {}
        self._deadlines: list[tuple[int, int]] = []
        self._delays: list[tuple[int, int]] = []
        self._leased = 0

    def add(self, entry: Entry, now_us: int) -> None:
        """Add a message that is not in the queue yet."""
        self.entries[entry.message_id] = entry
        if self.policy.exhausts(entry):
            self.exhausted.append(entry)
        else:
            self._place(entry, now_us)

    def take(
        self,
        *,
        limit: int,
        bytes_max: int,
        now_us: int,
        deadline_us: int,
        holder: Holder | None = None,
        run_max: int = 1000,
        force_one: bool = True,
    ) -> list[Entry]:
        """Lease the messages that may be delivered now.

        Args:
            limit: Most messages.
            bytes_max: Most bytes of all messages together.
            now_us: The present.
            deadline_us: When the leases end.
            holder: The holder whose flow control counts the leases.
            run_max: Most messages of one ordering key.
            force_one: Whether one message that alone is larger than `bytes_max` may pass.
        """
        taken: list[Entry] = []
        size = 0
        while self._ready and len(taken) < limit:
            unit = self._ready.popleft()
            run = min(run_max, limit - len(taken)) if isinstance(unit, Line) else 1
            for _ in range(run):
                entry = self._next_of(unit, now_us)
                if entry is None:
                    break
                if size + entry.size > bytes_max and (taken or not force_one):
                    self._put_back(unit)
                    return taken
                self._lease(entry, deadline_us, holder)
                taken.append(entry)
                size += entry.size
            if isinstance(unit, Line):
                unit.queued = False
                self._settle(unit, now_us)
        return taken

    def lease_of(self, message_id: int, attempt: int) -> Entry | None:
        """Return the entry if exactly this delivery still holds its lease."""
        entry = self.entries.get(message_id)
        return entry if entry is not None and entry.leased and entry.attempts == attempt else None

    def extend(self, entry: Entry, deadline_us: int) -> None:
        """Move the deadline of a leased entry, later or earlier."""
        entry.deadline_us = deadline_us
        self._push_deadline(entry)

    def nack(self, entry: Entry, now_us: int) -> list[Entry]:
        """End a lease early. Returns the entry and those of the same ordering key that come back with it."""
        self._release(entry)
        together = []
        line = self._lines.get(entry.key) if entry.key else None
        if line is not None:
            together = [later for later in line.run.values() if later.message_id > entry.message_id]
            for later in together:
                self._release(later)
                heapq.heappush(line.waiting, (later.message_id, later))
        if self.policy.exhausts(entry):
            self.exhausted.append(entry)
        else:
            entry.available_at_us = now_us + self.policy.backoff_us(entry.attempts)
            self._place(entry, now_us)
        return [entry, *together]

    def readmit(self, entry: Entry, now_us: int) -> None:
        """Deliver an exhausted entry again, because no dead letter topic accepts it."""
        entry.available_at_us = now_us + self.policy.backoff_us(entry.attempts)
        self._place(entry, now_us)

    def remove(self, message_id: int, now_us: int) -> None:
        """Remove a message in any state: acknowledged, dead-lettered or too old."""
        entry = self.entries.pop(message_id, None)
        if entry is None:
            return
        entry.gone = True
        if entry.leased:
            self._release(entry)
        line = self._lines.get(entry.key) if entry.key else None
        if line is not None:
            self._settle(line, now_us)

    def expire(self, now_us: int) -> list[Entry]:
        """End every lease whose deadline passed, and every pause that is over. Returns the entries of ended leases."""
        returned: list[Entry] = []
        while self._deadlines and self._deadlines[0][0] <= now_us:
            deadline_us, message_id = heapq.heappop(self._deadlines)
            entry = self.entries.get(message_id)
            if entry is not None and entry.leased and entry.deadline_us == deadline_us:
                returned += self.nack(entry, now_us)
        while self._delays and self._delays[0][0] <= now_us:
            available_at_us, message_id = heapq.heappop(self._delays)
            entry = self.entries.get(message_id)
            if entry is None or entry.leased or entry.available_at_us != available_at_us:
                continue
            if entry.key:
                self._settle(self._lines[entry.key], now_us)
            else:
                self._ready.append(entry)
        return returned

    @property
    def has_ready(self) -> bool:
        """Whether `take` stopped at its limits and more messages are ready."""
        return bool(self._ready)

    def next_wake_us(self) -> int | None:
        """Return when `expire` is due next; None while nothing is leased or delayed."""
        heads = [heap[0][0] for heap in (self._deadlines, self._delays) if heap]
        return min(heads, default=None)

    def clear(self) -> None:
        """Remove everything; leases end."""
        for entry in self.entries.values():
            if entry.leased:
                self._release(entry)
            entry.gone = True
        self.entries.clear()
        self.exhausted.clear()
        self._ready.clear()
        self._lines.clear()
        self._deadlines.clear()
        self._delays.clear()

    def _place(self, entry: Entry, now_us: int) -> None:
        if entry.key:
            line = self._lines.setdefault(entry.key, Line(entry.key))
            heapq.heappush(line.waiting, (entry.message_id, entry))
            self._settle(line, now_us)
        elif entry.available_at_us > now_us:
            heapq.heappush(self._delays, (entry.available_at_us, entry.message_id))
        else:
            self._ready.append(entry)

    def _settle(self, line: Line, now_us: int) -> None:
        """Queue a line whose first message may be delivered, or delay it until then."""
        while line.waiting and line.waiting[0][1].gone:
            heapq.heappop(line.waiting)
        if line.queued or line.run:
            return
        if not line.waiting:
            self._lines.pop(line.key, None)
            return
        first = line.waiting[0][1]
        if first.available_at_us > now_us:
            heapq.heappush(self._delays, (first.available_at_us, first.message_id))
        else:
            line.queued = True
            self._ready.append(line)

    def _next_of(self, unit: Entry | Line, now_us: int) -> Entry | None:
        """Return the message to lease next from the first unit; None when it must wait or was removed."""
        if isinstance(unit, Line):
            while unit.waiting and unit.waiting[0][1].gone:
                heapq.heappop(unit.waiting)
            if not unit.waiting or unit.waiting[0][1].available_at_us > now_us:
                return None
            return unit.waiting[0][1]
        if unit.gone or unit.leased:
            return None
        if unit.fate.moves_back:
            unit.fate = Fate(unit.fate.duplicate)
            self._ready.append(unit)
            return None
        return unit

    def _put_back(self, unit: Entry | Line) -> None:
        """Undo the `popleft`. A line that already leased a part of its run waits for that part."""
        if isinstance(unit, Line) and unit.run:
            unit.queued = False
        else:
            self._ready.appendleft(unit)

    def _lease(self, entry: Entry, deadline_us: int, holder: Holder | None) -> None:
        entry.leased = True
        entry.attempts += 1
        entry.deadline_us = deadline_us
        entry.holder = holder
        if holder is not None:
            holder.messages += 1
            holder.bytes += entry.size
        if entry.key:
            line = self._lines[entry.key]
            heapq.heappop(line.waiting)
            line.run[entry.message_id] = entry
        self._leased += 1
        self._push_deadline(entry)

    def _release(self, entry: Entry) -> None:
        entry.leased = False
        self._leased -= 1
        if entry.holder is not None:
            entry.holder.messages -= 1
            entry.holder.bytes -= entry.size
            entry.holder = None
        if entry.key:
            self._lines[entry.key].run.pop(entry.message_id, None)

    def _push_deadline(self, entry: Entry) -> None:
        heapq.heappush(self._deadlines, (entry.deadline_us, entry.message_id))
        # Extended and ended leases leave their old deadlines in the heap: drop these before they are the majority.
        if len(self._deadlines) > 2 * self._leased + 1000:
            self._deadlines = list(set(_live_deadlines(self.entries.values())))
            heapq.heapify(self._deadlines)


def _live_deadlines(entries: Iterable[Entry]) -> list[tuple[int, int]]:
    return [(entry.deadline_us, entry.message_id) for entry in entries if entry.leased]


def duplicates(entry: Entry, how: Duplicate) -> bool:
    """Return whether this delivery is duplicated in this way; it happens once per message."""
    if entry.fate.duplicate is not how or (how is Duplicate.TWIN and entry.key):
        return False
    entry.fate = Fate(Duplicate.NO, entry.fate.moves_back)
    return True
