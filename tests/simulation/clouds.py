"""The clouds of a simulation run: the events on their markets, and the failures between them and our functions."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from goblin.core.labels import job_of_label
from goblin.jobs import webhooks
from goblin.jobs.domain.job import JobKind
from goblin.jobs.ports import WebhookEvent
from tests.fakes.jobs import MemoryWebhookEvents
from tests.simulation.hosts import Host, Manner
from tests.simulation.market import Machine, Provider, Rented
from tests.simulation.network import Reached

if TYPE_CHECKING:
    from tests.simulation.life import Life

ORDERS_LOST = 0.06
"""Share of the orders whose answer is lost on any day."""
PORTS = ("jobs", "ledger", "objects", "market", "keys", "bus")


class Clouds:
    """Two clouds that charge and, in some runs, machines of our own."""

    def __init__(self, life: Life) -> None:
        self._life = life
        self._webhook_events: Any = Reached(MemoryWebhookEvents(), life.network, "hints")
        self.providers = {name: self._cloud(name) for name in ("runpod", "vastai")}
        if not life.weather.promise and life.rng.random() < 0.2:
            self.providers["local"] = self._own()

    def begin(self) -> None:
        """Prices begin to move, and things to go wrong."""
        weather = self._life.weather
        for cloud in self.providers.values():
            cloud.lost_orders = 0.0 if weather.promise else ORDERS_LOST
            for machine in cloud.machines:
                self._plan_moves(cloud, machine)
        if not weather.promise:
            self._life.later(self._life.rng.expovariate(1 / weather.trouble_s), self._trouble)

    def calm_down(self) -> None:
        """Everybody answers, and everything can be had."""
        for cloud in self.providers.values():
            cloud.lost_orders = 0.0
            self.answers(cloud)
            for machine in cloud.machines:
                machine.taken = False

    def _cloud(self, name: str) -> Provider:
        rng, machines = self._life.rng, list[Machine]()
        for gpu, memory, price in (("RTX_4090", 24_000, 400_000), ("A100_PCIE", 80_000, 900_000)):
            for number in range(1 if name == "runpod" else 3):
                on_demand = int(price * rng.uniform(0.9, 1.2) * (1.3 if name == "runpod" else 1.0))
                spot = name == "vastai"
                machines.append(Machine(
                    machine_id=f"{gpu}-{number}" if spot else None, gpu=gpu, gpu_memory_mib=memory,
                    on_demand=on_demand, floor=int(on_demand * rng.uniform(0.3, 0.7)) if spot else None,
                    boot_s=rng.uniform(20, 120), mib_per_s=rng.choice([50.0, 200.0]),
                    reliability=rng.choice([None, 0.9, 0.99]) if spot else 0.999,
                    storage=rng.choice([0, 100_000, 200_000]), download=rng.choice([0, 0, 3_000]) if spot else 0,
                    upload=rng.choice([0, 0, 3_000]) if spot else 0,
                ))  # fmt: skip
        return self._opened(name, machines, frozenset({JobKind.BATCH.value, JobKind.TRAINING.value}))

    def _opened(self, name: str, machines: list[Machine], kinds: frozenset[str]) -> Provider:
        life = self._life
        cloud = Provider(
            name, machines, network=life.network, clock=life.clock, rng=life.rng, later=life.later, kinds=kinds
        )  # fmt: skip
        cloud.on_rent, cloud.on_release, cloud.on_gone = self._rented, self._life.promises.released, self._gone
        cloud.on_lost, cloud.on_taken, cloud.on_stopped = self._order_lost, self._taken, self._stopped
        return cloud

    def _own(self) -> Provider:
        """A machine of ours, which costs nothing."""
        machine = Machine(
            machine_id="own", gpu="", gpu_memory_mib=0, on_demand=0, floor=None, boot_s=1.0, mib_per_s=500.0,
            reliability=1.0, storage=0, download=0, upload=0,
        )  # fmt: skip
        return self._opened("local", [machine], frozenset({JobKind.BATCH.value}))

    def _plan_moves(self, provider: Provider, machine: Machine) -> None:
        def move() -> None:
            if self._life.calm:
                return
            self._life.hurry()
            if machine.floor is not None and self._life.rng.random() < 0.85:
                provider.move(machine)
            elif not machine.taken:
                provider.take(machine)
                out_s = (
                    self._life.rng.uniform(60, 300) if machine.floor is None else self._life.rng.expovariate(1 / 7200)
                )
                self._life.later(out_s, lambda: self._free(machine))
            self._plan_moves(provider, machine)

        mean_s = self._life.weather.move_s if machine.floor is not None else 4 * 3600
        self._life.later(self._life.rng.expovariate(1 / mean_s), move)

    def _free(self, machine: Machine) -> None:
        machine.taken = False
        self._life.hurry()

    def _taken(self, rented: Rented) -> None:
        """An instance is outbid or taken back; its provider may tell, once, twice, late or never."""
        self._life.hurry()
        self._life.log(f"{rented.label} is {rented.detail}")
        host = rented.host
        if host is not None and not host.exited and self._life.job(host.job_id).attempt == host.attempt:
            self._life.figures.stopped(host.job_id, self._life.now)
        kind = "outbid" if rented.detail == "outbid" else "instance_stopped"
        hint = WebhookEvent(provider=rented.provider, event_id=f"{rented.instance_id}-{kind}", kind=kind)
        rng = self._life.rng
        for _ in range(rng.choice([0, 1, 1, 2])):
            late_s = rng.uniform(300, 1200) if rng.random() < 0.1 else 1 + rng.expovariate(1)
            self._life.later(late_s, lambda: self._hint(hint))

    async def _hint(self, hint: WebhookEvent) -> None:
        async def sleep(seconds: float) -> None:
            """It passes without us."""

        for host in list(self._life.hosts.values()):
            await host.freshen()
        await webhooks.follow(hint, self._life.function(), self._webhook_events, sleep=sleep)

    def _stopped(self, rented: Rented) -> None:
        """Its process is no more."""
        self._life.hurry()
        if rented.host is not None:
            rented.host.stop()

    def _rented(self, rented: Rented) -> None:
        self._life.figures.rented += 1
        self._life.hurry()
        self._life.promises.rented(rented)
        manners = [Manner.HONEST] if self._life.calm or self._life.weather.promise else list(Manner)
        weights = [60] + [5] * (len(manners) - 1)
        manner = self._life.rng.choices(manners, weights[: len(manners)])[0]
        host = rented.host = self._life.hosts[rented.label] = Host(self._life, rented, manner)
        self._life.tokens.setdefault(host.job_id, []).append(host.token)
        self._life.log(f"{rented.label} begins at {rented.provider}: {manner}")
        host.boot()

    def _order_lost(self, label: str) -> None:
        """Sometimes its owner has enough just then."""
        if not self._life.calm and self._life.rng.random() < 0.2:
            self._life.later(self._life.rng.uniform(0, 40), lambda: self._life.cancel(job_of_label(label)))

    def _gone(self, rented: Rented) -> None:
        self._life.hurry()
        self._life.promises.gone(rented)
        host = self._life.hosts.pop(rented.label, None)
        if host is not None:
            if rented.detail:
                self._life.figures.lost_s.append(host.lost_s)
            if not rented.zombie:
                host.stop()
        self._life.log(f"{rented.label} is gone")

    def _trouble(self) -> None:
        """Something goes wrong for a while."""
        if self._life.calm:
            return
        self._life.hurry()
        rng = self._life.rng
        self._life.later(rng.expovariate(1 / self._life.weather.trouble_s), self._trouble)
        cloud = rng.choice(list(self.providers.values()))
        minutes = rng.expovariate(1 / 240)
        kind = rng.choice(["down", "unknown", "deaf", "lost orders", "lost answers", "vanish", "freeze"])
        self._life.log(f"trouble: {kind} at {cloud.name}, {minutes:.0f} s")
        match kind:
            case "down":
                port = rng.choice(PORTS)
                self._life.network.down.add(port)
                self._life.later(minutes, lambda: self._is_back(port))
            case "unknown":
                cloud.unknown = rng.choice(["410 Gone", "429 Too Many Requests"])
                self._life.figures.silent(cloud.name, self._life.now)
                self._life.later(minutes, lambda: self.answers(cloud))
            case "deaf":
                cloud.deaf = True
                self._life.figures.silent(cloud.name, self._life.now)
                self._life.later(minutes, lambda: self.answers(cloud))
            case "lost orders":
                cloud.lost_orders = 0.6
                self._life.later(20 * minutes, lambda: setattr(cloud, "lost_orders", ORDERS_LOST))
            case "lost answers":
                self._life.network.answers_lost = 0.05
                self._life.later(minutes, lambda: setattr(self._life.network, "answers_lost", 0.0))
            case "vanish":
                if cloud.listed:
                    rented = rng.choice(cloud.listed)
                    rented.detail = "gone without a word"
                    rented.zombie = rng.random() < 0.5
                    self._taken(rented)
                    cloud.remove(rented)
            case "freeze":
                self._life.later(rng.expovariate(1 / 3600), self._life.thaw)

    def _is_back(self, port: str) -> None:
        self._life.network.down.discard(port)
        for name in self.providers:
            self._life.figures.silent(name, self._life.now)

    def answers(self, cloud: Provider) -> None:
        self._life.hurry()
        cloud.unknown, cloud.deaf = "", False
        self._life.figures.silent(cloud.name, self._life.now)
