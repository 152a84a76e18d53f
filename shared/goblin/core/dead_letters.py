"""Dead letters: which events become one, with what reason, and what a person can do with them.

An event that would be refused at each delivery costs one delivery. Any other has several; at the last one the function
itself buries it, because Pub/Sub would move it without the reason. What Pub/Sub moves all the same had no answer: its
function crashed, timed out or could not be reached.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime

from goblin.core import events
from goblin.core.errors import GoblinError, InvalidRequest, MalformedEvent, NotFound, Refused, Transient
from goblin.core.events import Event
from goblin.core.ports import DeadLetterBox, DeadLetters, HeldLetter
from httpguard import whole_number

log = logging.getLogger(__name__)

FOR_GOOD = (MalformedEvent, Refused)
"""Errors that the same event meets at each delivery."""
DELIVERIES_MAX = 5
"""Deliveries of an event, as `cloud.json` sets them for the push subscriptions."""
PULLED_MAX = 1000
"""Dead letters of one topic that are read at once."""
ATTRIBUTES_MAX = 100
COUNT_MAX = 10**9 - 1
"""Attributes that Pub/Sub takes on one message."""
NO_REASON = "its function gave no answer: it crashed, timed out or could not be reached; see its log"


async def handle(
    topic: str, event: Event, work: Callable[[Event], Awaitable[None]], dead_letters: Callable[[], DeadLetters]
) -> None:
    """Handle an event; bury it if no further delivery would help. Return normally to acknowledge it.

    Args:
        topic: The topic that it came from.
        event: As `events.parse_event` read it.
        work: Handles it.
        dead_letters: Opens where it is buried; called only then.

    Raises:
        Exception: It was not handled, or could not be buried: deliver it again.
    """
    try:
        await work(event)
    except Exception as error:
        is_last = event.delivery_attempt is not None and event.delivery_attempt >= DELIVERIES_MAX
        if not is_last and not isinstance(error, FOR_GOOD):
            raise
        reason = reason_of(error)
        log.error(
            "Event %s of %s is a dead letter after delivery %s: %s", event.event_id, topic,
            event.delivery_attempt or 1, reason, exc_info=not isinstance(error, GoblinError),
        )  # fmt: skip
        try:
            await dead_letters().bury(topic, event, reason)
        except Transient as lost:
            # The refusal sends the event back: its further deliveries may be buried, and the last is in any case.
            log.warning("Event %s of %s could not be buried: %s", event.event_id, topic, lost.message)
            raise error from lost


def reason_of(error: Exception) -> str:
    """Return the error's words as one line, which a terminal can print."""
    return plain(error.message if isinstance(error, GoblinError) else f"{type(error).__name__}: {error}")


def plain(text: str) -> str:
    """Return one line without control characters, because a terminal would execute them."""
    return "".join(sign if sign.isprintable() else " " for sign in text)


@dataclass(frozen=True, kw_only=True, slots=True)
class DeadLetter:
    """A dead letter as a person sees it."""

    topic: str
    message_id: str
    reason: str
    """Why its last delivery failed, as far as that is known."""
    first_at: str
    """When the event was published for the first time, before all replays."""
    dead_at: datetime
    deliveries: int
    """Deliveries that failed, those before replays included."""
    replays: int
    unreadable: str | None
    """Why the event cannot be parsed, so that a replay would only fail again; None: it can."""
    data: bytes
    attributes: Mapping[str, str]
    """The publisher's own."""


def describe(topic: str, letter: HeldLetter) -> DeadLetter:
    """Read a dead letter's marks, which are Pub/Sub's, ours, or, on a forged message, anything."""
    marks = letter.attributes
    last = _count(marks.get(f"{events.SOURCE}DeliveryCount"))
    return DeadLetter(
        topic=topic, message_id=letter.message_id, reason=plain(marks.get(events.REASON, NO_REASON)),
        first_at=plain(marks.get(events.FIRST_AT) or _published(letter)), dead_at=letter.published_at,
        deliveries=_count(marks.get(events.DELIVERIES)) + last, replays=_count(marks.get(events.REPLAYS)),
        unreadable=why_unreadable(topic, letter), data=letter.data, attributes=own_attributes(letter),
    )  # fmt: skip


def _published(letter: HeldLetter) -> str:
    return letter.attributes.get(f"{events.SOURCE}TopicPublishTime") or letter.published_at.isoformat()


def _count(text: str | None) -> int:
    return whole_number(text or "", COUNT_MAX) or 0


OURS = frozenset({events.REASON, events.FIRST_AT, events.DELIVERIES, events.REPLAYS})


def own_attributes(letter: HeldLetter) -> dict[str, str]:
    """Return the attributes that the publisher gave the event."""
    return {
        name: value
        for name, value in letter.attributes.items()
        if not name.startswith(events.SOURCE) and name not in OURS
    }


