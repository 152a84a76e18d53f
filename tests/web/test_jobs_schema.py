"""What a person is told of a job."""

from __future__ import annotations

import json
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any

import msgspec
import pytest

from goblin.core.events import JobRequested
from goblin.jobs.domain.checkpoints import Checkpoint
from goblin.jobs.domain.instances import AttemptLease
from goblin.jobs.domain.job import InstanceReservation, Job, JobOwner, JobState, Progress, StopRequest
from goblin.jobs.domain.market import Candidate, ExpectedRun, NoPlacement, Offer, Placement
from goblin.web import jobs_schema

NOW = datetime(2026, 11, 25, 12, tzinfo=UTC)
RUN = ExpectedRun(
    price_usd_micros_per_hour=250_000, cost_usd_micros=2_100_000, duration_s=28_900, interval_s=600, losses=1.5
)
TAKEN = Candidate(offer_id="7", provider="vastai", spot=True, all_in_usd_micros_per_hour=261_000, run=RUN)
REJECTED = Candidate(offer_id="9", provider="runpod", spot=False, rejected="above the price cap of $0.80")
PLACED = Placement(
    offer=Offer(
        offer_id="7", provider="vastai", pool="RTX_4090", machine_id="m-3", spot=True, gpu="RTX_4090",
        price_usd_micros_per_hour=240_000, on_demand_usd_micros_per_hour=420_000, gpu_memory_mib=24_564,
        place="Norway", details="the adapter's own",
    ),
    bid_usd_micros_per_hour=250_000, run=RUN, reason="least expected cost", candidates=(TAKEN, REJECTED),
)  # fmt: skip
SPEC = JobRequested(
    job_id="t", kind="training", gpu_types=("RTX_4090",), gpu_count=1, gpu_memory_mib_min=22_888, est_hours=8,
    deadline=NOW + timedelta(hours=10), budget_usd=Decimal("5.1234567"), max_price_per_hour=Decimal("0.80"),
    parameters=msgspec.Raw(b'{"epochs": 3}'), callback_topic="mine",
)  # fmt: skip
JOB = Job(
    job_id="t", spec=SPEC, spec_sha256="5" * 64, state=JobState.RUNNING, requested_at=NOW, updated_at=NOW, attempt=2,
    lease=AttemptLease(
        provider="vastai", label="goblin-t-a2", token_sha256="7" * 64, placed_at=NOW, until=NOW, instance_id="i-1",
        key_until=NOW,
    ),
    told_total=1000, step=400, preemptions=1, invalid_reports=2, placement=PLACED, spent_usd_micros=100_000,
    checkpoint=Checkpoint(step=300, attempt=1, manifest_uri="gs://bkt/checkpoints/t/m", generation=1),
    progress=Progress(at=NOW, step=400, loss=0.25, steps_per_s=0.5, gpu_share=0.9, save_s=2.5),
    reservations=(
        InstanceReservation(
            label="goblin-t-a2", provider="vastai", spot=True, price_usd_micros_per_hour=261_000, start_usd_micros=0,
            since=NOW - timedelta(hours=1), until=NOW, reserved_usd_micros=300_000,
        ),
    ),
    stop=StopRequest(reason="its budget is used up", by=NOW, ends_job=True),
)  # fmt: skip


def told(job: Job) -> Any:
    """As it arrives."""
    return json.loads(msgspec.json.encode(jobs_schema.job(job, now=NOW)))


def test_a_job_is_told_with_its_needs_and_limits() -> None:
    said = told(JOB)
    assert said["needs"] == {
        "gpu_types": ["RTX_4090"],
        "gpu_count": 1,
        "gpu_memory_mib_min": 22_888,
        "disk_gib": 20,
    }
    assert (said["est_hours"], said["deadline"]) == (8, "2026-11-25T22:00:00Z")
    assert (said["budget_usd_micros"], said["price_usd_micros_per_hour_max"]) == (5_123_456, 800_000)
    assert (said["callback_topic"], said["parameters"]) == ("mine", {"epochs": 3})


