"""Validation of a job's specification: whether the job could ever run."""

from __future__ import annotations

from collections.abc import Collection
from datetime import datetime
from decimal import Decimal

from goblin.core import object_names
from goblin.core.events import TOPICS, JobRequested
from goblin.jobs.domain.checkpoints import FILE_NAME_MAX
from goblin.jobs.domain.instances import gpu_name
from goblin.jobs.domain.job import JobKind, JobPriority
from goblin.jobs.domain.market import InstanceRequirements
from goblin.jobs.policy.gpu_models import why_unknown

RESERVED_PREFIXES = ("checkpoints/", "models/", "logs/")
"""Prefixes in the bucket that only the controller writes; no job's output may be below them."""
STATUS_TOPIC = "job-status-changed"
USD_MAX = Decimal(1_000_000)


def refusal(spec: JobRequested, *, bucket: str, kinds: Collection[str], gpu_models: Collection[str] = ()) -> str | None:
    """Explain why a job could never run as specified; None if it could.

    Args:
        spec: The specification as requested.
        bucket: The only bucket that jobs read and write: callers must not reach other buckets with our rights.
        kinds: Kinds that the configured providers can run; empty: no provider is configured yet, so the job may wait.
        gpu_models: GPU models that are known here, beside those of `gpu_models`.
    """
    if spec.kind not in set(JobKind):
        return f"Kind {spec.kind!r} does not exist. Choose one of {', '.join(JobKind)}."
    if spec.priority not in set(JobPriority):
        return f"Priority {spec.priority!r} does not exist. Choose one of {', '.join(JobPriority)}."
    if kinds and spec.kind not in kinds:
        return f"No configured provider can run jobs of kind {spec.kind!r}."
    if spec.kind == JobKind.BATCH and (spec.dataset_uri is None or spec.output_uri is None):
        return "A batch job needs dataset_uri and output_uri."
    if (unknown := next(filter(None, (why_unknown(gpu, gpu_models) for gpu in spec.gpu_types)), None)) is not None:
        return unknown
    return _bad_place(spec, bucket) or _bad_money(spec) or _bad_time(spec) or _bad_topic(spec.callback_topic)


def wanted(spec: JobRequested) -> InstanceRequirements:
    """Derive what the job's instance must have."""
    some = spec.gpu_types or spec.gpu_memory_mib_min
    count = spec.gpu_count if spec.gpu_count is not None else (1 if some else 0)
    return InstanceRequirements(
        kind=spec.kind, gpus=tuple(sorted({gpu_name(gpu) for gpu in spec.gpu_types})), gpu_count=count,
        gpu_memory_mib_min=spec.gpu_memory_mib_min, disk_gib=spec.disk_gib,
    )  # fmt: skip


def _bad_place(spec: JobRequested, bucket: str) -> str | None:
    for field, uri in (("dataset_uri", spec.dataset_uri), ("output_uri", spec.output_uri)):
        if uri is None:
            continue
        where, _, name = uri.removeprefix("gs://").partition("/")
        if where != bucket:
            return f"{field} must be in gs://{bucket}/."
        # A training writes files below its output.
        room = FILE_NAME_MAX + 1 if field == "output_uri" and spec.kind == JobKind.TRAINING else 0
        if (why := object_names.why_refused(name, room=room)) is not None:
            return f"{field} cannot be an object in Cloud Storage: {why}."
        if name.endswith("/"):
            return f"{field} names a folder. Name an object, without a slash at the end."
        if field == "output_uri" and f"{name}/".startswith(RESERVED_PREFIXES):
            return f"output_uri must not be below {' or '.join(RESERVED_PREFIXES)}."
    return None


def _bad_money(spec: JobRequested) -> str | None:
    for field, usd in (("budget_usd", spec.budget_usd), ("max_price_per_hour", spec.max_price_per_hour)):
        # Comparing a NaN would raise.
        if usd is not None and not (usd.is_finite() and 0 < usd <= USD_MAX):
            return f"{field} must be more than 0 and at most {USD_MAX} dollars."
    return None


def _bad_time(spec: JobRequested) -> str | None:
    deadline: datetime | None = spec.deadline
    if deadline is None:
        return None
    if deadline.tzinfo is None:
        return "deadline needs a time zone, for example 2026-12-01T18:00:00Z."
    if spec.est_hours is None:
        return "A deadline needs est_hours: how long the work takes without interruptions."
    return None


def _bad_topic(topic: str | None) -> str | None:
    if topic is None:
        return None
    ours = {STATUS_TOPIC, *TOPICS}
    if topic in ours or topic.removesuffix("-dead") in ours or topic.startswith("goog"):
        return f"callback_topic {topic!r} is reserved. Choose a topic of your own."
    return None
