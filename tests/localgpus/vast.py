"""A small Vast.ai for tests: machines that a test names, a clock that it moves, and nothing that runs by itself."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from starlette.applications import Starlette

from localgpus.clock import Hand
from localgpus.machines import NoMachines
from localgpus.vast import renting
from localgpus.vast.api import Api
from localgpus.vast.faults import Faults
from localgpus.vast.limits import Limits
from localgpus.vast.market import Market
from localgpus.vast.state import Contract, Machine

START = 1_800_000_000.0
KEY = "vast-account"


def machine(number: int = 1, **said: Any) -> Machine:
    """Says only what matters to the test. A 4090 at 0.40, with a floor of 0.20, and an image's worth of bandwidth."""
    facts: dict[str, Any] = {
        "gpu_name": "RTX 4090", "num_gpus": 1, "gpu_ram": 24_564, "price": 0.40, "floor": 0.20, "inet_down": 1600.0,
    }  # fmt: skip
    return Machine(id=number, host_id=number * 7, **{**facts, **said})


class Town:
    """A market, its clock, its machines, and what the wire says of it."""

    def __init__(
        self, *machines: Machine, folder: Path | None = None, limits: bool = False, now: float = START, **said: Any
    ) -> None:
        self.clock = Hand(now)
        self.machines = NoMachines()
        self.market = Market(self.machines, self.clock, folder=folder, keys=[KEY], **said)
        self.market.state.machines = {machine.id: machine for machine in machines or (machine(),)}
        self.faults = Faults()
        self.limits = Limits(self.clock, off=not limits)
        self.app = Starlette(routes=Api(self.market, limits=self.limits, faults=self.faults).routes())
        self.app.router.redirect_slashes = False

    def later(self, seconds: float) -> None:
        self.clock.now += seconds
        self.market.tick()

    def rent(
        self, number: int = 1, *, gpus: int = 1, bid: float | None = None, label: str = "a", **said: Any
    ) -> Contract:
        """Rent, past the wire."""
        ask = self.market.asks(self.market.state.machines[number])[gpus]
        return renting.rent(self.market, ask, renting.Order(image="image", label=label, price=bid, **said))

    def running(self, number: int = 1, **said: Any) -> Contract:
        """Rent, and wait until it runs: two seconds, and ten for two GB at 1600 Mb/s."""
        contract = self.rent(number, **said)
        self.later(12.0)
        assert contract.actual == "running"
        return contract
