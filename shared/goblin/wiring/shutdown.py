"""What a process does between SIGTERM and its end.

Cloud Run says SIGTERM to an instance that it will take away in ten seconds; idle ones are the rule. Whoever serves here
(uvicorn, alone or below gunicorn) ends itself as soon as no answer is under way, whatever tasks there are. So it hears
of the signal only when what was given here is done; answers go on meanwhile, and after it for as long as they may.
"""

from __future__ import annotations

import asyncio
import logging
import signal
import threading
from collections.abc import Callable, Coroutine
from types import FrameType
from typing import Any

log = logging.getLogger(__name__)

DONE_S_MAX = 4.0
"""The rest of the ten seconds is for answers under way. What is lent and not returned is found by the settlement."""


class _Ending:
    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self.last: list[Callable[[], Coroutine[Any, Any, None]]] = []
        self.loop = loop
        self._doing: asyncio.Task[None] | None = None
        self._before = signal.signal(signal.SIGTERM, self._heard)

    def _heard(self, number: int, frame: FrameType | None) -> None:
        if self._doing is not None or not self.loop.is_running():
            self._pass_on(number, frame)  # Said again, by somebody in a hurry.
        else:
            self.loop.call_soon_threadsafe(self._start, number)

    def _start(self, number: int) -> None:
        if self._doing is None:
            self._doing = self.loop.create_task(self._do(number))

    async def _do(self, number: int) -> None:
        try:
            async with asyncio.timeout(DONE_S_MAX):
                await asyncio.gather(*(work() for work in self.last))
        except TimeoutError:
            log.warning("the process ends before everything is written or returned")
        finally:
            self._pass_on(number, None)

    def _pass_on(self, number: int, frame: FrameType | None) -> None:
        if callable(self._before):
            self._before(number, frame)
        elif self._before == signal.SIG_DFL:
            signal.signal(number, signal.SIG_DFL)
            signal.raise_signal(number)


_ending: _Ending | None = None


def before_the_end(work: Callable[[], Coroutine[Any, Any, None]]) -> None:
    """Do it when SIGTERM comes, once. Outside the main thread, which no signal reaches, this does nothing."""
    if threading.current_thread() is not threading.main_thread():
        return
    global _ending
    loop = asyncio.get_running_loop()
    if _ending is None or _ending.loop is not loop:
        _ending = _Ending(loop)
    _ending.last.append(work)
