"""Locks in order of age: the oldest waiting owner gets a lock next, no owner starves, and deadlocks are broken.

    T1 begins, reads a ─── holds a ─────────── commits
       T2 begins, reads a ── waits ─────────── holds a ── commits
          T3 begins, reads a ── waits ────────────────── holds a

A transaction that retries keeps its age, and so its place in the queue.
"""

import asyncio
import itertools
from bisect import insort
from collections.abc import Hashable, Iterable
from dataclasses import dataclass, field

LOCK_WAIT_S = 20.0
"""The most seconds that a transaction waits for locks before it must abort."""
WRITE_WAIT_S = 5.0
"""The most seconds that a write outside of transactions waits before it is ABORTED."""

Key = Hashable

_ages = itertools.count(1)


@dataclass(eq=False, slots=True)
class Owner:
    """An owner of locks: a transaction, or one write outside of any."""

    age: int = field(default_factory=lambda: next(_ages))
    """A smaller number is older."""
    held: set[Key] = field(default_factory=set)
    awaited: dict[Key, int] = field(default_factory=dict)
    """The keys that it waits for, with the number of calls that wait for each."""
    lost: bool = False
    """Whether it gave up its locks to break a deadlock; it must not commit."""


@dataclass(eq=False, slots=True)
class _Waiter:
    owner: Owner
    granted: asyncio.Future[bool]

    def __lt__(self, other: "_Waiter") -> bool:
        return self.owner.age < other.owner.age


class Locks:
    """Exclusive locks by key."""

    def __init__(self) -> None:
        self._holders: dict[Key, Owner] = {}
        self._waiters: dict[Key, list[_Waiter]] = {}

    async def acquire(self, owner: Owner, keys: Iterable[Key], *, wait_s: float) -> bool:
        """Take locks one after the other; waits where another owner holds one.

        Args:
            owner: The owner that takes them; it keeps those it holds already.
            keys: The keys, in the same order for all owners; another order makes deadlocks likelier.
            wait_s: The most seconds to wait for all of them.

        Returns:
            Whether the owner now holds all of them. If not, `owner.lost` is set and it holds none.
        """
        missing = [key for key in keys if key not in owner.held]
        if not owner.lost and all(self._take(owner, key) for key in missing):
            return True
        try:
            async with asyncio.timeout(wait_s):
                for key in missing:
                    if owner.lost or not (self._take(owner, key) or await self._wait(owner, key)):
                        break
        except TimeoutError:
            self.give_up(owner)
        return not owner.lost

    def _take(self, owner: Owner, key: Key) -> bool:
        if (holder := self._holders.setdefault(key, owner)) is not owner:
            return False
        holder.held.add(key)
        return True

    async def _wait(self, owner: Owner, key: Key) -> bool:
        waiter = _Waiter(owner, asyncio.get_running_loop().create_future())
        queue = self._waiters.setdefault(key, [])
        insort(queue, waiter)
        owner.awaited[key] = owner.awaited.get(key, 0) + 1
        try:
            self._break_cycles(owner)
            return await waiter.granted
        finally:
            owner.awaited[key] -= 1
            if not owner.awaited[key]:
                del owner.awaited[key]
            if waiter in queue:
                queue.remove(waiter)
            if not queue and self._waiters.get(key) is queue:
                del self._waiters[key]

    def _break_cycles(self, owner: Owner) -> None:
        while cycle := self._cycle(owner):
            self.give_up(max(cycle, key=lambda member: member.age))

    def _cycle(self, owner: Owner) -> list[Owner] | None:
        """Return the owners of a deadlock that includes `owner`, or None."""
        seen: set[int] = set()

        def follow(path: list[Owner]) -> list[Owner] | None:
            for key in path[-1].awaited:
                holder = self._holders.get(key)
                if holder is owner and len(path) > 1:
                    return path
                if holder is None or holder is owner or id(holder) in seen:
                    continue
                seen.add(id(holder))
                if (found := follow([*path, holder])) is not None:
                    return found
            return None

        return follow([owner])

    def give_up(self, owner: Owner) -> None:
        """Release everything of an owner and stop its waits; it can only abort now."""
        owner.lost = True
        for key in list(owner.awaited):
            for waiter in self._waiters.get(key, ()):
                if waiter.owner is owner and not waiter.granted.done():
                    waiter.granted.set_result(False)
        self.release(owner)

    def release(self, owner: Owner) -> None:
        """Pass each lock of an owner to the oldest owner that waits for it."""
        for key in owner.held:
            del self._holders[key]
            for waiter in self._waiters.get(key, ()):
                if not waiter.granted.done():
                    self._holders[key] = waiter.owner
                    waiter.owner.held.add(key)
                    waiter.granted.set_result(True)
                    break
        owner.held = set()

    def is_held_by_another(self, owner: Owner | None, key: Key) -> bool:
        """Return whether another owner holds the lock."""
        holder = self._holders.get(key)
        return holder is not None and holder is not owner

    @property
    def waiting(self) -> int:
        """How many calls wait for a lock."""
        return sum(map(len, self._waiters.values()))

    @property
    def held(self) -> int:
        """How many locks are held."""
        return len(self._holders)
