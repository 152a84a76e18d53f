"""Offers, instances and charges in Vast.ai's wire format, and the filters over them."""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from localgpus.vast import auction, billing
from localgpus.vast.market import Market
from localgpus.vast.state import Contract, Machine, Meter

Row = dict[str, Any]
LIFE_S = 90 * 86_400.0
"""Shown duration of an offer without an end date."""


class BadFilter(Exception):
    """A filter that cannot be parsed."""


def offers(market: Market, *, bid: bool, disk_gb: float) -> list[Row]:
    """List every offer on the market, rentable or not; filters select the rentable ones."""
    if market.closed:
        return []
    return [
        _offer(market, machine, size, ask_id, bid=bid, disk_gb=disk_gb)
        for machine in market.state.machines.values()
        if machine.up and not machine.reclaimed
        for size, ask_id in market.asks(machine).items()
    ]


def _offer(market: Market, machine: Machine, size: int, ask_id: int, *, bid: bool, disk_gb: float) -> Row:
    contracts, now = market.on(machine), market.clock()
    least = auction.least_bid(machine, contracts, size)
    free = auction.free_on_demand(machine, contracts)
    base, disk = machine.price * size, disk_gb * machine.storage_cost / billing.MONTH_H
    total = (least if bid and least is not None else base) + disk
    end_date = machine.end_date if machine.end_date is not None else now + LIFE_S
    place, _, country = machine.geolocation.rpartition(", ")
    return {
        "id": ask_id, "ask_contract_id": ask_id, "bundle_id": machine.id * 10 + size, "machine_id": machine.id,
        "host_id": machine.host_id, "gpu_name": machine.gpu_name, "num_gpus": size, "gpu_ram": machine.gpu_ram,
        "gpu_total_ram": machine.gpu_ram * size, "gpu_frac": size / machine.num_gpus,
        "compute_cap": machine.compute_cap, "cuda_max_good": machine.cuda_max_good, "driver_version": "570.124.06",
        "cpu_cores": None, "cpu_cores_effective": 8.0 * size, "cpu_ram": 64_000 * size,
        "disk_space": machine.disk_space, "disk_bw": 2400.0, "inet_down": machine.inet_down,
        "inet_up": machine.inet_up, "inet_down_cost": machine.inet_down_cost, "inet_up_cost": machine.inet_up_cost,
        "dph_base": base, "dph_total": total, "discounted_dph_total": total, "storage_cost": machine.storage_cost,
        "storage_total_cost": disk, "min_bid": least if least is not None else base, "is_bid": bid,
        "search": {"gpuCostPerHour": total - disk, "diskHour": disk, "totalHour": total, "discountTotalHour": 0.0},
        "reliability": machine.reliability, "reliability2": machine.reliability,
        "expected_reliability": machine.reliability, "verification": "verified" if machine.verified else "unverified",
        "verified": machine.verified, "hosting_type": 1, "static_ip": True, "vms_enabled": False, "external": False,
        "duration": end_date - now, "end_date": end_date, "start_date": now - LIFE_S,
        "geolocation": f"{place}, {country}" if place else country, "public_ipaddr": "127.0.0.1",
        "direct_port_count": machine.direct_port_count, "dlperf": machine.dlperf * size,
        "dlperf_per_dphtotal": machine.dlperf * size / total, "score": machine.dlperf * size / total,
        "rentable": least is not None if bid else free >= size, "rented": free < size, "cluster_id": None,
    }  # fmt: skip


def instance(market: Market, contract: Contract) -> Row:
    """Return one row of the list of instances."""
    machine = market.state.machines[contract.machine_id]
    base = contract.price if contract.bid is None else contract.bid
    disk = billing.disk_rate(contract)
    least = max(machine.floor * contract.gpus, base * auction.STEP)
    now = market.clock()
    end_date = contract.end_date if contract.end_date is not None else contract.created_at + LIFE_S
    running = contract.running_since is not None and contract.actual == "running"
    state = "running" if contract.holds else "stopped"
    return {
        "id": contract.id, "machine_id": machine.id, "host_id": machine.host_id, "label": contract.label or None,
        "gpu_name": machine.gpu_name, "num_gpus": contract.gpus, "gpu_ram": machine.gpu_ram,
        "image_uuid": contract.image, "image_runtype": contract.runtype, "image_args": contract.args,
        "extra_env": [[key, value] for key, value in contract.env.items()], "onstart": contract.onstart,
        "actual_status": contract.actual, "intended_status": contract.intended, "cur_state": state,
        "next_state": "running" if contract.wanted and contract.holds else "stopped",
        "status_msg": contract.status_msg or None, "is_bid": contract.bid is not None, "min_bid": least,
        "dph_base": base, "dph_total": base + disk, "storage_cost": contract.storage_cost, "storage_total_cost": disk,
        "disk_space": contract.disk, "disk_usage": 1.0, "inet_down": machine.inet_down, "inet_up": machine.inet_up,
        "inet_down_cost": contract.inet_down_cost, "inet_up_cost": contract.inet_up_cost,
        "reliability2": machine.reliability, "geolocation": machine.geolocation,
        "start_date": contract.created_at, "end_date": end_date, "duration": end_date - now,
        "uptime_mins": (now - contract.running_since) / 60 if running and contract.running_since else None,
        "gpu_util": 90.0 if running else None, "public_ipaddr": "127.0.0.1\n", "ssh_host": "ssh1.vast.ai",
        "ssh_port": 10_000 + contract.id % 50_000, "ports": {"22/tcp": None} if running else None,
    }  # fmt: skip


