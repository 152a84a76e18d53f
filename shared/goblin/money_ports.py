"""What the ledger needs from outside; the docstrings are the contract."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from goblin.domain.money import Balance, Entry, Freeze


class Ledger(Protocol):
    """Entries, append-only; balances and freezes are kept beside them in the same commit.

    Every method raises `StoreUnavailable`; after it from `record`, the same entry may be given again.
    """

    async def record(self, entry: Entry) -> bool:
        """Write an entry, once: True when it was written now, False when it was there.

        The balances of its account and all above it in its month move with it, and a freeze or thaw takes effect
        with it, or none of that happens. The second time nothing does.

        Raises:
            Conflict: The id belongs to an entry that moves other money. Its instant and note may differ, as those of
                an event delivered twice do.
        """

    async def balances(self, window: str) -> Sequence[Balance]:
        """Every account that has entries in the window, by name."""

    async def entries(self, *, limit: int) -> Sequence[Entry]:
        """The last entries, the newest first."""

    async def actions(self, *, limit: int) -> Sequence[Entry]:
        """The last alerts, freezes and thaws, the newest first."""

    async def freezes(self) -> Sequence[Freeze]:
        """What is frozen now, the oldest first."""
