"""The table of a job's life walked whole, and the judgements beside it."""

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from goblin.core.events import JobRequested
from goblin.jobs.domain.checkpoints import Checkpoint
from goblin.jobs.domain.instances import AttemptLease, Instance, InstanceState, KnownInventory, UnknownInventory
from goblin.jobs.domain.job import (
    ENDED,
    LEASED,
    REASONS_MAX,
    Dataset,
    InstanceReservation,
    Job,
    JobState,
    Progress,
    StopRequest,
)
from goblin.jobs.domain.market import ExpectedRun, Offer, Placement
from goblin.jobs.policy import state_machine
from goblin.jobs.policy.state_machine import TABLE, FollowUp, Trigger, apply, observe

NOW = datetime(2026, 11, 25, 12, tzinfo=UTC)
SPEC = JobRequested(job_id="j", kind="batch", dataset_uri="gs://bkt/d.jsonl", output_uri="gs://bkt/o.jsonl")
LABEL = "goblin-j-a1"

# Columns are facts, rows are states; `.` is a fact that came late, twice or out of order and changes nothing.
LIFE = """
          accepted rejected placed  rented   not_rented claimed beat    saved     finished  withdrawn silent    gone      stopped   stalled   faulty    taken     broken waited exhausted composed  cancelled settled
requested queued   refused  .       .        .          .       .       .         .         .         .         .         .         .         .         .         .      .      .         .         cancelled .
queued    .        .        placing .        .          .       .       queued    .         .         .         .         .         .         .         .         .      .      failed    .         cancelled .
placing   .        .        .       starting queued     running .       .         .         .         preempted .         preempted .         .         preempted .      .      .         .         cancelled .
starting  .        .        .       .        .          running .       .         .         .         preempted preempted preempted .         .         preempted .      .      .         .         cancelled .
running   .        .        .       running  .          running running running   finishing preempted preempted preempted preempted preempted preempted preempted failed .      .         .         cancelled .
preempted .        .        .       .        .          .       .       preempted .         .         .         .         .         .         .         .         .      queued failed    .         cancelled .
finishing .        .        .       .        .          .       .       .         .         .         .         .         .         .         .         .         failed .      .         succeeded cancelled .
succeeded .        .        .       .        .          .       .       .         .         .         .         .         .         .         .         .         .      .      .         .         .         succeeded
failed    .        .        .       .        .          .       .       .         .         .         .         .         .         .         .         .         .      .      .         .         .         failed
cancelled .        .        .       .        .          .       .       .         .         .         .         .         .         .         .         .         .      .      .         .         .         cancelled
refused   .        .        .       .        .          .       .       .         .         .         .         .         .         .         .         .         .      .      .         .         .         refused
"""  # noqa: E501


def walked() -> dict[tuple[JobState, Trigger], str]:
    header, *rows = [line.split() for line in LIFE.strip().splitlines()]
    facts = [Trigger[name.upper()] for name in header]
    return {(JobState(row[0]), trigger): cell for row in rows for trigger, cell in zip(facts, row[1:], strict=True)}


def lease(**changes: Any) -> AttemptLease:
    fields: dict[str, Any] = {
        "provider": "fake", "label": LABEL, "token_sha256": "0" * 64, "placed_at": NOW,
        "until": NOW + timedelta(seconds=30), "instance_id": "i-1",
    }  # fmt: skip
    return AttemptLease(**{**fields, **changes})


def job(**changes: Any) -> Job:
    fields: dict[str, Any] = {
        "job_id": "j", "spec": SPEC, "spec_sha256": "", "state": JobState.RUNNING, "requested_at": NOW,
        "updated_at": NOW, "attempt": 1, "lease": lease(),
    }  # fmt: skip
    return Job(**{**fields, **changes})


def checkpoint(step: int = 10, attempt: int = 1) -> Checkpoint:
    return Checkpoint(step=step, attempt=attempt, manifest_uri="gs://bkt/m", generation=1)


def test_the_walk_covers_every_state_and_every_fact() -> None:
    assert set(walked()) == {(state, trigger) for state in JobState for trigger in Trigger}


@pytest.mark.parametrize(("state", "trigger"), sorted(walked()))
def test_a_fact_leads_where_the_walk_says(state: JobState, trigger: Trigger) -> None:
    transition = apply(job(state=state), trigger, now=NOW)
    cell = walked()[state, trigger]
    assert (transition.job.state if transition else ".") == cell


