"""What we rent and what a provider says is there."""

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
    """Says whose it is, also to a later look that knows nothing else; see `attempt_label`."""
    kind: str
    environment: dict[str, str]
    """All that the instance is told: where the controller is, and its attempt token."""
    offer: Offer
    """What was chosen; its adapter made it."""
    bid_usd_micros_per_hour: int | None = None
    """For the whole instance, of a spot offer; None: on demand."""
    image: str = ""
    """The container's; empty: the provider needs none."""
    disk_gib: int = 20


class InstanceState(StrEnum):
    """What an instance is doing."""

    STARTING = "starting"
    RUNNING = "running"
    LEAVING = "leaving"
    """Outbid, or being taken back by its host, and at work for some seconds more: what it saves now is not lost."""
    STOPPED = "stopped"
    """Outbid, or taken back by its host; its disk is billed, its work is lost."""
    ENDED = "ended"
    """Its own process came to an end; what is left of it may be billed."""
    UNCLEAR = "unclear"
    """It is listed, in a state that says nothing; its silence will tell."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Instance:
    """A rented machine (or process) that exists, its bill running."""

    provider: str
    instance_id: str
    label: str
    state: InstanceState = InstanceState.RUNNING
    detail: str = ""
    """The provider's own words about it."""
    spot: bool | None = None
    """None: not told."""
    price_usd_micros_per_hour: int | None = None
    """What its running costs, as the provider says; None: not told."""
    machine_id: str | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class KnownInventory:
    """A whole, current inventory."""

    instances: frozenset[Instance]

    def by_label(self) -> dict[str, Instance]:
        """The instances by their labels."""
        return {instance.label: instance for instance in self.instances}


@dataclass(frozen=True, kw_only=True, slots=True)
class UnknownInventory:
    """The provider could not say. Not the same as nothing: nothing is launched or destroyed on it."""

    reason: str


Inventory = KnownInventory | UnknownInventory


@dataclass(frozen=True, kw_only=True, slots=True)
class AttemptLease:
    """One attempt's right to work on a job, and the instance it works on.

    Written before the instance is asked for, so that no instance exists that no document names.
    """

    provider: str
    label: str
    token_sha256: str
    """The fencing token's digest; the token itself is known only to the instance."""
    placed_at: datetime
    until: datetime
    """Until then the attempt may be silent: first to start, then between heartbeats."""
    instance_id: str | None = None
    """None until the provider named it."""
    resumed_step: int = 0
    """The checkpoint that the attempt started from: without a later one it made no progress."""
    key_until: datetime | None = None
    """When its key for inference expires unless renewed."""
    progressed_at: datetime | None = None
    """When it last got further: who only says that it is alive is not at work."""


def is_gpu(name: str, wanted: Collection[str]) -> bool:
    """Whether a GPU is any of those wanted; `H100` is every H100, `H100_SXM` only that. None wanted: any will do.

    Args:
        name: As `gpu_name` has it.
        wanted: Likewise.
    """
    return not wanted or any(name == one or name.startswith(f"{one}_") for one in wanted)


def gpu_name(text: str) -> str:
    """One name for one GPU whoever sells it: `RTX 4090`, `rtx_4090` and `NVIDIA GeForce RTX 4090` are `RTX_4090`."""
    words = re.split(r"[\s_-]+", text.strip().upper())
    return "_".join(word for word in words if word not in ("", "NVIDIA", "GEFORCE", "TESLA"))
