"""An account's request quota, and the headers that show what is left of it."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

WINDOWS = (("minute", 60, 60), ("hour", 3000, 3600), ("day", 50_000, 86_400))
"""Name, requests and seconds of each window. From the schema's example, for the order of magnitude."""


@dataclass
class Quota:
    """Fixed windows, each beginning at its first request. That windows are fixed is inferred."""

    windows: tuple[tuple[str, int, int], ...] = WINDOWS
    """Name, requests and seconds; empty: no limit and no headers."""
    _used: dict[str, tuple[float, int]] = field(default_factory=dict)
    """Start and number of requests by window."""

    def take(self, now: float) -> tuple[dict[str, str], str | None]:
        """Count one request. Returns the headers of its answer, and the window that refuses it or None."""
        if not self.windows:
            return {}, None
        refused: str | None = None
        wait_s, left = 0.0, []
        for name, most, seconds in self.windows:
            since, used = self._used.get(name, (now, 0))
            if now >= since + seconds:
                since, used = now, 0
            self._used[name] = (since, used)
            resets_s = since + seconds - now
            if used >= most:
                refused, wait_s = name, resets_s
        for name, most, seconds in self.windows:
            since, used = self._used[name]
            used += refused is None
            self._used[name] = (since, used)
            left.append(f'"{name}";r={max(0, most - used)};t={math.ceil(since + seconds - now)}')
        headers = {
            "RateLimit": ", ".join(left),
            "RateLimit-Policy": ", ".join(f'"{name}";q={most};w={seconds}' for name, most, seconds in self.windows),
        }
        if refused is not None:
            headers["Retry-After"] = str(max(1, math.ceil(wait_s)))
        return headers, refused
