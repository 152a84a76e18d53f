"""What a training's host may say, how often it saves, what is kept, and how lies are written down: tables."""

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from goblin.jobs.domain.checkpoints import STEP_MAX, Checkpoint
from goblin.jobs.domain.instances import AttemptLease
from goblin.jobs.domain.job import ENDED, Job, JobState, Progress
from goblin.jobs.domain.worker import WorkerReport
from goblin.jobs.policy import worker_reports
from goblin.jobs.policy.checkpoint_retention import Saved, choose_kept
from goblin.jobs.policy.spot.checkpoint_interval import choose_interval
from goblin.jobs.policy.worker_reports import checkpoint_s, why_impossible
from tests.fakes.training_host import placement, spec

NOON = datetime(2026, 11, 26, 12, tzinfo=UTC)


def job(**changes: Any) -> Job:
    lease = AttemptLease(provider="fake", label="goblin-j-a2", token_sha256="", placed_at=NOON, until=NOON)
    fields: dict[str, Any] = {
        "job_id": "j", "spec": spec(), "spec_sha256": "", "state": JobState.RUNNING, "requested_at": NOON,
        "updated_at": NOON, "attempt": 2, "lease": lease,
        "checkpoint": Checkpoint(step=50, attempt=1, manifest_uri="gs://b/m", generation=1),
    }  # fmt: skip
    return Job(**{**fields, **changes})


@pytest.mark.parametrize(
    ("step", "told", "lie"),
    [
        (60, {}, None),
        (0, {}, None),  # It has only begun.
        (60, {"total": 100, "loss": -3.5, "steps_per_s": 0.0, "gpu_share": 1.0, "save_s": 0.0}, None),
        (100, {"total": 100}, None),
        (STEP_MAX, {"total": STEP_MAX}, None),
        (-1, {}, "step -1 does not exist"),
        (STEP_MAX + 1, {}, f"step {STEP_MAX + 1} does not exist"),
        (0, {"total": 49}, "49 steps in all, but it is at step 0 and step 50 is saved"),
        (60, {"total": 59}, "59 steps in all"),
        (0, {"total": STEP_MAX + 1}, "steps in all"),
        (60, {"loss": float("nan")}, "loss nan"),
        (60, {"loss": float("-inf")}, "loss -inf"),
        (60, {"steps_per_s": -0.1}, "steps_per_s -0.1"),
        (60, {"steps_per_s": 1e13}, "steps_per_s"),
        (60, {"gpu_share": 1.01}, "gpu_share 1.01"),
        (60, {"gpu_share": -0.01}, "gpu_share"),
        (60, {"save_s": 90_000.0}, "save_s"),
    ],
)
def test_numbers_that_cannot_be_are_named(step: int, told: dict[str, Any], lie: str | None) -> None:
    found = why_impossible(job(), step, WorkerReport(**told))
    assert found == lie if lie is None else lie in str(found)


def told(save_s: float | None) -> Progress:
    return Progress(at=NOON, step=1, save_s=save_s)


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"spec": spec(kind="batch")}, None),
        ({}, 900.0),
        # Nothing was lost here so far, and a minute's save costs little beside a quarter of an hour.
        ({"placement": placement(losses=0.0)}, 900.0),
        ({"placement": placement(duration_s=0.0)}, 900.0),
        ({"placement": placement(interval_s=240.0)}, 240.0),
        ({"placement": placement(interval_s=2000.0)}, 900.0),
        ({"placement": placement(), "progress": told(None)}, 600.0),
        (
            {"placement": placement(), "progress": told(60.0)},
            choose_interval(save_s=60.0, life_s=3600.0, interval_s_max=900.0).interval_s,
        ),
        ({"placement": placement(losses=0.01), "progress": told(60.0)}, 900.0),
        ({"placement": placement(losses=100.0), "progress": told(1.0)}, 30.0),
    ],
)
def test_it_saves_as_often_as_its_measured_save_and_its_expected_life_ask(
    changes: dict[str, Any], expected: float | None
) -> None:
    assert checkpoint_s(job(**changes)) == expected


def test_the_young_daly_interval_of_a_minutes_save_and_an_hours_life_is_about_ten_minutes() -> None:
    found = checkpoint_s(job(placement=placement(), progress=told(60.0)))
    assert found == pytest.approx(620, abs=20)