def test_whatever_ends_or_loses_an_attempt_releases_its_instance() -> None:
    for (state, _), (after, actions) in TABLE.items():
        leaves = state in LEASED and after not in LEASED
        assert not leaves or FollowUp.RELEASE in actions


def test_only_placing_rents() -> None:
    assert [key for key, (_, actions) in TABLE.items() if FollowUp.RENT in actions] == [
        (JobState.QUEUED, Trigger.PLACED)
    ]


def test_no_way_leads_out_of_an_end() -> None:
    assert all(after is state for (state, _), (after, _) in TABLE.items() if state in ENDED)


def test_every_state_leads_to_an_end() -> None:
    ways = {state: {after for (before, _), (after, _) in TABLE.items() if before is state} for state in JobState}
    for start in JobState:
        reached, edge = {start}, {start}
        while edge:
            edge = {after for state in edge for after in ways[state]} - reached
            reached |= edge
        assert reached & ENDED, start


def test_an_end_is_dated_and_stays_open_while_an_instance_may_be_left() -> None:
    ended = apply(job(), Trigger.BROKEN, now=NOW, reason="x")
    assert ended is not None
    assert (ended.job.ended_at, ended.job.open) == (NOW, True)
    assert ended.job.expires_at == NOW + state_machine.ENDED_KEPT
    settled = apply(ended.job, Trigger.SETTLED, now=NOW)
    assert settled is not None
    assert not settled.job.open


def test_a_job_that_never_had_an_attempt_is_settled_once_its_end_is_told() -> None:
    refused = apply(job(state=JobState.REQUESTED, lease=None), Trigger.REJECTED, now=NOW)
    assert refused is not None
    assert refused.job.open
    assert observe(refused.job, None, now=NOW) is None
    assert observe(replace(refused.job, announced_seq=refused.job.seq), None, now=NOW) == (Trigger.SETTLED, "")


def test_a_loss_after_progress_starts_again_at_once_and_forgets_failures() -> None:
    lost = apply(job(failures=3, checkpoint=checkpoint(), step=14), Trigger.GONE, now=NOW)
    assert lost is not None
    assert (lost.job.failures, lost.job.not_before) == (0, NOW)
    assert lost.job.step == 10, "what was not saved is not done"


@pytest.mark.parametrize(("failures", "wait_s"), [(0, 0), (1, 10), (2, 20), (3, 40), (7, 300)])
def test_losses_without_progress_wait_ever_longer(failures: int, wait_s: float) -> None:
    lost = apply(job(failures=failures), Trigger.SILENT, now=NOW)
    assert lost is not None
    assert lost.job.failures == failures + 1
    assert lost.job.not_before == NOW + timedelta(seconds=wait_s)


def test_who_was_asked_to_stop_or_got_no_instance_has_not_failed() -> None:
    stopped = apply(job(failures=1, stop=StopRequest(reason="r", by=NOW)), Trigger.WITHDRAWN, now=NOW)
    assert stopped is not None
    assert (stopped.job.failures, stopped.job.stop, stopped.job.preemptions) == (1, None, 1)
    unrented = apply(job(state=JobState.PLACING, failures=1, refusals=2), Trigger.NOT_RENTED, now=NOW)
    assert unrented is not None
    assert (unrented.job.state, unrented.job.failures, unrented.job.preemptions) == (JobState.QUEUED, 1, 0)
    assert unrented.job.not_before == NOW + timedelta(seconds=4 * state_machine.NO_CAPACITY_S)


def test_who_works_on_a_machine_that_is_being_taken_away_is_asked_once_to_save() -> None:
    asked = state_machine.asked_to_leave(job(), LEAVING, now=NOW)
    assert asked == StopRequest(
        reason="instance i-1 of fake is outbid or taken back (outbid)",
        by=NOW + state_machine.LEAVES_WITHIN,
        leaving=True,
    )
    assert state_machine.asked_to_leave(job(stop=asked), LEAVING, now=NOW) is None
    for other in (job(state=JobState.STARTING), job(lease=None)):
        assert state_machine.asked_to_leave(other, LEAVING, now=NOW) is None
    for seen in (SEEN, EMPTY, UNKNOWN, KnownInventory(instances=frozenset({STOPPED}))):
        assert state_machine.asked_to_leave(job(), seen, now=NOW) is None
    ending = state_machine.asked_to_leave(job(stop=StopRequest(reason="r", by=LATE, ends_job=True)), LEAVING, now=NOW)
    assert ending is not None
    assert ending.ends_job


