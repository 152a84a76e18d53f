"""What could never run is refused with the reason."""

from datetime import UTC, datetime
from decimal import Decimal
from typing import Any

import pytest

from goblin.core.events import JobRequested
from goblin.jobs.domain.market import InstanceRequirements
from goblin.jobs.policy.job_spec import refusal, wanted

BATCH = {"job_id": "j", "kind": "batch", "dataset_uri": "gs://bkt/d.jsonl", "output_uri": "gs://bkt/o.jsonl"}
TRAINING = {"job_id": "j", "kind": "training"}
DEADLINE = datetime(2026, 12, 1, tzinfo=UTC)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        (BATCH, None),
        (BATCH | {"kind": "dance"}, "Choose one of"),
        (BATCH | {"kind": "inference"}, "No configured provider"),
        (BATCH | {"priority": "now"}, "Choose one of"),
        (BATCH | {"dataset_uri": None}, "needs dataset_uri"),
        (BATCH | {"dataset_uri": "gs://other/d.jsonl"}, "must be in gs://bkt/"),
        (BATCH | {"output_uri": "gs://other/o.jsonl"}, "must be in gs://bkt/"),
        (BATCH | {"output_uri": "gs://bkt/checkpoints/j/x"}, "must not be below"),
        (BATCH | {"output_uri": "gs://bkt/models/o/m/v1/x.gguf"}, "must not be below"),
        (BATCH | {"output_uri": "gs://bkt/logs/x"}, "must not be below"),
        (BATCH | {"output_uri": "gs://bkt/outputs/"}, "names a folder"),
        (BATCH | {"dataset_uri": "gs://bkt/in/../d.jsonl"}, "dataset_uri cannot be an object in Cloud Storage"),
        (BATCH | {"output_uri": "gs://bkt/" + "é" * 600}, "its name has 1200 bytes of UTF-8; the most are 1024"),
        (BATCH | {"output_uri": "gs://bkt/" + "é" * 512}, None),
        (TRAINING | {"output_uri": "gs://bkt/" + "x" * 1024}, "the most are 895"),
        (TRAINING | {"output_uri": "gs://bkt/" + "x" * 895}, None),
        (TRAINING, None),
        (TRAINING | {"output_uri": "gs://bkt/models"}, "must not be below"),
        (TRAINING | {"gpu_types": ("RTX_4090",)}, None),
        (TRAINING | {"gpu_types": ("RTX 4090", "H100")}, None),
        (TRAINING | {"gpu_types": ("RTX_4090", "RTX_4O90")}, "Did you mean RTX_4090"),
        (TRAINING | {"budget_usd": Decimal(0)}, "budget_usd"),
        (TRAINING | {"budget_usd": Decimal("NaN")}, "budget_usd"),
        (TRAINING | {"budget_usd": Decimal("12.5")}, None),
        (TRAINING | {"max_price_per_hour": Decimal(-1)}, "max_price_per_hour"),
        (TRAINING | {"max_price_per_hour": Decimal("Infinity")}, "max_price_per_hour"),
        (TRAINING | {"deadline": DEADLINE}, "est_hours"),
        (TRAINING | {"deadline": DEADLINE.replace(tzinfo=None), "est_hours": 1.0}, "time zone"),
        (TRAINING | {"deadline": DEADLINE, "est_hours": 1.0}, None),
        (TRAINING | {"callback_topic": "my-app"}, None),
        (TRAINING | {"callback_topic": "budget-exceeded"}, "is reserved"),
        (TRAINING | {"callback_topic": "job-requested-dead"}, "is reserved"),
        (TRAINING | {"callback_topic": "job-status-changed"}, "is reserved"),
    ],
)
def test_a_refusal_says_which_field_and_why(changes: dict[str, Any], words: str | None) -> None:
    reason = refusal(JobRequested(**changes), bucket="bkt", kinds={"batch", "training"})
    assert reason is None if words is None else words in str(reason)


def test_before_any_provider_is_configured_a_job_may_wait_for_one() -> None:
    assert refusal(JobRequested(**TRAINING), bucket="bkt", kinds=()) is None


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({}, InstanceRequirements(kind="training")),
        (
            {"gpu_types": ("RTX 4090", "rtx_4090")},
            InstanceRequirements(kind="training", gpus=("RTX_4090",), gpu_count=1),
        ),
        ({"gpu_memory_mib_min": 8}, InstanceRequirements(kind="training", gpu_count=1, gpu_memory_mib_min=8)),
        ({"gpu_count": 4}, InstanceRequirements(kind="training", gpu_count=4)),
    ],
)
def test_whoever_names_a_gpu_wants_one(changes: dict[str, Any], expected: InstanceRequirements) -> None:
    assert wanted(JobRequested(**TRAINING, **changes)) == expected
