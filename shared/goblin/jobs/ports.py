"""What jobs need from outside: each docstring is the contract, held by a test that adapters and fakes share."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Protocol

import msgspec

from goblin.jobs.domain.instances import Inventory, Order, Unknown
from goblin.jobs.domain.job import Job
from goblin.jobs.domain.market import Listing, Wanted
from goblin.jobs.domain.webhooks import Hint
from goblin.jobs.domain.worker import Grant
from goblin.jobs.policy.spot.market_history import Watched


@dataclass(frozen=True, kw_only=True, slots=True)
class Stored:
    """A job as it was read, and what it is compared with when it is written again."""

    job: Job
    version: str


class JobStore(Protocol):
    """Job documents. Every method raises `StoreUnavailable` when the store does not answer."""

    async def create(self, job: Job) -> Stored | None:
        """Write a new job; None when the id is taken."""

    async def get(self, job_id: str) -> Stored | None:
        """The job now; None when there is none."""

    async def replace(self, job: Job, version: str) -> Stored | None:
        """Write the job if it is still at the version; None when somebody else wrote it."""

    async def place(self, job: Job, version: str, *, limit: int) -> Stored | None:
        """Write a job that takes a place, as `replace` does, if at most `limit` of its kind have one then.

        Two that want the last place at the same time do not both get it.
        """

    async def list_open(self, limit: int) -> Sequence[Stored]:
        """Jobs with something left to do, the oldest first."""

    async def list_recent(self, limit: int) -> Sequence[Job]:
        """All jobs, the newest first."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ObjectFacts:
    """An object as the bucket describes it; no data was read."""

    uri: str
    generation: int
    size: int
    crc32c: str
    metadata: Mapping[str, str] = field(default_factory=dict)


class MarketStore(Protocol):
    """What was seen of the market. Every method raises `StoreUnavailable` when the store does not answer."""

    async def load(self) -> tuple[Watched, str | None]:
        """What is known, and its version; nothing and None at first, or when what is stored is of another time."""

    async def save(self, watched: Watched, version: str | None) -> bool:
        """Write it if it is still at the version; False when somebody else wrote it."""


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

    async def grant_get(self, uri: str, *, generation: int) -> Grant:
        """Let somebody read one generation of an object."""

    async def grant_put(self, uri: str, *, size: int, crc32c: str) -> Grant:
        """Let somebody create an object of exactly this size and checksum."""


class Bus(Protocol):
    """Topics."""

    async def publish(self, topic: str, event: msgspec.Struct) -> None:
        """Returns once the message is kept. Raises `StoreUnavailable`, `UnknownTopic` among them."""


class ComputeProvider(Protocol):
    """Somebody who rents out instances."""

    @property
    def name(self) -> str:
        """The adapter's file."""

    @property
    def kinds(self) -> frozenset[str]:
        """Which kinds of job its instances can run."""

    @property
    def start_s_max(self) -> float:
        """How long an instance may take from being asked for to its first word."""

    async def offers(self, wanted: Wanted) -> Listing | Unknown:
        """What could be rented now that fits, spot and on demand, at most a few hundred.

        Never raises: an error is `Unknown`. May be up to a minute old.
        """

    async def inventory(self) -> Inventory:
        """Every instance of ours (by label) that exists, also a broken one: if it may bill, it is listed.

        Never raises: an error is `Unknown`.
        """

    async def rent(self, order: Order) -> str:
        """Ask for one instance; its id. Called once per label.

        Raises:
            ProviderUnavailable: The provider said no and nothing exists: the offer is gone, or the bid too low.
            Refused: The provider would say no to any other offer too: money, key.
            Transient: Nobody knows; the inventory will show it, or not.
        """

    async def release(self, label: str) -> None:
        """See to it that every instance with the label ends; that there is none is no error. May be repeated.

        Returns once it is asked for, not once it is done: the inventory shows the rest.

        Raises:
            Transient: Ask again.
        """


class HintStore(Protocol):
    """Hints that were followed. Every method raises `StoreUnavailable` when the store does not answer."""

    async def take(self, hint: Hint, *, until: datetime) -> bool:
        """Note that it is followed; False when it was before. It may be forgotten from then on."""

    async def give_back(self, hint: Hint) -> None:
        """It was not followed after all; unknown is no error."""


class AttemptKeys(Protocol):
    """Keys for inference that live no longer than an attempt. Raises `StoreUnavailable`."""

    async def open(self, digest: str, *, name: str, until: datetime) -> None:
        """Let the key with this SHA-256 in until then; again prolongs it."""

    async def close(self, digest: str) -> None:
        """Shut it out; unknown is no error."""
