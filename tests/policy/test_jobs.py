"""The table of a job's life walked whole, and the judgements beside it."""

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from goblin.domain.checkpoints import Checkpoint
from goblin.domain.compute import Instance, Known, Lease, Unknown
from goblin.domain.jobs import ENDED, LEASED, REASONS_MAX, Job, State
from goblin.events import JobRequested
from goblin.policy import jobs as policy
from goblin.policy.jobs import TABLE, Action, Fact, apply, observe

NOW = datetime(2026, 11, 25, 12, tzinfo=UTC)
SPEC = JobRequested(job_id="j", kind="batch", dataset_uri="gs://bkt/d.jsonl", output_uri="gs://bkt/o.jsonl")
LABEL = "goblin-j-a1"

# Columns are facts, rows are states; `.` is a fact that came late, twice or out of order and changes nothing.
LIFE = """
            accepted  rejected placed  rented   not_rented claimed beat    saved     finished  withdrawn silent    gone      broken waited exhausted composed  cancelled settled
requested   queued    refused  .       .        .          .       .       .         .         .         .         .         .      .      .         .         cancelled .
queued      .         .        placing .        .          .       .       queued    .         .         .         .         .      .      .         .         cancelled .
placing     .         .        .       starting preempted  running .       .         .         .         preempted .         .      .      .         .         cancelled .
starting    .         .        .       .        .          running .       .         .         .         preempted preempted .      .      .         .         cancelled .
running     .         .        .       running  .          running running running   finishing preempted preempted preempted failed .      .         .         cancelled .
preempted   .         .        .       .        .          .       .       preempted .         .         .         .         .      queued failed    .         cancelled .
finishing   .         .        .       .        .          .       .       .         .         .         .         .         failed .      .         succeeded .         .
succeeded   .         .        .       .        .          .       .       .         .         .         .         .         .      .      .         .         .         succeeded
failed      .         .        .       .        .          .       .       .         .         .         .         .         .      .      .         .         .         failed
cancelled   .         .        .       .        .          .       .       .         .         .         .         .         .      .      .         .         .         cancelled
refused     .         .        .       .        .          .       .       .         .         .         .         .         .      .      .         .         .         refused
"""  # noqa: E501


def walked() -> dict[tuple[State, Fact], str]:
    header, *rows = [line.split() for line in LIFE.strip().splitlines()]
    facts = [Fact[name.upper()] for name in header]
    return {(State(row[0]), fact): cell for row in rows for fact, cell in zip(facts, row[1:], strict=True)}


def lease(**changes: Any) -> Lease:
    fields: dict[str, Any] = {
        "provider": "fake", "label": LABEL, "token_sha256": "0" * 64, "placed_at": NOW,
        "until": NOW + timedelta(seconds=30), "instance_id": "i-1",
    }  # fmt: skip
    return Lease(**{**fields, **changes})


def job(**changes: Any) -> Job:
    fields: dict[str, Any] = {
        "job_id": "j", "spec": SPEC, "spec_sha256": "", "state": State.RUNNING, "requested_at": NOW,
        "updated_at": NOW, "attempt": 1, "lease": lease(),
    }  # fmt: skip
    return Job(**{**fields, **changes})


def checkpoint(step: int = 10, attempt: int = 1) -> Checkpoint:
    return Checkpoint(step=step, attempt=attempt, manifest_uri="gs://bkt/m", generation=1)


def test_the_walk_covers_every_state_and_every_fact() -> None:
    assert set(walked()) == {(state, fact) for state in State for fact in Fact}


@pytest.mark.parametrize(("state", "fact"), sorted(walked()))
def test_a_fact_leads_where_the_walk_says(state: State, fact: Fact) -> None:
    transition = apply(job(state=state), fact, now=NOW)
    cell = walked()[state, fact]
    assert (transition.job.state if transition else ".") == cell


def test_whatever_ends_or_loses_an_attempt_releases_its_instance() -> None:
    for (state, _), (after, actions) in TABLE.items():
        leaves = state in LEASED and after not in LEASED
        assert not leaves or Action.RELEASE in actions


def test_only_placing_rents() -> None:
    assert [key for key, (_, actions) in TABLE.items() if Action.RENT in actions] == [(State.QUEUED, Fact.PLACED)]


def test_no_way_leads_out_of_an_end() -> None:
    assert all(after is state for (state, _), (after, _) in TABLE.items() if state in ENDED)