def test_a_machine_that_is_taken_away_is_one_loss_whenever_it_is_noticed() -> None:
    working, leaving = job(), job(stop=StopRequest(reason="r", by=LATE, leaving=True))
    gone = [apply(one, Trigger.STOPPED, now=NOW) for one in (working, leaving)]
    at_once, in_the_end = (one.job for one in gone if one is not None)
    assert state_machine.is_loss(working, at_once)
    assert state_machine.is_loss(working, leaving)
    assert not state_machine.is_loss(leaving, in_the_end)
    assert not state_machine.is_loss(working, replace(working, step=9))
    assert (at_once.failures, in_the_end.failures) == (1, 1), "nothing was saved"
    assert in_the_end.stop is None


def test_a_stop_that_ends_the_job_outlives_the_attempt() -> None:
    stop = StopRequest(reason="the budget is used up", by=NOW, ends_job=True)
    stopped = apply(job(stop=stop), Trigger.WITHDRAWN, now=NOW)
    assert stopped is not None
    assert stopped.job.stop == stop


def test_changes_of_state_are_counted_and_nothing_else() -> None:
    beat = apply(job(seq=4), Trigger.BEAT, now=NOW)
    lost = apply(job(seq=4), Trigger.GONE, now=NOW)
    assert beat is not None
    assert lost is not None
    assert (beat.job.seq, lost.job.seq) == (4, 5)


def test_progress_is_a_step_further_not_a_sign_of_life() -> None:
    early = NOW - timedelta(minutes=9)
    idle = apply(job(step=3, lease=lease(progressed_at=early)), Trigger.BEAT, now=NOW, step=3)
    moved = apply(job(step=3, lease=lease(progressed_at=early)), Trigger.BEAT, now=NOW, step=4)
    assert idle is not None
    assert moved is not None
    assert (idle.job.lease or lease()).progressed_at == early
    assert (moved.job.lease or lease()).progressed_at == NOW


def test_the_history_is_bounded_and_keeps_the_newest() -> None:
    busy = job()
    for number in range(REASONS_MAX + 5):
        transition = apply(busy, Trigger.BEAT, now=NOW, reason=f"beat {number}")
        assert transition is not None
        busy = transition.job
    assert len(busy.reasons) == REASONS_MAX
    assert busy.reason == f"beat {REASONS_MAX + 4}"


SEEN = KnownInventory(instances=frozenset({Instance(provider="fake", instance_id="i-1", label=LABEL)}))
EMPTY = KnownInventory(instances=frozenset())
UNKNOWN = UnknownInventory(reason="410")
LATE = NOW + timedelta(seconds=31)
STALLED = NOW + timedelta(seconds=max(state_machine.STALL_S, 3 * 60 * SPEC.checkpoint_minutes) + 1)
STOPPED = Instance(provider="fake", instance_id="i-1", label=LABEL, state=InstanceState.STOPPED)
LEAVING = KnownInventory(instances=frozenset({replace(STOPPED, state=InstanceState.LEAVING, detail="outbid")}))
SLOW_START = lease(until=STALLED + timedelta(hours=1), progressed_at=NOW)
RENT = InstanceReservation(
    label=LABEL, provider="fake", spot=True, price_usd_micros_per_hour=1, start_usd_micros=0, since=NOW, until=LATE,
    reserved_usd_micros=1,
)  # fmt: skip