def replayed_attributes(letter: HeldLetter) -> dict[str, str]:
    """Return the attributes of an event that is published again: they keep what is known of it."""
    seen = describe("", letter)
    kept = {
        events.FIRST_AT: seen.first_at, events.DELIVERIES: str(seen.deliveries),
        events.REPLAYS: str(seen.replays + 1),
    }  # fmt: skip
    if events.REASON in letter.attributes:
        # If the next failure has no reason either, this is the last that is known.
        kept[events.REASON] = letter.attributes[events.REASON]
    own = list(own_attributes(letter).items())
    return dict(own[: ATTRIBUTES_MAX - len(kept)]) | kept


def why_unreadable(topic: str, letter: HeldLetter) -> str | None:
    """Explain why an event cannot be parsed; None if it can."""
    schema = events.TOPICS.get(topic)
    if schema is None:
        return None
    if schema is events.BudgetExceeded and letter.attributes.keys() & {"billingAccountId", "budgetId"}:
        schema = events.CloudBudget
    try:
        events.decode(schema, letter.data)
    except MalformedEvent as error:
        return plain(error.message)
    return None


@dataclass(frozen=True, kw_only=True, slots=True)
class Listed:
    """Dead letters, the oldest first."""

    letters: Sequence[DeadLetter]
    whole: bool
    """False: there are more than were read."""


async def list_letters(topic: str | None, box: DeadLetterBox) -> Listed:
    """List the dead letters of a topic, or of all. They stay where they are."""
    names = _topics(topic)
    held = await asyncio.gather(*(box.pull(name, PULLED_MAX) for name in names))
    await asyncio.gather(*(box.give_back(name, letters) for name, (letters, _) in zip(names, held, strict=True)))
    found = [describe(name, letter) for name, (letters, _) in zip(names, held, strict=True) for letter in letters]
    found.sort(key=lambda letter: (letter.dead_at, letter.topic, letter.message_id))
    return Listed(letters=found, whole=all(whole for _, whole in held))


@dataclass(frozen=True, kw_only=True, slots=True)
class Replayed:
    """What became of the dead letters that were to be replayed."""

    replayed: Sequence[DeadLetter]
    left: Sequence[DeadLetter]
    """Cannot be parsed, and were left where they are."""
    whole: bool
    """False: there are more, which were not read."""


async def replay(topic: str | None, message_id: str | None, box: DeadLetterBox, *, force: bool = False) -> Replayed:
    """Publish dead letters to their topics again. What cannot be parsed is left, unless forced.

    Args:
        topic: The topic; None: all.
        message_id: The only one to replay; None: all of them.
        box: Where they are.
        force: Also replay what cannot be parsed.

    Raises:
        NotFound: There is no dead letter with this id.
        InvalidRequest: The one with this id cannot be parsed.
    """
    replayed: list[DeadLetter] = []
    left: list[DeadLetter] = []

    async def publish(name: str, letter: HeldLetter) -> bool:
        seen = describe(name, letter)
        if seen.unreadable is not None and not force:
            left.append(seen)
            return False
        # Publish, then delete: a crash in between replays an event twice, and handlers are idempotent.
        await box.replay(name, letter, replayed_attributes(letter))
        await box.drop(name, letter)
        replayed.append(seen)
        return True

    whole = await _each(topic, message_id, publish, box)
    if message_id is not None and left:
        raise InvalidRequest(
            f"Dead letter {message_id} cannot be parsed, so it would fail again: {left[0].unreadable} Drop it, or "
            "force its replay.", code="unreadable_event",
        )  # fmt: skip
    return Replayed(replayed=replayed, left=left, whole=whole)


async def drop(topic: str | None, message_id: str, box: DeadLetterBox) -> DeadLetter:
    """Delete a dead letter.

    Raises:
        NotFound: There is no dead letter with this id.
    """
    dropped: list[DeadLetter] = []

    async def delete(name: str, letter: HeldLetter) -> bool:
        await box.drop(name, letter)
        dropped.append(describe(name, letter))
        return True

    await _each(topic, message_id, delete, box)
    return dropped[0]


async def _each(
    topic: str | None, message_id: str | None, work: Callable[[str, HeldLetter], Awaitable[bool]], box: DeadLetterBox
) -> bool:
    """Apply work to the letters of a topic; it returns whether the letter is gone. Return whether all were read."""
    names = _topics(topic)
    held = await asyncio.gather(*(box.pull(name, PULLED_MAX) for name in names))
    found, whole = False, all(complete for _, complete in held)
    for name, (letters, _) in zip(names, held, strict=True):
        kept = list(letters)
        try:
            for letter in letters:
                if message_id in (None, letter.message_id):
                    found = True
                    if await work(name, letter):
                        kept.remove(letter)
        finally:
            await box.give_back(name, kept)
    if message_id is not None and not found:
        more = "" if whole else f" There are more than the {PULLED_MAX} that were read: replay or drop some first."
        raise NotFound(f"There is no dead letter {message_id[:128]}.{more}", param="message_id")
    return whole


def _topics(topic: str | None) -> list[str]:
    if topic is not None and topic not in events.TOPICS:
        raise NotFound(f"Topic {topic[:128]!r} has no dead letters. Choose one of {', '.join(sorted(events.TOPICS))}.")
    return [topic] if topic is not None else sorted(events.TOPICS)
