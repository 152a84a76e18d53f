"""The allocations of one process for one set of accounts: the current one, and retired ones still in use."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import datetime, timedelta

from goblin.billing.domain.accounts import windows_of
from goblin.billing.policy.allocation import InsufficientBudget
from goblin.billing.policy.local_allocation import LocalAllocation

IDLE_AFTER = timedelta(seconds=20)
"""An allocation without a reservation for this long is given back."""
BUSY_RESERVATIONS = 3
"""Reservations within `IDLE_AFTER` that make it worth keeping an allocation while no request is in flight."""


@dataclass(slots=True)
class AllocationPool:
    """The allocations of one process for one set of accounts; its locks keep their exchanges and writes apart."""

    account: str
    also: tuple[str, ...]
    current: LocalAllocation
    lock: asyncio.Lock = field(default_factory=asyncio.Lock)
    """Held during an exchange."""
    writing: asyncio.Lock = field(default_factory=asyncio.Lock)
    """Held during a write of entries, and while the ledger makes an exchange."""
    retired: list[LocalAllocation] = field(default_factory=list)
    """No new reservations; some are in flight, or their entries are not written yet."""
    waiting_usd_micros: int = 0
    """Worst cases of the requests that wait for an exchange."""
    near_limit: bool = False
    """So little budget is left that the ledger allocates worst cases only."""
    refuse_when_unreachable: bool = True
    """While the ledger does not answer, nothing is reserved from what was allocated before."""
    recent: deque[datetime] = field(default_factory=lambda: deque(maxlen=BUSY_RESERVATIONS))
    refused: tuple[datetime, int, InsufficientBudget] | None = None
    """A refusal, until when it holds, and from which amount on."""
    unwritten_since: datetime | None = None

    @property
    def allocations(self) -> list[LocalAllocation]:
        return [*self.retired, self.current]

    def is_busy(self, now: datetime) -> bool:
        """Whether more requests are to be expected at once."""
        return len(self.recent) == BUSY_RESERVATIONS and now - self.recent[0] < IDLE_AFTER

    def rotate(self, now: datetime, new_allocation: Callable[[str, tuple[str, ...]], LocalAllocation]) -> None:
        """Replace the current allocation if it is retired or its budget window is over."""
        current = self.current
        over = current.windows and any(window > current.windows[period] for period, window in windows_of(now).items())
        if current.retired or over:
            self.current = new_allocation(self.account, self.also)
            self.retired.append(current)
