"""Pods, GPU types and bills in RunPod's wire format."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from fractions import Fraction
from typing import Any

from httpguard import whole_number
from localgpus.runpod import charges
from localgpus.runpod.charges import Span, What
from localgpus.runpod.pods import ACTIONS, UP, Cloud, GpuType, Pod, Status
from localgpus.runpod.problems import Problem

BUCKETS_MAX = 20_000
SIZES = ("hour", "day", "week", "month", "year")


@dataclass(frozen=True, kw_only=True, slots=True)
class Asked:
    """The query of a catalogue request."""

    with_stock: bool
    pods: bool
    """Whether the stock for pods is asked for; the other products have no stock."""
    cloud: Cloud
    count: int


def gpu(one: GpuType, asked: Asked) -> dict[str, Any]:
    """Show a GPU type."""
    secure, community = one.shelves.get(Cloud.SECURE), one.shelves.get(Cloud.COMMUNITY)
    shown: dict[str, Any] = {
        "id": one.id,
        "name": one.name,
        "pool": one.pool,
        "manufacturer": one.manufacturer,
        "memory": one.memory_gb,
        "secure": secure is not None,
        "community": community is not None,
        # A cloud without this GPU type has the price 0: inferred from version 1.
        "price": {
            "secure": secure.usd_micros_per_hour / 1e6 if secure else 0,
            "community": community.usd_micros_per_hour / 1e6 if community else 0,
        },
        "maxCount": {"secure": secure.most if secure else 0, "community": community.most if community else 0},
    }
    if not asked.with_stock:
        return shown
    level = one.availability(asked.cloud, asked.count) if asked.pods else "NONE"
    shown["availability"] = level
    if level != "NONE":
        shown["dataCenters"] = [{"id": id_, "name": id_, "availability": level} for id_ in one.data_centers]
    if one.cuda:
        shown["cudaVersions"] = [{"version": version, "available": level != "NONE"} for version in one.cuda]
    return shown


def pod(one: Pod, now: float, *, running_at_once: bool) -> dict[str, Any]:
    """Show a pod."""
    status = Status.RUNNING if running_at_once and one.status in UP else one.status
    up = one.status is Status.RUNNING
    proxy = {"host": "ssh.runpod.io", "port": 22, "username": f"{one.id}-0", "command": f"ssh {one.id}-0@ssh.runpod.io"}
    runtime = {
        "uptime": int(now - (one.started_at or now)),
        "gpus": [{"util": 0, "memoryUtil": 0}] * one.gpu_count,
        "cpu": {"util": 0},
        "memory": {"util": 0},
        "ports": [],
    }
    volume = {"persistent": {"size": one.volume_gb, "path": one.volume_path}} if one.volume_gb else {}
    return {
        "id": one.id,
        "name": one.name,
        "image": one.image,
        "args": one.args_text,
        "disk": one.disk_gb,
        "ports": list(one.ports),
        "env": one.env,
        "registry": None,
        "status": status,
        "actions": list(ACTIONS[status]),
        "mounts": volume,
        "gpu": {"id": one.gpu_id, "count": one.gpu_count},
        "cloud": one.cloud,
        "dataCenterId": one.data_center,
        "cudaVersion": one.cuda,
        "ssh": {"proxy": proxy, "direct": None},
        "template": None,
        "cost": 0.0 if one.status in (Status.EXITED, Status.TERMINATED) else one.usd_micros_per_hour / 1e6,
        "locked": one.locked,
        "globalNetworking": {"enabled": False},
        "runtime": runtime if up else None,
        "createdAt": iso(one.created_at),
        "startedAt": iso(one.started_at) if one.started_at is not None else None,
    }


@dataclass(frozen=True, kw_only=True, slots=True)
class Window:
    """The period of a bill, in whole buckets."""

    size: str
    buckets: Sequence[tuple[datetime, datetime]]

    def query(self) -> dict[str, Any]:
        first, last = self.buckets[0][0], self.buckets[-1][1]
        return {**_span(first, last), "bucketSize": self.size}


def window(query: Mapping[str, str], now: float) -> Window:
    """Parse the period of a billing request, widened to whole buckets. Raises `Problem`."""
    size = query.get("bucketSize", "day")
    if size not in SIZES:
        raise Problem(422, "Request validation failed.", errors=["bucketSize: unknown value"])
    at = datetime.fromtimestamp(now, UTC)
    if "lastN" in query:
        if "startTime" in query or "endTime" in query:
            raise Problem(400, "lastN and startTime/endTime are mutually exclusive")
        buckets = whole_number(query["lastN"], BUCKETS_MAX)
        if not buckets:
            raise Problem(422, "Request validation failed.", errors=["lastN: out of range"])
        start = charges.start_of_bucket(at, size)
        end = charges.next_bucket(start, size)
        for _ in range(buckets - 1):
            start = charges.last_bucket(start, size)
    else:
        end = _instant(query.get("endTime"), at)
        start = _instant(query.get("startTime"), end - timedelta(days=30))
    if start >= end or (end - start) / timedelta(hours=1) > BUCKETS_MAX * (1 if size == "hour" else 24):
        raise Problem(400, "the time range is empty or too long")
    return Window(size=size, buckets=list(charges.buckets(start, end, size)))


def bill(spans: Iterable[Span], asked: Window, *, known_until: int) -> dict[str, Any]:
    """Show the account's bill, one record per bucket; buckets without spend have zeros."""
    spans = list(spans)
    records, totals = [], dict.fromkeys(_ACCOUNT, Fraction(0))
    for start, end in asked.buckets:
        gpus, disks = _amounts(spans, start, end, known_until)
        amounts = {**dict.fromkeys(_ACCOUNT, Fraction(0)), "totalAmount": gpus + disks}
        amounts |= {"podGpuAmount": gpus, "podDiskAmount": disks}
        records.append({**_span(start, end), **_usd(amounts)})
        totals = {name: totals[name] + amounts[name] for name in _ACCOUNT}
    return {
        "records": records,
        "metadata": {"query": asked.query(), "recordCount": len(records), "totals": _usd(totals)},
    }


