"""The delivery state machine: nothing is lost, nothing comes back after its acknowledgement, keys keep order."""

import itertools

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from localcloud.pubsub.chaos import Duplicate, Fate
from localcloud.pubsub.queue import Entry, Holder, Policy, Queue, duplicates

S = 1_000_000
DEADLINE = 10 * S


def queue_of(*entries: Entry, policy: Policy | None = None) -> Queue:
    queue = Queue(policy or Policy())
    for one in entries:
        queue.add(one, 0)
    return queue


def take(queue: Queue, now_us: int = 0, limit: int = 100, **limits: object) -> list[int]:
    given = {"bytes_max": 1 << 30, "deadline_us": now_us + DEADLINE, **limits}
    return [one.message_id for one in queue.take(limit=limit, now_us=now_us, **given)]


def entry(message_id: int, key: str = "", size: int = 1, **fields: object) -> Entry:
    return Entry(message_id, size, key, **fields)


def nack(queue: Queue, message_id: int, now_us: int = 0) -> None:
    queue.nack(queue.entries[message_id], now_us)


def test_a_leased_message_comes_again_exactly_at_its_deadline() -> None:
    queue = queue_of(entry(1))
    assert take(queue) == [1]
    assert queue.next_wake_us() == DEADLINE
    queue.expire(DEADLINE - 1)
    assert take(queue, DEADLINE - 1) == []
    queue.expire(DEADLINE)
    assert take(queue, DEADLINE) == [1]
    assert queue.entries[1].attempts == 2


def test_an_extended_lease_lasts_longer() -> None:
    queue = queue_of(entry(1))
    take(queue)
    queue.extend(queue.entries[1], 60 * S)
    assert queue.expire(DEADLINE) == []
    assert [one.message_id for one in queue.expire(60 * S)] == [1]


def test_a_nack_without_a_policy_delivers_at_once_behind_the_others() -> None:
    queue = queue_of(entry(1), entry(2))
    assert take(queue, limit=1) == [1]
    nack(queue, 1)
    assert take(queue) == [2, 1]


