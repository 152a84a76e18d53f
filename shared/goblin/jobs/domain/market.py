"""Offers of providers, and the placement of a job on one of them, with the reasons."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import pairwise


@dataclass(frozen=True, kw_only=True, slots=True)
class Offer:
    """Capacity that a provider would rent us now, in our units."""

    offer_id: str
    provider: str
    pool: str
    """Name of its pool; all offers of a pool share its `PreemptionRates`."""
    machine_id: str | None = None
    spot: bool
    gpu: str = ""
    """GPU model, for example `RTX_4090`, see `domain.instances.gpu_name`; empty: none."""
    gpu_count: int = 1
    price_usd_micros_per_hour: int
    """On demand: the price. Spot: the floor, which is the lowest bid accepted."""
    on_demand_usd_micros_per_hour: int | None = None
    """For a spot offer: price of the same machine on demand; no bid is higher."""
    storage_usd_micros_per_gib_month: int = 0
    download_usd_micros_per_gib: int = 0
    upload_usd_micros_per_gib: int = 0
    download_mib_per_s: float = 50.0
    boot_s: float = 60.0
    """Time from the rental to a running container, without downloads."""
    reliability: float | None = None
    """Probability to survive a day; None: unknown, 0.95 is assumed."""
    gpu_memory_mib: int
    ends_in_s: float | None = None
    """Time until its contract ends; None: it has no end."""
    place: str = ""
    """Location, for a person and for providers that need it at the rental."""
    details: str = ""
    """Data that the provider's adapter needs again when the offer is rented, in its own format."""

    @property
    def machine(self) -> str | None:
        """Unique name of the machine; None when its provider has no machine ids."""
        return f"{self.provider}/{self.machine_id}" if self.machine_id else None


@dataclass(frozen=True, kw_only=True, slots=True)
class MarketPrices:
    """Prices that others pay for a GPU model now: ascending (share of renters paying at most this, micro-dollars)."""

    percentiles: tuple[tuple[float, int], ...] = ()

    def share_below(self, usd_micros_per_hour: int) -> float:
        """Return the share of renters who pay less: linear between the percentiles, constant outside them."""
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
    """What an instance must have."""

    kind: str
    """Kind of the job."""
    gpus: tuple[str, ...] = ()
    """Accepted GPU models, for example `RTX_4090`; empty: any."""
    gpu_count: int = 0
    """0: no GPU is needed; an instance with one will do too."""
    gpu_memory_mib_min: int = 0
    """Memory of each GPU."""
    disk_gib: int = 20


@dataclass(frozen=True, kw_only=True, slots=True)
class Listing:
    """A provider's offers that match what was wanted."""

    offers: tuple[Offer, ...] = ()
    markets: Mapping[str, MarketPrices] = field(default_factory=dict)
    """Prices that others pay, by GPU model; a missing model is unknown."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ExpectedRun:
    """Expected cost, duration and losses of a whole run on one offer."""

    price_usd_micros_per_hour: int
    """The bid, or the on-demand price."""
    cost_usd_micros: int
    duration_s: float
    interval_s: float
    """Work between two checkpoints."""
    losses: float


@dataclass(frozen=True, kw_only=True, slots=True)
class Candidate:
    """One offer with its evaluation."""

    offer_id: str
    provider: str
    spot: bool
    all_in_usd_micros_per_hour: int | None = None
    """Full hourly price: bid or on-demand price, storage, and the traffic of saves."""
    run: ExpectedRun | None = None
    rejected: str = ""
    """Why the offer was not chosen; empty for the chosen one."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Placement:
    """The offer to rent, at which bid, with the other candidates."""

    offer: Offer
    bid_usd_micros_per_hour: int | None
    """None: on demand, which has no bid."""
    run: ExpectedRun
    reason: str
    candidates: tuple[Candidate, ...]
    """Cheapest first, then the unsuitable ones."""


@dataclass(frozen=True, kw_only=True, slots=True)
class NoPlacement:
    """The reason why nothing is rented."""

    reason: str
    candidates: tuple[Candidate, ...]
    price_usd_micros_per_hour_min: int | None = None
    """Lowest price cap under which an offer would be suitable; None: the cap excludes no offer."""