@pytest.mark.parametrize(
    ("what", "inventory", "now", "trigger"),
    [
        (job(), SEEN, NOW, None),
        (job(), EMPTY, NOW, Trigger.GONE),
        (job(), UNKNOWN, NOW, None),
        (job(), None, NOW, None),
        (job(), SEEN, LATE, Trigger.SILENT),
        (job(), UNKNOWN, LATE, Trigger.SILENT),
        (job(state=JobState.STARTING), EMPTY, NOW, Trigger.GONE),
        # Asked for, not answered: an empty inventory may be older than the instance.
        (job(state=JobState.PLACING, lease=lease(instance_id=None)), EMPTY, NOW, None),
        (job(state=JobState.PLACING, lease=lease(instance_id=None)), SEEN, NOW, Trigger.RENTED),
        (job(state=JobState.PLACING, lease=lease(instance_id=None)), EMPTY, LATE, Trigger.SILENT),
        (job(state=JobState.RUNNING, lease=lease(instance_id=None)), EMPTY, NOW, None),
        (job(state=JobState.PREEMPTED, not_before=LATE), EMPTY, NOW, None),
        (job(state=JobState.PREEMPTED, not_before=NOW), UNKNOWN, NOW, Trigger.WAITED),
        (job(state=JobState.PREEMPTED, failures=SPEC.retries + 1), EMPTY, NOW, Trigger.EXHAUSTED),
        (job(state=JobState.FAILED), SEEN, NOW, None),
        (job(state=JobState.FAILED), UNKNOWN, NOW, None),
        (job(state=JobState.FAILED), EMPTY, NOW, Trigger.SETTLED),
        (job(state=JobState.FAILED, seq=3, announced_seq=2), EMPTY, NOW, None),
        (job(state=JobState.FAILED, reservations=(RENT,)), EMPTY, NOW, None),
        (job(), KnownInventory(instances=frozenset({STOPPED})), NOW, Trigger.STOPPED),
        (job(state=JobState.STARTING), KnownInventory(instances=frozenset({STOPPED})), NOW, Trigger.STOPPED),
        (job(), LEAVING, NOW, None),
        (job(stop=StopRequest(reason="r", by=LATE, leaving=True)), LEAVING, NOW, None),
        (job(stop=StopRequest(reason="r", by=NOW, leaving=True)), LEAVING, NOW, Trigger.TAKEN),
        (
            job(stop=StopRequest(reason="r", by=LATE, leaving=True)),
            KnownInventory(instances=frozenset({STOPPED})),
            NOW,
            Trigger.STOPPED,
        ),
        (job(state=JobState.STARTING), LEAVING, NOW, Trigger.STOPPED),
        (job(), KnownInventory(instances=frozenset({replace(STOPPED, state=InstanceState.ENDED)})), NOW, Trigger.GONE),
        (job(), KnownInventory(instances=frozenset({replace(STOPPED, state=InstanceState.UNCLEAR)})), NOW, None),
        (job(progress=Progress(at=NOW, step=1, gpu_errors=2)), SEEN, NOW, Trigger.FAULTY),
        (job(progress=Progress(at=NOW, step=1, gpu_errors=0)), SEEN, NOW, None),
        (job(lease=SLOW_START, dataset=Dataset(uri="u", generation=1, size=10**10, items=0)), SEEN, STALLED, None),
        (
            job(lease=SLOW_START, step=1, dataset=Dataset(uri="u", generation=1, size=10**10, items=0)),
            SEEN,
            STALLED,
            Trigger.STALLED,
        ),
        (job(stop=StopRequest(reason="r", by=NOW)), SEEN, NOW, Trigger.TAKEN),
        (job(stop=StopRequest(reason="r", by=LATE)), SEEN, NOW, None),
        (
            job(state=JobState.PREEMPTED, stop=StopRequest(reason="r", by=NOW, ends_job=True)),
            EMPTY,
            NOW,
            Trigger.EXHAUSTED,
        ),
        (
            job(state=JobState.QUEUED, stop=StopRequest(reason="r", by=NOW, ends_job=True)),
            EMPTY,
            NOW,
            Trigger.EXHAUSTED,
        ),
        (job(lease=lease(until=STALLED + timedelta(hours=1), progressed_at=NOW)), SEEN, STALLED, Trigger.STALLED),
        (job(lease=lease(until=STALLED + timedelta(hours=1), progressed_at=LATE)), SEEN, STALLED, None),
        (job(state=JobState.FAILED, open=False), EMPTY, NOW, None),
        (job(state=JobState.QUEUED), EMPTY, LATE, None),
    ],
)
def test_what_a_look_says(what: Job, inventory: Any, now: datetime, trigger: Trigger | None) -> None:
    observed = observe(what, inventory, now=now)
    assert (observed[0] if observed else None) is trigger


GPU = Offer(
    offer_id="1", provider="fake", pool="p", spot=True, gpu="RTX_4090", price_usd_micros_per_hour=1, gpu_memory_mib=1
)
PLACED = Placement(
    offer=GPU, bid_usd_micros_per_hour=1, reason="", candidates=(),
    run=ExpectedRun(price_usd_micros_per_hour=1, cost_usd_micros=1, duration_s=1.0, interval_s=1.0, losses=0.0),
)  # fmt: skip


