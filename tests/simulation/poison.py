"""Poison in a simulation run: data, documents, events, parts and answers that nobody expects. It harms only its own.

It has dice of its own, so that a run without it is the run that it was.
"""

from __future__ import annotations

import random
from datetime import datetime
from typing import TYPE_CHECKING

import msgspec

from goblin.core.ports import ObjectFacts
from goblin.jobs.domain.job import ENDED, JobKind
from tests.fakes.batch_host import item
from tests.simulation.post import Message

if TYPE_CHECKING:
    from tests.simulation.life import Life
    from tests.simulation.truths import Truth

LINE = msgspec.json.encode(item(0))
LINES = (
    LINE.replace(b"say 0", b"caf\xe9"), LINE.replace(b'"say 0"', b"[" * 957 + b"]" * 957),
    LINE.decode().encode("utf-16"), LINE.replace(b"say 0", b"\\ud800"), LINE.replace(b'"say 0"', b"9" * 5000),
    b"\x00\xff",
)  # fmt: skip
"""Lines of a dataset or of a part that cannot be read."""
EVENTS = (
    b"", b"null", b'{"job_id": "\xff"}', b"[" * 957 + b"]" * 957, b'{"job_id": "p", "kind": "batch", "retries": 1e400}',
    b'{"job_id": "p", "kind": "batch", "parameters": {"a": ' + b"[" * 957 + b"]" * 957 + b"}}",
    b'{"job_id": "p", "kind": "batch", "deadline": "9999-12-31T23:59:59-23:59"}',
    b'{"job_id": "p", "kind": "batch", "checkpoint_every": 99999999999999999999}',
)  # fmt: skip
ERRORS = (
    UnicodeDecodeError("utf-8", b"\xe9", 0, 1, "invalid"), RecursionError("too deep"), OverflowError("too large"),
    KeyError("gone"), TypeError("other"), ZeroDivisionError("zero"),
)  # fmt: skip
HIDDEN_S = 900.0
"""Mean time until a person mends a document."""


class Poison:
    """Puts poison into a run, every so many seconds, until it is calm."""

    def __init__(self, life: Life, seed: int) -> None:
        self._life, self._rng = life, random.Random(f"poison {seed}")
        self.raising: dict[str, Exception] = {}
        """What reading about a job's dataset raises, for ever, by its URI."""
        self.refused: set[str] = set()
        """Jobs that can only be refused."""
        self.sent: dict[str, int] = {}
        """Malformed messages, and how often each was handled."""
        self.hidden = 0
        self.mended_at: dict[str, datetime] = {}
        """When a job's document could be read again."""
        real = life.objects.stat

        async def stat(uri: str) -> ObjectFacts | None:
            if uri in self.raising:
                error = self.raising[uri]
                raise type(error)(*error.args)  # As it was raised once, it would carry its stack for ever.
            return await real(uri)

        life.objects.stat = stat  # type: ignore[method-assign]

    def plan(self) -> None:
        """Let the next one come."""
        self._life.later(self._rng.expovariate(1 / self._life.weather.poison_s), self._act)

    def spoil(self, truth: Truth) -> None:
        """Spoil what a job reads, of one in four."""
        uri = truth.spec.dataset_uri
        if uri is None or self._rng.random() > 0.25:
            return
        if truth.spec.kind == JobKind.BATCH and self._rng.random() < 0.6:
            data = self._life.objects.objects[uri].data
            self._life.objects.write(uri, data + self._rng.choice(LINES) + b"\n")
        else:
            self.raising[uri] = self._rng.choice(ERRORS)
        self.refused.add(truth.spec.job_id)

    async def _act(self) -> None:
        if self._life.calm:
            return
        self.plan()
        self._life.hurry()
        match self._rng.choice(["event", "document", "provider"]):
            case "event":
                topic = self._rng.choice(["job-requested", "checkpoint-saved", "budget-exceeded"])
                name = f"poison-{len(self.sent)}"
                self.sent[name] = 0
                self._life.post.send(Message(topic, self._rng.choice(EVENTS), name))
            case "document":
                self._hide()
            case "provider":
                cloud = self._rng.choice(list(self._life.providers.values()))
                if not cloud.unknown:
                    cloud.unknown = self._rng.choice(ERRORS)
                    self._life.figures.silent(cloud.name, self._life.now)
                    self._life.later(self._rng.expovariate(1 / 240), lambda: self._life.clouds.answers(cloud))

    def _hide(self) -> None:
        """Let a job's document be unreadable for a while, with or without its lease."""
        hidden = self._life.jobs.unreadable
        known = [one.job for one in self._life.jobs.stored.values() if one.job.open and one.job.job_id not in hidden]
        if not known:
            return
        job = self._rng.choice(known)
        hidden[job.job_id] = job.lease if self._rng.random() < 0.7 else None
        self.hidden += 1
        self._life.log(f"{job.job_id}: its document cannot be read")
        self._life.later(self._rng.expovariate(1 / HIDDEN_S), lambda: self._mend(job.job_id))

    def _mend(self, job_id: str) -> None:
        self._life.jobs.unreadable.pop(job_id, None)
        self.mended_at[job_id] = self._life.now
        self._life.hurry()
        self._life.log(f"{job_id}: its document can be read again")

    def calm_down(self) -> None:
        """A person has mended what could be mended."""
        for job_id in list(self._life.jobs.unreadable):
            self._mend(job_id)

    def garbled(self, data: bytes) -> bytes:
        """A part of an output with a line that cannot be read."""
        return data + self._rng.choice(LINES) + b"\n"

    def handled(self, message: Message) -> None:
        """Count a malformed message's handling."""
        if message.message_id in self.sent:
            self.sent[message.message_id] += 1

    def ended(self) -> None:
        """Check that each poison harmed its own job and nothing else."""
        for name in sorted(self.refused):
            job = self._life.job(name)
            assert job.state in ENDED, f"{name} is poisoned and {job.state}"
            assert job.attempt == 0, f"{name} is poisoned and was placed"
        buried = {message.message_id: why for message, why in self._life.post.buried}
        for name in self.sent:
            assert buried.get(name), f"{name} was buried without its reason"
        dead = {message.message_id for message in self._life.post.dead}
        assert not dead & self.sent.keys(), "a malformed message used up its deliveries"
