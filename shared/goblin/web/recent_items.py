"""Remembers the items of recent responses, for clients that send an item's id instead of the item.

The Vercel AI SDK does so by default, between two steps of one agent: it takes every response for a stored one. This is
memory of one process, bounded and soon forgotten, and no promise: a client that wants one sets `store: false` and sends
the items.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping, Sequence
from typing import Any

import msgspec

BYTES_MAX = 16 * 1024 * 1024
"""The most bytes of JSON that are remembered, of all callers together."""


class RecentItems:
    """Items by owner and id; the oldest are forgotten first."""

    def __init__(self, bytes_max: int = BYTES_MAX) -> None:
        self._bytes_max = bytes_max
        self._bytes = 0
        self._items: OrderedDict[tuple[str, str], bytes] = OrderedDict()

    def keep(self, owner: str, items: Sequence[Mapping[str, Any]]) -> None:
        """Remember the items of one response."""
        for item in items:
            name = (owner, item["id"])
            self._forget(name)
            packed = msgspec.json.encode(item)
            self._items[name] = packed
            self._bytes += len(packed)
        while self._bytes > self._bytes_max:
            self._forget(next(iter(self._items)))

    def find(self, owner: str, item_id: str) -> dict[str, Any] | None:
        """Find an item of this owner; None if it is forgotten, or was never there."""
        packed = self._items.get((owner, item_id))
        found: dict[str, Any] | None = None if packed is None else msgspec.json.decode(packed)
        return found

    def _forget(self, name: tuple[str, str]) -> None:
        self._bytes -= len(self._items.pop(name, b""))
