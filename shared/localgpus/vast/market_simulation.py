"""A seeded simulation of the market: other renters come and go, hosts fail, prices drift.

The same seed always gives the same sequence of events.

The rates are invented, in the order of magnitude that renters report: a cheap bid is displaced within hours, a good one
within days, and a host fails once in some weeks.
"""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from typing import Protocol

from localgpus.vast import auction
from localgpus.vast.state import Contract, Machine, Rival, State

STEP_S = 60.0
BIDDERS_PER_H, BIDDER_STAYS_H = 0.25, 1.0
"""Arrivals of rival bids per GPU and hour, and their mean stay."""
PAYERS_PER_H, PAYER_STAYS_H = 0.05, 3.0
DEATHS_PER_H, DEAD_H = 0.003, 0.3
RECLAIMS_PER_H, RECLAIMED_H = 0.001, 12.0
DRIFT_PER_STEP = 0.004
FLOOR_MIN, FLOOR_MAX = 0.35, 0.9
"""Range of the least bid, as fractions of the on-demand price."""


class SimulatedMarket(Protocol):
    """The part of a market that the simulation reads and changes."""

    @property
    def state(self) -> State:
        """All machines and contracts."""

    def on(self, machine: Machine) -> Sequence[Contract]:
        """List the contracts on a machine."""

    def switch(self, machine: Machine, now: float, *, up: bool) -> None:
        """Turn a machine on or off."""

    def settle_machine(self, machine: Machine, now: float) -> None:
        """Decide again which contracts run on a machine."""


class MarketSimulation:
    """Other renters, failing hosts and drifting prices, a step at a time."""

    def __init__(self, rng: random.Random, *, pace: float = 1.0) -> None:
        self._rng = rng
        self._pace = pace
        self.next_at: float | None = None
        """When the next step is due; None until `begin`."""

    def begin(self, now: float) -> None:
        """Plan the first step. Does nothing if one is planned already."""
        if self.next_at is None:
            self.next_at = now + STEP_S / self._pace

    def step(self, market: SimulatedMarket, at: float) -> None:
        """Simulate one step of every machine."""
        self.next_at = at + STEP_S / self._pace
        for machine in market.state.machines.values():
            if not machine.up or machine.reclaimed:
                self._return(market, machine, at)
            elif self._happens(DEATHS_PER_H):
                machine.back_at = at + self._lasts_s(DEAD_H)
                market.switch(machine, at, up=False)
            else:
                self._move(market, machine, at)
                market.settle_machine(machine, at)

    def _return(self, market: SimulatedMarket, machine: Machine, at: float) -> None:
        """Return a machine that the simulation took. A machine that a person took stays away."""
        if machine.back_at is not None and at >= machine.back_at:
            machine.back_at, machine.reclaimed = None, False
            market.switch(machine, at, up=True)

    def _move(self, market: SimulatedMarket, machine: Machine, at: float) -> None:
        drift = machine.floor * math.exp(self._rng.gauss(0.0, DRIFT_PER_STEP))
        machine.floor = round(min(max(drift, FLOOR_MIN * machine.price), FLOOR_MAX * machine.price), 4)
        if self._happens(RECLAIMS_PER_H):
            machine.back_at = at + self._lasts_s(RECLAIMED_H)
            machine.reclaimed = True
            machine.asks.clear()
            return
        if self._happens(BIDDERS_PER_H * machine.num_gpus):
            bid = machine.floor * math.exp(abs(self._rng.gauss(0.0, 0.35)))
            self._arrive(market, machine, round(bid, 4), at + self._lasts_s(BIDDER_STAYS_H))
        if self._happens(PAYERS_PER_H * machine.num_gpus):
            self._arrive(market, machine, None, at + self._lasts_s(PAYER_STAYS_H))

    def _arrive(self, market: SimulatedMarket, machine: Machine, bid: float | None, until: float) -> None:
        room = auction.free_on_demand(machine, market.on(machine))
        if room < 1:
            return
        left = room + sum(rival.gpus for rival in machine.rivals if rival.bid is None)
        machine.rivals.append(Rival(gpus=self._rng.randint(1, room), bid=bid, until=until))
        machine.asks.clear()
        # The lowest bidders that have no GPU any more leave the machine.
        ranked = sorted(machine.rivals, key=lambda rival: -(math.inf if rival.bid is None else rival.bid))
        kept = []
        for rival in ranked:
            if rival.gpus <= left:
                kept.append(rival)
                left -= rival.gpus
        machine.rivals = kept

    def _happens(self, per_hour: float) -> bool:
        return self._rng.random() < -math.expm1(-per_hour * STEP_S / 3600)

    def _lasts_s(self, hours: float) -> float:
        return self._rng.expovariate(1.0) * hours * 3600 / self._pace
