"""The market in time: every call first runs the due events, in their order.

    outbid ─ a webhook ─ 1.4 s: told to stop ─ 10 to 30 s: reads stopped ─ waits, its disk billed ─ runs again
    rented ─ created ─ loading, at the host's bandwidth ─ running: billed from here

Measured by others on 2026-08-27. `pace` divides every such time, so that a laptop need not wait; prices stay per
hour, and a machine that is taken away has time to save.
"""

from __future__ import annotations

import secrets
import threading
from collections.abc import Collection
from pathlib import Path

import msgspec

from localgpus.clock import Clock
from localgpus.machines import Machines, NoRoom
from localgpus.vast import auction, billing, stock
from localgpus.vast.market_simulation import MarketSimulation
from localgpus.vast.state import Actual, Contract, Machine, Notice, State, Step

NAME = "vastai"
CREATE_S, PULL_S, RESUME_S, HALT_S = 1.0, 2.0, 5.0, 1.4
EXIT_S_MIN, EXIT_S_MAX = 10, 30
NOTICE_S_MIN = 4.0
"""Real seconds that a machine runs on at least, whatever the pace: its process saves no faster for it."""
TAKEOVER_TOLD_S = 15.0
"""Delay of the webhook event when an on-demand renter displaces a bid."""
STOP_S, GRACE_S = 2.0, 10.0
DELETED_AFTER_S = 48 * 3600.0
NOTICES_MAX = 1000
SAVE_EVERY_S = 5.0
UNAVAILABLE = "Required resources are currently unavailable, state change queued."


