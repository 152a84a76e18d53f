"""What runs on a rented machine: an agent that speaks to the real services, or something that only pretends to.

It beats, works, saves and finishes as the agent does; time passes between any two of its words. Machines also hang,
come back as if nothing had been, forget everything, stand still, and lie.
"""

from __future__ import annotations

import hashlib
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from enum import StrEnum
from typing import TYPE_CHECKING, Any

from goblin.domain.checkpoints import STEP_MAX, Artifact, manifest_uri
from goblin.domain.compute import InstanceState, job_of_label
from goblin.domain.work import Assignment, Told
from goblin.errors import Conflict, GoblinError, Transient
from goblin.services import checkpoints, leases
from goblin.services.jobs import JobDeps
from goblin.services.reconcile import reconcile
from tests.fakes.batch_host import announce, results
from tests.fakes.jobs import BUCKET, Crash, crc32c

if TYPE_CHECKING:
    from tests.simulation.life import Life
    from tests.simulation.market import Rented

IMAGE_GIB = 4.0
STATE_GIB = 0.5
RETRY_S = 5.0
BEAT_S = 10.0


class Manner(StrEnum):
    """How a machine behaves."""

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
    """The controller said no."""

    error: GoblinError

    @property
    def over(self) -> bool:
        return self.error.code == "attempt_over" if isinstance(self.error, GoblinError) else False


class Silence:
    """It said nothing, or that it cannot now."""


SILENCE = Silence()


def saved_state(job_id: str, step: int, attempt: int) -> bytes:
    """What a training's checkpoint holds: whoever resumes can tell whose it is."""
    return f"{job_id} {step} {attempt}".encode()


