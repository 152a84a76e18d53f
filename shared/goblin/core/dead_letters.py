"""Events that no redelivery can mend: one delivery, then a dead letter that carries the reason."""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable

from goblin.core.errors import GoblinError, MalformedEvent, Refused, Transient
from goblin.core.events import Event
from goblin.core.ports import DeadLetters

log = logging.getLogger(__name__)

FOR_GOOD = (MalformedEvent, Refused)
"""Errors that the same event meets at each delivery. Of others five deliveries make a dead letter."""


async def handle(
    topic: str, event: Event, work: Callable[[Event], Awaitable[None]], dead_letters: Callable[[], DeadLetters]
) -> None:
    """Handle an event; bury it if it would be refused at each delivery. Return normally to acknowledge it.

    Args:
        topic: The topic that it came from.
        event: As `events.parse_event` read it.
        work: Handles it.
        dead_letters: Opens where it is buried; called only then.

    Raises:
        GoblinError: It was not handled, or was refused and could not be buried: deliver it again.
    """
    try:
        await work(event)
    except FOR_GOOD as error:
        log.error("Event %s of %s is refused for good: %s", event.event_id, topic, error.message)
        try:
            await dead_letters().bury(topic, event, reason_of(error))
        except Transient as lost:
            # The refusal sends the event back: its further deliveries may be buried, and the last is in any case.
            log.warning("Event %s of %s could not be buried: %s", event.event_id, topic, lost.message)
            raise error from lost


def reason_of(error: GoblinError) -> str:
    """Return the error's words as one line, which a terminal can print."""
    return "".join(sign if sign.isprintable() else " " for sign in error.message)
