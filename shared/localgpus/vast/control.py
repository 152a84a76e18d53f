"""The market's levers, for people and tests: outbid an instance, let a host die, take a machine off the market."""

from __future__ import annotations

import math
from typing import Any

import msgspec

from localgpus.vast import auction, billing, hooks
from localgpus.vast.market import Market
from localgpus.vast.state import Contract, Hook, Machine, Rival


class Unknown(Exception):
    """The lever cannot be used: the instance or machine does not exist, or the lever does not fit it."""


class Change(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """New values of a machine's fields. A field that is None stays as it is."""

    price: float | None = None
    floor: float | None = None
    inet_down: float | None = None
    inet_down_cost: float | None = None
    inet_up_cost: float | None = None
    reliability: float | None = None
    end_in_s: float | None = None
    pull_error: str | None = None


def find(market: Market, label: str) -> Contract:
    """Find the newest instance with the label; a label's part after `@` may be left out. Raises `Unknown`."""
    for contract in reversed(market.state.contracts.values()):
        if label in (contract.label, contract.label.partition("@")[0]):
            return contract
    raise Unknown(f"{market.name} has no instance {label!r}.")


def outbid(market: Market, label: str, *, for_s: float | None = None, in_full: bool = False) -> None:
    """Let a rival take the instance's GPUs, by a higher bid or on demand.

    Args:
        market: The market of the instance.
        label: The instance's label.
        for_s: How long the rival stays; None: for good.
        in_full: Whether the rival rents on demand, which outranks every bid.

    Raises:
        Unknown: The market has no such instance, or it is on demand.
    """
    with market.lock:
        market.tick()
        contract, now = find(market, label), market.clock()
        if contract.bid is None:
            raise Unknown(f"Instance {label!r} is on demand and cannot be outbid.")
        machine = market.state.machines[contract.machine_id]
        bid = None if in_full else max(machine.floor, contract.bid / contract.gpus * auction.STEP)
        # The rival takes all that it can get: with GPUs to spare the machine would serve both.
        gpus = auction.free_above(machine, market.on(machine), math.inf if bid is None else bid)
        machine.rivals.append(Rival(gpus=gpus, bid=bid, until=None if for_s is None else now + for_s))
        machine.asks.clear()
        market.settle_machine(machine, now)
        market.save()


def relent(market: Market, label: str) -> None:
    """Remove all rivals from the instance's machine."""
    with market.lock:
        market.tick()
        machine = market.state.machines[find(market, label).machine_id]
        machine.rivals.clear()
        machine.asks.clear()
        market.settle_machine(machine, market.clock())
        market.save()


def change(market: Market, machine_id: int, said: Change) -> None:
    """Change prices and facts of a machine. Existing contracts keep their prices."""
    with market.lock:
        market.tick()
        machine, now = _machine(market, machine_id), market.clock()
        for name in ("price", "floor", "inet_down", "inet_down_cost", "inet_up_cost", "reliability", "pull_error"):
            if (value := getattr(said, name)) is not None:
                setattr(machine, name, value)
        if said.end_in_s is not None:
            machine.end_date = now + said.end_in_s
        market.settle_machine(machine, now)
        market.save()


def end(market: Market, label: str) -> None:
    """Kill the instance's program. The provider notices at its next tick."""
    with market.lock:
        market.machines.kill(f"vast-{find(market, label).id}")


def switch(market: Market, machine_id: int, *, up: bool) -> None:
    """Take a host offline, or bring it back."""
    with market.lock:
        market.tick()
        market.switch(_machine(market, machine_id), market.clock(), up=up)
        market.save()


def reclaim(market: Market, machine_id: int, *, reclaimed: bool = True) -> None:
    """Take a machine off the market for its host, or put it back."""
    with market.lock:
        market.tick()
        machine = _machine(market, machine_id)
        machine.reclaimed = reclaimed
        machine.asks.clear()
        market.settle_machine(machine, market.clock())
        market.save()


def traffic(market: Market, label: str, *, down_gb: float = 0.0, up_gb: float = 0.0) -> None:
    """Bill the instance for traffic over its host's line."""
    with market.lock:
        market.tick()
        billing.traffic(market.state, find(market, label), market.clock(), down_gb=down_gb, up_gb=up_gb)
        market.save()


def view(market: Market) -> dict[str, Any]:
    """Return the whole market as JSON values, for a person."""
    with market.lock:
        market.tick()
        state = market.state
        return {
            "balance_usd": round(state.balance, 6),
            "machines": [_shown(market, machine) for machine in state.machines.values()],
            "instances": [_seen(market, contract) for contract in state.contracts.values()],
            "bills": [
                {"label": bill.label, "instance_id": bill.contract_id, "day": bill.day, "usd": round(bill.amount, 9)}
                for bill in state.meters
            ],
            "webhooks": [hook.url for hook in state.hooks.values()],
        }  # fmt: skip


def watch(market: Market, url: str, *, secret: str) -> None:
    """Send every event to a loopback URL, signed with the given secret.

    Raises:
        Unknown: The URL is not on loopback.
    """
    if not hooks.may_be_told(url):
        raise Unknown(f"{url!r} is not on loopback. Use a URL of 127.0.0.1 or localhost.")
    with market.lock:
        kinds = [f"client:{kind}" for kind in hooks.KINDS]
        known = [hook.id for hook in market.state.hooks.values() if hook.url == url]
        number = known[0] if known else market.new_id()
        market.state.hooks[number] = Hook(id=number, name="local", url=url, event_types=kinds, secret=secret)
        market.save()


def _machine(market: Market, machine_id: int) -> Machine:
    if machine_id not in market.state.machines:
        raise Unknown(f"{market.name} has no machine {machine_id}.")
    return market.state.machines[machine_id]


def _shown(market: Market, machine: Machine) -> dict[str, Any]:
    contracts = market.on(machine)
    return {
        "id": machine.id, "gpu": machine.gpu_name, "gpus": machine.num_gpus, "usd_per_gpu_hour": machine.price,
        "floor_usd_per_gpu_hour": machine.floor, "least_bid_usd": auction.least_bid(machine, contracts, 1),
        "free_on_demand": auction.free_on_demand(machine, contracts), "up": machine.up,
        "reclaimed": machine.reclaimed, "geolocation": machine.geolocation,
        "others": [{"gpus": rival.gpus, "bid_usd": rival.bid, "until": rival.until} for rival in machine.rivals],
    }  # fmt: skip


def _seen(market: Market, contract: Contract) -> dict[str, Any]:
    return {
        "id": contract.id, "label": contract.label, "machine_id": contract.machine_id, "bid_usd": contract.bid,
        "usd_per_hour": contract.price if contract.bid is None else contract.bid,
        "actual_status": contract.actual, "intended_status": contract.intended, "status_msg": contract.status_msg,
        "usd": round(sum(meter.amount for meter in market.state.meters if meter.contract_id == contract.id), 9),
        "exit_code": market.machines.exit_code(f"vast-{contract.id}"),
        "log": market.machines.logs(f"vast-{contract.id}")[-2000:],
    }  # fmt: skip
