"""At least once, over any interleaving of publishing, pulling, acknowledging, waiting and kills.

The window of messages in memory is three, so that most of them wait on disk.
"""

import asyncio
import tempfile
from collections.abc import Coroutine
from pathlib import Path
from typing import Any

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, precondition, rule

from localcloud.pubsub import backlog
from localcloud.pubsub.wire import raw
from tests.localcloud.pubsub_desk import SUB, Desk, opened, retry

ACK_DEADLINE_S = 10


class Promises(RuleBasedStateMachine):
    """What an app may rely on, kept as a model beside the real thing."""

    def __init__(self) -> None:
        super().__init__()
        self.window, backlog.WINDOW = backlog.WINDOW, 3
        self.folder = tempfile.TemporaryDirectory()
        self.loop = asyncio.new_event_loop()
        self.desk = Desk(Path(self.folder.name) / "pubsub.db")
        self.run(opened(self.desk, enable_message_ordering=True, retry_policy=retry(1, 4)))
        self.now_s = 0
        self.published = 0
        self.keys: dict[int, str] = {}
        self.owed: set[int] = set()
        self.leased: dict[int, tuple[str, float]] = {}
        """Message → its ack id and when its lease ends."""

    def run(self, coroutine: Coroutine[Any, Any, Any]) -> Any:
        return self.loop.run_until_complete(coroutine)

    @rule(key=st.sampled_from(["", "", "a", "b"]), count=st.integers(1, 5))
    def publish(self, key: str, count: int) -> None:
        numbers = range(self.published, self.published + count)
        self.run(self.desk.publish(*(b"%d" % number for number in numbers), key=key))
        self.published += count
        self.owed.update(numbers)
        self.keys.update(dict.fromkeys(numbers, key))

    @rule(limit=st.integers(1, 6))
    def pull(self, limit: int) -> None:
        received = self.run(self.desk.pull(limit=limit))
        together = {int(one.message.data) for one in received}
        assert len(together) == len(received) <= limit
        for one in received:
            number = int(one.message.data)
            assert number in self.owed, "came after its acknowledgement was durable"
            assert number not in self.leased, "came while it was leased"
            older = {n for n in self.owed if self.keys[n] == self.keys[number] != "" and n < number}
            assert older <= together, f"{number} overtook {older - together}"
            self.leased[number] = (one.ack_id, self.now_s + ACK_DEADLINE_S)
        keyed = [n for n in (int(one.message.data) for one in received) if self.keys[n]]
        assert all(a < b or self.keys[a] != self.keys[b] for i, a in enumerate(keyed) for b in keyed[i + 1 :])

    @precondition(lambda self: self.leased)
    @rule(data=st.data())
    def acknowledge(self, data: st.DataObject) -> None:
        for number in self._some(data):
            self.run(self.desk.subscriber.acknowledge(self._request("AcknowledgeRequest", number)))
            self.owed.discard(number)
            del self.leased[number]

    @precondition(lambda self: self.leased)
    @rule(data=st.data())
    def give_back(self, data: st.DataObject) -> None:
        number = data.draw(st.sampled_from(sorted(self.leased)))
        self.run(self.desk.subscriber.modify_ack_deadline(self._request("ModifyAckDeadlineRequest", number)))
        self._came_back(number)

    @rule(seconds=st.sampled_from([1, 4, 11]))
    def wait(self, seconds: int) -> None:
        self.now_s += seconds
        self.run(self._wait(seconds))
        for number in sorted(self.leased):
            if number in self.leased and self.leased[number][1] <= self.now_s:
                self._came_back(number)

    @rule()
    def kill(self) -> None:
        old = self.desk
        self.desk = self.run(self._reopened())
        old.store.close()  # Only to free the file handle: nothing is written by it.
        self.leased.clear()

    def teardown(self) -> None:
        for _ in range(self.published + 4):
            self.wait(11)
            self.pull(limit=6)
            for number in sorted(self.leased):
                self.run(self.desk.subscriber.acknowledge(self._request("AcknowledgeRequest", number)))
                self.owed.discard(number)
            self.leased.clear()
        try:
            assert self.owed == set(), "lost"
            assert (self.desk.stored("messages"), self.desk.stored("deliveries")) == (0, 0)
        finally:
            backlog.WINDOW = self.window
            self.desk.store.close()
            self.loop.close()
            self.folder.cleanup()

    def _some(self, data: st.DataObject) -> list[int]:
        return sorted(data.draw(st.sets(st.sampled_from(sorted(self.leased)), min_size=1)))

    def _request(self, kind: str, number: int) -> Any:
        return raw(kind)(subscription=SUB, ack_ids=[self.leased[number][0]])

    def _came_back(self, number: int) -> None:
        """A message came back, and with it what follows it in the run of its key."""
        del self.leased[number]
        for other in sorted(self.leased):
            if self.keys[other] == self.keys[number] != "" and other > number:
                del self.leased[other]

    async def _wait(self, seconds: int) -> None:
        self.desk.wait(seconds)

    async def _reopened(self) -> Desk:
        return self.desk.reopened()


TestPromises = Promises.TestCase
TestPromises.settings = settings(max_examples=30, stateful_step_count=30, deadline=None)
