"""Both markets on one loopback port, and levers for people and tests under `/market`."""

from __future__ import annotations

import asyncio
import json
import logging
import random
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Annotated, Any, TypeVar

import httpx
import msgspec
import uvicorn
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from httpguard import LOOPBACK, Guard, Refusal, read_body
from httpguard import Limits as RequestLimits
from httpguard.protocol import Protocol
from localgpus import clock as clocks
from localgpus import runpod, vast
from localgpus.machines import Machines
from localgpus.vast import control, hooks
from localgpus.vast.api import Api
from localgpus.vast.faults import Fault, Faults
from localgpus.vast.limits import Limits
from localgpus.vast.market import Market as Vast
from localgpus.vast.market_simulation import MarketSimulation

log = logging.getLogger(__name__)

TICK_S = 0.25
LEVER_LIMITS = RequestLimits(body_bytes=16 * 1024)
T = TypeVar("T")


class Lever(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """The body of a lever's request. Each lever reads the fields that it needs."""

    label: str = ""
    machine_id: int = 0
    for_s: float | None = None
    in_full: bool = False
    down_gb: float = 0.0
    up_gb: float = 0.0


class Close(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    within_s: Annotated[float, msgspec.Meta(ge=0, le=60)] = 10.0


class Price(control.Change, kw_only=True, forbid_unknown_fields=True):
    machine_id: int


class Watch(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    url: str
    secret: str


class Markets:
    """Both markets, their rate limits and injected faults, and the HTTP application over them."""

    def __init__(
        self, machines: Machines, *, folder: Path | None = None, clock: clocks.Clock = clocks.wall, pace: float = 1.0,
        vast_key: str = "local-vast-key", runpod_key: str = "local-runpod-key", limits: bool = True,
        simulation: int | None = None,
    ) -> None:  # fmt: skip
        """Open both markets.

        Args:
            machines: Where rented instances run.
            folder: Where the markets' state is stored; None: nowhere.
            clock: Returns seconds since 1970.
            pace: Divides the times for booting, preemption and rate limits.
            vast_key: API key of the Vast.ai account.
            runpod_key: API key of the RunPod account.
            limits: Whether too many requests get 429.
            simulation: Seed of the market simulation: rivals at Vast.ai, and hosts that fail. None: no simulation.
        """
        self.machines = machines
        simulated = MarketSimulation(random.Random(simulation), pace=pace) if simulation is not None else None
        self.vast = Vast(machines, clock, folder=folder, pace=pace, keys=[vast_key], simulation=simulated)
        self.faults = Faults()
        self.limits = Limits(clock, pace=pace, off=not limits)
        terms = runpod.Terms()
        terms = runpod.Terms(provision_s=terms.provision_s / pace, start_s=terms.start_s / pace)
        self.runpod = runpod.Market(machines, folder=folder, clock=clock, terms=terms)
        self._runpod_key, self._limited = runpod_key, limits

    def app(self) -> Starlette:
        """Build the HTTP application. Serve it on loopback only."""
        levers = {"outbid": self._outbid, "relent": self._relent, "kill": self._kill, "traffic": self._traffic,
                  "die": self._die, "revive": self._revive, "reclaim": self._reclaim, "offer": self._offer}  # fmt: skip
        routes = [
            *Api(self.vast, limits=self.limits, faults=self.faults).routes(),
            *runpod.routes(self.runpod, keys={self._runpod_key: "all"}, limits=self._limited),
            Route("/market", self._view, methods=["GET"]),
            Route("/market/price", _lever(Price, self._price), methods=["POST"]),
            Route("/market/fault", _lever(Fault, self.faults.add), methods=["POST"]),
            Route("/market/close", _lever(Close, self._close), methods=["POST"]),
            Route("/market/webhook", _lever(Watch, self._watch), methods=["POST"]),
            *(Route(f"/market/{name}", _lever(Lever, pull), methods=["POST"]) for name, pull in levers.items()),
        ]
        # No page of another site rents a machine here, which would start a process.
        only = Middleware(Guard, hosts=LOOPBACK, words=_words)
        made = Starlette(routes=routes, lifespan=self._lifespan, middleware=[only])
        # A path without its slash is another path.
        made.router.redirect_slashes = False
        made.add_exception_handler(HTTPException, _no_such_path)
        return made

    def tick(self) -> None:
        """Advance both markets to the clock."""
        self.vast.tick()
        self.runpod.advance()

    @asynccontextmanager
    async def _lifespan(self, _: Starlette) -> AsyncIterator[None]:
        async with httpx.AsyncClient(trust_env=False) as client:
            work = asyncio.create_task(self._work(client))
            try:
                yield
            finally:
                work.cancel()
                await asyncio.gather(work, return_exceptions=True)
                await asyncio.to_thread(self.machines.close)
                self.vast.save()

    async def _work(self, client: httpx.AsyncClient) -> None:
        while True:
            try:
                await asyncio.to_thread(self.tick)
                await hooks.deliver(self.vast, client)
            except Exception:
                # Go on and try again: without this loop no market advances.
                log.exception("A market failed to advance. It is tried again.")
            await asyncio.sleep(TICK_S)

    # Levers.

    async def _view(self, _: Request) -> Response:
        self.runpod.advance()
        pods = [msgspec.to_builtins(pod) for pod in self.runpod.pods()]
        # The environment holds an instance's secrets.
        pods = [{key: value for key, value in pod.items() if key != "env"} for pod in pods]
        left = self.runpod.balance_usd_micros() / 1e6
        return JSONResponse({vast.market.NAME: control.view(self.vast), "runpod": {"balance_usd": left, "pods": pods}})

    def _outbid(self, said: Lever) -> None:
        control.outbid(self.vast, said.label, for_s=said.for_s, in_full=said.in_full)

    def _relent(self, said: Lever) -> None:
        control.relent(self.vast, said.label)

    def _kill(self, said: Lever) -> None:
        """Kill the program of an instance, at either provider."""
        for pod in self.runpod.pods():
            if said.label in (pod.name, pod.name.partition("@")[0]):
                self.machines.kill(pod.machine)
                return
        control.end(self.vast, said.label)

    def _traffic(self, said: Lever) -> None:
        control.traffic(self.vast, said.label, down_gb=said.down_gb, up_gb=said.up_gb)

    def _die(self, said: Lever) -> None:
        """Let the host of an instance die, at either provider."""
        for pod in self.runpod.pods():
            if said.label and said.label in (pod.name, pod.name.partition("@")[0]):
                self.runpod.lose_host(pod.id)
                return
        control.switch(self.vast, self._machine(said), up=False)

    def _revive(self, said: Lever) -> None:
        control.switch(self.vast, self._machine(said), up=True)

    def _reclaim(self, said: Lever) -> None:
        control.reclaim(self.vast, self._machine(said))

    def _offer(self, said: Lever) -> None:
        control.reclaim(self.vast, self._machine(said), reclaimed=False)

    def _price(self, said: Price) -> None:
        control.change(self.vast, said.machine_id, said)

    def _close(self, said: Close) -> None:
        """Take every offer off the market and stop the instances, before the laptop's servers stop."""
        self.vast.closed = self.runpod.closed = True
        self.machines.stop_all(within_s=said.within_s)

    def _watch(self, said: Watch) -> None:
        control.watch(self.vast, said.url, secret=said.secret)

    def _machine(self, said: Lever) -> int:
        return control.find(self.vast, said.label).machine_id if said.label else said.machine_id


def _lever(kind: type[T], pull: Callable[[T], None]) -> Callable[[Request], Awaitable[Response]]:
    async def answer(request: Request) -> Response:
        try:
            data = await read_body(request.headers, request.receive, LEVER_LIMITS)
            await asyncio.to_thread(pull, msgspec.json.decode(data, type=kind))
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
            return _no(400, str(error))
        except Refusal as refusal:
            return _no(refusal.status, refusal.message)
        except control.Unknown as error:
            return _no(404, str(error))
        return JSONResponse({"done": True})

    return answer


async def _no_such_path(_: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)  # noqa: S101  Registered for this class only.
    return JSONResponse({"error": error.detail}, error.status_code, headers=error.headers)


def _no(status: int, said: Any) -> Response:
    return JSONResponse({"error": said}, status)


def _words(refusal: Refusal) -> bytes:
    return json.dumps({"error": refusal.message}).encode()


class Connection(Protocol):
    """A connection, whose refusals are in the words of the levers."""

    words = staticmethod(_words)


def listen(port: int) -> socket.socket:
    """Open a socket on 127.0.0.1.

    No option opens another address, because every client of this API can start processes on this computer.
    """
    return socket.create_server(("127.0.0.1", port))


def serve(markets: Markets, sock: socket.socket) -> None:
    """Serve the markets until SIGINT or SIGTERM."""
    config = uvicorn.Config(
        markets.app(),
        http=Connection,
        ws="none",
        log_config=None,
        log_level="warning",
        access_log=False,
        timeout_graceful_shutdown=2,
    )
    uvicorn.Server(config).run(sockets=[sock])
