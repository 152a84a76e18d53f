"""How long requests are tried: one rule for controller, gateway and bucket, shared with the trainer's agent.

What may pass is tried for minutes, then the attempt is given back: another machine, at another time, may succeed. What
the bucket refuses is asked a few times with a new signed request, because signed requests expire. Only what no attempt
can mend fails the job.
"""

from __future__ import annotations

import asyncio
import random
import time

import httpx

BUCKET_S_MAX = 300.0
"""How long the bucket may answer nothing that helps. Heartbeats go on meanwhile."""
REFUSED_MAX = 4
"""Refusals in a row, each with a new signed request, before the attempt is given back."""
BACKOFF_S = 0.2
BACKOFF_S_MAX = 15.0
SAID_MAX = 200
EXPIRED = frozenset({400, 401, 403})
"""Statuses of the bucket for a signed request that has expired."""
LOST = (httpx.RequestError, httpx.StreamError)
"""Errors of a request without a usable answer."""


now, sleep = time.monotonic, asyncio.sleep


class Hopeless(Exception):
    """No attempt can do better: the job fails, with this as its reason."""


def may_pass(status: int) -> bool:
    """Check whether the same request may succeed later: timeouts, rate limits and faults of a server."""
    return status in (408, 425, 429) or status >= 500


def said(answer: httpx.Response | BaseException) -> str:
    """Describe what came instead of the wanted answer. The body of a stream must have been read."""
    if isinstance(answer, BaseException):
        return f"{type(answer).__name__}: {answer}"
    return f"{answer.status_code}: {answer.text[:SAID_MAX]}"


def retry_after_s(answer: httpx.Response, most: float) -> float | None:
    """Return how long a server asks to wait, at most `most`; None: it does not say, or not in seconds."""
    try:
        return min(most, max(0.0, float(answer.headers["retry-after"])))
    except (KeyError, ValueError):
        return None


class Tries:
    """The tries at one piece of work. Call `failed` after each one that brought nothing, and `progressed` otherwise."""

    def __init__(self, tries_s_max: float | None = None) -> None:
        self._tries_s_max = BUCKET_S_MAX if tries_s_max is None else tries_s_max
        self.progressed()

    def progressed(self) -> None:
        """Begin anew: something arrived."""
        self._until = now() + self._tries_s_max
        self._failed = self._refused = 0

    async def failed(self, answer: httpx.Response | BaseException) -> bool:
        """Count a failed try and wait before the next one. Returns whether there is a next one."""
        self._failed += 1
        refused = isinstance(answer, httpx.Response) and not may_pass(answer.status_code)
        self._refused = self._refused + 1 if refused else 0
        if self._refused >= REFUSED_MAX or now() >= self._until:
            return False
        wait_s = random.uniform(0.5, 1) * min(BACKOFF_S_MAX, BACKOFF_S * 2.0 ** min(self._failed, 20))
        if isinstance(answer, httpx.Response):
            wait_s = max(wait_s, retry_after_s(answer, BACKOFF_S_MAX) or 0.0)
        await sleep(min(wait_s, max(0.0, self._until - now())))
        return True
