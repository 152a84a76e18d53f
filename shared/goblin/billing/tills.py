"""What one instance has for one set of accounts: the purse it spends from, and those it has done with."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import datetime, timedelta

from goblin.billing.domain.accounts import windows_of
from goblin.billing.policy.allocation import Shortage
from goblin.billing.policy.local_allocation import Purse

IDLE = timedelta(seconds=20)
"""A lease that nobody has reserved from for so long goes back."""
KEPT_FROM = 3
"""Reservations within that time that make it worth keeping a lease while nothing is under way."""


@dataclass(slots=True)
class Till:
    """Lent to one instance; its locks keep the steps of one purse apart."""

    account: str
    also: tuple[str, ...]
    purse: Purse
    lock: asyncio.Lock = field(default_factory=asyncio.Lock)
    """Held during an exchange."""
    writing: asyncio.Lock = field(default_factory=asyncio.Lock)
    """Held during a write, and while the ledger makes an exchange."""
    retiring: list[Purse] = field(default_factory=list)
    """Nothing more is reserved from these; something is still under way or not written."""
    waiting_usd_micros: int = 0
    near: bool = False
    """The ledger lends worst cases only."""
    strict: bool = True
    """While it is silent, nothing is spent of what it lent."""
    recent: deque[datetime] = field(default_factory=lambda: deque(maxlen=KEPT_FROM))
    refused: tuple[datetime, int, Shortage] | None = None
    """Until when, what amount, and why."""
    unwritten_since: datetime | None = None

    @property
    def purses(self) -> list[Purse]:
        return [*self.retiring, self.purse]

    def is_busy(self, now: datetime) -> bool:
        """Whether more requests are to be expected at once."""
        return len(self.recent) == KEPT_FROM and now - self.recent[0] < IDLE

    def turn(self, now: datetime, new_purse: Callable[[str, tuple[str, ...]], Purse]) -> None:
        """Put another purse in place of one whose lease or window is over."""
        purse = self.purse
        over = purse.windows and any(window > purse.windows[period] for period, window in windows_of(now).items())
        if purse.retired or over:
            self.purse = new_purse(self.account, self.also)
            self.retiring.append(purse)