class Market:
    """One market with one account. Every method can be called from any thread."""

    name = NAME

    def __init__(
        self, machines: Machines, clock: Clock, *, folder: Path | None = None, pace: float = 1.0,
        keys: Collection[str] = ("local-vast-key",), image_gb: float = 2.0, simulation: MarketSimulation | None = None,
    ) -> None:  # fmt: skip
        """Open the market with its stored state, or a new one.

        Args:
            machines: Where instances run.
            clock: Returns seconds since 1970.
            folder: Where the state is stored; None: nowhere.
            pace: Divides every simulated time.
            keys: API keys of the account.
            image_gb: Size of every image.
            simulation: Rivals, host failures and price drift; None: none of them.
        """
        self.machines = machines
        self.clock = clock
        self.pace = pace
        self.keys = frozenset(keys)
        self.image_gb = image_gb
        self._simulation = simulation
        self.lock = threading.RLock()
        self.closed = False
        """Whether every offer is off the market. Rented instances stay."""
        self._file = folder / "vastai.json" if folder else None
        self.state = self._restore()

    # The clock and the disk.

    def tick(self) -> None:
        """Run every event that is due, and settle every bill up to now."""
        with self.lock:
            now = self.clock()
            if self._simulation is not None:
                self._simulation.begin(now)
            while (at := self._next_at()) is not None and at <= now:
                self._happen(at)
            for contract in self.state.contracts.values():
                self._look_at(contract, now)
                billing.settle(self.state, contract, now)
            if self.state.balance <= 0:
                for contract in self.state.contracts.values():
                    if contract.wanted:
                        self._tell("low_credit", contract, "Your balance is used up.", now)
                        self.halt(contract)
            billing.forget(self.state, now)
            if now - self.state.saved_at >= SAVE_EVERY_S:
                self.save()

    def save(self) -> None:
        """Write the state to disk. Changes since the last save are lost if the process ends."""
        with self.lock:
            self.state.saved_at = self.clock()
            if self._file is not None:
                self._file.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
                draft = self._file.with_suffix(".draft")
                draft.write_bytes(msgspec.json.encode(self.state))
                draft.replace(self._file)

    def on(self, machine: Machine) -> list[Contract]:
        """List the contracts on a machine."""
        return [contract for contract in self.state.contracts.values() if contract.machine_id == machine.id]

    def asks(self, machine: Machine) -> dict[int, int]:
        """Return the ids of the machine's current offers by number of GPUs, creating missing ones."""
        sizes = {size for size in (1, 2, 4, 8, machine.num_gpus) if size <= machine.num_gpus}
        for size in sorted(sizes - machine.asks.keys()):
            machine.asks[size] = self.new_id()
        return machine.asks

    def new_id(self) -> int:
        self.state.next_id += 1
        return self.state.next_id

    # Actions of renters and hosts.

    def place(self, contract: Contract) -> None:
        """Give a new contract its GPUs: it boots, and the contracts that it displaces stop."""
        machine, now = self.state.machines[contract.machine_id], self.clock()
        contract.holds = True
        machine.asks.clear()
        pull_s = self.image_gb * 8000 / machine.inet_down
        self._plan(contract, now, (CREATE_S, Step.CREATE), (PULL_S, Step.PULL), (PULL_S + pull_s, Step.START))
        self._tell("instance_created", contract, "Your instance was created.", now)
        self.settle_machine(machine, now)

    def park(self, contract: Contract) -> None:
        """Leave a new contract without GPUs: stopped, its disk billed. It runs once its bid wins."""
        contract.intended, contract.actual = "stopped", Actual.EXITED

    def halt(self, contract: Contract) -> None:
        """Stop the contract for its renter."""
        now = self.clock()
        billing.settle(self.state, contract, now)
        contract.wanted = contract.holds = False
        contract.intended = "stopped"
        self.machines.stop(instance_name(contract), grace_s=max(NOTICE_S_MIN, GRACE_S / self.pace))
        contract.steps = []
        self._plan(contract, now, (STOP_S, Step.EXIT))
        self._tell("instance_stopped", contract, "Your instance was stopped.", now)
        self.settle_machine(self.state.machines[contract.machine_id], now)

    def resume(self, contract: Contract) -> bool:
        """Start the contract again for its renter. Returns False while it waits for GPUs."""
        now, machine = self.clock(), self.state.machines[contract.machine_id]
        contract.wanted = True
        if contract.bid is None and not contract.holds:
            if auction.free_on_demand(machine, self.on(machine)) < contract.gpus:
                return False
            contract.holds = True
            self._start_again(contract, now)
        self.settle_machine(machine, now)
        return contract.holds

    def destroy(self, contract: Contract) -> None:
        """End the contract and delete its disk."""
        now = self.clock()
        billing.settle(self.state, contract, now)
        self.machines.remove(instance_name(contract))
        del self.state.contracts[contract.id]
        self._tell("instance_deleted", contract, "Your instance was deleted.", now)
        self.settle_machine(self.state.machines[contract.machine_id], now)

    def settle_machine(self, machine: Machine, at: float) -> None:
        """Give and take the machine's GPUs according to the current bids."""
        contracts = self.on(machine)
        won = auction.winners(machine, contracts)
        for contract in contracts:
            if contract.holds and contract.id not in won:
                self._displace(contract, machine, at)
            elif not contract.holds and contract.id in won:
                contract.holds = True
                self._start_again(contract, at)

    def switch(self, machine: Machine, now: float, *, up: bool) -> None:
        """Take the machine offline, or bring it back."""
        for contract in self.on(machine):
            billing.settle(self.state, contract, now)
            if not up:
                self.machines.kill(instance_name(contract))
                contract.actual, contract.holds, contract.steps = Actual.OFFLINE, False, []
                self._tell("instance_offline", contract, "The machine of your instance is offline.", now)
            elif contract.actual is Actual.OFFLINE:
                contract.actual = Actual.EXITED
                contract.holds = contract.bid is None and contract.wanted
                if contract.holds:
                    self._start_again(contract, now)
        machine.up = up
        machine.asks.clear()
        self.settle_machine(machine, now)

    # Events in time.

    def _next_at(self) -> float | None:
        due = [contract.steps[0][0] for contract in self.state.contracts.values() if contract.steps]
        due += [_end_at(contract, self.pace) for contract in self.state.contracts.values()]
        due += [
            rival.until
            for machine in self.state.machines.values()
            for rival in machine.rivals
            if rival.until is not None
        ]
        if self._simulation is not None and self._simulation.next_at is not None:
            due.append(self._simulation.next_at)
        return min(due, default=None)

    def _happen(self, at: float) -> None:
        """Run the events that are due at one instant."""
        for contract in list(self.state.contracts.values()):
            billing.settle(self.state, contract, at)
            while contract.steps and contract.steps[0][0] <= at:
                _, step = contract.steps.pop(0)
                self._step(contract, step, at)
            if _end_at(contract, self.pace) <= at:
                self._expire(contract, at)
        for machine in self.state.machines.values():
            if any(rival.until is not None and rival.until <= at for rival in machine.rivals):
                machine.rivals = [rival for rival in machine.rivals if rival.until is None or rival.until > at]
                machine.asks.clear()
                self.settle_machine(machine, at)
        if self._simulation is not None and self._simulation.next_at is not None and self._simulation.next_at <= at:
            self._simulation.step(self, at)

    def _step(self, contract: Contract, step: Step, at: float) -> None:
        match step:
            case Step.CREATE:
                contract.actual = Actual.CREATED
            case Step.PULL:
                contract.actual, contract.status_msg = Actual.LOADING, f"Pulling from {contract.image}"
            case Step.START:
                self._run(contract, at)
            case Step.HALT:
                contract.intended = "stopped"
            case Step.EXIT:
                self.machines.kill(instance_name(contract))
                # `status_msg` stays as the last start left it.
                contract.actual = Actual.EXITED if contract.wanted else Actual.STOPPED

    def _run(self, contract: Contract, at: float) -> None:
        machine = self.state.machines[contract.machine_id]
        if contract.actual is Actual.LOADING:
            billing.traffic(self.state, contract, at, down_gb=self.image_gb)
        contract.status_msg = machine.pull_error
        if not contract.status_msg:
            told = {"CONTAINER_ID": str(contract.id), "VAST_CONTAINERLABEL": f"C.{contract.id}"}
            try:
                self.machines.start(
                    instance_name(contract), image=contract.image, args=contract.args, env={**told, **contract.env}
                )
            except NoRoom as error:
                contract.status_msg = f"Error response from daemon: OCI runtime create failed: {error}"
        if contract.status_msg:
            contract.actual = Actual.CREATED
            self._tell("error_msgs", contract, contract.status_msg, at)
            return
        contract.actual, contract.running_since = Actual.RUNNING, at
        contract.intended = "running"
        contract.status_msg = f"success, running {contract.image}/args"
        self._tell("instance_started", contract, "Your instance is running.", at)

    def _look_at(self, contract: Contract, now: float) -> None:
        """Mark the contract as exited if its program has ended by itself."""
        if contract.actual is Actual.RUNNING and not self.machines.running(instance_name(contract)):
            billing.settle(self.state, contract, now)
            contract.actual = Actual.EXITED

    def _displace(self, contract: Contract, machine: Machine, at: float) -> None:
        contract.holds = False
        contract.steps = []
        # A time of 10 to 30 s that depends on the id alone, so that runs are repeatable.
        exit_s = EXIT_S_MIN + contract.id * 7 % (EXIT_S_MAX - EXIT_S_MIN + 1)
        self._plan(contract, at, (HALT_S, Step.HALT), (max(exit_s, NOTICE_S_MIN * self.pace), Step.EXIT))
        taken_over = any(rival.bid is None for rival in machine.rivals) or machine.reclaimed
        late_s = TAKEOVER_TOLD_S / self.pace if taken_over else 0.0
        self._tell("outbid", contract, "Your interruptible instance was outbid and is being stopped.", at + late_s)

    def _start_again(self, contract: Contract, at: float) -> None:
        """Plan a start once the contract has stopped. Its image and disk are on the machine already."""
        stopping = [step for step in contract.steps if step[1] is Step.EXIT]
        contract.steps = stopping
        at = max(at, stopping[-1][0] if stopping else at)
        self._plan(contract, at, (RESUME_S, Step.START))
        self._tell("instance_resumed", contract, "Your instance resumes.", at)

    def _expire(self, contract: Contract, at: float) -> None:
        """Stop a contract at its end date; delete it some time later."""
        if contract.ended_at is None:
            contract.ended_at = at
            contract.intended, contract.wanted, contract.holds = "stopped", False, False
            self.machines.kill(instance_name(contract))
            contract.actual, contract.steps = Actual.EXITED, []
            self.settle_machine(self.state.machines[contract.machine_id], at)
        else:
            self.destroy(contract)

    def _plan(self, contract: Contract, at: float, *steps: tuple[float, Step]) -> None:
        contract.steps += [(at + after_s / self.pace, step) for after_s, step in steps]
        contract.steps.sort(key=lambda step: step[0])

    def _tell(self, kind: str, contract: Contract, message: str, at: float) -> None:
        """Queue a webhook event for every hook of its kind. It has no field that names the instance."""
        for hook in self.state.hooks.values():
            if hook.enabled and f"client:{kind}" in hook.event_types:
                self.state.notices.append(
                    Notice(
                        event_id=secrets.token_hex(16), hook_id=hook.id, notif_type=kind,
                        subject=f"Instance #{contract.id}: {kind}", message=message, at=at, due=at,
                    )
                )  # fmt: skip
        del self.state.notices[:-NOTICES_MAX]

    def _restore(self) -> State:
        """Read the stored state. Its processes ended with the previous run, and the time between is not billed."""
        if self._file is None or not self._file.exists():
            return State(machines={machine.id: machine for machine in stock.machines()})
        state = msgspec.json.decode(self._file.read_bytes(), type=State)
        now = self.clock()
        for contract in state.contracts.values():
            contract.billed_until = now
            contract.steps = [step for step in contract.steps if step[1] in (Step.HALT, Step.EXIT)]
            if contract.actual not in (Actual.STOPPED, Actual.OFFLINE):
                contract.actual = Actual.EXITED
        return state


def instance_name(contract: Contract) -> str:
    """Return the name of the contract's instance for `Machines`."""
    return f"vast-{contract.id}"


def _end_at(contract: Contract, pace: float) -> float:
    if contract.ended_at is not None:
        return contract.ended_at + DELETED_AFTER_S / pace
    return float("inf") if contract.end_date is None else contract.end_date
