"""Awaiting what may be there already, and doing something else only where it is not."""

from __future__ import annotations

from collections.abc import Awaitable, Generator
from typing import Any, Generic, TypeVar

T = TypeVar("T")


class Step(Generic[T]):
    """An awaitable that has been begun: it is over at once, or it waits and must be awaited next."""

    __slots__ = ("_result", "_running", "_wanted", "waits")

    def __init__(self, awaitable: Awaitable[T]) -> None:
        """Run it up to where it waits. Raises what it raises."""
        self._running = awaitable.__await__()
        self.waits = True
        """It did not end at once."""
        try:
            self._wanted = next(self._running)
        except StopIteration as end:
            self.waits = False
            self._result: T = end.value

    def __await__(self) -> Generator[Any, Any, T]:
        """Wait for its end; once."""
        if not self.waits:
            return self._result
        wanted = self._wanted
        try:
            while True:
                try:
                    told = yield wanted
                except BaseException as error:  # noqa: BLE001  It must hear that nobody waits for it any more.
                    wanted = self._running.throw(error)
                else:
                    wanted = self._running.send(told)
        except StopIteration as end:
            result: T = end.value
            return result
