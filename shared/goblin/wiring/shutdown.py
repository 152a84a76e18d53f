"""Work that a process does between SIGTERM and its end.

Cloud Run sends SIGTERM to an instance, usually an idle one, ten seconds before it kills it. The server here (uvicorn,
alone or below gunicorn) exits as soon as no answer is in flight, even if other tasks still run. So this module holds
the signal back from the server until the registered work is done. Answers go on meanwhile, and after it for as long as
the server lets them.
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
"""The rest of the ten seconds is for answers in flight. The settlement finds allocations that were not given back."""


class _Ending:
    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self.last: list[Callable[[], Coroutine[Any, Any, None]]] = []
        self.loop = loop
        self._doing: asyncio.Task[None] | None = None
        self._before = signal.signal(signal.SIGTERM, self._heard)

    def _heard(self, number: int, frame: FrameType | None) -> None:
        if self._doing is not None or not self.loop.is_running():
            self._pass_on(number, frame)  # A second SIGTERM: do not wait any longer.
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
            log.warning("the process ends before all receipts are written and all allocations are given back")
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
    """Register work to do once when SIGTERM arrives. Does nothing outside the main thread, which alone gets signals."""
    if threading.current_thread() is not threading.main_thread():
        return
    global _ending
    loop = asyncio.get_running_loop()
    if _ending is None or _ending.loop is not loop:
        _ending = _Ending(loop)
    _ending.last.append(work)
