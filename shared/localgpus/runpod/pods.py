"""GPU types that can be rented, and pods that were."""

from __future__ import annotations

from enum import StrEnum

import msgspec


class Cloud(StrEnum):
    """Owner of the hardware: RunPod's data centres, or community hosts."""

    SECURE = "SECURE"
    COMMUNITY = "COMMUNITY"


class Status(StrEnum):
    """A pod's status in RunPod's words."""

    PROVISIONING = "PROVISIONING"
    STARTING = "STARTING"
    RUNNING = "RUNNING"
    EXITED = "EXITED"
    """The container ended, by itself or because the pod was stopped. The pod exists until it is deleted."""
    ERROR = "ERROR"
    TERMINATED = "TERMINATED"


UP = frozenset({Status.PROVISIONING, Status.STARTING, Status.RUNNING})
"""The statuses in which a pod holds its GPUs."""
ACTIONS = {
    Status.PROVISIONING: ("stop", "terminate"),
    Status.STARTING: ("stop", "terminate"),
    Status.RUNNING: ("stop", "restart", "terminate"),
    Status.EXITED: ("start", "terminate"),
    Status.ERROR: ("start", "terminate"),
    Status.TERMINATED: (),
}


class Shelf(msgspec.Struct, kw_only=True):
    """The stock of one GPU type in one cloud."""

    usd_micros_per_hour: int
    """Price of one GPU."""
    free: int
    most: int
    """GPUs of the largest machine; a pod can have no more."""


class GpuType(msgspec.Struct, kw_only=True):
    """A GPU model and its stock."""

    id: str
    name: str
    memory_gb: int
    shelves: dict[Cloud, Shelf]
    pool: str | None = None
    manufacturer: str = "NVIDIA"
    data_centers: tuple[str, ...] = ("US-KS-2",)
    cuda: tuple[str, ...] = ("12.8",)
    restricted: bool = False
    """Whether the account may not rent it (403)."""
    sold_out_unseen: bool = False
    """Whether every create finds no capacity although the catalogue shows stock, as when other renters are faster."""

    def availability(self, cloud: Cloud, count: int) -> str:
        """Return the catalogue's word for the stock for pods of `count` GPUs. The thresholds are inferred."""
        shelf = self.shelves.get(cloud)
        fits = shelf.free // count if shelf is not None and count <= shelf.most else 0
        return "NONE" if fits < 1 else "LOW" if fits < 3 else "MEDIUM" if fits < 10 else "HIGH"


class Pod(msgspec.Struct, kw_only=True):
    """A rented pod."""

    id: str
    name: str
    image: str
    gpu_id: str
    gpu_count: int
    cloud: Cloud
    data_center: str
    cuda: str
    disk_gb: int
    usd_micros_per_hour: int
    """Price of all its GPUs, fixed at its creation; a later price is for later pods."""
    created_at: float
    """Seconds since 1970, like all times here."""
    phase_at: float
    """When it entered its status."""
    args: tuple[str, ...] = ()
    args_text: str = ""
    env: dict[str, str] = {}
    ports: tuple[str, ...] = ()
    volume_gb: int = 0
    """Size of `mounts.persistent`, which is lost with the host."""
    volume_path: str = ""
    status: Status = Status.PROVISIONING
    started_at: float | None = None
    launched: bool = False
    """Whether its container was started since the pod was last started."""
    stopped: bool = False
    """Whether a request stopped it, which wipes the container's disk. A pod that ended by itself keeps its disk."""
    locked: bool = False
    host_lost: bool = False

    @property
    def machine(self) -> str:
        """Its name for `Machines`."""
        return f"runpod-{self.id}"


def _gpu(id_: str, name: str, memory_gb: int, pool: str | None, **clouds: tuple[float, int, int]) -> GpuType:
    shelves = {
        Cloud(cloud.upper()): Shelf(usd_micros_per_hour=round(usd * 1_000_000), free=free, most=most)
        for cloud, (usd, free, most) in clouds.items()
    }
    return GpuType(id=id_, name=name, memory_gb=memory_gb, pool=pool, shelves=shelves)


def gpus() -> list[GpuType]:
    """Build an ordinary day's stock. Prices as others saw them in spring 2026; the free numbers are invented."""
    return [
        _gpu("NVIDIA GeForce RTX 3090", "RTX 3090", 24, "AMPERE_24", secure=(0.39, 12, 8), community=(0.22, 9, 4)),
        _gpu("NVIDIA GeForce RTX 4090", "RTX 4090", 24, "ADA_24", secure=(0.60, 40, 8), community=(0.34, 14, 4)),
        _gpu("NVIDIA L40S", "L40S", 48, "ADA_48_PRO", secure=(0.86, 12, 8), community=(0.79, 2, 4)),
        _gpu("NVIDIA A100 80GB PCIe", "A100 PCIe", 80, "AMPERE_80", secure=(1.64, 16, 8), community=(1.19, 4, 4)),
        _gpu("NVIDIA A100-SXM4-80GB", "A100 SXM", 80, "AMPERE_80", secure=(1.74, 24, 8), community=(1.39, 0, 8)),
        _gpu("NVIDIA H100 PCIe", "H100 PCIe", 80, "ADA_80_PRO", secure=(2.39, 8, 8), community=(1.99, 0, 8)),
        _gpu("NVIDIA H100 80GB HBM3", "H100 SXM", 80, "ADA_80_PRO", secure=(2.79, 32, 8)),
        _gpu("NVIDIA H200", "H200 SXM", 141, "HOPPER_141", secure=(3.59, 16, 8)),
    ]


GPUS = tuple(gpu.id for gpu in gpus())
