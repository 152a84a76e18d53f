"""Simulated clouds that rent out machines: prices move, bids lose, hosts fail, answers get lost, seconds are billed.

The bill runs from the real start of an instance to its real end, whatever our services know of it.
"""

from __future__ import annotations

import itertools
import math
import random
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, time, timedelta
from typing import TYPE_CHECKING

from goblin.billing.domain.ledger import Bill, Charge, day_of
from goblin.core.errors import ProviderUnavailable, Refused, Transient
from goblin.jobs.domain.instances import (
    Instance,
    InstanceState,
    Inventory,
    KnownInventory,
    RentalOrder,
    UnknownInventory,
)
from goblin.jobs.domain.market import InstanceRequirements, Listing, MarketPrices, Offer
from goblin.jobs.policy.spot.offers import MONTH_H
from tests.fakes.jobs import FakeClock
from tests.simulation.network import HANDLER, Network

if TYPE_CHECKING:
    from tests.simulation.hosts import Host

HOUR = timedelta(hours=1)


@dataclass(eq=False)
class Rented:
    """One instance, as its cloud knows it."""

    instance_id: str
    provider: str
    order: RentalOrder
    machine: Machine
    born_at: datetime
    state: InstanceState = InstanceState.STARTING
    detail: str = ""
    gone_at: datetime | None = None
    rates: list[tuple[datetime, float]] = field(default_factory=list)
    """From when on it costs how much an hour."""
    traffic: list[tuple[datetime, float]] = field(default_factory=list)
    host: Host | None = None
    leaving_at: datetime | None = None
    """When it was asked to end."""
    zombie: bool = False
    """Its cloud knows it no more, and its process goes on."""
    taken_at: datetime | None = None
    """When it was outbid, or taken back."""

    @property
    def label(self) -> str:
        return self.order.label

    @property
    def alive(self) -> bool:
        return self.gone_at is None

    @property
    def works(self) -> bool:
        """Whether a process can run on it."""
        return self.zombie or (self.alive and self.state not in (InstanceState.STOPPED, InstanceState.ENDED))

    def cost(self, now: datetime, since: datetime | None = None) -> float:
        """Millionths of a dollar that it took until now, from an instant on."""
        end = min(now, self.gone_at or now)
        begin = since or self.born_at
        sum_ = 0.0
        ends = [at for at, _ in self.rates[1:]] + [end]
        for (start, hourly), until in zip(self.rates, ends, strict=True):
            sum_ += max(0.0, (min(until, end) - max(start, begin)) / HOUR) * hourly
        return sum_ + sum(micros for at, micros in self.traffic if begin <= at < now)


@dataclass(eq=False)
class Machine:
    """An offer: one machine, or a stock of them."""

    machine_id: str | None
    gpu: str
    gpu_memory_mib: int
    on_demand: int
    """Millionths of a dollar an hour."""
    floor: int | None
    """The least bid that wins now; None: no spot here."""
    boot_s: float
    mib_per_s: float
    reliability: float | None
    storage: int
    download: int
    upload: int
    ends_at: datetime | None = None
    taken: bool = False
    """Somebody rents it on demand, or it is sold out."""
    mine: list[Rented] = field(default_factory=list)

    @property
    def free(self) -> bool:
        return not self.taken and (self.machine_id is None or not self.mine)


