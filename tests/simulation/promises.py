"""Checks of the six promises against the true state of the world: after every write, every tick, and at the end."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping
from datetime import datetime, timedelta
from typing import TYPE_CHECKING

from goblin.billing.domain.accounts import Account, window_of
from goblin.billing.domain.ledger import EntryKind, LedgerEntry, is_instance_settlement
from goblin.core.labels import job_of_label
from goblin.core.ports import SignedRequest
from goblin.jobs.domain.checkpoints import folder
from goblin.jobs.domain.job import ENDED, LEASED, InstanceReservation, Job, JobKind, JobState
from goblin.jobs.domain.worker import Assignment
from goblin.jobs.policy import state_machine
from tests.simulation.hosts import Host, saved_state

if TYPE_CHECKING:
    from tests.simulation.life import Life
    from tests.simulation.market import Rented

TICKS_MAX = 2
"""So many whole reconciles an instance may outlive its lease."""
IDLE = timedelta(seconds=120)
"""So long an instance may take to be gone, from when it must leave."""
CLOCKS = timedelta(seconds=5)
"""So far a function's clock may be off."""
HEARD = timedelta(seconds=45)
"""So long an attempt may be silent."""


class Promises:
    """Hooks of one run. Each raises `AssertionError` with the promise that was broken."""

    def __init__(self, life: Life) -> None:
        self._life = life
        self.reservations: dict[str, InstanceReservation] = {}
        """The last that was written, by label."""
        self.saved_by: dict[tuple[str, int, int], bytes] = {}
        """What honest machines saved: job, step, attempt."""
        self.lost_at: dict[str, datetime] = {}
        """When a label's lease was over."""
        self.whole: dict[str, list[tuple[datetime, datetime]]] = defaultdict(list)
        """Begin and end of reconciles that came to their end and knew a provider's inventory."""
        self.excused: set[str] = set()
        """Labels that nobody could end in time: their clouds did not answer."""
        self.over: Counter[str] = Counter()
        """What bills added, by account."""
        self.done_at: dict[str, datetime] = {}
        """When all work of a job was done."""

    # Jobs.

    def wrote(self, before: Job | None, after: Job) -> None:
        """A job was written."""
        name, now = after.job_id, self._life.now
        if before is not None:
            assert after.attempt in (before.attempt, before.attempt + 1), f"{name}: attempts {before.attempt}…"
            assert before.attempt == after.attempt or after.state is JobState.PLACING
            assert before.state not in ENDED or after.state is before.state, f"{name} ended as {before.state}"
            self._check_checkpoint(before, after)
            label = before.lease.label if before.lease is not None else ""
            if state_machine.has_live_lease(before, label) and not state_machine.has_live_lease(after, label):
                self.lost_at[label] = now
        if before is None or _standing(before) != _standing(after):
            self._life.hurry()
        for reservation in after.reservations:
            self.reservations[reservation.label] = reservation
        if before is not None:
            self._check_gone(before, after)
        assert after.state not in LEASED or after.lease is not None
        if after.state is JobState.PLACING:
            taken = Counter(one.job.spec.kind for one in self._life.jobs.stored.values() if one.job.state in LEASED)
            limit = self._life.limits.get(after.spec.kind, 0)
            assert taken[after.spec.kind] <= limit, f"{taken} at once, {limit} are allowed"
        if after.stop is not None and after.lease is not None and (before is None or before.stop != after.stop):
            self._life.asked_to_stop(after.lease.label)
        if after.state is JobState.FINISHING:
            self.done_at.setdefault(name, now)
        if before is None or before.state is not after.state:
            self._life.log(f"{name}: {after.state} {after.reason}")
            self._life.figures.moved(before, after, now)

    def _check_gone(self, before: Job, after: Job) -> None:
        """An instance that exists is never taken for gone, neither by its job nor by its bill."""
        label = before.lease.label if before.lease is not None else ""
        if after.state is JobState.PREEMPTED and before.state in LEASED and after.reason.endswith("is gone"):
            assert label not in self._life.exists, f"{label} is there: {after.reason}"
        ended = {
            reservation.label
            for reservation in after.reservations
            if reservation.ended_at is not None and reservation.ended_at > reservation.since
        }
        ended -= {reservation.label for reservation in after.reservations if reservation.ended_at is None}
        for one in ended - {
            reservation.label for reservation in before.reservations if reservation.ended_at is not None
        }:
            assert one not in self._life.exists, f"{one} is there, and its rent has ended"

    def _check_checkpoint(self, before: Job, after: Job) -> None:
        name = after.job_id
        if before.checkpoint == after.checkpoint:
            return
        assert after.checkpoint is not None, f"{name}: its checkpoint is forgotten"
        step, attempt = after.checkpoint.step, after.checkpoint.attempt
        assert step > before.saved_step, f"{name}: from step {before.saved_step} back to {step}"
        assert attempt == after.attempt, f"{name}: attempt {attempt} saved for {after.attempt}"
        assert (name, step, attempt) in self.saved_by, f"{name}: step {step} of attempt {attempt} was never computed"

    # Hosts.

    def granted(self, host: Host, step: int, grants: Mapping[str, SignedRequest]) -> None:
        """A machine may write: below its own attempt's folder, objects that do not exist, these bytes only."""
        where = folder("bucket", host.job_id, step, host.attempt)
        for grant in grants.values():
            assert grant.method == "PUT"
            assert grant.url.startswith(f"gs://{where.removeprefix('gs://')}/"), grant.url
            assert {"x-goog-content-length-range", "x-goog-hash"} <= set(grant.headers), grant.headers

    def computed(self, host: Host, step: int, data: bytes) -> None:
        """An honest machine has this at hand and is about to save it."""
        self.saved_by[host.job_id, step, host.attempt] = data

    def resumed(self, host: Host, work: Assignment) -> None:
        """What an attempt was told to start from."""
        assert work.step == 0 or any(
            (host.job_id, work.step, attempt) in self.saved_by for attempt in range(1, host.attempt + 1)
        ), f"{host.rented.label} resumes at {work.step}, which nobody saved"
        if work.kind != JobKind.TRAINING:
            return
        assert bool(work.inputs.checkpoint) == (work.step > 0)
        for file in work.inputs.checkpoint:
            assert file.grant.method == "GET"
            data = self._life.objects.objects[file.grant.url].data
            attempt = int(data.rpartition(b" ")[2])
            assert data == saved_state(host.job_id, work.step, attempt), f"{host.rented.label} resumes from {data!r}"

    # Instances.

    def rented(self, rented: Rented) -> None:
        """An instance began."""
        label = rented.label
        others = [one.instance_id for provider in self._life.providers.values() for one in provider.instances
                  if one.label == label and one is not rented]  # fmt: skip
        assert not others, f"{label} was rented twice"
        stored = self._life.jobs.stored.get(job_of_label(label))
        if not state_machine.has_live_lease(stored.job if stored else None, label):
            self.lost_at.setdefault(label, self._life.now)
            self._life.log(f"{label} begins, and nobody wants it any more")

    def released(self, provider: str, label: str) -> None:
        """Somebody asks for an instance's end."""
        stored = self._life.jobs.stored.get(job_of_label(label))
        at_work = state_machine.has_live_lease(stored.job if stored else None, label)
        if at_work and stored and stored.job.job_id in self._life.jobs.unreadable:
            lease = self._life.jobs.unreadable[stored.job.job_id]
            over = lease is None or self._life.now >= lease.until - CLOCKS
            assert over, f"{label} was released before its lease's end"
            return
        assert not at_work, f"{label} is at work and was released"

    def gone(self, rented: Rented) -> None:
        """An instance is no more."""
        self._check_paid(rented)
        lost_at = self.lost_at.get(rented.label)
        if lost_at is not None:
            since = max(lost_at, rented.born_at)
            seconds = (self._life.now - since).total_seconds()
            whole = self._whole(rented.provider, since, rented.leaving_at or self._life.now)
            assert whole <= TICKS_MAX, f"{rented.label} outlived its lease by {whole} reconciles, {seconds:.0f} s"
            cloud = self._life.providers[rented.provider]
            if not cloud.unknown and not cloud.deaf:
                self._life.figures.orphaned(rented, since, self._life.now)

    def ticked(self) -> None:
        """A whole reconcile is over."""
        for provider in self._life.providers.values():
            for rented in provider.listed:
                self._check_paid(rented)
                lost_at = self.lost_at.get(rented.label)
                if lost_at is not None and rented.leaving_at is None:
                    whole = self._whole(provider.name, max(lost_at, rented.born_at), self._life.now)
                    assert whole <= TICKS_MAX, f"{rented.label} outlives its lease by {whole} reconciles"

        self._check_heard()

    def _check_heard(self) -> None:
        """Who is silent is not waited for."""
        for label, host in self._life.hosts.items():
            if host.job_id in self._life.jobs.unreadable:
                continue
            since = max(host.beaten_at, host.rented.born_at) + HEARD
            since = max(since, self._life.poison.mended_at.get(host.job_id, since))
            if since >= self._life.now - timedelta(minutes=2):
                continue
            stored = self._life.jobs.stored[host.job_id]
            at_work = stored.job.state is JobState.RUNNING and state_machine.has_live_lease(stored.job, label)
            whole = self._whole(host.rented.provider, since, self._life.now)
            assert not at_work or whole <= TICKS_MAX, f"{label} is silent since {host.beaten_at:%H:%M:%S}"

    def _whole(self, provider: str, since: datetime, until: datetime) -> int:
        """Reconciles that could have ended it."""
        found = 0
        for begin, end in reversed(self.whole[provider]):
            if begin < since - timedelta(hours=1):
                break
            found += begin >= since and end <= until
        return found

    # Money.

    def _check_paid(self, rented: Rented) -> None:
        """What an instance really took so far was put aside for it."""
        now, label = self._life.now, rented.label
        cost = rented.cost(now)
        if cost < 1 or label in self.excused:
            return
        reserved = self._life.ledger.put_aside(label)
        if cost <= reserved + 1:
            return
        reservation = self.reservations.get(label)
        until = reservation.until if reservation is not None else rented.born_at
        if now >= until and self._whole(rented.provider, until - IDLE, now) < TICKS_MAX:
            self.excused.add(label)
            self._life.log(f"{label} could not be ended in time")
            return
        raise AssertionError(f"{label} took {cost:.0f} by now and {reserved} were put aside, until {until:%H:%M:%S}")

    def booked(self, accounts: tuple[Account, ...], entries: tuple[LedgerEntry, ...]) -> None:
        """The ledger was written."""
        for entry in entries:
            if entry.kind is EntryKind.ADJUST or (is_instance_settlement(entry) and job_label(entry) in self.excused):
                for account in entry.accounts:
                    self.over[account] += max(0, entry.amount_usd_micros)
        for account in accounts:
            for limit in account.limits:
                usage = account.usages.get(limit.period)
                if usage is None or usage.window != window_of(limit.period, self._life.now):
                    continue
                used = usage.spent_usd_micros + usage.allocated_usd_micros
                beyond = used - limit.limit_usd_micros
                assert beyond <= self.over[account.name], (
                    f"{account.name}: {used} of {limit.limit_usd_micros} a {limit.period} are spent or put aside"
                )

    def billed(self) -> None:
        """Every bill is final: the ledger says what they say."""
        written = self._life.ledger.written.values()
        for bills in self._life.bills:
            for day in sorted(bills.days()):
                booked = sum(
                    entry.spent_usd_micros for entry in written
                    if bills.provider in entry.accounts and f"{entry.at:%Y-%m-%d}" == day
                )  # fmt: skip
                billed = bills.of(day).usd_micros
                assert booked == billed, f"{bills.provider} {day}: billed {billed}, booked {booked}"

    # The end.

    def waiting(self) -> None:
        """The world has been calm for long: every job has ended, or says why it waits."""
        for name in sorted(self._life.truths):
            job = self._life.job(name)
            assert not job.open or self._life.may_wait(job), f"{name} is {job.state}: {job.reason}"

    def ended(self) -> None:
        """Nothing is left."""
        life = self._life
        for provider in life.providers.values():
            assert not provider.listed, f"{provider.name} has {[one.label for one in provider.listed]}"
        for name, truth in sorted(life.truths.items()):
            assert name in life.jobs.stored, f"{name} was lost"
            job = life.job(name)
            assert job.state in ENDED, f"{name} is {job.state}: {job.reason}"
            self._check_deadline(job)
            assert not job.open, f"{name} is {job.state} and still open: {job.reservations}"
            told = [event.seq for _, event in life.post.told if event.job_id == name]
            assert max(told, default=0) >= job.seq, f"{name}: {job.state} was never announced"
            match job.state:
                case JobState.SUCCEEDED:
                    truth.check_output(life, job)
                case JobState.CANCELLED:
                    assert name in life.cancelled
                case JobState.FAILED:
                    said = ("made no progress", "budget", "lied")
                    assert any(word in job.reason for word in said), f"{name} failed: {job.reason}"
                case JobState.REFUSED:
                    poisoned = name in life.poison.refused
                    assert truth.may_be_refused or poisoned, f"{name} was refused: {job.reason}"

    def _check_deadline(self, job: Job) -> None:
        """A deadline that was promised, in a world that lets it be kept, is kept."""
        if job.spec.deadline is None or not self._life.weather.promise or job.state is JobState.REFUSED:
            return
        done_at = self.done_at.get(job.job_id)
        self._life.figures.promised += 1
        if done_at is None or done_at > job.spec.deadline:
            self._life.figures.late += 1
            late = "never" if done_at is None else f"{(done_at - job.spec.deadline).total_seconds():.0f} s late"
            self._life.log(f"{job.job_id} is {late}")


def _standing(job: Job) -> tuple[object, ...]:
    """What a reconcile acts on, beside signs of life."""
    return job.state, job.attempt, job.stop, job.reservations, job.open, job.not_before, job.no_placement is None


def job_label(entry: LedgerEntry) -> str:
    """Whose rent a settlement is."""
    return entry.entry_id.removeprefix("rent:").rpartition(":settled")[0].rpartition(":")[0]
