"""What a job must be to be run at all, seen from its specification alone."""

from __future__ import annotations

from collections.abc import Collection
from datetime import datetime
from decimal import Decimal

from goblin.core.events import TOPICS, JobRequested
from goblin.jobs.domain.instances import gpu_name
from goblin.jobs.domain.job import JobKind, JobPriority
from goblin.jobs.domain.market import InstanceRequirements

RESERVED_PREFIXES = ("checkpoints/", "models/", "logs/")
"""What the controller alone writes in its bucket; no job's output goes there."""
STATUS_TOPIC = "job-status-changed"
USD_MAX = Decimal(1_000_000)


def refusal(spec: JobRequested, *, bucket: str, kinds: Collection[str]) -> str | None:
    """Why a job could never run as it is specified; None when it could.

    Args:
        spec: As requested.
        bucket: The one bucket that jobs read from and write to: a caller must not reach others through us.
        kinds: What the configured providers can run; empty: there are none yet, and it may wait for one.
    """
    if spec.kind not in set(JobKind):
        return f"kind {spec.kind!r} is none of {', '.join(JobKind)}"
    if spec.priority not in set(JobPriority):
        return f"priority {spec.priority!r} is none of {', '.join(JobPriority)}"
    if kinds and spec.kind not in kinds:
        return f"no provider here can run kind {spec.kind!r}"
    if spec.kind == JobKind.BATCH and (spec.dataset_uri is None or spec.output_uri is None):
        return "a batch job needs dataset_uri and output_uri"
    return _bad_place(spec, bucket) or _bad_money(spec) or _bad_time(spec) or _bad_topic(spec.callback_topic)


def wanted(spec: JobRequested) -> InstanceRequirements:
    """What its instance must have."""
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
            return f"{field} must lie in gs://{bucket}/"
        if name.endswith("/"):
            return f"{field} names a folder"
        if field == "output_uri" and f"{name}/".startswith(RESERVED_PREFIXES):
            return f"output_uri must not lie below {' or '.join(RESERVED_PREFIXES)}"
    return None


def _bad_money(spec: JobRequested) -> str | None:
    for field, usd in (("budget_usd", spec.budget_usd), ("max_price_per_hour", spec.max_price_per_hour)):
        # A comparison with a NaN would raise.
        if usd is not None and not (usd.is_finite() and 0 < usd <= USD_MAX):
            return f"{field} is an amount of dollars above 0, at most {USD_MAX}"
    return None


def _bad_time(spec: JobRequested) -> str | None:
    deadline: datetime | None = spec.deadline
    if deadline is None:
        return None
    if deadline.tzinfo is None:
        return "deadline needs its time zone, as in 2026-12-01T18:00:00Z"
    if spec.est_hours is None:
        return "a deadline can only be promised with est_hours: how long the work takes without interruptions"
    return None


def _bad_topic(topic: str | None) -> str | None:
    if topic is None:
        return None
    ours = {STATUS_TOPIC, *TOPICS}
    if topic in ours or topic.removesuffix("-dead") in ours or topic.startswith("goog"):
        return f"callback_topic {topic!r} is not for this"
    return None
