"""Rate limits: a minimum time between two requests of a kind, ten searches a minute, a daily quota of searches."""

from __future__ import annotations

from collections import deque

from localgpus.clock import Clock

INTERVALS_S = {
    "list": 1.0, "one": 2.0, "manage": 1.0, "destroy": 3.0, "create": 4.5, "bid": 5.5, "charges": 1.0, "metrics": 3.0,
}  # fmt: skip
PENALTY_S = {"create": 12.0}
"""Wait after a request that came too soon; it is longer than the interval."""
SEARCHES_PER_MINUTE = 10
DAY_S = 86_400


class TooSoon(Exception):
    """429: the request came before its interval `threshold_s`, which the body names, was over."""

    def __init__(self, threshold_s: float) -> None:
        super().__init__(f"API requests too frequent: endpoint threshold={threshold_s}")
        self.threshold_s = threshold_s


class QuotaExceeded(Exception):
    """429 until midnight UTC, `resets_at` in seconds since 1970."""

    def __init__(self, resets_at: int) -> None:
        super().__init__("search_quota_exceeded")
        self.resets_at = resets_at


class Limits:
    """Rate limits of one key. `pace` divides the times; `off` disables them."""

    def __init__(self, clock: Clock, *, pace: float = 1.0, off: bool = False, searches_per_day: int = 5000) -> None:
        self._clock = clock
        self._pace = pace
        self.off = off
        self.searches_per_day = searches_per_day
        self._next: dict[str, float] = {}
        self._searches: deque[float] = deque()
        self._day, self._today = 0, 0

    def take(self, kind: str) -> None:
        """Count one request of a kind. Raises `TooSoon`, or `QuotaExceeded` for a search."""
        if self.off:
            return
        now = self._clock()
        if kind == "search":
            self._search(now)
        elif interval_s := INTERVALS_S.get(kind):
            if now < self._next.get(kind, 0.0):
                if kind in PENALTY_S:
                    self._next[kind] = now + PENALTY_S[kind] / self._pace
                raise TooSoon(interval_s)
            self._next[kind] = now + interval_s / self._pace

    def _search(self, now: float) -> None:
        while self._searches and self._searches[0] <= now - 60.0 / self._pace:
            self._searches.popleft()
        if len(self._searches) >= SEARCHES_PER_MINUTE:
            raise TooSoon(6.0)
        day = int(now // DAY_S)
        if day != self._day:
            self._day, self._today = day, 0
        if self._today >= self.searches_per_day:
            raise QuotaExceeded((day + 1) * DAY_S)
        self._searches.append(now)
        self._today += 1