def pod_bill(spans: Iterable[Span], asked: Window, *, known_until: int, pod_id: str | None) -> dict[str, Any]:
    """Show the pods' bill, one record per pod and bucket with spend."""
    by_pod: dict[str, list[Span]] = {}
    for span in spans:
        if pod_id in (None, span.pod_id):
            by_pod.setdefault(span.pod_id, []).append(span)
    records, totals = [], dict.fromkeys(_POD, Fraction(0))
    for start, end in asked.buckets:
        for one, its in sorted(by_pod.items()):
            gpus, disks = _amounts(its, start, end, known_until)
            if gpus or disks:
                amounts = {"totalAmount": gpus + disks, "gpuAmount": gpus, "cpuAmount": Fraction(0)}
                amounts["diskAmount"] = disks
                records.append({**_span(start, end), "podId": one, **_usd(amounts)})
                totals = {name: totals[name] + amounts[name] for name in _POD}
    metadata = {
        "query": {**asked.query(), "podId": pod_id},
        "recordCount": len(records),
        "uniquePodCount": len({record["podId"] for record in records}),
        "totals": _usd(totals),
    }
    return {"records": records, "metadata": metadata}


_POD = ("totalAmount", "gpuAmount", "cpuAmount", "diskAmount")
_ACCOUNT = (
    "totalAmount", "podGpuAmount", "podCpuAmount", "podDiskAmount", "serverlessGpuAmount", "serverlessCpuAmount",
    "serverlessDiskAmount", "serverlessFeeAmount", "storageStandardAmount", "storageHighPerformanceAmount",
    "endpointAmount", "clusterGpuAmount", "clusterDiskAmount", "clusterNetworkingAmount",
)  # fmt: skip


def _amounts(spans: Sequence[Span], start: datetime, end: datetime, known_until: int) -> tuple[Fraction, Fraction]:
    """Return the cost of GPUs and of disks in a bucket."""
    first, last = int(start.timestamp()), min(int(end.timestamp()), known_until)
    gpus = charges.cost((span for span in spans if span.what is What.GPU), first, last)
    return gpus, charges.cost(spans, first, last) - gpus


def _usd(amounts: Mapping[str, Fraction]) -> dict[str, float]:
    return {name: charges.usd(amount) for name, amount in amounts.items()}


def _span(start: datetime, end: datetime) -> dict[str, str]:
    return {"startTime": f"{start:%Y-%m-%dT%H:%M:%SZ}", "endTime": f"{end:%Y-%m-%dT%H:%M:%SZ}"}


def _instant(text: str | None, otherwise: datetime) -> datetime:
    if text is None:
        return otherwise
    try:
        at = datetime.fromisoformat(text)
        return at.astimezone(UTC)
    except (ValueError, OverflowError) as error:
        raise Problem(422, "Request validation failed.", errors=["not a time of RFC 3339"]) from error


def iso(at: float) -> str:
    """Format an instant as on the wire."""
    return datetime.fromtimestamp(at, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
