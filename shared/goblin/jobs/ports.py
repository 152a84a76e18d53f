"""Ports of `jobs`. Each docstring is the contract; a test that adapters and fakes share checks it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Protocol

from goblin.core.errors import Broken
from goblin.jobs.domain.instances import AttemptLease, Inventory, RentalOrder, UnknownInventory
from goblin.jobs.domain.job import AskerKey, Job
from goblin.jobs.domain.market import InstanceRequirements, Listing
from goblin.jobs.policy.spot.market_history import MarketHistory


@dataclass(frozen=True, kw_only=True, slots=True)
class StoredJob:
    """A job as read, with the version for its compare-and-set."""

    job: Job
    version: str


class UnreadableJob(Broken):
    """A job whose stored document cannot be read. Lists leave it out, until a person mends or deletes the document."""

    code = "unreadable_job"

    def __init__(self, job_id: str, why: str, *, lease: AttemptLease | None = None) -> None:
        super().__init__(
            f"The stored document of job {job_id} cannot be read: {why}. Mend or delete the document jobs/{job_id}."
        )
        self.lease = lease
        """The lease of its last attempt, where that part can be read: its instance may be at work."""


class JobStore(Protocol):
    """Store of job documents. Every method raises `StoreUnavailable` when the store does not answer."""

    async def create(self, job: Job) -> StoredJob | None:
        """Create a job; None when the id is taken."""

    async def get(self, job_id: str) -> StoredJob | None:
        """Read a job; None when it does not exist. Raises `UnreadableJob`."""

    async def replace(self, job: Job, version: str) -> StoredJob | None:
        """Write the job if it is still at the version; None when it was written since."""

    async def place(self, job: Job, version: str, *, limit: int) -> StoredJob | None:
        """Write a job that takes a place, as `replace` does, if at most `limit` jobs of its kind have one then.

        Atomic: of two jobs that want the last place at the same time, one gets it.
        """

    async def hold_output(self, uri: str, job_id: str, *, instead_of: str = "") -> str:
        """Let a job be the only one that writes to an output; return the job that holds it then.

        Atomic: of two jobs that want an output at the same time, both are told the same holder. A job that holds it
        already is told itself. `instead_of` is a holder that has ended: its place is taken.
        """

    async def release_output(self, uri: str, job_id: str) -> None:
        """Give an output back. One that another job holds, or none, is no error."""

    async def list_open(self, limit: int) -> Sequence[StoredJob]:
        """List jobs with something left to do, the oldest first. One that cannot be read is logged and left out."""

    async def list_recent(self, limit: int, *, tenant: str | None) -> Sequence[Job]:
        """List the jobs of a tenant (`JobOwner.tenant`), the newest first; None: all jobs.

        One that cannot be read is logged and left out.
        """


class MarketHistoryStore(Protocol):
    """Store of the market history. Every method raises `StoreUnavailable` when the store does not answer."""

    async def load(self) -> tuple[MarketHistory, str | None]:
        """Read the history and its version; an empty one and None at first, or when the stored format is outdated."""

    async def save(self, history: MarketHistory, version: str | None) -> bool:
        """Write the history if it is still at the version; False when it was written since."""


class ComputeProvider(Protocol):
    """A provider that rents out instances."""

    @property
    def name(self) -> str:
        """Name of the provider: the name of its adapter's package."""

    @property
    def kinds(self) -> frozenset[str]:
        """Kinds of job that its instances can run."""

    @property
    def start_s_max(self) -> float:
        """Longest time from the rental request to the first request of the instance's agent."""

    async def offers(self, wanted: InstanceRequirements) -> Listing | UnknownInventory:
        """List offers that fit, spot and on demand, at most a few hundred.

        Never raises: an error is `UnknownInventory`. The answer may be up to a minute old.
        """

    async def inventory(self) -> Inventory:
        """List every instance of ours (by label) that exists, also a broken one: if it may bill, it is listed.

        Never raises: an error is `UnknownInventory`.
        """

    async def rent(self, order: RentalOrder) -> str:
        """Rent one instance and return its id. Called once per label.

        Raises:
            ProviderUnavailable: The provider refused and nothing exists: the offer is gone, or the bid too low.
            Refused: The provider would refuse any other offer too: no credit, wrong key.
            Transient: It is unknown whether an instance exists; the inventory will show it.
        """

    async def release(self, label: str) -> None:
        """End every instance with the label. No instance is no error. Safe to repeat.

        Returns when the end is requested, not when it is done: the inventory shows that.

        Raises:
            Transient: The request failed; try again.
        """


class WebhookEventStore(Protocol):
    """Webhook events that were followed. Every method raises `StoreUnavailable` when the store does not answer."""

    async def take(self, event: WebhookEvent, *, until: datetime) -> bool:
        """Note that the event is followed; False when it was before. The note may be deleted after `until`."""

    async def give_back(self, event: WebhookEvent) -> None:
        """Delete the note, because following the event failed. An unknown event is no error."""


class AttemptKeys(Protocol):
    """Inference keys of attempts. Every method raises `StoreUnavailable` when the store does not answer."""

    async def open(self, digest: str, *, name: str, until: datetime, asker: str, models: Sequence[str] | None) -> None:
        """Accept the key with this SHA-256 until then; a second call extends it.

        Args:
            digest: SHA-256 of the attempt token.
            name: A name for people.
            until: When it expires.
            asker: Digest of the API key that asked for the job, which limits this one. Empty: no key asked.
            models: All models that it may ask; None: no limit of its own.
        """

    async def close(self, digest: str) -> None:
        """Stop accepting the key; an unknown one is no error."""

    async def asker(self, digest: str) -> AskerKey | None:
        """Read what has become of an API key; None when it does not exist any more."""


@dataclass(frozen=True, kw_only=True, slots=True)
class WebhookEvent:
    """A provider's claim, proved by the shared secret, that something happened; reconcile finds out what."""

    provider: str
    event_id: str
    """Id of the event, the same at every delivery."""
    kind: str
    """The provider's own name for what happened, for example `outbid`."""
