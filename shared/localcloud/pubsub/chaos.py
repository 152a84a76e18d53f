"""Fault injection: duplicated and reordered deliveries, so that tests meet what production rarely does."""

import random
from collections.abc import Iterator
from dataclasses import dataclass
from enum import Enum


class Duplicate(Enum):
    """How a message is delivered a second time."""

    NO = "no"
    TWIN = "twin"
    """Twice at the same moment, so that two handlers work on one message. Never with an ordering key."""
    LOST_ACK = "lost ack"
    """Once more after it was acknowledged."""


@dataclass(frozen=True, slots=True)
class Fate:
    """The fault injected into the delivery of one message to one subscription."""

    duplicate: Duplicate = Duplicate.NO
    moves_back: bool = False
    """Whether later messages are delivered first. Never with an ordering key."""


CALM = Fate()


@dataclass(frozen=True, slots=True)
class Chaos:
    """Which share of all messages, between 0 and 1, is duplicated and reordered."""

    seed: int
    duplicate: float = 0.1
    reorder: float = 0.1

    def fates(self, subscription: str) -> Iterator[Fate]:
        """Yield the faults of a subscription's first, second, … message; the same for the same seed and name."""
        rng = random.Random(f"{self.seed}:{subscription}")
        while True:
            duplicate, kind, moves_back = rng.random(), rng.random(), rng.random()
            how = Duplicate.TWIN if kind < 0.5 else Duplicate.LOST_ACK
            yield Fate(how if duplicate < self.duplicate else Duplicate.NO, moves_back < self.reorder)
