"""One seed, one life: the real services over a world in memory where everything that can go wrong does.

Messages come twice, late and out of order; handlers die between any two writes; hosts die, hang, come back as zombies
and lie; inventories fail; providers lose their answers. Then the world calms down, and the promises are checked.
"""

from __future__ import annotations

import random
from collections.abc import Awaitable, Callable
from itertools import pairwise

from goblin.domain.checkpoints import manifest_uri
from goblin.domain.jobs import ENDED, LEASED, State
from goblin.errors import GoblinError
from goblin.events import CheckpointSaved, JobRequested
from goblin.policy import jobs as policy
from goblin.services import checkpoints, jobs, leases
from goblin.services.reconcile import reconcile
from tests.fakes.batch_host import Host, announce, given, output_ids, results
from tests.fakes.jobs import BUCKET, Crash, World

STORM_STEPS = 250
CALM_STEPS = 400
TICK_S = 60


class Life:
    """Two jobs in one world; `run` is deterministic in the seed."""

    def __init__(self, seed: int) -> None:
        self._dice = random.Random(seed)
        self.world = World(limit=self._dice.choice([1, 2]))
        self.specs: dict[str, JobRequested] = {}
        for name in ("a", "b"):
            count = self._dice.randint(1, 20)
            self.specs[name] = given(self.world, count, name)
            self.world.bus.waiting.append(("job-requested", self.specs[name]))
        self._hosts: dict[str, Host] = {}
        self._zombies: list[Host] = []
        self.log: list[str] = []
        self.cancelled: set[str] = set()

    async def run(self) -> None:
        """A storm, then calm until nothing is left to do."""
        for _ in range(STORM_STEPS):
            name, step = self._dice.choice(self._troubles())
            self.log.append(f"{self.world.clock.monotonic():.0f} {name}")
            if self._dice.random() < 0.15:
                self.world.faults.crash_at = self.world.faults.passed + self._dice.randint(1, 6)
            await self._survive(step())
            self.world.faults.crash_at = None
            self.world.clock.advance(self._dice.choice([0, 0, 1, 5, 20]))
            self.check_always()
        await self._calm()
        self.check_in_the_end()

    def _troubles(self) -> list[tuple[str, Callable[[], Awaitable[None]]]]:
        return [
            *[("deliver", self._deliver)] * 4,
            *[("tick", self._tick)] * 2,
            *[("work", self._work)] * 8,
            ("lose a host", self._lose_host),
            ("hang a host", self._hang),
            ("zombie", self._zombie),
            ("lie", self._lie),
            ("withdraw", self._withdraw),
            ("inventory", self._inventory),
            ("provider", self._provider),
            ("silence", self._silence),
            ("cancel", self._cancel),
        ]

    async def _survive(self, step: Awaitable[None]) -> None:
        try:
            await step
        except (Crash, GoblinError) as error:
            self.log.append(f"    {type(error).__name__}: {error}")

    async def _deliver(self) -> None:
        """Any waiting message, which may come again."""
        waiting = self.world.bus.waiting
        if not waiting:
            return
        at = self._dice.randrange(len(waiting))
        _, event = waiting[at]
        if isinstance(event, JobRequested):
            await jobs.request(event, self.world.deps)
            await reconcile(self.world.deps, only=event.job_id)
        elif isinstance(event, CheckpointSaved):
            await checkpoints.note(event, self.world.deps)
        # Acknowledged only when the handler came to its end, and sometimes not even then.
        if self._dice.random() < 0.8:
            waiting.pop(at)

    async def _tick(self) -> None:
        await reconcile(self.world.deps)

    def _host(self) -> Host | None:
        """A host at work: one for each running instance, which may have come back without its memory."""
        labels = sorted(self.world.compute.running)
        if not labels:
            return None
        label = self._dice.choice(labels)
        order = self.world.compute.running[label]
        job_id = label.removeprefix("goblin-").rpartition("-a")[0]
        if label not in self._hosts or self._dice.random() < 0.03:
            self._hosts[label] = Host(self.world, job_id, order.environment["GOBLIN_ATTEMPT_TOKEN"])
        return self._hosts[label]

    async def _work(self) -> None:
        if host := self._host():
            self.log.append(f"    {host.job_id} attempt {host.attempt} at {host.saved}")
            await self._step(host)

    async def _lose_host(self) -> None:
        if labels := sorted(self.world.compute.running):
            label = self._dice.choice(labels)
            del self.world.compute.running[label]
            if label in self._hosts and self._dice.random() < 0.5:
                self._zombies.append(self._hosts.pop(label))

    async def _hang(self) -> None:
        self.world.clock.advance(policy.LEASE_S + 1)

    async def _zombie(self) -> None:
        """An instance that everybody believes gone goes on working."""
        if self._zombies:
            await self._step(self._dice.choice(self._zombies))

    async def _step(self, host: Host) -> None:
        """Let a host do its next thing; only the current attempt's may succeed."""
        current, idle = self.world.job(host.job_id).attempt, host.done
        await host.step()
        assert idle or host.attempt == current, f"attempt {host.attempt} worked while {current} was the current one"

    async def _lie(self) -> None:
        """A host commits what it did not compute, or what is not there."""
        host = self._host()
        if host is None or host.saved is None:
            return
        data = results(host.saved + 1, host.saved + 3, host.attempt)
        upload_id, grants = await leases.begin_checkpoint(
            host.job_id, host.token, host.saved + 2, [announce(data)], self.world.deps
        )
        if self._dice.random() < 0.5:
            self.world.objects.put(grants["part.jsonl"], data)
        await leases.commit_checkpoint(
            host.job_id, host.token, host.saved + 2, host.saved, upload_id, [announce(data)], self.world.deps
        )
        made = await checkpoints.read_manifest(
            manifest_uri(BUCKET, host.job_id, host.saved + 2, host.attempt), self.world.deps
        )
        # The step may have been saved before; then that is what the host is told.
        assert made is not None
        assert upload_id not in made[0].files[0].uri, "a lie was committed"

    async def _withdraw(self) -> None:
        if (host := self._host()) and host.saved is not None:
            await leases.withdraw(host.job_id, host.token, "taken away", self.world.deps)

    async def _inventory(self) -> None:
        self.world.compute.unknown = self._dice.choice(["", "", "410"])

    async def _provider(self) -> None:
        self.world.compute.full = self._dice.random() < 0.3

    async def _silence(self) -> None:
        self.world.compute.silent = self._dice.random() < 0.3

    async def _cancel(self) -> None:
        if self._dice.random() < 0.05:
            name = self._dice.choice(sorted(self.specs))
            self.cancelled.add(name)
            await jobs.cancel(name, self.world.deps, by="somebody")

    async def _calm(self) -> None:
        compute = self.world.compute
        compute.unknown, compute.full, compute.silent = "", False, False
        for _ in range(CALM_STEPS):
            await reconcile(self.world.deps)
            while self.world.bus.waiting:
                await self._survive(self._deliver_first())
            for label in sorted(compute.running):
                for _ in range(3):
                    await self._survive(self._work_on(label))
            self.world.clock.advance(TICK_S / 3)
            self.check_always()
            if all(not stored.job.open for stored in self.world.jobs.stored.values()) and not compute.running:
                return

    async def _deliver_first(self) -> None:
        _, event = self.world.bus.waiting.pop(0)
        if isinstance(event, JobRequested):
            await jobs.request(event, self.world.deps)
        elif isinstance(event, CheckpointSaved):
            await checkpoints.note(event, self.world.deps)

    async def _work_on(self, label: str) -> None:
        order = self.world.compute.running.get(label)
        if order is None:
            return
        job_id = label.removeprefix("goblin-").rpartition("-a")[0]
        if label not in self._hosts:
            self._hosts[label] = Host(self.world, job_id, order.environment["GOBLIN_ATTEMPT_TOKEN"])
        try:
            await self._hosts[label].step()
        except GoblinError:
            # The worker's process ends with its attempt.
            del self._hosts[label]
            compute = self.world.compute
            compute.running.pop(label, None)

    def check_always(self) -> None:
        """What holds at every instant."""
        world = self.world
        assert len(world.compute.rented) == len(set(world.compute.rented))
        for name, versions in world.jobs.history.items():
            last = versions[-1]
            steps = [version.saved_step for version in versions[-3:]]
            assert steps == sorted(steps), f"{name}: a checkpoint moved back: {steps}"
            for before, after in pairwise(versions[-3:]):
                moved = after.checkpoint != before.checkpoint and after.checkpoint is not None
                assert not moved or after.checkpoint.attempt == after.attempt, f"{name}: a zombie's checkpoint"
            attempts = [version.attempt for version in versions[-3:]]
            assert attempts == sorted(attempts)
            ended = [version.state for version in versions if version.state in ENDED]
            assert len(set(ended)) <= 1, f"{name} ended twice: {ended}"
            assert last.state not in LEASED or last.lease is not None

    def check_in_the_end(self) -> None:
        """What holds once the world has been calm for long enough."""
        world = self.world
        assert not world.compute.running, "an instance without a job"
        assert set(world.jobs.stored) == set(self.specs), "a request was lost"
        for name in self.specs:
            job = world.job(name)
            assert job.state in ENDED, f"{name} is {job.state}: {job.reason}"
            assert not job.open
            if job.state is State.CANCELLED:
                assert name in self.cancelled
            elif job.state is State.SUCCEEDED:
                assert job.dataset is not None
                assert output_ids(world, name) == [f"item-{n}" for n in range(job.dataset.items)]
            else:
                assert "made no progress" in job.reason, job.reason