class Host:
    """One machine's process, from its boot to its end."""

    def __init__(self, life: Life, rented: Rented, manner: Manner) -> None:
        self._life, self.rented, self.manner = life, rented, manner
        self._dice = life.dice
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
        boot_s = machine.boot_s * self._dice.uniform(0.8, 1.2) + IMAGE_GIB * 1024 / machine.mib_per_s
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
            self._later(boot_s + self._dice.expovariate(1 / 2400), trouble)

    def _later(self, seconds: float, act: Callable[[], Awaitable[None]]) -> None:
        process = self.process

        async def if_alive() -> None:
            if self.exited or not self.rented.works or process != self.process:
                return
            if self.silent_until is not None and self._life.now < self.silent_until:
                self._later((self.silent_until - self._life.now).total_seconds() + 1, act)
                return
            await act()

        self._life.later(seconds, if_alive)

    def _bill(self, gib: float, usd_micros_per_gib: int) -> None:
        if usd_micros_per_gib:
            self.rented.traffic.append((self._life.now, gib * usd_micros_per_gib))

    async def _hang(self) -> None:
        self._life.hurry()
        self.silent_until = self._life.now + timedelta(seconds=self._dice.uniform(20, 900))
        self._pause()
        self._later(0, self._resume)

    async def _resume(self) -> None:
        self.working_since = self._life.now if self.ready else None

    async def _die(self) -> None:
        self._life.hurry()
        self.exited = True
        self._pause()
        if self._dice.random() < 0.5:
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
            worked_s += max(0.0, (self._life.now - self.working_since).total_seconds())
        if self.manner is Manner.STALLS:
            worked_s = min(worked_s, 60.0)
        return min(self.total, self.start + int(worked_s / self.step_s + 1e-6))

    @property
    def lost_s(self) -> float:
        """Work that nobody will ever have if it ends now."""
        return (self.step - self.saved) * self.step_s if self.ready else 0.0

    def _pause(self) -> None:
        if self.working_since is not None:
            self.worked_s += max(0.0, (self._life.now - self.working_since).total_seconds())
            self.working_since = None

    # Words.

    async def _ask(self, say: Callable[[JobDeps], Awaitable[Any]]) -> Any:
        """The answer, a `Refusal`, or `SILENCE`; what is answered must be the current attempt's."""
        deps, current, process = self._life.function(), self._life.job(self.job_id).attempt, self.process
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
        self._life.hurry()
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
        self.beaten_at = self._life.now
        answer = await self._ask(lambda deps: leases.claim(self.job_id, self.token, deps))
        if answer is SILENCE:
            self._later(RETRY_S, self._started)
            return
        if isinstance(answer, Refusal):
            self._exit()
            return
        self.work = answer
        truth = self._life.truths[self.job_id]
        self.step_s, self.save_s, self.total = truth.step_s * self.slowness, truth.save_s, truth.total
        self.start = self.saved = answer.step
        self.worked_s = 0.0
        self._life.promises.resumed(self, answer)
        self._later(STATE_GIB * 1024 / self.rented.machine.mib_per_s, self._loaded)

    async def _loaded(self) -> None:
        if self.work is not None and not self.ready:
            self.ready, self.working_since = True, self._life.now
            self._life.figures.worked(self.job_id, self._life.now)
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
        if (self._life.now - self.beaten_at).total_seconds() > BEAT_S:
            await self.beat()

    async def beat(self) -> None:
        """A sign of life."""
        if self.exited or not self.rented.works or self.work is None:
            return
        if self.silent_until is not None and self._life.now < self.silent_until:
            return
        self.beaten_at = self._life.now
        told = Told()
        if self.work.checkpoint_s is not None:
            told = Told(total=self.total, loss=1.0, steps_per_s=1 / self.step_s, save_s=self.save_s)
        step = self.step
        answer = await self._ask(lambda deps: leases.heartbeat(self.job_id, self.token, step, deps, told=told))
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
            await leases.withdraw(self.job_id, self.token, self.stopping or "", deps, step=self.saved)
            await reconcile(deps, only=self.job_id)

        if await self._ask(say) is SILENCE:
            self._later(RETRY_S, self._withdraw)
        else:
            self._exit()

    # Saving.

    async def _save(self) -> None:
        if self.saving or not self.ready:
            return
        if self.manner is Manner.LIES and self._dice.random() < 0.6:
            await self._lie()
        if self.manner is Manner.STEALS:
            await self._steal()
        step = self.step
        if step <= self.saved:
            await self._next()
            return
        self.saving = True
        self._pause()
        await self._begin(step)

    def _data(self, step: int) -> bytes:
        if self.work is not None and self.work.checkpoint_s is not None:
            return saved_state(self.job_id, step, self.attempt)
        return results(self.saved, step, self.attempt)

    async def _begin(self, step: int) -> None:
        data = self._data(step)
        files = [announce(data, "part.jsonl")]
        self._life.promises.computed(self, step, data)
        answer = await self._ask(lambda deps: leases.begin_checkpoint(self.job_id, self.token, step, files, deps))
        if answer is SILENCE:
            self._later(RETRY_S, lambda: self._begin(step))
        elif isinstance(answer, Refusal):
            await self._rejected(answer)
        else:
            upload_id, grants = answer
            self._life.promises.granted(self, step, grants)
            status = self._life.objects.put(grants["part.jsonl"], data)
            assert status == 200, status
            if self.work is not None and self.work.checkpoint_s is not None:
                self._bill(STATE_GIB, self.rented.machine.upload)
            self._later(self.save_s, lambda: self._commit(step, upload_id, files))

    async def _commit(self, step: int, upload_id: str, files: list[Artifact]) -> None:
        answer = await self._ask(
            lambda deps: leases.commit_checkpoint(
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
                self.working_since = self._life.now
            self._plan()

    async def _finish(self) -> None:
        async def say(deps: JobDeps) -> None:
            await leases.finish(self.job_id, self.token, deps, step=self.saved)
            await reconcile(deps, only=self.job_id)

        answer = await self._ask(say)
        if answer is SILENCE:
            self._later(RETRY_S, self._finish)
        else:
            if isinstance(answer, Refusal) and not answer.over and isinstance(answer.error, Conflict):
                self._life.log(f"{self.rented.label} may not finish: {answer.error}")
            self._exit()

    # Lies.

    async def _refused(self, say: Callable[[JobDeps], Awaitable[Any]], what: str) -> None:
        """Whatever else goes wrong: it is not believed."""
        try:
            await say(self._life.function())
        except (GoblinError, Crash):
            return
        raise AssertionError(f"{self.rented.label}: {what} was believed")

    async def _lie(self) -> None:
        step = min(self.total, self.saved + 1)
        if step <= self.saved:
            return
        kind = self._dice.choice(["absent", "torn", "forged", "huge", "beyond"])
        data = self._data(step)
        if kind == "huge":
            huge = Artifact(name="part.jsonl", size=6 * 1024**3, crc32c=crc32c(data), sha256="0" * 64)
            say = lambda deps: leases.begin_checkpoint(self.job_id, self.token, step, [huge], deps)  # noqa: E731
            await self._refused(say, kind)
            return
        if kind == "beyond":
            said = Told(total=max(1, self.total)) if self.work and self.work.checkpoint_s is not None else Told()
            far = STEP_MAX + 1
            say = lambda deps: leases.heartbeat(self.job_id, self.token, far, deps, told=said)  # noqa: E731
            await self._refused(say, kind)
            return
        shown = hashlib.sha256(b"another").hexdigest()
        file = announce(data, "part.jsonl")
        file = replace(file, sha256=shown) if kind == "forged" else file
        answer = await self._ask(lambda deps: leases.begin_checkpoint(self.job_id, self.token, step, [file], deps))
        if answer is SILENCE or isinstance(answer, Refusal):
            return
        upload_id, grants = answer
        if kind == "torn":
            assert self._life.objects.put(grants["part.jsonl"], data[:-1]) == 400
        if kind == "forged":
            assert self._life.objects.put(grants["part.jsonl"], data) == 200

        async def commit(deps: JobDeps) -> None:
            await leases.commit_checkpoint(self.job_id, self.token, step, self.saved, upload_id, [file], deps)
            made = await checkpoints.read_manifest(manifest_uri(BUCKET, self.job_id, step, self.attempt), deps)
            # The step may have been saved before; then that is what the host is told.
            if made is not None and upload_id not in made[0].files[0].uri:
                raise Conflict("it was saved before")

        await self._refused(commit, kind)

    async def _steal(self) -> None:
        """Old tokens, and its own at another's door."""
        tries = [(self.job_id, token) for token in self._life.old_tokens(self.job_id, self.token)]
        tries += [(other, self.token) for other in sorted(self._life.truths) if other != self.job_id][:3]
        for job_id, token in tries[-4:]:
            for name, say in _doors(job_id, token).items():
                await self._refused(say, f"{name} of {job_id} with a foreign token")


def _doors(job_id: str, token: str) -> Mapping[str, Callable[[JobDeps], Awaitable[Any]]]:
    file = announce(b"mine\n")
    return {
        "claim": lambda deps: leases.claim(job_id, token, deps),
        "inputs": lambda deps: leases.inputs(job_id, token, deps),
        "heartbeat": lambda deps: leases.heartbeat(job_id, token, 1, deps),
        "upload": lambda deps: leases.begin_checkpoint(job_id, token, 1, [file], deps),
        "commit": lambda deps: leases.commit_checkpoint(job_id, token, 1, 0, "secret-0000", [file], deps),
        "finish": lambda deps: leases.finish(job_id, token, deps),
        "withdraw": lambda deps: leases.withdraw(job_id, token, "mine", deps),
        "fail": lambda deps: leases.fail(job_id, token, "mine", deps),
    }
