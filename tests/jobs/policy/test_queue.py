"""Who goes next."""

from dataclasses import replace
from datetime import UTC, datetime, timedelta

from goblin.core.events import JobRequested
from goblin.jobs.domain.job import Job, JobState
from goblin.jobs.policy.queue import PROMOTED_AFTER, has_place, order_queue, places_taken

NOW = datetime(2026, 11, 25, 12, tzinfo=UTC)


def queued(name: str, priority: str = "default", waited: timedelta = timedelta()) -> Job:
    return Job(
        job_id=name, spec=JobRequested(job_id=name, kind="batch", priority=priority), spec_sha256="",
        state=JobState.QUEUED, requested_at=NOW - waited, updated_at=NOW,
    )  # fmt: skip


def names(*jobs: Job) -> list[str]:
    return [job.job_id for job in order_queue(jobs, now=NOW)]


def test_priority_goes_first_and_within_it_who_asked_first() -> None:
    second = timedelta(seconds=1)
    assert names(
        queued("low", "low", 9 * second), queued("new"), queued("urgent", "high"), queued("old", waited=second)
    ) == ["urgent", "old", "new", "low"]


def test_whoever_has_waited_for_long_is_not_starved_by_a_stream_of_urgent_jobs() -> None:
    urgent = [queued(f"urgent-{n}", "high", timedelta(minutes=n)) for n in range(5)]
    patient = queued("patient", "low", 2 * PROMOTED_AFTER)
    assert names(*urgent, patient)[0] == "patient"
    assert names(*urgent, queued("impatient", "low", 2 * PROMOTED_AFTER - timedelta(minutes=1)))[-1] == "impatient"


def test_only_queued_jobs_wait_in_the_queue() -> None:
    assert names(queued("a"), replace(queued("b"), state=JobState.RUNNING)) == ["a"]


def test_who_was_just_told_no_is_passed_over_for_a_while() -> None:
    later = replace(queued("a"), not_before=NOW + timedelta(seconds=1))
    assert names(later, replace(queued("b"), not_before=NOW)) == ["b"]


def test_a_kind_has_as_many_places_as_its_limit_and_without_one_none() -> None:
    jobs = [replace(queued(name), state=state) for name, state in (("a", JobState.PLACING), ("b", JobState.QUEUED))]
    taken = places_taken(jobs)
    assert taken == {"batch": 1}
    assert has_place("batch", taken, {"batch": 2})
    assert not has_place("batch", taken, {"batch": 1})
    assert not has_place("training", taken, {"batch": 2})


def test_a_promised_job_goes_first_and_keeps_its_place_while_it_waits() -> None:
    promised = replace(queued("p", "low"), spec=JobRequested(job_id="p", kind="batch", priority="low", deadline=NOW))
    assert names(queued("urgent", "high"), promised) == ["p", "urgent"]
    for state, places in (
        (JobState.QUEUED, 1),
        (JobState.PREEMPTED, 1),
        (JobState.REQUESTED, 0),
        (JobState.SUCCEEDED, 0),
    ):
        assert places_taken([replace(promised, state=state)])["batch"] == places