def test_where_uploads_cost_something_it_saves_no_more_often_than_is_paid_for() -> None:
    free = placement()
    dear = replace(free, offer=replace(free.offer, upload_usd_micros_per_gib=3_000))
    quick = told(1.0)
    assert checkpoint_s(job(placement=dear, progress=quick)) == free.run.interval_s
    found = checkpoint_s(job(placement=free, progress=quick))
    assert found is not None
    assert found < free.run.interval_s


def saved(step: int, loss: float | None = None, attempt: int = 1) -> Saved:
    return Saved(uri=f"{step}a{attempt}", step=step, attempt=attempt, loss=loss)


@pytest.mark.parametrize(
    ("there", "in_use", "kept"),
    [
        ([], [], []),
        ([saved(1)], [], ["1a1"]),
        ([saved(step) for step in range(1, 7)], [], ["4a1", "5a1", "6a1"]),
        ([saved(step) for step in range(1, 7)], ["2a1"], ["2a1", "4a1", "5a1", "6a1"]),
        ([saved(step) for step in range(1, 7)], ["9a9"], ["4a1", "5a1", "6a1"]),
        ([saved(1, 0.5), saved(2, 0.1), saved(3, 0.9), saved(4), saved(5), saved(6)], [], ["2a1", "4a1", "5a1", "6a1"]),
        ([saved(1, 0.1), saved(2, 0.1), saved(3), saved(4), saved(5)], [], ["2a1", "3a1", "4a1", "5a1"]),
        ([saved(1, 0.0), saved(2), saved(3), saved(4)], [], ["1a1", "2a1", "3a1", "4a1"]),
        ([saved(1), saved(4, attempt=1), saved(4, attempt=2), saved(2), saved(3)], [], ["3a1", "4a1", "4a2"]),
    ],
)
def test_the_last_three_the_best_and_what_is_in_use_are_kept(
    there: list[Saved], in_use: list[str], kept: list[str]
) -> None:
    assert sorted(choose_kept(there, in_use=in_use)) == kept
    assert sorted(choose_kept(there[::-1], in_use=in_use)) == kept


def test_three_lies_of_one_attempt_end_it_and_no_more_stand_in_its_history() -> None:
    now, found = NOON, job()
    for number in range(worker_reports.INVALID_REPORTS_MAX):
        assert found.state is JobState.RUNNING
        found = worker_reports.note_invalid_report(found, "x" * 10_000, now=now).job
        assert found.invalid_reports == number + 1
    assert found.state is JobState.PREEMPTED
    assert max(len(line.text) for line in found.reasons) < 400
    assert found.reason == "attempt 2 is over: its host sent 3 invalid reports"


def test_an_honest_attempt_does_not_pay_for_the_one_before() -> None:
    found = job()
    for _ in range(worker_reports.INVALID_REPORTS_MAX - 1):
        found = worker_reports.note_invalid_report(found, "a", now=NOON).job
    found = replace(found, attempt=3)
    assert (
        worker_reports.invalid_reports_of_attempt(found),
        worker_reports.note_invalid_report(found, "b", now=NOON).job.state,
    ) == (
        0,
        JobState.RUNNING,
    )


def test_attempt_1_is_not_attempt_12() -> None:
    found = worker_reports.note_invalid_report(job(attempt=12), "a", now=NOON).job
    assert worker_reports.invalid_reports_of_attempt(replace(found, attempt=1)) == 0


def test_strangers_cannot_write_a_job_full() -> None:
    found, writes = job(), 0
    while (transition := worker_reports.note_foreign_token(found, now=NOON + timedelta(seconds=writes))) is not None:
        found, writes = transition.job, writes + 1
        assert writes < 10
    assert (writes, found.invalid_reports, found.state) == (3, 3, JobState.RUNNING)
    assert worker_reports.note_foreign_token(job(open=False), now=NOON) is None


@pytest.mark.parametrize("state", sorted(ENDED))
def test_the_last_line_of_an_ended_job_says_why_it_ended(state: JobState) -> None:
    """It is open until its instance is settled, and a host that was away may still call."""
    assert worker_reports.note_foreign_token(job(state=state), now=NOON) is None
