"""Converts rows of Vast.ai's API to our types and units: offers, instances, GPU prices."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from decimal import Decimal
from typing import Any

import msgspec

from goblin.core.money import to_micros
from goblin.core.redaction import redact
from goblin.jobs.domain.instances import Instance, InstanceState, gpu_name, is_gpu
from goblin.jobs.domain.market import InstanceRequirements, MarketPrices, Offer

NAME = "vastai"
BOOT_S = 45.0
"""Time from order to container on a host that has the image, until measured by attempts."""
GIB_IN_GB = Decimal("1.073741824")
"""Gigabytes in a gibibyte."""
MIB_PER_S = 1_000_000 / 8 / 1_048_576
"""MiB per second in a megabit per second."""
BOX_SHARE = 0.97
"""GPU memory as the driver reports it, as a share of the advertised memory."""
RELIABILITY_MIN = 0.9
"""Of the hosts that are searched for at all; `jobs/policy/spot/offers` has a minimum for every provider's offers."""
DOWNLOAD_MBIT_PER_S_MIN = 128
CUDA_MIN = 12.8
PRICE_MAX = Decimal(1000)
"""Highest plausible price, in dollars per hour or per GB; a higher one is taken for a mistake."""
TOLD_MAX = 300
"""Longest text kept of a place or a status message."""


class OfferRow(msgspec.Struct, frozen=True, kw_only=True):
    """The fields of an offer that we read."""

    id: int
    machine_id: int
    gpu_name: str
    num_gpus: int
    gpu_ram: float
    dph_base: Decimal
    min_bid: Decimal | None = None
    storage_cost: Decimal = Decimal(0)
    inet_down: float = 0.0
    inet_down_cost: Decimal = Decimal(0)
    inet_up_cost: Decimal = Decimal(0)
    reliability2: float | None = None
    duration: float | None = None
    geolocation: str | None = None
    rentable: bool = True
    rented: bool = False


class InstanceRow(msgspec.Struct, frozen=True, kw_only=True):
    """The fields of an instance that we read."""

    id: int
    machine_id: int | None = None
    label: str | None = None
    actual_status: str | None = None
    intended_status: str | None = None
    status_msg: str | None = None
    is_bid: bool | None = None
    dph_total: Decimal | None = None


class VastGpuRow(msgspec.Struct, frozen=True, kw_only=True):
    """Percentiles of the prices paid for a GPU model, in dollars per hour and GPU."""

    gpu_name: str
    price_p10: Decimal | None = None
    price_p25: Decimal | None = None
    price_median: Decimal | None = None
    price_p75: Decimal | None = None
    price_p90: Decimal | None = None


SHARES = {"price_p10": 0.1, "price_p25": 0.25, "price_median": 0.5, "price_p75": 0.75, "price_p90": 0.9}


def filters(wanted: InstanceRequirements, names: Iterable[str], *, spot: bool, limit: int) -> Mapping[str, Any]:
    """Build a search for machines that are verified, reliable, and have a fast enough internet connection.

    Args:
        wanted: The requirements.
        names: Vast.ai's names of the GPUs; empty for any.
        spot: True for bids, False for on demand.
        limit: Most offers, the cheapest first.
    """
    memory = int(wanted.gpu_memory_mib_min * BOX_SHARE)
    among = sorted(names)
    return {
        "verified": {"eq": True}, "external": {"eq": False}, "rentable": {"eq": True}, "rented": {"eq": False},
        "num_gpus": {"eq": max(1, wanted.gpu_count)}, "disk_space": {"gte": wanted.disk_gib},
        "reliability2": {"gte": RELIABILITY_MIN}, "inet_down": {"gt": DOWNLOAD_MBIT_PER_S_MIN},
        "cuda_max_good": {"gte": CUDA_MIN},
        "direct_port_count": {"gte": 1},
        **({"gpu_ram": {"gte": memory}} if memory else {}), **({"gpu_name": {"in": among}} if among else {}),
        "type": "bid" if spot else "on-demand", "allocated_storage": wanted.disk_gib,
        "order": [["dph_total", "asc"]], "limit": limit,
    }  # fmt: skip


def parse_offers(found: Sequence[Any], wanted: InstanceRequirements, *, spot: bool) -> list[Offer]:
    """Convert the rows that fit; a row that cannot be read is a mistake of its host and is left out."""
    offers = (parse_offer(row, spot=spot) for row in found)
    return [offer for offer in offers if offer is not None and _fits(offer, wanted)]