def test_backoff_doubles_from_its_minimum_to_its_maximum() -> None:
    queue = queue_of(entry(1), policy=Policy(backoff_us_min=2 * S, backoff_us_max=10 * S))
    now, gaps = 0, []
    for _ in range(5):
        assert take(queue, now) == [1]
        nack(queue, 1, now)
        wake = queue.entries[1].available_at_us
        queue.expire(wake - 1)
        assert take(queue, wake - 1) == []
        gaps.append((wake - now) // S)
        now = wake
        queue.expire(now)
    assert gaps == [2, 4, 8, 10, 10]


def test_a_message_is_exhausted_after_its_last_delivery() -> None:
    queue = queue_of(entry(1), policy=Policy(attempts_max=5))
    for _ in range(5):
        assert queue.exhausted == []
        assert take(queue) == [1]
        nack(queue, 1)
    assert [one.message_id for one in queue.exhausted] == [1]
    assert take(queue) == []


def test_an_exhausted_message_that_nowhere_takes_is_delivered_again() -> None:
    queue = queue_of(entry(1, attempts=5), policy=Policy(attempts_max=5))
    queue.readmit(queue.exhausted.pop(), 0)
    assert take(queue) == [1]


def test_a_key_is_leased_as_a_run_and_blocked_until_the_run_is_done() -> None:
    queue = queue_of(entry(1, "k"), entry(2, "k"), entry(3, "k"), entry(4, "other"))
    assert take(queue, limit=2) == [1, 2]
    assert take(queue) == [4]
    queue.remove(1, 0)
    assert take(queue) == []
    queue.remove(2, 0)
    assert take(queue) == [3]


def test_a_nack_brings_back_what_followed_it_in_the_run() -> None:
    queue = queue_of(entry(1, "k"), entry(2, "k"), entry(3, "k"))
    take(queue)
    nack(queue, 2)
    assert take(queue) == []  # The first one is still out.
    queue.remove(1, 0)
    assert take(queue) == [2, 3]


def test_a_paused_message_blocks_its_key_and_no_other() -> None:
    policy = Policy(backoff_us_min=5 * S, backoff_us_max=5 * S)
    queue = queue_of(entry(1, "k"), entry(2, "k"), entry(3), policy=policy)
    assert take(queue, limit=1) == [1]
    nack(queue, 1)
    assert take(queue) == [3]
    queue.expire(5 * S)
    assert take(queue, 5 * S) == [1, 2]


def test_a_run_may_be_limited_to_one() -> None:
    queue = queue_of(entry(1, "k"), entry(2, "k"), entry(3, "j"))
    assert take(queue, run_max=1) == [1, 3]


def test_bytes_limit_what_is_taken_but_one_message_always_passes() -> None:
    queue = queue_of(entry(1, size=60), entry(2, size=50), entry(3, size=10))
    assert take(queue, bytes_max=100) == [1]
    assert queue.has_ready
    assert take(queue, bytes_max=10) == [2]
    assert take(queue, bytes_max=5, force_one=False) == []
    assert take(queue, bytes_max=10) == [3]


def test_a_holder_counts_its_leases() -> None:
    queue, holder = queue_of(entry(1, size=7), entry(2, size=5)), Holder()
    take(queue, holder=holder)
    assert (holder.messages, holder.bytes) == (2, 12)
    queue.remove(1, 0)
    assert (holder.messages, holder.bytes) == (1, 5)
    queue.expire(DEADLINE)
    assert (holder.messages, holder.bytes) == (0, 0)


def test_an_acknowledged_message_is_dropped_wherever_it_waits() -> None:
    policy = Policy(backoff_us_min=S, backoff_us_max=S)
    queue = queue_of(entry(1), entry(2), entry(3, "k"), entry(4, "k"), policy=policy)
    take(queue, limit=1)
    nack(queue, 1)
    for message_id in (1, 2, 3):
        queue.remove(message_id, 0)
    queue.expire(S)
    assert take(queue, S) == [4]


def test_old_deadlines_do_not_pile_up() -> None:
    queue = queue_of(entry(1))
    take(queue)
    for at in range(10_000):
        queue.extend(queue.entries[1], DEADLINE + at)
    assert len(queue._deadlines) <= 1003
    assert queue.expire(DEADLINE + 9_998) == []
    assert queue.expire(DEADLINE + 9_999) != []


def test_chaos_moves_a_message_behind_the_next_ones_once() -> None:
    queue = queue_of(entry(1, fate=Fate(moves_back=True)), entry(2), entry(3))
    assert take(queue) == [2, 3, 1]
    alone = queue_of(entry(1, fate=Fate(moves_back=True)))
    assert take(alone) == [1]


def test_chaos_duplicates_once() -> None:
    twin = entry(1, fate=Fate(Duplicate.TWIN))
    assert (duplicates(twin, Duplicate.LOST_ACK), duplicates(twin, Duplicate.TWIN)) == (False, True)
    assert not duplicates(twin, Duplicate.TWIN)
    assert not duplicates(entry(1, "k", fate=Fate(Duplicate.TWIN)), Duplicate.TWIN)


class Deliveries(RuleBasedStateMachine):
    """Any interleaving of publishing, taking, acknowledging, giving back and time passing."""

    def __init__(self) -> None:
        super().__init__()
        self.now = 0
        self.policy = Policy(backoff_us_min=S, backoff_us_max=4 * S, attempts_max=4)
        self.queue = Queue(self.policy)
        self.holder = Holder()
        self.numbers = 0
        self.keys: dict[int, str] = {}
        self.owed: set[int] = set()
        self.buried: set[int] = set()
        self.leased: dict[int, int] = {}
        """Message → deadline, as a client would know it."""

    @rule(key=st.sampled_from(["", "", "a", "b"]), moves_back=st.booleans())
    def publish(self, key: str, moves_back: bool) -> None:
        self.numbers += 1
        self.keys[self.numbers] = key
        self.owed.add(self.numbers)
        fate = Fate(moves_back=moves_back and not key)
        self.queue.add(Entry(self.numbers, 1, key, fate=fate), self.now)

    @rule(limit=st.integers(1, 5), run_max=st.sampled_from([1, 100]))
    def deliver(self, limit: int, run_max: int) -> None:
        deadline = self.now + DEADLINE
        taken = self.queue.take(
            limit=limit,
            bytes_max=100,
            now_us=self.now,
            deadline_us=deadline,
            holder=self.holder,
            run_max=run_max,
        )
        for one in taken:
            assert one.message_id in self.owed, "delivered after its acknowledgement"
            assert one.message_id not in self.leased, "delivered while leased"
            if one.key:
                older = [n for n in self.owed if self.keys[n] == one.key and n < one.message_id]
                together = {other.message_id for other in taken}
                assert set(older) <= together, f"{one.message_id} overtook {older}"
        order = [one.message_id for one in taken if one.key]
        assert all(a < b for a, b in itertools.pairwise(order) if self.keys[a] == self.keys[b])
        self.leased.update(dict.fromkeys((one.message_id for one in taken), deadline))

    @precondition(lambda self: self.leased)
    @rule(data=st.data())
    def acknowledge(self, data: st.DataObject) -> None:
        one = data.draw(st.sampled_from(sorted(self.leased)))
        self.queue.remove(one, self.now)
        del self.leased[one]
        self.owed.discard(one)

    @precondition(lambda self: self.owed)
    @rule(data=st.data())
    def acknowledge_late(self, data: st.DataObject) -> None:
        one = data.draw(st.sampled_from(sorted(self.owed)))
        self.queue.remove(one, self.now)
        self.leased.pop(one, None)
        self.owed.discard(one)

    @precondition(lambda self: self.leased)
    @rule(data=st.data())
    def give_back(self, data: st.DataObject) -> None:
        one = data.draw(st.sampled_from(sorted(self.leased)))
        self._returned(self.queue.nack(self.queue.entries[one], self.now))

    @precondition(lambda self: self.leased)
    @rule(data=st.data(), seconds=st.integers(1, 30))
    def extend(self, data: st.DataObject, seconds: int) -> None:
        one = data.draw(st.sampled_from(sorted(self.leased)))
        self.leased[one] = self.now + seconds * S
        self.queue.extend(self.queue.entries[one], self.leased[one])

    @rule(seconds=st.sampled_from([0, 1, 4, 11]))
    def wait(self, seconds: int) -> None:
        self.now += seconds * S
        self._returned(self.queue.expire(self.now))

    def _returned(self, entries: list[Entry]) -> None:
        for one in entries:
            self.leased.pop(one.message_id, None)
        for one in self.queue.exhausted:
            assert one.attempts >= 4
            self.buried.add(one.message_id)
            self.owed.discard(one.message_id)
        exhausted, self.queue.exhausted = self.queue.exhausted, []
        for one in exhausted:
            self.queue.remove(one.message_id, self.now)

    @invariant()
    def the_queue_knows_exactly_what_is_owed(self) -> None:
        assert set(self.queue.entries) == self.owed
        assert {n for n, one in self.queue.entries.items() if one.leased} == set(self.leased)
        assert self.holder.messages == len(self.leased) == self.holder.bytes

    def teardown(self) -> None:
        """Whatever happened: with time and acknowledgements everything owed is delivered."""
        for _ in range(4 * self.numbers + 2):
            self.wait(11)
            self.deliver(limit=5, run_max=1)
            for one in sorted(self.leased):
                self.queue.remove(one, self.now)
                self.owed.discard(one)
            self.leased.clear()
        assert self.owed == set()


TestDeliveries = Deliveries.TestCase
TestDeliveries.settings = settings(max_examples=150, stateful_step_count=40, deadline=None)
