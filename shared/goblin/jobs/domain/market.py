"""What providers offer, and which of it a job was placed on, with the reasons."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import pairwise


@dataclass(frozen=True, kw_only=True, slots=True)
class Offer:
    """Capacity somebody would rent us now, in our units."""

    offer_id: str
    provider: str
    pool: str
    """Whose `Rates` it shares."""
    machine_id: str | None = None
    spot: bool
    gpu: str = ""
    """As in `RTX_4090`, see `compute.gpu_name`; empty: none."""
    gpu_count: int = 1
    price_usd_micros_per_hour: int
    """On demand: the price. Spot: the floor, the least bid that is accepted."""
    on_demand_usd_micros_per_hour: int | None = None
    """Of a spot offer: what the same costs on demand; no bid is higher."""
    storage_usd_micros_per_gib_month: int = 0
    download_usd_micros_per_gib: int = 0
    upload_usd_micros_per_gib: int = 0
    download_mib_per_s: float = 50.0
    boot_s: float = 60.0
    """From order to a running container, without downloads."""
    reliability: float | None = None
    """Chance to get through a day; None: not told, and taken for 0.95."""
    gpu_memory_mib: int
    ends_in_s: float | None = None
    """When its contract ends; None: never."""
    place: str = ""
    """Where it stands, for a person and for a provider that must be told."""
    details: str = ""
    """What the provider's adapter wants to be handed back when this is rented, in its own words."""

    @property
    def machine(self) -> str | None:
        """One name for one machine; None when its provider does not tell machines apart."""
        return f"{self.provider}/{self.machine_id}" if self.machine_id else None


@dataclass(frozen=True, kw_only=True, slots=True)
class MarketPrices:
    """What others pay for this kind of GPU now: ascending (share of renters paying at most this, micro-dollars)."""

    percentiles: tuple[tuple[float, int], ...] = ()

    def share_below(self, usd_micros_per_hour: int) -> float:
        """The share of renters who pay less, straight between the percentiles and flat outside them."""
        points = self.percentiles
        if not points or usd_micros_per_hour <= points[0][1]:
            return points[0][0] if points else 0.5
        for (low_share, low), (high_share, high) in pairwise(points):
            if usd_micros_per_hour <= high:
                if high == low:
                    return high_share
                return low_share + (high_share - low_share) * (usd_micros_per_hour - low) / (high - low)
        return points[-1][0]


@dataclass(frozen=True, kw_only=True, slots=True)
class InstanceRequirements:
    """What a provider is asked for."""

    kind: str
    """The job's."""
    gpus: tuple[str, ...] = ()
    """Any of these, as in `RTX_4090`; empty: any."""
    gpu_count: int = 0
    """0: it runs without one, and with one."""
    gpu_memory_mib_min: int = 0
    """Of each GPU."""
    disk_gib: int = 20


@dataclass(frozen=True, kw_only=True, slots=True)
class Listing:
    """What a provider would rent us now, of what was wanted."""

    offers: tuple[Offer, ...] = ()
    markets: Mapping[str, MarketPrices] = field(default_factory=dict)
    """What others pay, by GPU; one that is missing is not told."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ExpectedRun:
    """What a whole run is expected to be on one offer."""

    price_usd_micros_per_hour: int
    """The bid, or the on-demand price."""
    cost_usd_micros: int
    duration_s: float
    interval_s: float
    """Work between checkpoints."""
    losses: float


@dataclass(frozen=True, kw_only=True, slots=True)
class Candidate:
    """One offer as it was judged."""

    offer_id: str
    provider: str
    spot: bool
    all_in_usd_micros_per_hour: int | None = None
    """Bid or price, storage and the traffic of saves."""
    run: ExpectedRun | None = None
    rejected: str = ""
    """Why it was not taken; empty for the one that was."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Placement:
    """What to rent, for how much, and what else there was."""

    offer: Offer
    bid_usd_micros_per_hour: int | None
    """None: on demand, which knows no bid."""
    run: ExpectedRun
    reason: str
    candidates: tuple[Candidate, ...]
    """Cheapest first, then those that cannot be had."""


@dataclass(frozen=True, kw_only=True, slots=True)
class NoPlacement:
    """Why nothing is rented."""

    reason: str
    candidates: tuple[Candidate, ...]
    price_usd_micros_per_hour_min: int | None = None
    """Under which price cap something could be had."""
