"""Ports that more than one room needs. Each docstring is the contract."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Protocol

import msgspec

from goblin.core.events import Event


@dataclass(frozen=True, kw_only=True, slots=True)
class SignedRequest:
    """A request with a time limit that needs no key."""

    method: str
    url: str
    headers: Mapping[str, str]
    """Headers to send exactly as they are, because they are signed too."""


class Clock(Protocol):
    """The time, as a port so that tests can set it."""

    def now(self) -> datetime:
        """Return the current time in aware UTC."""

    def monotonic(self) -> float:
        """Return seconds of a clock that never goes back, for durations."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ObjectFacts:
    """An object's metadata, without its data."""

    uri: str
    generation: int
    size: int
    crc32c: str
    metadata: Mapping[str, str] = field(default_factory=dict)


class ObjectStore(Protocol):
    """Objects by `gs://` URI.

    Every method raises `StoreUnavailable` when the store does not answer, and `StoreRefused` when it refuses for good.
    """

    async def stat(self, uri: str) -> ObjectFacts | None:
        """Read the metadata of the current object; None when there is none."""

    async def list_from(self, prefix: str, start: str) -> Sequence[str]:
        """List the URIs that begin with `prefix` and do not sort before `start`, in order. Both are in one bucket."""

    def read(self, uri: str, *, generation: int, start: int = 0) -> AsyncGenerator[bytes, None]:
        """Read the object's bytes from `start` on, in chunks of about a mebibyte.

        Raises:
            NotFound: The object, or this generation of it, does not exist.
        """

    async def create(self, uri: str, data: bytes, *, content_type: str) -> ObjectFacts | None:
        """Write a small object; None when there is one already."""

    async def compose(
        self, sources: Sequence[ObjectFacts], uri: str, *, metadata: Mapping[str, str]
    ) -> ObjectFacts | None:
        """Join at most 32 objects of one bucket, in order; None when there is an object at `uri` already.

        Raises:
            Conflict: A source was deleted or replaced.
        """

    async def delete(self, facts: ObjectFacts) -> None:
        """Delete one generation of an object; it is no error if it is gone already."""

    async def sign_get(self, uri: str, *, generation: int) -> SignedRequest:
        """Sign a request that reads one generation of an object."""

    async def sign_put(self, uri: str, *, size: int, crc32c: str) -> SignedRequest:
        """Sign a request that creates an object of exactly this size and checksum."""


class DeadLetters(Protocol):
    """The dead letter topics of the topics that our functions subscribe to."""

    async def bury(self, topic: str, event: Event, reason: str) -> None:
        """Publish an event to its topic's dead letters, with the reason; return once it is stored.

        Raises:
            StoreUnavailable: It is not stored; the event must be delivered again.
        """


@dataclass(frozen=True, kw_only=True, slots=True)
class HeldLetter:
    """A dead letter as pulled, held for this process until it is given back, acknowledged, or some seconds pass."""

    message_id: str
    data: bytes
    attributes: Mapping[str, str]
    published_at: datetime
    """When it became a dead letter."""
    handle: str = field(repr=False)
    """Names this delivery."""
    ordering_key: str = ""


class DeadLetterBox(Protocol):
    """What lies in the dead letter topics. Every method raises `StoreUnavailable` when Pub/Sub does not answer."""

    async def pull(self, topic: str, limit: int) -> tuple[Sequence[HeldLetter], bool]:
        """Hold the dead letters of a topic, at most about `limit`; also return whether these are all.

        A slow answer is waited for or raises: it never reads as an empty topic.
        """

    async def give_back(self, topic: str, letters: Sequence[HeldLetter]) -> None:
        """Let letters lie where they are."""

    async def replay(self, topic: str, letter: HeldLetter, attributes: Mapping[str, str]) -> None:
        """Publish a letter's event to its topic, with these attributes; return once it is stored."""

    async def drop(self, topic: str, letter: HeldLetter) -> None:
        """Delete a letter."""


class Bus(Protocol):
    """Topics that events are published to."""

    async def publish(self, topic: str, event: msgspec.Struct) -> None:
        """Publish an event; return once it is stored. Raises `StoreUnavailable`, or its subclass `UnknownTopic`."""
