"""Reconcile jobs and instances: advance each job as far as it goes, end each instance without a live lease.

Level-triggered: each run reads all documents and inventories again, so an earlier crash, a lost event or a repeated one
does not change the result.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import partial

from goblin.core.errors import Broken, GoblinError, NotFound, StoreRefused, Transient
from goblin.core.labels import job_of_label
from goblin.jobs import batch, checkpoints, outputs, owners, placement, renewals, reservations, training
from goblin.jobs.batch import RejectedInput
from goblin.jobs.domain.instances import Inventory, KnownInventory
from goblin.jobs.domain.job import Job, JobKind, JobState
from goblin.jobs.domain.market import NoPlacement
from goblin.jobs.lifecycle import JobDeps, act, announce, change
from goblin.jobs.placement import MarketSnapshot
from goblin.jobs.policy import placement as placement_policy
from goblin.jobs.policy import queue, state_machine
from goblin.jobs.policy import reservations as reservation_policy
from goblin.jobs.policy.state_machine import Transition, Trigger
from goblin.jobs.ports import ComputeProvider, StoredJob, UnreadableJob

log = logging.getLogger(__name__)

OPEN_MAX = 1000
"""Open jobs processed in one run, the oldest first."""
STEPS_MAX = 8
"""Transitions of one job in one run; more than the longest path without a wait."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ReconcileReport:
    """Counts and errors of one run."""

    moved: int
    placed: int
    released: int
    errors: tuple[str, ...]


@dataclass(slots=True)
class _Run:
    """Errors of one run, each isolated to its job, provider or step: whatever one of them raises, the run goes on."""

    errors: list[str] = field(default_factory=list)
    faults: dict[str, tuple[str, str]] = field(default_factory=dict)
    """Errors that time does not mend, by job: step and kind, and the words."""
    waiting: set[str] = field(default_factory=set)
    """Jobs with an error that may pass."""

    @contextmanager
    def step(self, what: str) -> Iterator[None]:
        """Isolate a step that concerns no single job."""
        try:
            yield
        except GoblinError as error:
            self.errors.append(f"{what}: {error}")
        except Exception as error:
            log.exception("Reconcile: %s: an unexpected error", what)
            self.errors.append(f"{what}: {type(error).__name__}: {error}")

    @contextmanager
    def job(self, what: str, job_id: str) -> Iterator[None]:
        """Isolate one step of one job."""
        with self.step(f"job {job_id}{what and f' {what}'}"):
            try:
                yield
            except Transient:
                self.waiting.add(job_id)
                raise
            except Exception as error:
                self.faults[job_id] = (f"{what}: {type(error).__name__}", str(error))
                raise


async def reconcile(deps: JobDeps, *, only: str | None = None) -> ReconcileReport:
    """Reconcile all open jobs, or only one of them right after an event.

    Errors of one job, provider or step do not stop the others, whatever they are: they are in the report. Instances
    without a live lease end in any case.

    Raises:
        StoreUnavailable: The jobs or the freezes cannot be read.
    """
    run = _Run()
    moved = placed = released = 0
    inventories: Mapping[str, Inventory] = {}
    try:
        before = await deps.jobs.list_open(OPEN_MAX)
        # After the jobs: an instance that a job names existed when the inventory was listed.
        inventories = await _inventories(deps.compute)
        market = await placement.take_snapshot(inventories, deps)
    except Exception:
        # Without jobs or ledger nothing is rented, but instances without a live lease must still end.
        if only is None:
            await _sweep(inventories or await _inventories(deps.compute), deps, run)
            _tell(run)
        raise
    run.errors += [
        f"{name}: {seen.reason}" for name, seen in inventories.items() if not isinstance(seen, KnownInventory)
    ]
    with run.step("API keys"):
        await owners.end_unowned([one for one in before if only in (None, one.job.job_id)], deps, run.step)
    for stored in before:
        if only in (None, stored.job.job_id):
            with run.job("", stored.job.job_id):
                moved += await _advance(stored, inventories, market, deps)
    now_open = before
    with run.step("placing"):
        now_open = await deps.jobs.list_open(OPEN_MAX)
        placed = await placement.place_all(now_open, market, deps, partial(run.job, "could not be placed"))
    if only is None:
        for stored in now_open:  # Jobs placed in this run have their first slice.
            with run.job("could not be renewed", stored.job.job_id):
                await renewals.keep(stored.job, market, deps)
        for stored in before:  # Not `now_open`: instances rented in this run are not in the inventories yet.
            with run.job("could not be settled", stored.job.job_id):
                await renewals.settle_ended(stored.job, inventories, deps)
    with run.step("market history"):
        await market.close()
    if only is None:
        released = await _sweep(inventories, deps, run)
        await _judge(before, deps, run)
    _tell(run)
    return ReconcileReport(moved=moved, placed=placed, released=released, errors=tuple(run.errors))


