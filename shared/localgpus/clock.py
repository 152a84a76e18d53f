"""Clocks that are passed as arguments. A clock returns seconds since 1970."""

from __future__ import annotations

import time
from collections.abc import Callable

Clock = Callable[[], float]

wall: Clock = time.time


class Hand:
    """A clock that stands still until its `now` is set, for tests."""

    def __init__(self, now: float) -> None:
        self.now = now

    def __call__(self) -> float:
        return self.now
