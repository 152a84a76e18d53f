"""Which contracts run on a machine: on-demand ones first, then the highest bids per GPU, while GPUs are left."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from localgpus.vast.state import Contract, Machine

STEP = 1.2
"""Factor between a bid and the least bid that displaces it. Observed 2026-08-27, on the rows of instances."""


@dataclass(frozen=True, kw_only=True, slots=True)
class _Seat:
    gpus: int
    bid: float
    """Dollars per hour for each GPU; infinite for on demand."""
    held: bool
    contract_id: int | None


def winners(machine: Machine, contracts: Iterable[Contract]) -> set[int]:
    """Return the ids of our contracts that have their GPUs now."""
    if not machine.up or machine.reclaimed:
        return set()
    free, won = machine.num_gpus, set()
    for seat in sorted(_seats(machine, contracts), key=lambda seat: (-seat.bid, not seat.held, seat.contract_id or 0)):
        if seat.gpus <= free:
            free -= seat.gpus
            if seat.contract_id is not None:
                won.add(seat.contract_id)
    return won


def free_on_demand(machine: Machine, contracts: Iterable[Contract]) -> int:
    """Count the GPUs that a new on-demand renter could have now."""
    return free_above(machine, contracts, math.inf)


def free_above(machine: Machine, contracts: Iterable[Contract], bid: float) -> int:
    """Count the GPUs that no bid of at least `bid` per GPU holds."""
    if not machine.up or machine.reclaimed:
        return 0
    return machine.num_gpus - sum(seat.gpus for seat in _seats(machine, contracts) if seat.bid >= bid)


def least_bid(machine: Machine, contracts: Sequence[Contract], gpus: int) -> float | None:
    """Return the dollars per hour, for all the GPUs, that a new bid needs; None if no bid is enough."""
    bids = [seat.bid for seat in _seats(machine, contracts) if not math.isinf(seat.bid)]
    for least in sorted({machine.floor, *(max(machine.floor, bid * STEP) for bid in bids)}):
        if free_above(machine, contracts, least) >= gpus:
            # Rounded up, so that a renter who bids the shown number is not below the minimum.
            return math.ceil(least * gpus * 10_000 - 1e-6) / 10_000
    return None


def _seats(machine: Machine, contracts: Iterable[Contract]) -> list[_Seat]:
    """List the rivals and contracts that want GPUs of the machine now."""
    others = [
        _Seat(gpus=rival.gpus, bid=math.inf if rival.bid is None else rival.bid, held=True, contract_id=None)
        for rival in machine.rivals
    ]
    ours = [
        _Seat(
            gpus=contract.gpus, bid=math.inf if contract.bid is None else contract.bid / contract.gpus,
            held=contract.holds, contract_id=contract.id,
        )
        for contract in contracts
        if contract.machine_id == machine.id and contract.wanted and contract.ended_at is None
        # An on-demand contract that lost its GPUs waits until its renter starts it again.
        and (contract.bid is not None or contract.holds)
    ]  # fmt: skip
    return others + ours