@pytest.mark.parametrize(
    ("speed", "best", "age", "trigger"),
    [
        (3.9, {"RTX_4090": 10.0}, state_machine.JUDGED_AFTER, Trigger.STALLED),
        (4.0, {"RTX_4090": 10.0}, state_machine.JUDGED_AFTER, None),
        (3.9, {"RTX_4090": 10.0}, state_machine.JUDGED_AFTER / 2, None),
        (3.9, {"H100": 10.0}, state_machine.JUDGED_AFTER, None),
        (3.9, {}, state_machine.JUDGED_AFTER, None),
        (None, {"RTX_4090": 10.0}, state_machine.JUDGED_AFTER, None),
    ],
)
def test_a_machine_far_slower_than_another_with_the_same_gpu_is_left(
    speed: float | None, best: dict[str, float], age: timedelta, trigger: Trigger | None
) -> None:
    told = Progress(at=NOW, step=5, steps_per_s=speed)
    held = lease(placed_at=NOW - age, progressed_at=NOW)
    observed = observe(job(placement=PLACED, progress=told, speeds=best, lease=held), SEEN, now=NOW)
    assert (observed[0] if observed else None) is trigger


def test_the_best_speed_of_a_gpu_is_kept_from_attempt_to_attempt() -> None:
    told = Progress(at=NOW, step=5, steps_per_s=7.0)
    for before, after in (({}, 7.0), ({"RTX_4090": 9.0}, 9.0)):
        lost = apply(job(placement=PLACED, progress=told, speeds=before), Trigger.GONE, now=NOW)
        assert lost is not None
        assert lost.job.speeds == {"RTX_4090": after}


def test_only_the_current_leases_instance_is_wanted() -> None:
    assert state_machine.has_live_lease(job(), LABEL)
    assert not state_machine.has_live_lease(job(), "goblin-j-a2")
    assert not state_machine.has_live_lease(job(state=JobState.PREEMPTED), LABEL)
    assert not state_machine.has_live_lease(job(state=JobState.FINISHING), LABEL)
    assert not state_machine.has_live_lease(None, LABEL)


@pytest.mark.parametrize(
    ("what", "saved", "taken"),
    [
        (job(), checkpoint(), True),
        (job(state=JobState.PREEMPTED), checkpoint(), True),
        (job(attempt=2), checkpoint(), False),
        (job(checkpoint=checkpoint(10)), checkpoint(10), False),
        (job(checkpoint=checkpoint(20)), checkpoint(10), False),
        (job(state=JobState.CANCELLED), checkpoint(), False),
        (job(state=JobState.PLACING), checkpoint(), False),
    ],
)
def test_a_checkpoint_moves_forward_by_the_current_attempt_only(what: Job, saved: Checkpoint, taken: bool) -> None:
    assert (state_machine.refuses_checkpoint(what, saved) is None) is taken


@given(st.lists(st.tuples(st.sampled_from(sorted(Trigger)), st.integers(0, 60)), max_size=60))
def test_any_interleaving_of_facts_keeps_the_promises(facts: list[tuple[Trigger, int]]) -> None:
    """Attempts only count up, a checkpoint never moves back, an end stays, nothing waits for nothing."""
    now, before = NOW, job(state=JobState.REQUESTED, lease=None, attempt=0)
    for trigger, seconds in facts:
        now += timedelta(seconds=seconds)
        changes: dict[str, Any] = {}
        if trigger is Trigger.PLACED:
            changes = {"attempt": before.attempt + 1, "lease": lease(label=f"goblin-j-a{before.attempt + 1}")}
        if trigger is Trigger.SAVED:
            changes = {"checkpoint": checkpoint(before.saved_step + 1, before.attempt)}
        transition = apply(before, trigger, now=now, **changes)
        if transition is None:
            continue
        after = transition.job
        assert after.attempt >= before.attempt
        assert after.saved_step >= before.saved_step
        assert before.state not in ENDED or after.state is before.state
        assert (after.ended_at is not None) == (after.state in ENDED)
        assert after.open or after.state in ENDED
        assert after.state is not JobState.PREEMPTED or after.not_before is not None
        before = after
    waiting = replace(before, failures=0)
    # From wherever that led, a calm world brings it to an end.
    calm = [
        Trigger.ACCEPTED,
        Trigger.WAITED,
        Trigger.PLACED,
        Trigger.RENTED,
        Trigger.CLAIMED,
        Trigger.FINISHED,
        Trigger.COMPOSED,
    ]
    for trigger in calm:
        transition = apply(waiting, trigger, now=now)
        waiting = transition.job if transition else waiting
    assert waiting.state in ENDED
