"""The process on a rented machine: an agent that calls the real services, or one that only pretends to work.

It sends heartbeats, works, saves and finishes as the agent does. Time passes between any two of its calls. Machines
also hang, resume after a hang, lose their state, make no progress, and send invalid reports.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from enum import StrEnum
from typing import TYPE_CHECKING, Any

from goblin.core.errors import Conflict, GoblinError, Transient
from goblin.core.labels import job_of_label
from goblin.jobs import worker_api
from goblin.jobs.domain.checkpoints import Artifact
from goblin.jobs.domain.instances import InstanceState
from goblin.jobs.domain.worker import Assignment, WorkerReport
from goblin.jobs.lifecycle import JobDeps
from goblin.jobs.reconcile import reconcile
from tests.fakes.batch_host import announce, results
from tests.fakes.jobs import Crash
from tests.simulation import invalid_reports

if TYPE_CHECKING:
    from tests.simulation.life import Life
    from tests.simulation.market import Rented

IMAGE_GIB = 4.0
STATE_GIB = 0.5
RETRY_S = 5.0
BEAT_S = 10.0


class Manner(StrEnum):
    """Behaviour of a machine."""

    HONEST = "honest"
    DEAD = "never boots"
    SLOW = "boots slowly"
    HANGS = "hangs, and comes back"
    STALLS = "says that it is alive, and does nothing"
    FORGETS = "starts again without its memory"
    DIES = "dies, and is listed on"
    LEAVES = "is taken away with a warning"
    CRAWLS = "works far slower than it should"
    LIES = "lies"
    STEALS = "tries what is not its own"


@dataclass(frozen=True)
class Refusal:
    """A refusal by the controller."""

    error: GoblinError

    @property
    def over(self) -> bool:
        return self.error.code == "attempt_over" if isinstance(self.error, GoblinError) else False


class Silence:
    """No answer from the controller, or a transient error."""


SILENCE = Silence()


def saved_state(job_id: str, step: int, attempt: int) -> bytes:
    """What a training's checkpoint holds: whoever resumes can tell whose it is."""
    return f"{job_id} {step} {attempt}".encode()