def parse_offer(found: Any, *, spot: bool) -> Offer | None:
    """Convert one row of a search; None when it cannot be read or cannot be rented."""
    try:
        row = msgspec.convert(found, OfferRow)
    except msgspec.ValidationError:
        return None
    price = row.min_bid if spot else row.dph_base
    costs = (row.storage_cost, row.inet_down_cost, row.inet_up_cost)
    if price is None or not _sound(price) or not _sound(row.dph_base) or not all(_sound(c, free=True) for c in costs):
        return None
    # A bid above the on-demand price gains nothing.
    if row.rented or not row.rentable or row.num_gpus < 1 or price > row.dph_base or not 0 < row.gpu_ram < 1e7:
        return None
    gpu = gpu_name(row.gpu_name)
    return Offer(
        offer_id=str(row.id), provider=NAME, pool=f"{NAME}/{gpu}/{row.num_gpus}", machine_id=str(row.machine_id),
        spot=spot, gpu=gpu, gpu_count=row.num_gpus, price_usd_micros_per_hour=to_micros(price),
        on_demand_usd_micros_per_hour=to_micros(row.dph_base) if spot else None,
        storage_usd_micros_per_gib_month=to_micros(row.storage_cost),
        download_usd_micros_per_gib=to_micros(row.inet_down_cost * GIB_IN_GB),
        upload_usd_micros_per_gib=to_micros(row.inet_up_cost * GIB_IN_GB),
        download_mib_per_s=max(0.1, row.inet_down * MIB_PER_S), boot_s=BOOT_S,
        reliability=min(1.0, max(0.0, row.reliability2)) if row.reliability2 is not None else None,
        # Rounded to the advertised size: 24564 MiB are 24 GiB.
        gpu_memory_mib=round(row.gpu_ram / 1024) * 1024,
        ends_in_s=max(0.0, row.duration) if row.duration is not None else None,
        place=(row.geolocation or "")[:TOLD_MAX],
    )  # fmt: skip


def _fits(offer: Offer, wanted: InstanceRequirements) -> bool:
    return (
        is_gpu(offer.gpu, wanted.gpus)
        and offer.gpu_count == max(1, wanted.gpu_count)
        and offer.gpu_memory_mib >= wanted.gpu_memory_mib_min
    )


def parse_instance(row: InstanceRow, label: str) -> Instance:
    """Convert one row of the list of instances."""
    price = row.dph_total if row.dph_total is not None and _sound(row.dph_total, free=True) else None
    status = f"{row.actual_status or 'scheduling'}, intended {row.intended_status}"
    return Instance(
        provider=NAME, instance_id=str(row.id), label=label, state=parse_state(row),
        detail=redact(f"{status}: {row.status_msg}" if row.status_msg else status)[:TOLD_MAX], spot=row.is_bid,
        price_usd_micros_per_hour=to_micros(price) if price is not None else None,
        machine_id=str(row.machine_id) if row.machine_id is not None else None,
    )  # fmt: skip


_NEVER_RUNS = re.compile(
    r"OCI runtime create failed|manifest (for .* not found|unknown)|pull access denied", re.IGNORECASE
)


def parse_state(row: InstanceRow) -> InstanceState:
    """Find an instance's state. We never stop one: an intended stop means it was outbid or the credit is used up."""
    if row.intended_status == "stopped":
        # The list shows it a second after the event; its processes are killed 10 to 30 s after it. Measured by others,
        # 2026-08-27.
        return InstanceState.LEAVING if row.actual_status == "running" else InstanceState.STOPPED
    match row.actual_status:
        case None | "created" | "loading" | "rebooting" | "scheduling":
            return InstanceState.ENDED if _NEVER_RUNS.search(row.status_msg or "") else InstanceState.STARTING
        case "running":
            return InstanceState.RUNNING
        case "exited" | "stopped":
            return InstanceState.ENDED
    # Offline, frozen or unknown: it may come back, and may be billed.
    return InstanceState.UNCLEAR


def parse_market(row: VastGpuRow, *, gpu_count: int) -> MarketPrices:
    """Convert market prices to micro-dollars per hour for `gpu_count` GPUs; implausible prices are left out."""
    points = [(share, getattr(row, field)) for field, share in SHARES.items()]
    told = [(share, to_micros(price * gpu_count)) for share, price in points if price is not None and _sound(price)]
    prices = [price for _, price in told]
    return MarketPrices(percentiles=tuple(told) if prices == sorted(prices) else ())


def spellings(gpu: str) -> set[str]:
    """Guess Vast.ai's names of a GPU, in case its own list is missing: `RTX_3080_TI` is `RTX 3080 Ti`."""
    plain = gpu.replace("_", " ")
    return {plain, plain.replace(" TI", " Ti"), plain.replace(" ADA", "Ada"), f"Tesla {plain}"}


def _sound(price: Decimal, *, free: bool = False) -> bool:
    return price.is_finite() and (price >= 0 if free else price > 0) and price <= PRICE_MAX
