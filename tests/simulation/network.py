"""A simulated network between the functions and their ports: calls can fail, and other handlers run in between.

At a call to a port, a handler can lose its turn, find the other side down, crash just before or just after a write, or
get no answer to a write that was made. Nothing else is simulated here: services, policies and ports are the real ones.
"""

from __future__ import annotations

import asyncio
import inspect
import random
from collections.abc import Awaitable, Callable, Sequence
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any

from goblin.core.errors import GoblinError, StoreUnavailable
from tests.fakes.jobs import Crash

HANDLER: ContextVar[int] = ContextVar("handler", default=0)
"""Which call of a function this is: what one was told about a provider another may not know."""


@dataclass
class Network:
    """Scheduler of the handlers' turns, and the failures to inject."""

    rng: random.Random
    down: set[str] = field(default_factory=set)
    """Ports that do not answer."""
    answers_lost: float = 0.0
    """So many of the writes are made and not answered."""
    crash_in: int | None = None
    """The process dies at this point of a write from now on, counted down; each write has two."""
    crashed: int = 0
    idle: Callable[[], None] = lambda: None
    """Called while handlers wait for each other: time passes."""
    _handlers: int = 0
    _at_once: int = 1
    _held: list[asyncio.Future[None]] = field(default_factory=list)

    async def turn(self) -> None:
        """Wait until the dice say so, where several are at work."""
        if self._at_once > 1:
            held = asyncio.get_running_loop().create_future()
            self._held.append(held)
            await held

    def point(self, name: str) -> None:
        """One end of a write; the process may die here."""
        if self.crash_in is not None:
            self.crash_in -= 1
            if self.crash_in < 0:
                self.crash_in = None
                self.crashed += 1
                raise Crash(name)

    def lose(self, name: str) -> None:
        """The write is made; whether anybody hears of it."""
        if self.answers_lost and self.rng.random() < self.answers_lost:
            raise StoreUnavailable(f"the answer of {name} was lost")

    async def run(self, *handlers: Callable[[], Awaitable[Any]]) -> list[Exception | None]:
        """Calls of functions at once, each in a process of its own; what they died of.

        One alone is never held up. Of several the dice say after each call to the outside who goes on.
        """
        if len(handlers) == 1:
            return [await self._one(handlers[0])]
        self._at_once = len(handlers)
        tasks = [asyncio.ensure_future(self._one(handler)) for handler in handlers]
        while not all(task.done() for task in tasks) or self._held:
            await asyncio.sleep(0)
            if self._held:
                self.idle()
                held = self._held.pop(self.rng.randrange(len(self._held)))
                if not held.done():
                    held.set_result(None)
        self._at_once = 1
        return [task.result() for task in tasks]

    async def _one(self, handler: Callable[[], Awaitable[Any]]) -> Exception | None:
        self._handlers += 1
        HANDLER.set(self._handlers)
        try:
            await handler()
        except (Crash, GoblinError) as error:
            return error
        return None


class Reached:
    """Proxy of a port across the network."""

    def __init__(self, port: Any, network: Network, name: str, *, reads: Sequence[str] = ()) -> None:
        self._port, self._network, self._name, self._reads = port, network, name, frozenset(reads)

    def __getattr__(self, method: str) -> Any:
        call = getattr(self._port, method)
        if not inspect.iscoroutinefunction(call):
            return call
        network, name, what = self._network, self._name, f"{self._name}.{method}"

        async def read(*args: Any, **kwargs: Any) -> Any:
            await network.turn()
            if name in network.down:
                raise StoreUnavailable(f"{name} is down")
            return await call(*args, **kwargs)

        async def write(*args: Any, **kwargs: Any) -> Any:
            await network.turn()
            if name in network.down:
                raise StoreUnavailable(f"{name} is down")
            network.point(what)
            answer = await call(*args, **kwargs)
            network.point(f"{what} done")
            network.lose(what)
            return answer

        reached = read if method in self._reads else write
        setattr(self, method, reached)
        return reached
