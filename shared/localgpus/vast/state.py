"""All that the market knows, in one value that can be written down and read again. Money is dollars, as on the wire."""

from __future__ import annotations

from enum import StrEnum

import msgspec


class Rival(msgspec.Struct, kw_only=True):
    """Somebody else who rents on a machine."""

    gpus: int
    bid: float | None
    """Dollars per hour for each GPU; None: pays in full, and outranks all bids."""
    until: float | None = None
    """None: stays."""


class Machine(msgspec.Struct, kw_only=True):
    """A host's computer. Prices are dollars per hour for each GPU unless said otherwise."""

    id: int
    host_id: int
    gpu_name: str
    """With spaces, as in `RTX 4090`."""
    num_gpus: int
    gpu_ram: int
    """MB of each."""
    price: float
    """On demand."""
    floor: float
    """No bid below it is taken."""
    storage_cost: float = 0.15
    """Dollars for a GB and month."""
    inet_down: float = 800.0
    """Mb/s."""
    inet_up: float = 400.0
    inet_down_cost: float = 0.0
    """Dollars for a GB."""
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
    """When its host takes it off the market; nobody rents past it."""
    up: bool = True
    """False: its host is dead."""
    reclaimed: bool = False
    """Its host uses it himself: what is stopped there does not start again."""
    back_at: float | None = None
    """When what the weather took is there again; None: it took nothing."""
    pull_error: str = ""
    """What the pull of any image ends in."""
    rivals: list[Rival] = msgspec.field(default_factory=list)
    asks: dict[int, int] = msgspec.field(default_factory=dict)
    """The current offer's id by number of GPUs; a rented one is replaced."""


class Actual(StrEnum):
    """What a container does, in the market's words; before `created` it is null."""

    CREATED = "created"
    LOADING = "loading"
    RUNNING = "running"
    STOPPED = "stopped"
    EXITED = "exited"
    OFFLINE = "offline"


class Step(StrEnum):
    """What happens to a contract at a time."""

    CREATE = "create"
    PULL = "pull"
    START = "start"
    HALT = "halt"
    """The container is told to stop: its intended status changes."""
    EXIT = "exit"
    """It is seen to have stopped."""


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
    """On demand, as agreed."""
    storage_cost: float
    inet_down_cost: float
    inet_up_cost: float
    created_at: float
    end_date: float | None
    wanted: bool = True
    """Its renter wants it to run."""
    holds: bool = False
    """It has its GPUs now."""
    intended: str = "running"
    actual: Actual | None = None
    status_msg: str = ""
    running_since: float | None = None
    steps: list[tuple[float, Step]] = msgspec.field(default_factory=list)
    """What will happen, soonest first."""
    billed_until: float = 0.0
    ended_at: float | None = None
    """Its contract is over; some time later it is deleted."""


class Meter(msgspec.Struct, kw_only=True):
    """What one contract cost on one day, in dollars."""

    contract_id: int
    label: str
    day: int
    """Midnight of UTC, seconds since 1970."""
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
    """Where somebody wants to be told."""

    id: int
    name: str
    url: str
    event_types: list[str]
    secret: str
    enabled: bool = True


class Notice(msgspec.Struct, kw_only=True):
    """One event on its way to one hook."""

    event_id: str
    hook_id: int
    notif_type: str
    subject: str
    message: str
    at: float
    due: float
    attempt: int = 1
    again: bool = True
    """Retried when it fails; a test is not."""


class State(msgspec.Struct, kw_only=True):
    """The whole market, and the one account that rents on it."""

    machines: dict[int, Machine] = msgspec.field(default_factory=dict)
    contracts: dict[int, Contract] = msgspec.field(default_factory=dict)
    meters: list[Meter] = msgspec.field(default_factory=list)
    hooks: dict[int, Hook] = msgspec.field(default_factory=dict)
    notices: list[Notice] = msgspec.field(default_factory=list)
    paid_in: float = 25.0
    """Dollars."""
    next_id: int = 5_550_001
    saved_at: float = 0.0

    @property
    def balance(self) -> float:
        return self.paid_in - sum(meter.amount for meter in self.meters)
