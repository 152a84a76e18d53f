"""Cost of a contract by the second: GPUs while it holds them, its disk until it is destroyed, and its traffic."""

from __future__ import annotations

from localgpus.vast.state import Actual, Contract, Meter, State

DAY_S = 86_400
MONTH_H = 720.0
KEPT_S = 60 * DAY_S
_BILLED = frozenset({Actual.RUNNING, Actual.EXITED})


def gpu_rate(contract: Contract) -> float:
    """Return the dollars per hour for GPUs now.

    Loading is free. A container that ended by itself still holds its GPUs and is billed.
    """
    if contract.intended != "running" or contract.actual not in _BILLED or contract.ended_at is not None:
        return 0.0
    return contract.price if contract.bid is None else contract.bid


def disk_rate(contract: Contract) -> float:
    """Return the dollars per hour for the disk, also while the contract is stopped."""
    return contract.disk * contract.storage_cost / MONTH_H


def settle(state: State, contract: Contract, now: float) -> None:
    """Charge the contract from its last settlement until now, at its current rates."""
    while contract.billed_until < now:
        start = contract.billed_until
        end = min(now, (start // DAY_S + 1) * DAY_S)
        meter = _meter(state, contract, start)
        hours = (end - start) / 3600
        meter.gpu += gpu_rate(contract) * hours
        meter.disk += disk_rate(contract) * hours
        meter.end = end
        contract.billed_until = end


def traffic(state: State, contract: Contract, now: float, *, down_gb: float = 0.0, up_gb: float = 0.0) -> None:
    """Charge traffic over the host's line."""
    settle(state, contract, now)
    meter = _meter(state, contract, now)
    meter.bwd += down_gb * contract.inet_down_cost
    meter.bwu += up_gb * contract.inet_up_cost


def forget(state: State, now: float) -> None:
    """Drop meters older than `KEPT_S`; the balance still counts their cost."""
    old = [meter for meter in state.meters if meter.day < now - KEPT_S]
    if old:
        state.paid_in -= sum(meter.amount for meter in old)
        state.meters = [meter for meter in state.meters if meter.day >= now - KEPT_S]


def _meter(state: State, contract: Contract, at: float) -> Meter:
    day = int(at // DAY_S) * DAY_S
    for meter in reversed(state.meters):
        if meter.contract_id == contract.id and meter.day == day:
            return meter
    made = Meter(contract_id=contract.id, label=contract.label, day=day, start=at, end=at)
    state.meters.append(made)
    return made