def _tell(run: _Run) -> None:
    for line in run.errors:
        log.warning("Reconcile: %s", line)


async def _judge(jobs: Sequence[StoredJob], deps: JobDeps, run: _Run) -> None:
    """Count the errors that time does not mend: a job that meets the same one again and again fails, with it."""
    if len(jobs) > 1 and len(run.faults) == len(jobs) and len({fault for fault, _ in run.faults.values()}) == 1:
        # No job harms all others: the fault is ours, and a person must look before jobs are lost to it.
        log.error("Reconcile met the same error with each of %d jobs; none of them fails for it.", len(jobs))
        return
    for stored in jobs:
        job_id = stored.job.job_id
        if job_id in run.faults:
            fault, said = run.faults[job_id]
            log.error("Job %s: run %d that met an error: %s: %s", job_id, stored.job.faults + 1, fault, said)
            decide = partial(state_machine.faulted, fault=fault, said=said, now=deps.clock.now())
        elif stored.job.fault and job_id not in run.waiting:
            decide = partial(state_machine.sound)
        else:
            continue
        with run.step(f"job {job_id}"):
            if (transition := await change(deps, job_id, decide)) is not None:
                await act(transition, deps)


async def _inventories(compute: Mapping[str, ComputeProvider]) -> dict[str, Inventory]:
    """List the inventory of each provider once, all at the same time."""
    seen = await asyncio.gather(*(placement.ask(name, provider.inventory) for name, provider in compute.items()))
    return dict(zip(compute, seen, strict=True))


async def _advance(
    stored: StoredJob, inventories: Mapping[str, Inventory], market: MarketSnapshot, deps: JobDeps
) -> int:
    """Advance one job until nothing more follows now. Stop if another process wrote it in between."""
    for moved in range(STEPS_MAX):
        followed = await _next(stored.job, inventories, market, deps)
        if followed is None:
            await announce(stored.job, deps)
            return moved
        trigger, transition = followed
        written = await deps.jobs.replace(transition.job, stored.version)
        if written is None:
            return moved
        if transition.job.state is not stored.job.state:
            log.info("Job %s: %s: %s", written.job.job_id, written.job.state, written.job.reason)
        await act(transition, deps)
        if state_machine.is_loss(stored.job, written.job):
            market.remember(stored.job, trigger)
        stored = written
    return STEPS_MAX


async def _next(
    job: Job, inventories: Mapping[str, Inventory], market: MarketSnapshot, deps: JobDeps
) -> tuple[Trigger, Transition] | None:
    now = deps.clock.now()

    def follow(trigger: Trigger, reason: str, **changes: object) -> tuple[Trigger, Transition] | None:
        transition = state_machine.apply(job, trigger, now=now, reason=reason, **changes)
        return None if transition is None else (trigger, transition)

    if job.state is JobState.REQUESTED:
        return await _admit(job, market, deps, follow)
    if job.state is JobState.FINISHING:
        return await _compose(job, deps, follow)
    inventory = inventories.get(job.lease.provider) if job.lease else None
    observed = state_machine.observe(job, inventory, now=now)
    if observed is None:
        leave = state_machine.asked_to_leave(job, inventory, now=now)
        return None if leave is None else (Trigger.STOPPED, state_machine.ask_to_stop(job, leave, now=now))
    trigger, reason = observed
    if trigger is Trigger.SETTLED:
        await reservations.unlimit_job(job, deps.money.ledger)
        await outputs.release(job, deps)
    if job.state is JobState.PREEMPTED and (saved := await checkpoints.newer(job, deps)) is not None:
        # Before the next attempt is placed: from then on a checkpoint of the last one is refused.
        return follow(Trigger.SAVED, f"found checkpoint {saved.step}", checkpoint=saved)
    if trigger is Trigger.RENTED and job.lease and isinstance(inventory, KnownInventory):
        instance = inventory.by_label()[job.lease.label]
        named = reservation_policy.named(job.reservations, job.lease.label, instance.instance_id)
        return follow(trigger, reason, lease=replace(job.lease, instance_id=instance.instance_id), reservations=named)
    return follow(trigger, reason)


