"""One delivery of one message, and its ack id."""

import re
from dataclasses import dataclass
from typing import NamedTuple

from localcloud.pubsub.errors import invalid
from localcloud.pubsub.wire import Raw, ReceivedMessage

TWIN = "-twin"
"""Suffix of the ack id of an injected duplicate: clients track messages by ack id."""

_ACK_ID = re.compile(r"([0-9a-f]{1,15})-([0-9a-f]{1,15})-([0-9a-f]{1,15})-([0-9a-f]{1,15})(?:-twin)?")


class AckId(NamedTuple):
    """One delivery, with the epoch of its subscription; a seek ends the epoch."""

    subscription: int
    epoch: int
    message_id: int
    attempt: int

    def text(self) -> str:
        """Return the ack id as clients see it."""
        return "-".join(f"{part:x}" for part in self)

    @staticmethod
    def parse(text: str) -> "AckId":
        """Parse an ack id made by `text`. Refused when it cannot be one of ours."""
        found = _ACK_ID.fullmatch(text)
        if found is None:
            raise invalid(f"You have passed an invalid ack ID to the service (ack_id={text[:200]}).")
        return AckId(*(int(part, 16) for part in found.groups()))


@dataclass(frozen=True, slots=True)
class Received:
    """One delivery, ready to be sent."""

    ack_id: str
    message: Raw
    """The `PubsubMessage`."""
    attempt: int

    def wire(self, *, with_attempt: bool) -> Raw:
        """Build the `ReceivedMessage` of pull and streaming pull."""
        return ReceivedMessage(
            ack_id=self.ack_id, message=self.message, delivery_attempt=self.attempt if with_attempt else 0
        )
