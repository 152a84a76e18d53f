"""Dead letters as JSON, for the console and for `goblin dead-letters`."""

from __future__ import annotations

from typing import Any

from goblin.core.dead_letters import DeadLetter, Listed, plain

SHOWN_BYTES_MAX = 300


def letter(one: DeadLetter) -> dict[str, Any]:
    """Build the JSON of a dead letter; of its data only the beginning."""
    return {
        "topic": one.topic,
        "message_id": one.message_id,
        "reason": one.reason,
        "first_at": one.first_at,
        "published_at": one.dead_at.isoformat(),
        "delivery_count": str(one.deliveries),
        "replays": one.replays,
        "unreadable": one.unreadable,
        "data": plain(one.data[:SHOWN_BYTES_MAX].decode("utf-8", "replace")),
        "attributes": {plain(name): plain(value) for name, value in one.attributes.items()},
    }


def listing(found: Listed, *, limit: int) -> dict[str, Any]:
    """Build the JSON of a list; `total` counts all that were read, and `whole` says whether there are no more."""
    shown = [letter(one) for one in found.letters[:limit]]
    return {"object": "list", "data": shown, "total": len(found.letters), "whole": found.whole}