Follow = Callable[..., tuple[Trigger, Transition] | None]


async def _admit(job: Job, market: MarketSnapshot, deps: JobDeps, follow: Follow) -> tuple[Trigger, Transition] | None:
    """Check a job's input and deadline before it is queued."""
    check = training.check_inputs if job.spec.kind == JobKind.TRAINING else batch.check_dataset
    try:
        found = await check(job, deps)
    except StoreRefused as error:
        return follow(Trigger.REJECTED, error.message)
    if isinstance(found, RejectedInput):
        return follow(Trigger.REJECTED, found.reason)
    if job.spec.deadline is not None:
        facts = await market.facts(replace(job, dataset=found))
        denied = placement_policy.admit(replace(job, dataset=found), facts) if facts is not None else None
        if facts is None or (denied is not None and not denied.final):
            return None
        if denied is not None:
            return follow(Trigger.REJECTED, denied.reason)
        if not await _has_place(job, deps):
            return None
    if (held := await outputs.hold(job, deps)) is not None:
        return follow(Trigger.REJECTED, held)
    await reservations.limit_job(job, deps.money.ledger)
    items = f"{found.items} items; " if found is not None and found.items else ""
    return follow(Trigger.ACCEPTED, f"{items}waits for a free place", dataset=found)


async def _has_place(job: Job, deps: JobDeps) -> bool:
    """Check whether a place is free for a job with a deadline; else note in the job that it waits for one."""
    others = [one.job for one in await deps.jobs.list_open(OPEN_MAX) if one.job.job_id != job.job_id]
    if queue.has_place(job.spec.kind, queue.places_taken(others), deps.limits):
        return True
    why = NoPlacement(
        reason=f"its deadline can be promised once one of the {deps.limits.get(job.spec.kind, 0)} places of kind "
        f"{job.spec.kind} is free", candidates=(),
    )  # fmt: skip
    await change(
        deps, job.job_id, lambda job: state_machine.note(job, no_placement=why) if job.no_placement != why else None
    )
    return False


async def _compose(job: Job, deps: JobDeps, follow: Follow) -> tuple[Trigger, Transition] | None:
    try:
        manifests = await checkpoints.chain(job.checkpoint, deps) if job.checkpoint else []
        if job.spec.kind == JobKind.TRAINING:
            refused = await training.write_output(job, manifests[-1], deps) if manifests else NOTHING
        else:
            refused = await batch.write_output(job, manifests, deps)
    except (Broken, NotFound, StoreRefused) as error:
        refused = RejectedInput(reason=str(error))
    except Transient as error:
        if (late := state_machine.unwritten(job, error.message, now=deps.clock.now())) is None:
            raise
        refused = RejectedInput(reason=late)
    if refused is not None:
        return follow(Trigger.BROKEN, refused.reason)
    where = job.spec.output_uri or (job.checkpoint.manifest_uri if job.checkpoint else "nowhere")
    return follow(Trigger.COMPOSED, f"output in {where}")


NOTHING = RejectedInput(reason="there is no checkpoint to write an output from")


async def _sweep(inventories: Mapping[str, Inventory], deps: JobDeps, run: _Run) -> int:
    """Release every instance that has no live lease, whatever the cause; return their number."""
    released = 0
    for name, inventory in inventories.items():
        for instance in sorted(
            inventory.instances if isinstance(inventory, KnownInventory) else (), key=lambda i: i.label
        ):
            with run.step(f"{name}: instance {instance.label} could not be released"):
                # Read after the inventory was listed: a lease is written before its instance exists.
                if await _is_leased(instance.label, deps):
                    continue
                log.info(
                    "%s: releasing instance %s (%s): it has no live lease", name, instance.instance_id, instance.label
                )
                await deps.compute[name].release(instance.label)
                released += 1
    return released


async def _is_leased(label: str, deps: JobDeps) -> bool:
    try:
        stored = await deps.jobs.get(job_of_label(label))
    except UnreadableJob as error:
        # Nothing prolongs this lease any more: the instance works until it is over, and is not paid for ever.
        lease = error.lease
        return lease is not None and lease.label == label and deps.clock.now() < lease.until
    return state_machine.has_live_lease(stored.job if stored else None, label)
