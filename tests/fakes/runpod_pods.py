"""RunPod's pods for tests: markets on a clock that tests move, behind one server."""

from __future__ import annotations

from typing import Any

from starlette.applications import Starlette

from localgpus.clock import Hand
from localgpus.machines import NoMachines
from localgpus.runpod.market import Market, Terms
from localgpus.runpod.quota import Quota
from localgpus.runpod.routes import Api

KEYS = {"rpa_all": "all", "rpa_reads": "reads"}
NOON = 1_795_608_000.0
"""2026-11-25 12:00 UTC."""


class Stage:
    """A market with its machines and its API."""

    def __init__(self, **terms: Any) -> None:
        self.clock = Hand(NOON)
        self.machines = NoMachines()
        self.market = Market(self.machines, clock=self.clock, terms=Terms(**terms))
        self.api = Api(self.market, KEYS, quota=Quota(windows=(("minute", 60, 60), ("hour", 3000, 3600))))

    def asked(self, method: str) -> list[str]:
        """Paths that were asked for so."""
        return [path for one, path in self.api.asked if one == method]

    def pass_time(self, seconds: float) -> None:
        """Let it pass, looking now and then as a server does: pods boot on the way."""
        for _ in range(10):
            self.clock.now += seconds / 10
            self.market.advance()


class Switch:
    """One server for many tests. Each test puts its own application behind it."""

    app: Any

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        await self.app(scope, receive, send)

    def show(self, stage: Stage) -> Stage:
        self.app = Starlette(routes=stage.api.routes())
        return stage
