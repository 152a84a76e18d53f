"""A bounded queue that takes turns between clients. Pure."""

from collections import OrderedDict, deque
from collections.abc import Iterator
from typing import Generic, TypeVar

Item = TypeVar("Item")


class FairQueue(Generic[Item]):
    """A queue that is first in, first out within a client and round robin between clients.

    A client with a hundred requests delays another client's first request by one turn, not by a hundred.
    """

    def __init__(self, capacity: int) -> None:
        self.capacity = capacity
        self._lines: OrderedDict[str, deque[Item]] = OrderedDict()
        self._size = 0

    def __len__(self) -> int:
        return self._size

    def __iter__(self) -> Iterator[Item]:
        for line in self._lines.values():
            yield from line

    def has_room(self, count: int, *, extra: int = 0) -> bool:
        """Tell whether `count` more items fit. `extra` counts places that are about to be free anyway."""
        return self._size + count <= self.capacity + extra

    def append(self, client: str, item: Item) -> None:
        """Add an item at the end of its client's line. The caller must have called `has_room`."""
        self._lines.setdefault(client, deque()).append(item)
        self._size += 1

    def push_front(self, client: str, item: Item) -> None:
        """Put back an item that `pop` took, as the next one. It had its place, so it always fits."""
        self._lines.setdefault(client, deque()).appendleft(item)
        self._lines.move_to_end(client, last=False)
        self._size += 1

    def pop(self) -> tuple[str, Item] | None:
        """Take the next item and its client, or None if the queue is empty."""
        if not self._lines:
            return None
        client, line = self._lines.popitem(last=False)
        item = line.popleft()
        if line:
            self._lines[client] = line  # At the end, so that the other clients have their turn first.
        self._size -= 1
        return client, item

    def remove(self, client: str, item: Item) -> bool:
        """Remove an item, and tell whether it was there."""
        line = self._lines.get(client)
        if line is None or item not in line:
            return False
        line.remove(item)
        if not line:
            del self._lines[client]
        self._size -= 1
        return True
