"""The whole state of the market, in one value that can be stored. Amounts are dollars, as on the wire."""

from __future__ import annotations

from enum import StrEnum

import msgspec


class Rival(msgspec.Struct, kw_only=True):
    """Another renter on a machine."""

    gpus: int
    bid: float | None
    """Dollars per hour for each GPU; None: on demand, which outranks every bid."""
    until: float | None = None
    """When it leaves; None: never."""


class Machine(msgspec.Struct, kw_only=True):
    """A host's computer. Prices are dollars per hour for each GPU unless stated otherwise."""

    id: int
    host_id: int
    gpu_name: str
    """With spaces, for example `RTX 4090`."""
    num_gpus: int
    gpu_ram: int
    """Megabytes of each GPU."""
    price: float
    """The on-demand price."""
    floor: float
    """The least bid that is accepted."""
    storage_cost: float = 0.15
    """Dollars per GB and month."""
    inet_down: float = 800.0
    """Mb/s."""
    inet_up: float = 400.0
    inet_down_cost: float = 0.0
    """Dollars per GB."""
    inet_up_cost: float = 0.0
    reliability: float = 0.99
    geolocation: str = "Utah, US"
    verified: bool = True
    disk_space: float = 500.0
    cuda_max_good: float = 12.9
    compute_cap: int = 890
    direct_port_count: int = 50
    dlperf: float = 90.0
    end_date: float | None = None
    """When its host takes it off the market; every contract ends then."""
    up: bool = True
    """Whether its host is online."""
    reclaimed: bool = False
    """Whether its host uses the machine itself: stopped instances do not start again."""
    back_at: float | None = None
    """When the market simulation returns the machine that it took; None: it took nothing."""
    pull_error: str = ""
    """The error of every image pull; empty: pulls succeed."""
    rivals: list[Rival] = msgspec.field(default_factory=list)
    asks: dict[int, int] = msgspec.field(default_factory=dict)
    """Ids of the current offers by number of GPUs. A rented offer gets a new id."""


class Actual(StrEnum):
    """A container's `actual_status` in Vast.ai's words. It is null before `created`."""

    CREATED = "created"
    LOADING = "loading"
    RUNNING = "running"
    STOPPED = "stopped"
    EXITED = "exited"
    OFFLINE = "offline"


class Step(StrEnum):
    """A planned event of a contract."""

    CREATE = "create"
    PULL = "pull"
    START = "start"
    HALT = "halt"
    """The container is told to stop: its intended status changes."""
    EXIT = "exit"
    """The container reads as stopped."""


class Contract(msgspec.Struct, kw_only=True):
    """An instance of ours, from its creation until it is destroyed."""

    id: int
    machine_id: int
    gpus: int
    label: str
    image: str
    args: list[str]
    env: dict[str, str]
    onstart: str | None
    runtype: str
    disk: float
    bid: float | None
    """Dollars per hour for all its GPUs; None: on demand."""
    price: float
    """The on-demand price at the time of the contract, in dollars per hour for all its GPUs."""
    storage_cost: float
    inet_down_cost: float
    inet_up_cost: float
    created_at: float
    end_date: float | None
    wanted: bool = True
    """Whether its renter wants it to run."""
    holds: bool = False
    """Whether it has its GPUs now."""
    intended: str = "running"
    actual: Actual | None = None
    status_msg: str = ""
    running_since: float | None = None
    steps: list[tuple[float, Step]] = msgspec.field(default_factory=list)
    """Planned events, soonest first."""
    billed_until: float = 0.0
    ended_at: float | None = None
    """When its end date stopped it; it is deleted some time later."""


class Meter(msgspec.Struct, kw_only=True):
    """The cost of one contract on one day, in dollars."""

    contract_id: int
    label: str
    day: int
    """Midnight UTC, in seconds since 1970."""
    start: float
    end: float
    gpu: float = 0.0
    disk: float = 0.0
    bwd: float = 0.0
    bwu: float = 0.0

    @property
    def amount(self) -> float:
        return self.gpu + self.disk + self.bwd + self.bwu


class Hook(msgspec.Struct, kw_only=True):
    """A registered webhook."""

    id: int
    name: str
    url: str
    event_types: list[str]
    secret: str
    enabled: bool = True


class Notice(msgspec.Struct, kw_only=True):
    """One webhook event that is to be delivered to one hook."""

    event_id: str
    hook_id: int
    notif_type: str
    subject: str
    message: str
    at: float
    due: float
    attempt: int = 1
    again: bool = True
    """Whether a failed delivery is retried; a test event is not."""


class State(msgspec.Struct, kw_only=True):
    """The whole market, and the one account that rents on it."""

    machines: dict[int, Machine] = msgspec.field(default_factory=dict)
    contracts: dict[int, Contract] = msgspec.field(default_factory=dict)
    meters: list[Meter] = msgspec.field(default_factory=list)
    hooks: dict[int, Hook] = msgspec.field(default_factory=dict)
    notices: list[Notice] = msgspec.field(default_factory=list)
    paid_in: float = 25.0
    """Dollars paid into the account."""
    next_id: int = 5_550_001
    saved_at: float = 0.0

    @property
    def balance(self) -> float:
        return self.paid_in - sum(meter.amount for meter in self.meters)