class Host:
    """Process of one machine, from its boot to its end."""

    def __init__(self, life: Life, rented: Rented, manner: Manner) -> None:
        self.life, self.rented, self.manner = life, rented, manner
        self.rng = life.rng
        environment = rented.order.environment
        # All that a machine is ever told: no key of an account, nothing of another attempt.
        assert set(environment) == {"GOBLIN_URL", "GOBLIN_ATTEMPT_TOKEN"}, sorted(environment)
        self.token = environment["GOBLIN_ATTEMPT_TOKEN"]
        self.job_id = job_of_label(rented.label)
        self.attempt = int(rented.label.rpartition("-a")[2])
        self.work: Assignment | None = None
        self.saved = self.total = 0
        self.start = 0
        self.worked_s = 0.0
        self.working_since: datetime | None = None
        self.step_s = self.save_s = 1.0
        self.slowness = 4.0 if manner is Manner.CRAWLS else 1.0
        self.process = 1
        """Counts its starts: what an earlier one had in mind is forgotten."""
        self.exited = False
        self.beaten_at = life.now
        self.silent_until: datetime | None = None
        self.stopping: str | None = None
        self.saving = False
        self.ready = False

    # Time.

    def boot(self) -> None:
        """Begin: the machine was just rented."""
        machine = self.rented.machine
        boot_s = machine.boot_s * self.rng.uniform(0.8, 1.2) + IMAGE_GIB * 1024 / machine.mib_per_s
        if self.manner is Manner.DEAD:
            return
        if self.manner is Manner.SLOW:
            boot_s *= 3
        self._bill(STATE_GIB + IMAGE_GIB, machine.download)
        self._later(boot_s, self._started)
        trouble = {
            Manner.HANGS: self._hang, Manner.DIES: self._die, Manner.LEAVES: self._leave, Manner.FORGETS: self._forget,
        }.get(self.manner)  # fmt: skip
        if trouble is not None:
            self._later(boot_s + self.rng.expovariate(1 / 2400), trouble)

    def _later(self, seconds: float, act: Callable[[], Awaitable[None]]) -> None:
        process = self.process

        async def if_alive() -> None:
            if self.exited or not self.rented.works or process != self.process:
                return
            if self.silent_until is not None and self.life.now < self.silent_until:
                self._later((self.silent_until - self.life.now).total_seconds() + 1, act)
                return
            await act()

        self.life.later(seconds, if_alive)

    def _bill(self, gib: float, usd_micros_per_gib: int) -> None:
        if usd_micros_per_gib:
            self.rented.traffic.append((self.life.now, gib * usd_micros_per_gib))

    async def _hang(self) -> None:
        self.life.hurry()
        self.silent_until = self.life.now + timedelta(seconds=self.rng.uniform(20, 900))
        self._pause()
        self._later(0, self._resume)

    async def _resume(self) -> None:
        self.working_since = self.life.now if self.ready else None

    async def _die(self) -> None:
        self.life.hurry()
        self.exited = True
        self._pause()
        if self.rng.random() < 0.5:
            self.rented.state = InstanceState.UNCLEAR

    async def _leave(self) -> None:
        self.stopping = "the machine is taken back"
        await self._stop()

    async def _forget(self) -> None:
        self.ready, self.saving, self.worked_s, self.working_since = False, False, 0.0, None
        self.process, self.work, self.stopping = self.process + 1, None, None
        self._later(20, self._started)

    @property
    def step(self) -> int:
        """Where the work is."""
        worked_s = self.worked_s
        if self.working_since is not None:
            worked_s += max(0.0, (self.life.now - self.working_since).total_seconds())
        if self.manner is Manner.STALLS:
            worked_s = min(worked_s, 60.0)
        return min(self.total, self.start + int(worked_s / self.step_s + 1e-6))

    @property
    def lost_s(self) -> float:
        """Work that nobody will ever have if it ends now."""
        return (self.step - self.saved) * self.step_s if self.ready else 0.0

    def _pause(self) -> None:
        if self.working_since is not None:
            self.worked_s += max(0.0, (self.life.now - self.working_since).total_seconds())
            self.working_since = None

    # Words.

    async def ask(self, say: Callable[[JobDeps], Awaitable[Any]]) -> Any:
        """The answer, a `Refusal`, or `SILENCE`; what is answered must be the current attempt's."""
        deps, current, process = self.life.function(), self.life.job(self.job_id).attempt, self.process
        answer: Any
        try:
            answer = await say(deps)
        except (Crash, Transient):
            answer = SILENCE
        except GoblinError as error:
            answer = Refusal(error)
        if self.exited or process != self.process:
            raise Crash("who asked is no more")
        if answer is SILENCE or isinstance(answer, Refusal):
            return answer
        assert self.attempt == current, f"attempt {self.attempt} was answered while {current} was the current one"
        return answer

    def _exit(self) -> None:
        """The process comes to its end."""
        self.life.hurry()
        self._pause()
        self.exited = True
        if self.rented.works and self.rented.taken_at is None:
            self.rented.state = InstanceState.ENDED

    def stop(self) -> None:
        """The machine is no more."""
        self._pause()
        self.exited = True

    async def _started(self) -> None:
        if self.rented.state is InstanceState.STARTING:
            self.rented.state = InstanceState.RUNNING
        self.beaten_at = self.life.now
        answer = await self.ask(lambda deps: worker_api.claim(self.job_id, self.token, deps))
        if answer is SILENCE:
            self._later(RETRY_S, self._started)
            return
        if isinstance(answer, Refusal):
            self._exit()
            return
        self.work = answer
        truth = self.life.truths[self.job_id]
        self.step_s, self.save_s, self.total = truth.step_s * self.slowness, truth.save_s, truth.total
        self.start = self.saved = answer.step
        self.worked_s = 0.0
        self.life.promises.resumed(self, answer)
        self._later(STATE_GIB * 1024 / self.rented.machine.mib_per_s, self._loaded)

    async def _loaded(self) -> None:
        if self.work is not None and not self.ready:
            self.ready, self.working_since = True, self.life.now
            self.life.figures.worked(self.job_id, self.life.now)
            self._plan()

    def _plan(self) -> None:
        """When to save next."""
        assert self.work is not None
        if self.work.checkpoint_s is not None:
            ahead_s = min(self.work.checkpoint_s, (self.total - self.step) * self.step_s)
        else:
            ahead_s = (min(self.work.checkpoint_every, self.total - self.step)) * self.step_s
        self._later(max(1.0, ahead_s + 0.01), self._save)

    async def freshen(self) -> None:
        """Its last sign of life is never older than this, though not each one is simulated."""
        if (self.life.now - self.beaten_at).total_seconds() > BEAT_S:
            await self.beat()

    async def beat(self) -> None:
        """A sign of life."""
        if self.exited or not self.rented.works or self.work is None:
            return
        if self.silent_until is not None and self.life.now < self.silent_until:
            return
        self.beaten_at = self.life.now
        told = WorkerReport()
        if self.work.checkpoint_s is not None:
            told = WorkerReport(total=self.total, loss=1.0, steps_per_s=1 / self.step_s, save_s=self.save_s)
        step = self.step
        answer = await self.ask(lambda deps: worker_api.heartbeat(self.job_id, self.token, step, deps, told=told))
        if isinstance(answer, Refusal):
            self._exit()
        elif answer is not SILENCE:
            if answer.checkpoint_s is not None and self.work is not None:
                self.work = replace(self.work, checkpoint_s=answer.checkpoint_s)
            if answer.stop is not None and self.stopping is None:
                self.stopping = answer.stop
                self._later(1, self._stop)

    async def _stop(self) -> None:
        if self.ready and not self.saving and self.step > self.saved:
            await self._save()
        elif not self.saving:
            await self._withdraw()

    async def _withdraw(self) -> None:
        async def say(deps: JobDeps) -> None:
            await worker_api.withdraw(self.job_id, self.token, self.stopping or "", deps, step=self.saved)
            await reconcile(deps, only=self.job_id)

        if await self.ask(say) is SILENCE:
            self._later(RETRY_S, self._withdraw)
        else:
            self._exit()

    # Saving.

    async def _save(self) -> None:
        if self.saving or not self.ready:
            return
        if self.manner is Manner.LIES and self.rng.random() < 0.6:
            await invalid_reports.lie(self)
        if self.manner is Manner.STEALS:
            await invalid_reports.steal(self)
        step = self.step
        if step <= self.saved:
            await self._next()
            return
        self.saving = True
        self._pause()
        await self._begin(step)

    def data(self, step: int) -> bytes:
        """What there is to save at a step."""
        if self.work is not None and self.work.checkpoint_s is not None:
            return saved_state(self.job_id, step, self.attempt)
        return results(self.saved, step, self.attempt)

    async def _begin(self, step: int) -> None:
        data = self.data(step)
        files = [announce(data, "part.jsonl")]
        self.life.promises.computed(self, step, data)
        answer = await self.ask(lambda deps: worker_api.begin_checkpoint(self.job_id, self.token, step, files, deps))
        if answer is SILENCE:
            self._later(RETRY_S, lambda: self._begin(step))
        elif isinstance(answer, Refusal):
            await self._rejected(answer)
        else:
            upload_id, grants = answer
            self.life.promises.granted(self, step, grants)
            status = self.life.objects.put(grants["part.jsonl"], data)
            assert status == 200, status
            if self.work is not None and self.work.checkpoint_s is not None:
                self._bill(STATE_GIB, self.rented.machine.upload)
            self._later(self.save_s, lambda: self._commit(step, upload_id, files))

    async def _commit(self, step: int, upload_id: str, files: list[Artifact]) -> None:
        answer = await self.ask(
            lambda deps: worker_api.commit_checkpoint(
                self.job_id, self.token, step, self.saved, upload_id, files, deps, loss=1.0
            )
        )
        if answer is SILENCE:
            self._later(RETRY_S, lambda: self._commit(step, upload_id, files))
        elif isinstance(answer, Refusal):
            await self._rejected(answer)
        else:
            self.saved, self.saving = step, False
            await self._next()

    async def _rejected(self, refusal: Refusal) -> None:
        self.saving = False
        if refusal.over:
            self._exit()
        else:
            # Another machine may do better.
            self.stopping = f"rejected: {refusal.error}"
            await self._withdraw()

    async def _next(self) -> None:
        if self.saved >= self.total:
            await self._finish()
        elif self.stopping is not None:
            await self._withdraw()
        else:
            if self.working_since is None:
                self.working_since = self.life.now
            self._plan()

    async def _finish(self) -> None:
        async def say(deps: JobDeps) -> None:
            await worker_api.finish(self.job_id, self.token, deps, step=self.saved)
            await reconcile(deps, only=self.job_id)

        answer = await self.ask(say)
        if answer is SILENCE:
            self._later(RETRY_S, self._finish)
        else:
            if isinstance(answer, Refusal) and not answer.over and isinstance(answer.error, Conflict):
                self.life.log(f"{self.rented.label} may not finish: {answer.error}")
            self._exit()