def charge(meter: Meter) -> Row:
    """Return the cost of one contract on one day."""
    parts = {"gpu": meter.gpu, "disk": meter.disk, "bwd": meter.bwd, "bwu": meter.bwu}
    return {
        "start": meter.start, "end": meter.end, "type": "instance", "source": f"instance-{meter.contract_id}",
        "amount": meter.amount, "metadata": {"label": meter.label, "instance_id": meter.contract_id},
        "items": [{"type": kind, "amount": amount} for kind, amount in parts.items() if amount],
    }  # fmt: skip


def gpu_metrics(market: Market) -> list[Row]:
    """Return the prices of each GPU model now, over all renters and all offers."""
    rows = []
    for name in sorted({machine.gpu_name for machine in market.state.machines.values()}):
        of_kind = [machine for machine in market.state.machines.values() if machine.gpu_name == name]
        prices, total, free = [], 0, 0
        for machine in of_kind:
            contracts = market.on(machine)
            total += machine.num_gpus
            free += max(0, auction.free_on_demand(machine, contracts))
            prices += [machine.price, machine.floor]
            prices += [machine.price if rival.bid is None else rival.bid for rival in machine.rivals]
            prices += [(c.price if c.bid is None else c.bid) / c.gpus for c in contracts if c.holds]
        shares = (("p10", 0.1), ("p25", 0.25), ("median", 0.5), ("p75", 0.75), ("p90", 0.9))
        rows.append({
            "gpu_name": name, "total": total, "available": free, "rented_verified": total - free,
            "avail_verified": free, "usage": (total - free) / total, "usage_30d": (total - free) / total,
            "dlperf": of_kind[0].dlperf, "tflops": None, "tflops_per_dollar": None,
            **{f"price_{word}": _percentile(prices, share) for word, share in shares},
        })  # fmt: skip
    return rows


_OPERATORS: Mapping[str, Callable[[Any, Any], bool]] = {
    "eq": operator.eq, "neq": operator.ne, "gt": operator.gt, "gte": operator.ge, "lt": operator.lt,
    "lte": operator.le, "in": lambda value, among: value in among, "notin": lambda value, among: value not in among,
}  # fmt: skip


def matching(rows: Iterable[Row], filters: Mapping[str, Any]) -> list[Row]:
    """Return the rows that pass all filters. A filter on a field that a row lacks rejects the row.

    Raises:
        BadFilter: The operator is unknown, or the values cannot be compared.
    """
    return [row for row in rows if all(_passes(row, field, tests) for field, tests in filters.items())]


def _passes(row: Row, field: str, tests: Any) -> bool:
    if not isinstance(tests, dict):
        tests = {"eq": tests}
    if field not in row:
        return False
    for word, wanted in tests.items():
        if word not in _OPERATORS:
            raise BadFilter(f"unknown operator {word!r}")
        value = row[field]
        # Filters name the country, rows the place and the country.
        if field == "geolocation" and word in ("in", "notin", "eq", "neq"):
            value = str(value).rpartition(", ")[2]
        try:
            if value is None or not _OPERATORS[word](value, wanted):
                return False
        except TypeError as error:
            raise BadFilter(f"{field} cannot be compared with {wanted!r}") from error
    return True


def ordered(rows: list[Row], order: Any) -> list[Row]:
    """Sort the rows by several columns, the first one most significant. Raises `BadFilter`."""
    try:
        for column, direction in reversed(list(order)):
            rows = sorted(rows, key=lambda row: row[column], reverse=direction == "desc")
    except (TypeError, ValueError, KeyError) as error:
        raise BadFilter(f"cannot be ordered by {order!r}") from error
    return rows


def _percentile(values: list[float], share: float) -> float:
    ranked = sorted(values)
    return ranked[min(len(ranked) - 1, int(share * len(ranked)))]
