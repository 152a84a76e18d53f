"""Reconcile jobs and instances: advance each job as far as it goes, end each instance without a live lease.

Level-triggered: each run reads all documents and inventories again, so an earlier crash, a lost event or a repeated one
does not change the result.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, replace

from goblin.core.errors import Broken, GoblinError, NotFound, Refused, StoreUnavailable, Transient
from goblin.core.labels import job_of_label
from goblin.jobs import batch, checkpoints, owners, placement, renewals, reservations, training
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
from goblin.jobs.ports import ComputeProvider, StoredJob

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


async def reconcile(deps: JobDeps, *, only: str | None = None) -> ReconcileReport:
    """Reconcile all open jobs, or only one of them right after an event.

    Errors of one job or provider do not stop the others: they are in the report.

    Raises:
        StoreUnavailable: The jobs or the freezes cannot be read.
    """
    before = await deps.jobs.list_open(OPEN_MAX)
    unowned = await owners.end_unowned([one for one in before if only in (None, one.job.job_id)], deps)
    # After the jobs: an instance that a job names existed when the inventory was listed.
    inventories = await _inventories(deps.compute)
    try:
        market = await placement.take_snapshot(inventories, deps)
    except StoreUnavailable:
        # Without the ledger nothing is rented, but instances without a live lease must still end.
        if only is None:
            await _sweep(inventories, deps)
        raise
    errors = [f"{name}: {seen.reason}" for name, seen in inventories.items() if not isinstance(seen, KnownInventory)]
    errors += unowned
    moved = placed = released = 0
    for stored in before:
        if only in (None, stored.job.job_id):
            try:
                moved += await _advance(stored, inventories, market, deps)
            except GoblinError as error:
                errors.append(f"job {stored.job.job_id}: {error}")
    try:
        now_open = await deps.jobs.list_open(OPEN_MAX)
        placed, unplaced = await placement.place_all(now_open, market, deps)
        errors += unplaced
        if only is None:
            # Jobs placed in this run have their first slice.
            errors += await _each(now_open, lambda job: renewals.keep(job, market, deps))
            # `before`, not `now_open`: instances rented in this run are not in the inventories yet.
            errors += await _each(before, lambda job: renewals.settle_ended(job, inventories, deps))
    except GoblinError as error:
        errors.append(f"placing: {error}")
    await market.close()
    if only is None:
        released, unreleased = await _sweep(inventories, deps)
        errors += unreleased
    for line in errors:
        log.warning("Reconcile: %s", line)
    return ReconcileReport(moved=moved, placed=placed, released=released, errors=tuple(errors))


async def _each(jobs: Sequence[StoredJob], work: Callable[[Job], Awaitable[None]]) -> list[str]:
    errors = []
    for stored in jobs:
        try:
            await work(stored.job)
        except GoblinError as error:
            errors.append(f"job {stored.job.job_id}: {error}")
    return errors


async def _inventories(compute: Mapping[str, ComputeProvider]) -> dict[str, Inventory]:
    """List the inventory of each provider once, all at the same time."""
    seen = await asyncio.gather(*(provider.inventory() for provider in compute.values()))
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
    found = await check(job, deps)
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
    except (Broken, NotFound) as error:
        refused = RejectedInput(reason=str(error))
    if refused is not None:
        return follow(Trigger.BROKEN, refused.reason)
    where = job.spec.output_uri or (job.checkpoint.manifest_uri if job.checkpoint else "nowhere")
    return follow(Trigger.COMPOSED, f"output in {where}")


NOTHING = RejectedInput(reason="there is no checkpoint to write an output from")


async def _sweep(inventories: Mapping[str, Inventory], deps: JobDeps) -> tuple[int, list[str]]:
    """Release every instance that has no live lease, whatever the cause."""
    released, errors = 0, []
    for name, inventory in inventories.items():
        for instance in sorted(
            inventory.instances if isinstance(inventory, KnownInventory) else (), key=lambda i: i.label
        ):
            try:
                # Read after the inventory was listed: a lease is written before its instance exists.
                stored = await deps.jobs.get(job_of_label(instance.label))
                if state_machine.has_live_lease(stored.job if stored else None, instance.label):
                    continue
                log.info(
                    "%s: releasing instance %s (%s): it has no live lease", name, instance.instance_id, instance.label
                )
                await deps.compute[name].release(instance.label)
                released += 1
            except (Transient, Refused) as error:
                errors.append(f"{name}: instance {instance.label} could not be released: {error}")
    return released, errors
