"""From an order to a contract. As at Vast.ai, a bid that is too low is refused and still leaves a stopped contract."""

from __future__ import annotations

from typing import Any

import msgspec

from localgpus.vast import auction
from localgpus.vast.market import Market
from localgpus.vast.state import Contract, Machine

BID_MIN, BID_MAX = 0.001, 128.0
WORDS_MAX = 4096
ENV_MAX = 32_768


class Order(msgspec.Struct, kw_only=True):
    """The body of a create request. Other fields are ignored."""

    image: str | None = None
    disk: float = 10.0
    label: str | None = None
    price: float | None = None
    """A bid in dollars per hour. Without one the contract is on demand, and the answer does not say so."""
    env: dict[str, str] | None = None
    runtype: str | None = None
    args: list[str] | None = None
    onstart: str | None = None
    target_state: str = "running"
    cancel_unavail: bool | None = None


class No(Exception):
    """A refusal: status and body of the answer."""

    def __init__(self, status: int, error: str, message: str, **more: Any) -> None:
        super().__init__(message)
        self.status = status
        self.body = {"success": False, "error": error, "msg": message, **more}


def rent(market: Market, ask_id: int, order: Order) -> Contract:
    """Create a contract on the offer `ask_id`. Raises `No`, whose body may still name a new contract."""
    _check(order)
    if market.state.balance <= 0:
        raise No(400, "insufficient_credit", "Insufficient credit")
    found = [
        (machine, size)
        for machine in market.state.machines.values()
        for size, ask in machine.asks.items()
        if ask == ask_id
    ]
    if market.closed or not found or not found[0][0].up or found[0][0].reclaimed:
        raise _gone(ask_id, 404)
    machine, size = found[0]
    if order.disk > machine.disk_space:
        raise No(400, "invalid_args", f"error 400: disk must not be over {machine.disk_space}")
    others = market.on(machine)
    if order.price is None:
        free = auction.free_on_demand(machine, others) >= size
        if not free and order.cancel_unavail is not False:
            raise _gone(ask_id, 410)
        contract = _contract(market, machine, size, order)
        (market.place if free else market.park)(contract)
        return contract
    least = auction.least_bid(machine, others, size)
    if least is None and order.cancel_unavail:
        raise _gone(ask_id, 410)
    contract = _contract(market, machine, size, order)
    if least is None:
        market.park(contract)
    elif order.price < least - 1e-9:
        # Vast.ai answers an error and still creates a contract, whose disk is billed. Source: dstack's pull request
        # 4036.
        market.park(contract)
        raise No(400, "bid_too_low", f"Bid must be at least {least:.4f}", new_contract=contract.id)
    else:
        market.place(contract)
    return contract


def _check(order: Order) -> None:
    if not order.image:
        raise No(400, "invalid_args", "error 400: image is required")
    if order.price is not None and not BID_MIN <= order.price <= BID_MAX:
        raise No(400, "invalid_price", f"Price must be between {BID_MIN} and {BID_MAX}")
    if sum(len(word) for word in order.args or ()) + len(order.onstart or "") > WORDS_MAX:
        raise No(400, "invalid_args", f"error 400: args and onstart must not be over {WORDS_MAX}")
    if sum(len(key) + len(value) for key, value in (order.env or {}).items()) > ENV_MAX:
        raise No(400, "invalid_args", f"error 400: env must not be over {ENV_MAX}")


def _contract(market: Market, machine: Machine, size: int, order: Order) -> Contract:
    now = market.clock()
    # A key that begins with a dash is an option of docker, not a variable.
    env = {key: value for key, value in (order.env or {}).items() if not key.startswith("-")}
    made = Contract(
        id=market.new_id(), machine_id=machine.id, gpus=size, label=order.label or "", image=order.image or "",
        args=list(order.args or ()), env=env, onstart=order.onstart,
        runtype=order.runtype or ("args" if order.args else "ssh"), disk=order.disk, bid=order.price,
        price=machine.price * size, storage_cost=machine.storage_cost, inet_down_cost=machine.inet_down_cost,
        inet_up_cost=machine.inet_up_cost, created_at=now, end_date=machine.end_date, billed_until=now,
        wanted=order.target_state == "running",
    )  # fmt: skip
    market.state.contracts[made.id] = made
    return made


def _gone(ask_id: int, status: int) -> No:
    return No(status, "no_such_ask", f"error {status}: no_such_ask Instance type by id {ask_id} is not available.")