class Provider:
    """The port `ComputeProvider` over the simulated market."""

    start_s_max = 900.0

    def __init__(
        self, name: str, machines: list[Machine], *, network: Network, clock: FakeClock, rng: random.Random,
        later: Callable[[float, Callable[[], None]], None], kinds: frozenset[str],
    ) -> None:  # fmt: skip
        self.name, self.kinds, self.machines = name, kinds, machines
        self._network, self._clock, self._dice, self._later = network, clock, rng, later
        self.instances: list[Rented] = []
        """All that there ever were."""
        self.listed: list[Rented] = []
        """Those that exist."""
        self.unknown: str | Exception = ""
        """Why it cannot say what there is: 410, 429, or what reading its answer raises."""
        self.deaf = False
        """It takes no orders and no releases."""
        self.lost_orders = 0.0
        """Share of orders whose answer is lost; half of them are carried out, some a minute later."""
        self.asked_offers = 0
        self.asked_known: dict[int, bool] = {}
        self.on_rent: Callable[[Rented], None] = lambda rented: None
        self.on_release: Callable[[str, str], None] = lambda name, label: None
        self.on_taken: Callable[[Rented], None] = lambda rented: None
        self.on_stopped: Callable[[Rented], None] = lambda rented: None
        self.on_lost: Callable[[str], None] = lambda label: None
        """Nobody will be told what became of an order."""
        self.on_gone: Callable[[Rented], None] = lambda rented: None
        self._ids = itertools.count(1)

    async def offers(self, wanted: InstanceRequirements) -> Listing | UnknownInventory:
        await self._network.turn()
        self.asked_offers += 1
        if self.unknown:
            return self._does_not_say()
        found = [offer for machine in self.machines for offer in self._offers(machine, wanted)]
        if self._dice.random() < 0.1:
            found += found[: len(found) // 2]  # The same ones on the next page.
        floors = sorted(machine.floor for machine in self.machines if machine.floor)
        market = MarketPrices(percentiles=((0.1, floors[0]), (0.5, floors[len(floors) // 2]), (0.9, floors[-1]))) \
            if floors else None  # fmt: skip
        gpus = {machine.gpu for machine in self.machines}
        return Listing(offers=tuple(found), markets=dict.fromkeys(sorted(gpus), market) if market else {})

    def _offers(self, machine: Machine, wanted: InstanceRequirements) -> list[Offer]:
        if not machine.free or wanted.gpu_count > 1 or machine.gpu_memory_mib < wanted.gpu_memory_mib_min:
            return []
        if wanted.gpus and machine.gpu not in wanted.gpus:
            return []
        at = self.machines.index(machine)
        base = Offer(
            offer_id=f"{at}-on-demand", provider=self.name, pool=f"{self.name}/{machine.gpu}", spot=False,
            machine_id=machine.machine_id, gpu=machine.gpu, price_usd_micros_per_hour=machine.on_demand,
            storage_usd_micros_per_gib_month=machine.storage, download_usd_micros_per_gib=machine.download,
            upload_usd_micros_per_gib=machine.upload, download_mib_per_s=machine.mib_per_s, boot_s=machine.boot_s,
            reliability=machine.reliability, gpu_memory_mib=machine.gpu_memory_mib, details=str(at),
            ends_in_s=None if machine.ends_at is None else (machine.ends_at - self._clock.now()).total_seconds(),
        )  # fmt: skip
        if machine.floor is None:
            return [base]
        spot = replace(
            base, offer_id=f"{at}-spot", spot=True, price_usd_micros_per_hour=machine.floor,
            on_demand_usd_micros_per_hour=machine.on_demand,
        )  # fmt: skip
        return [base, spot]

    async def inventory(self) -> Inventory:
        await self._network.turn()
        self.asked_known[HANDLER.get()] = not self.unknown
        if self.unknown:
            return self._does_not_say()
        return KnownInventory(instances=frozenset(self._instance(rented) for rented in self.listed))

    def _does_not_say(self) -> UnknownInventory:
        if isinstance(self.unknown, Exception):
            raise type(self.unknown)(*self.unknown.args)
        return UnknownInventory(reason=self.unknown)

    def _instance(self, rented: Rented) -> Instance:
        return Instance(
            provider=self.name, instance_id=rented.instance_id, label=rented.label, state=rented.state,
            detail=rented.detail,
        )  # fmt: skip

    async def rent(self, order: RentalOrder) -> str:
        await self._network.turn()
        assert self.asked_known.get(HANDLER.get()), f"{order.label}: launched at {self.name}, which could not say"
        self._network.point(f"{self.name} rent")
        machine = self.machines[int(order.offer.details)]
        if self.deaf:
            raise Transient("timed out")
        if order.offer.spot and machine.floor is None:
            raise Refused("there is no spot here")
        if not machine.free:
            raise ProviderUnavailable("the offer is gone")
        lost = self._dice.random() < self.lost_orders
        if lost:
            self.on_lost(order.label)
        if lost and self._dice.random() < 0.5:
            if self._dice.random() < 0.5:
                self._later(self._dice.uniform(1, 60), lambda: self._begin(order, machine))
            raise Transient("timed out")
        rented = self._begin(order, machine)
        self._network.point(f"{self.name} rented")
        if rented is None:
            raise ProviderUnavailable("the offer is gone")
        if lost:
            raise Transient("timed out")
        bid = order.bid_usd_micros_per_hour
        if bid is not None and machine.floor is not None and bid < machine.floor:
            self.stop(rented, "the bid is too low")
            raise Transient("the bid is too low, and the contract that it left is not ended")
        return rented.instance_id

    def _begin(self, order: RentalOrder, machine: Machine) -> Rented | None:
        if not machine.free:
            return None
        now = self._clock.now()
        rented = Rented(f"{self.name}-{next(self._ids)}", self.name, order, machine, now)
        hourly = order.bid_usd_micros_per_hour or machine.on_demand
        rented.rates.append((now, hourly + self._standing(rented)))
        machine.mine.append(rented)
        self.instances.append(rented)
        self.listed.append(rented)
        self.on_rent(rented)
        return rented

    @staticmethod
    def _standing(rented: Rented) -> float:
        return rented.order.disk_gib * rented.machine.storage / MONTH_H

    async def release(self, label: str) -> None:
        await self._network.turn()
        if self.unknown or self.deaf:
            raise Transient("the provider does not answer")
        self._network.point(f"{self.name} release")
        self.on_release(self.name, label)
        for rented in self.listed:
            if rented.label == label and rented.leaving_at is None:
                rented.leaving_at = self._clock.now()
                self._later(self._dice.uniform(0, 20), lambda rented=rented: self.remove(rented))
        self._network.point(f"{self.name} released")

    def outbid(self, rented: Rented, why: str) -> None:
        """It works for some seconds more."""
        if rented.works and rented.taken_at is None:
            rented.state, rented.detail, rented.taken_at = InstanceState.LEAVING, why, self._clock.now()
            self.on_taken(rented)
            self._later(self._dice.uniform(10, 30), lambda: self.stop(rented, why))

    def stop(self, rented: Rented, why: str) -> None:
        """Its process ends; its disk is billed on."""
        if rented.alive and rented.state is not InstanceState.STOPPED:
            rented.state, rented.detail = InstanceState.STOPPED, why
            rented.rates.append((self._clock.now(), self._standing(rented)))
            self.on_stopped(rented)

    def remove(self, rented: Rented) -> None:
        """It is gone, its bill too."""
        if rented.alive:
            rented.gone_at = self._clock.now()
            rented.machine.mine.remove(rented)
            self.listed.remove(rented)
            self.on_gone(rented)

    def move(self, machine: Machine) -> None:
        """A price moves; who bid less is stopped."""
        if machine.floor is None:
            return
        floor = machine.floor * math.exp(self._dice.gauss(0, 0.15))
        machine.floor = int(min(max(floor, 0.25 * machine.on_demand), 1.1 * machine.on_demand))
        for rented in list(machine.mine):
            bid = rented.order.bid_usd_micros_per_hour
            if bid is not None and bid < machine.floor:
                self.outbid(rented, "outbid")

    def take(self, machine: Machine) -> None:
        """Somebody rents it on demand; spot makes room."""
        machine.taken = True
        for rented in list(machine.mine):
            if rented.order.offer.spot:
                self.outbid(rented, "taken on demand")


class Bills:
    """The port `BillSource`: the true charges, by day."""

    final_after = timedelta(hours=1)

    def __init__(self, cloud: Provider, clock: FakeClock, *, tells: bool) -> None:
        self.provider, self._cloud, self._clock, self._tells = cloud.name, cloud, clock, tells
        self.down = False

    async def bill(self, day: str) -> Bill:
        if self.down:
            raise ProviderUnavailable("no bill just now")
        return self.of(day)

    def of(self, day: str) -> Bill:
        start = datetime.combine(datetime.fromisoformat(day), time(0), tzinfo=UTC)
        end = min(start + timedelta(days=1), self._clock.now())
        charges = [
            Charge(instance_id=one.instance_id, label=one.label, usd_micros=math.floor(cost))
            for one in self._cloud.instances
            if one.born_at < end and (cost := one.cost(end, start)) >= 1
        ]  # fmt: skip
        sum_ = sum(charge.usd_micros for charge in charges)
        return Bill(usd_micros=sum_, charges=tuple(charges) if self._tells else None)

    def days(self) -> set[str]:
        found: set[str] = set()
        for one in self._cloud.instances:
            at = one.born_at
            while at < (one.gone_at or self._clock.now()) + timedelta(days=1):
                found.add(day_of(at))
                at += timedelta(days=1)
        return found