def test_every_state_leads_to_an_end() -> None:
    ways = {state: {after for (before, _), (after, _) in TABLE.items() if before is state} for state in State}
    for start in State:
        reached, edge = {start}, {start}
        while edge:
            edge = {after for state in edge for after in ways[state]} - reached
            reached |= edge
        assert reached & ENDED, start


def test_an_end_is_dated_and_stays_open_while_an_instance_may_be_left() -> None:
    ended = apply(job(), Fact.BROKEN, now=NOW, reason="x")
    assert ended is not None
    assert (ended.job.ended_at, ended.job.open) == (NOW, True)
    assert ended.job.expires_at == NOW + policy.ENDED_KEPT
    settled = apply(ended.job, Fact.SETTLED, now=NOW)
    assert settled is not None
    assert not settled.job.open


def test_a_job_that_never_had_an_attempt_is_settled_at_once() -> None:
    refused = apply(job(state=State.REQUESTED, lease=None), Fact.REJECTED, now=NOW)
    assert refused is not None
    assert not refused.job.open


def test_a_loss_after_progress_starts_again_at_once_and_forgets_failures() -> None:
    lost = apply(job(failures=3, checkpoint=checkpoint(), step=14), Fact.GONE, now=NOW)
    assert lost is not None
    assert (lost.job.failures, lost.job.not_before) == (0, NOW)
    assert lost.job.step == 10, "what was not saved is not done"


@pytest.mark.parametrize(("failures", "wait_s"), [(0, 0), (1, 10), (2, 20), (3, 40), (7, 300)])
def test_losses_without_progress_wait_ever_longer(failures: int, wait_s: float) -> None:
    lost = apply(job(failures=failures), Fact.SILENT, now=NOW)
    assert lost is not None
    assert lost.job.failures == failures + 1
    assert lost.job.not_before == NOW + timedelta(seconds=wait_s)


def test_the_history_is_bounded_and_keeps_the_newest() -> None:
    busy = job()
    for number in range(REASONS_MAX + 5):
        transition = apply(busy, Fact.BEAT, now=NOW, reason=f"beat {number}")
        assert transition is not None
        busy = transition.job
    assert len(busy.reasons) == REASONS_MAX
    assert busy.reason == f"beat {REASONS_MAX + 4}"


SEEN = Known(instances=frozenset({Instance(provider="fake", instance_id="i-1", label=LABEL)}))
EMPTY = Known(instances=frozenset())
UNKNOWN = Unknown(reason="410")
LATE = NOW + timedelta(seconds=31)


@pytest.mark.parametrize(
    ("what", "inventory", "now", "fact"),
    [
        (job(), SEEN, NOW, None),
        (job(), EMPTY, NOW, Fact.GONE),
        (job(), UNKNOWN, NOW, None),
        (job(), None, NOW, None),
        (job(), SEEN, LATE, Fact.SILENT),
        (job(), UNKNOWN, LATE, Fact.SILENT),
        (job(state=State.STARTING), EMPTY, NOW, Fact.GONE),
        # Asked for, not answered: an empty inventory may be older than the instance.
        (job(state=State.PLACING, lease=lease(instance_id=None)), EMPTY, NOW, None),
        (job(state=State.PLACING, lease=lease(instance_id=None)), SEEN, NOW, Fact.RENTED),
        (job(state=State.PLACING, lease=lease(instance_id=None)), EMPTY, LATE, Fact.SILENT),
        (job(state=State.RUNNING, lease=lease(instance_id=None)), EMPTY, NOW, None),
        (job(state=State.PREEMPTED, not_before=LATE), EMPTY, NOW, None),
        (job(state=State.PREEMPTED, not_before=NOW), UNKNOWN, NOW, Fact.WAITED),
        (job(state=State.PREEMPTED, failures=policy.FAILURES_MAX), EMPTY, NOW, Fact.EXHAUSTED),
        (job(state=State.FAILED), SEEN, NOW, None),
        (job(state=State.FAILED), UNKNOWN, NOW, None),
        (job(state=State.FAILED), EMPTY, NOW, Fact.SETTLED),
        (job(state=State.FAILED, open=False), EMPTY, NOW, None),
        (job(state=State.QUEUED), EMPTY, LATE, None),
    ],
)
def test_what_a_look_says(what: Job, inventory: Any, now: datetime, fact: Fact | None) -> None:
    observed = observe(what, inventory, now=now)
    assert (observed[0] if observed else None) is fact


def test_only_the_current_leases_instance_is_wanted() -> None:
    assert policy.wants(job(), LABEL)
    assert not policy.wants(job(), "goblin-j-a2")
    assert not policy.wants(job(state=State.PREEMPTED), LABEL)
    assert not policy.wants(job(state=State.FINISHING), LABEL)
    assert not policy.wants(None, LABEL)


