"""One delivery of one message, and the id that acknowledges it."""

import re
from dataclasses import dataclass
from typing import NamedTuple

from localcloud.pubsub.errors import invalid
from localcloud.pubsub.wire import Raw, ReceivedMessage

TWIN = "-twin"
"""Ends the ack id of a duplicate made on purpose: clients keep books by ack id."""

_ACK_ID = re.compile(r"([0-9a-f]{1,15})-([0-9a-f]{1,15})-([0-9a-f]{1,15})-([0-9a-f]{1,15})(?:-twin)?")


class AckId(NamedTuple):
    """One delivery, and the epoch of its subscription that a seek ends."""

    subscription: int
    epoch: int
    message_id: int
    attempt: int

    def text(self) -> str:
        """How clients see it."""
        return "-".join(f"{part:x}" for part in self)

    @staticmethod
    def parse(text: str) -> "AckId":
        """The inverse of `text`; refused when it cannot be one of ours."""
        found = _ACK_ID.fullmatch(text)
        if found is None:
            raise invalid(f"You have passed an invalid ack ID to the service (ack_id={text[:200]}).")
        return AckId(*(int(part, 16) for part in found.groups()))


@dataclass(frozen=True, slots=True)
class Received:
    """One delivery, ready to be sent."""

    ack_id: str
    message: Raw
    """A `PubsubMessage`."""
    attempt: int

    def wire(self, *, with_attempt: bool) -> Raw:
        """The `ReceivedMessage` of pull and streaming pull."""
        return ReceivedMessage(
            ack_id=self.ack_id, message=self.message, delivery_attempt=self.attempt if with_attempt else 0
        )
