"""Instances: what we rent, and what a provider lists."""

from __future__ import annotations

import re
from collections.abc import Collection
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum

from goblin.jobs.domain.market import Offer


@dataclass(frozen=True, kw_only=True, slots=True)
class RentalOrder:
    """One instance to rent, for one attempt of one job."""

    label: str
    """Name of the instance at its provider; identifies its job and attempt. See `core.labels.attempt_label`."""
    kind: str
    environment: dict[str, str]
    """Environment variables of the instance: the controller's URL and its attempt token, nothing else."""
    offer: Offer
    """The chosen offer, as its provider's adapter made it."""
    bid_usd_micros_per_hour: int | None = None
    """Bid on a spot offer, for the whole instance; None: on demand."""
    image: str = ""
    """Container image; empty: the provider needs none."""
    disk_gib: int = 20


class InstanceState(StrEnum):
    """State of an instance as its provider lists it."""

    STARTING = "starting"
    RUNNING = "running"
    LEAVING = "leaving"
    """Outbid or being taken back by its host, and running for some seconds more: what it saves now is not lost."""
    STOPPED = "stopped"
    """Outbid or taken back by its host; its disk is billed, its unsaved work is lost."""
    ENDED = "ended"
    """Its process has ended; the rest of the instance may still be billed."""
    UNCLEAR = "unclear"
    """Listed in a state that we do not know; missing heartbeats will show whether it is lost."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Instance:
    """A rented machine (or process) that exists and is billed."""

    provider: str
    instance_id: str
    label: str
    state: InstanceState = InstanceState.RUNNING
    detail: str = ""
    """The provider's own description of the state."""
    spot: bool | None = None
    """Whether it is a spot instance; None: the provider does not say."""
    price_usd_micros_per_hour: int | None = None
    """Price while it runs, as the provider states it; None: the provider does not say."""
    machine_id: str | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class KnownInventory:
    """A complete, current inventory of one provider."""

    instances: frozenset[Instance]

    def by_label(self) -> dict[str, Instance]:
        """Return the instances by label."""
        return {instance.label: instance for instance in self.instances}


@dataclass(frozen=True, kw_only=True, slots=True)
class UnknownInventory:
    """An inventory that could not be read. It is not empty: nothing is rented or released because of it."""

    reason: str


Inventory = KnownInventory | UnknownInventory


@dataclass(frozen=True, kw_only=True, slots=True)
class AttemptLease:
    """One attempt's right to work on a job, and the instance it works on.

    Written before the instance is rented, so that every instance is named by a document.
    """

    provider: str
    label: str
    token_sha256: str
    """Hash of the fencing token; only the instance knows the token itself."""
    placed_at: datetime
    until: datetime
    """The attempt may be silent until then: first while it starts, later between heartbeats."""
    instance_id: str | None = None
    """The provider's id of the instance; None until it is known."""
    resumed_step: int = 0
    """Step that the attempt started from: without a later checkpoint it made no progress."""
    key_until: datetime | None = None
    """When the attempt's inference key expires unless renewed; None: it has no key."""
    progressed_at: datetime | None = None
    """When the attempt last made progress: a heartbeat alone is none."""


def is_gpu(name: str, wanted: Collection[str]) -> bool:
    """Check whether a GPU is one of those wanted; `H100` matches every H100, `H100_SXM` only that model.

    Args:
        name: Model of the GPU, as `gpu_name` writes it.
        wanted: Models that will do, written the same way; empty: any.
    """
    return not wanted or any(name == one or name.startswith(f"{one}_") for one in wanted)


def gpu_name(text: str) -> str:
    """Normalise a GPU model: `RTX 4090`, `rtx_4090` and `NVIDIA GeForce RTX 4090` are `RTX_4090`."""
    words = re.split(r"[\s_-]+", text.strip().upper())
    return "_".join(word for word in words if word not in ("", "NVIDIA", "GEFORCE", "TESLA"))