def test_a_job_is_told_with_its_progress_and_where_its_money_goes() -> None:
    said = told(JOB)
    assert (said["step"], said["total"], said["preemptions"], said["lies"]) == (400, 1000, 1, 2)
    assert (said["progress"]["loss"], said["progress"]["steps_per_s"]) == (0.25, 0.5)
    assert (said["settled_usd_micros"], said["spent_usd_micros"]) == (100_000, 361_000)
    assert said["forecast"] == {
        "price_usd_micros_per_hour": 261_000,
        "left_s": 1200,
        "at_end_usd_micros": 361_000 + 87_000,
    }
    assert said["rents"][0]["reserved_usd_micros"] == 300_000
    assert said["stop"]["reason"] == "its budget is used up"


def test_a_placement_is_told_with_every_candidate_and_why_it_was_not_taken() -> None:
    placed = told(JOB)["placement"]
    assert (placed["provider"], placed["gpu"], placed["spot"], placed["place"]) == (
        "vastai",
        "RTX_4090",
        True,
        "Norway",
    )
    assert placed["reason"] == "least expected cost"
    assert placed["candidates"] == [
        {
            "offer_id": "7", "provider": "vastai", "spot": True, "all_in_usd_micros_per_hour": 261_000,
            "cost_usd_micros": 2_100_000, "duration_s": 28_900, "losses": 1.5, "rejected": None,
        },
        {
            "offer_id": "9", "provider": "runpod", "spot": False, "all_in_usd_micros_per_hour": None,
            "cost_usd_micros": None, "duration_s": None, "losses": None, "rejected": "above the price cap of $0.80",
        },
    ]  # fmt: skip


def test_a_waiting_job_is_told_with_the_price_at_which_something_could_be_had() -> None:
    nothing = NoPlacement(reason="all are too dear", candidates=(REJECTED,), price_usd_micros_per_hour_min=900_000)
    said = told(replace(JOB, state=JobState.QUEUED, placement=None, no_placement=nothing, reservations=()))
    assert said["placement"] is None
    assert said["no_placement"]["price_usd_micros_per_hour_min"] == 900_000
    assert said["reason"] == said["no_placement"]["reason"]
    assert said["no_placement"]["candidates"][0]["rejected"] == "above the price cap of $0.80"


@pytest.mark.parametrize(
    ("owner", "asked_by", "tenant"),
    [
        (JobOwner(), None, None),
        (JobOwner(tenant="tenant:acme"), None, "acme"),
        (JobOwner(tenant="tenant:acme", key_digest="8" * 64, key_name="ci"), "ci", "acme"),
        (JobOwner(tenant=f"key:{'8' * 64}", key_digest="8" * 64, key_name="ci"), "ci", None),
    ],
)
def test_a_job_says_who_asked_and_no_digest(owner: JobOwner, asked_by: str | None, tenant: str | None) -> None:
    said = told(replace(JOB, owner=owner))
    assert (said["asked_by"], said["tenant"]) == (asked_by, tenant)
    assert "8" * 64 not in str(said)


def test_nothing_that_opens_a_door_is_told() -> None:
    text = msgspec.json.encode(jobs_schema.job(JOB, now=NOW)).decode()
    for secret in ("7" * 64, "token", "key_until", "the adapter's own"):
        assert secret not in text


@pytest.mark.parametrize("amount", ["NaN", "Infinity", "1e999999", "-1e20"])
def test_a_job_that_was_refused_for_its_nonsense_can_be_shown(amount: str) -> None:
    spec = msgspec.structs.replace(SPEC, budget_usd=Decimal(amount), max_price_per_hour=Decimal(amount))
    said = told(replace(JOB, spec=spec, state=JobState.REFUSED))
    assert (said["budget_usd_micros"], said["price_usd_micros_per_hour_max"]) == (None, None)


def test_a_job_that_cannot_be_shown_hides_no_other(caplog: pytest.LogCaptureFixture) -> None:
    odd = replace(JOB, job_id="odd", reservations=(None,))  # type: ignore[arg-type]
    listed = json.loads(msgspec.json.encode(jobs_schema.listing([odd, JOB])))
    assert [one["job_id"] for one in listed["data"]] == [JOB.job_id]
    assert "Job odd cannot be shown" in caplog.text
