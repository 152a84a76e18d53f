"""What jobs need from outside: each docstring is the contract, held by a test that adapters and fakes share."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Protocol

from goblin.jobs.domain.instances import Inventory, RentalOrder, UnknownInventory
from goblin.jobs.domain.job import Job
from goblin.jobs.domain.market import InstanceRequirements, Listing
from goblin.jobs.policy.spot.market_history import MarketHistory


@dataclass(frozen=True, kw_only=True, slots=True)
class StoredJob:
    """A job as it was read, and what it is compared with when it is written again."""

    job: Job
    version: str


class JobStore(Protocol):
    """Job documents. Every method raises `StoreUnavailable` when the store does not answer."""

    async def create(self, job: Job) -> StoredJob | None:
        """Write a new job; None when the id is taken."""

    async def get(self, job_id: str) -> StoredJob | None:
        """The job now; None when there is none."""

    async def replace(self, job: Job, version: str) -> StoredJob | None:
        """Write the job if it is still at the version; None when somebody else wrote it."""

    async def place(self, job: Job, version: str, *, limit: int) -> StoredJob | None:
        """Write a job that takes a place, as `replace` does, if at most `limit` of its kind have one then.

        Two that want the last place at the same time do not both get it.
        """

    async def list_open(self, limit: int) -> Sequence[StoredJob]:
        """Jobs with something left to do, the oldest first."""

    async def list_recent(self, limit: int) -> Sequence[Job]:
        """All jobs, the newest first."""


class MarketHistoryStore(Protocol):
    """What was seen of the market. Every method raises `StoreUnavailable` when the store does not answer."""

    async def load(self) -> tuple[MarketHistory, str | None]:
        """What is known, and its version; nothing and None at first, or when what is stored is of another time."""

    async def save(self, history: MarketHistory, version: str | None) -> bool:
        """Write it if it is still at the version; False when somebody else wrote it."""


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

    async def offers(self, wanted: InstanceRequirements) -> Listing | UnknownInventory:
        """What could be rented now that fits, spot and on demand, at most a few hundred.

        Never raises: an error is `UnknownInventory`. May be up to a minute old.
        """

    async def inventory(self) -> Inventory:
        """Every instance of ours (by label) that exists, also a broken one: if it may bill, it is listed.

        Never raises: an error is `UnknownInventory`.
        """

    async def rent(self, order: RentalOrder) -> str:
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


class WebhookEventStore(Protocol):
    """Hints that were followed. Every method raises `StoreUnavailable` when the store does not answer."""

    async def take(self, event: WebhookEvent, *, until: datetime) -> bool:
        """Note that it is followed; False when it was before. It may be forgotten from then on."""

    async def give_back(self, event: WebhookEvent) -> None:
        """It was not followed after all; unknown is no error."""


class AttemptKeys(Protocol):
    """Keys for inference that live no longer than an attempt. Raises `StoreUnavailable`."""

    async def open(self, digest: str, *, name: str, until: datetime) -> None:
        """Let the key with this SHA-256 in until then; again prolongs it."""

    async def close(self, digest: str) -> None:
        """Shut it out; unknown is no error."""


@dataclass(frozen=True, kw_only=True, slots=True)
class WebhookEvent:
    """Somebody who knows the shared secret says that something happened; what did, a look has to show."""

    provider: str
    event_id: str
    """The same at every delivery."""
    kind: str
    """The provider's own word, as `outbid`."""