def queued(name: str, priority: str = "default", after_s: float = 0) -> Job:
    spec = JobRequested(job_id=name, kind="batch", priority=priority)
    return job(job_id=name, spec=spec, state=State.QUEUED, requested_at=NOW + timedelta(seconds=after_s))


def test_places_go_by_priority_then_by_age_within_the_kinds_limit() -> None:
    waiting = [queued("old"), queued("low", "low", -9), queued("urgent", "high", 5), queued("new", after_s=1)]
    assert [j.job_id for j in policy.choose_next(waiting, {"batch": 3})] == ["urgent", "old", "new"]
    assert policy.choose_next([*waiting, job(), job(state=State.STARTING)], {"batch": 2}) == []
    assert policy.choose_next(waiting, {}) == [], "a kind without a limit runs none"


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({}, None),
        ({"kind": "dance"}, "none of"),
        ({"kind": "training"}, "no provider"),
        ({"priority": "now"}, "none of"),
        ({"dataset_uri": None}, "needs dataset_uri"),
        ({"dataset_uri": "gs://other/d.jsonl"}, "must lie in gs://bkt/"),
        ({"output_uri": "gs://other/o.jsonl"}, "must lie in gs://bkt/"),
        ({"output_uri": "gs://bkt/checkpoints/j/x"}, "must not lie below"),
        ({"output_uri": "gs://bkt/models/o/m/v1/x.gguf"}, "must not lie below"),
        ({"output_uri": "gs://bkt/outputs/"}, "names a folder"),
    ],
)
def test_what_could_never_run_is_refused_with_the_reason(changes: dict[str, Any], words: str | None) -> None:
    fields = {"job_id": "j", "kind": "batch", "dataset_uri": "gs://bkt/d.jsonl", "output_uri": "gs://bkt/o.jsonl"}
    reason = policy.refusal(JobRequested(**{**fields, **changes}), bucket="bkt")
    assert reason is None if words is None else words in str(reason)


@pytest.mark.parametrize(
    ("what", "saved", "taken"),
    [
        (job(), checkpoint(), True),
        (job(state=State.PREEMPTED), checkpoint(), True),
        (job(attempt=2), checkpoint(), False),
        (job(checkpoint=checkpoint(10)), checkpoint(10), False),
        (job(checkpoint=checkpoint(20)), checkpoint(10), False),
        (job(state=State.CANCELLED), checkpoint(), False),
        (job(state=State.PLACING), checkpoint(), False),
    ],
)
def test_a_checkpoint_moves_forward_by_the_current_attempt_only(what: Job, saved: Checkpoint, taken: bool) -> None:
    assert (policy.refuses_checkpoint(what, saved) is None) is taken


@given(st.lists(st.tuples(st.sampled_from(sorted(Fact)), st.integers(0, 60)), max_size=60))
def test_any_interleaving_of_facts_keeps_the_promises(facts: list[tuple[Fact, int]]) -> None:
    """Attempts only count up, a checkpoint never moves back, an end stays, nothing waits for nothing."""
    now, before = NOW, job(state=State.REQUESTED, lease=None, attempt=0)
    for fact, seconds in facts:
        now += timedelta(seconds=seconds)
        changes: dict[str, Any] = {}
        if fact is Fact.PLACED:
            changes = {"attempt": before.attempt + 1, "lease": lease(label=f"goblin-j-a{before.attempt + 1}")}
        if fact is Fact.SAVED:
            changes = {"checkpoint": checkpoint(before.saved_step + 1, before.attempt)}
        transition = apply(before, fact, now=now, **changes)
        if transition is None:
            continue
        after = transition.job
        assert after.attempt >= before.attempt
        assert after.saved_step >= before.saved_step
        assert before.state not in ENDED or after.state is before.state
        assert (after.ended_at is not None) == (after.state in ENDED)
        assert after.open or after.state in ENDED
        assert after.state is not State.PREEMPTED or after.not_before is not None
        before = after
    waiting = replace(before, failures=0)
    # From wherever that led, a calm world brings it to an end.
    calm = [Fact.ACCEPTED, Fact.WAITED, Fact.PLACED, Fact.RENTED, Fact.CLAIMED, Fact.FINISHED, Fact.COMPOSED]
    for fact in calm:
        transition = apply(waiting, fact, now=now)
        waiting = transition.job if transition else waiting
    assert waiting.state in ENDED
