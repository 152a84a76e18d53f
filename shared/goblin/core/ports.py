"""What more than one room needs from outside: each docstring is the contract."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Protocol

import msgspec


@dataclass(frozen=True, kw_only=True, slots=True)
class SignedRequest:
    """One request that somebody without a key may make for a while."""

    method: str
    url: str
    headers: Mapping[str, str]
    """To be sent word for word: they are part of what was signed."""


class Clock(Protocol):
    """Time, so that tests can choose it."""

    def now(self) -> datetime:
        """Aware UTC."""

    def monotonic(self) -> float:
        """Seconds, for durations."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ObjectFacts:
    """An object as the bucket describes it; no data was read."""

    uri: str
    generation: int
    size: int
    crc32c: str
    metadata: Mapping[str, str] = field(default_factory=dict)


class ObjectStore(Protocol):
    """Objects by `gs://` URI. Every method raises `StoreUnavailable` when the store does not answer."""

    async def stat(self, uri: str) -> ObjectFacts | None:
        """What lies there now; None when nothing does."""

    async def list_from(self, prefix: str, start: str) -> Sequence[str]:
        """The URIs that begin with `prefix` and do not sort before `start`, in order; both are URIs of one bucket."""

    def read(self, uri: str, *, generation: int, start: int = 0) -> AsyncGenerator[bytes, None]:
        """The object's bytes from `start` on, in chunks of about a mebibyte.

        Raises:
            NotFound: It, or this generation of it, is not there.
        """

    async def create(self, uri: str, data: bytes, *, content_type: str) -> ObjectFacts | None:
        """Write a small object; None when one is there already."""

    async def compose(
        self, sources: Sequence[ObjectFacts], uri: str, *, metadata: Mapping[str, str]
    ) -> ObjectFacts | None:
        """Join at most 32 objects of one bucket, in order; None when something lies at `uri` already.

        Raises:
            Conflict: A source is not what the facts say any more.
        """

    async def delete(self, facts: ObjectFacts) -> None:
        """Delete one generation; gone already is no error."""

    async def sign_get(self, uri: str, *, generation: int) -> SignedRequest:
        """Let somebody read one generation of an object."""

    async def sign_put(self, uri: str, *, size: int, crc32c: str) -> SignedRequest:
        """Let somebody create an object of exactly this size and checksum."""


class Bus(Protocol):
    """Topics."""

    async def publish(self, topic: str, event: msgspec.Struct) -> None:
        """Returns once the message is kept. Raises `StoreUnavailable`, `UnknownTopic` among them."""
