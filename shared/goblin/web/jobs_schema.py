"""The jobs API's wire format: bodies that callers and agents post, and the JSON that they get."""

from __future__ import annotations

import logging
import re
from collections.abc import Sequence
from datetime import UTC, datetime
from decimal import ROUND_FLOOR, Decimal
from typing import Annotated, Any, TypeVar

import msgspec
from msgspec import Meta

from goblin.core import decoding
from goblin.core.errors import InvalidRequest
from goblin.core.events import Sha256
from goblin.core.money import USD_MICROS
from goblin.core.ports import SignedRequest
from goblin.jobs.domain.checkpoints import FILES_MAX, Artifact, Checkpoint
from goblin.jobs.domain.job import Job
from goblin.jobs.domain.market import Candidate, NoPlacement, Placement
from goblin.jobs.domain.worker import Assignment, HeartbeatReply, TrainingInputs, WorkerReport
from goblin.jobs.policy.cost_forecast import forecast
from goblin.jobs.policy.worker_reports import NUMBER_MAX, PIECE_BYTES_MAX

logger = logging.getLogger(__name__)

BODY_BYTES_MAX = 256 * 1024
USD_MAX = 10**9
"""Highest plausible budget of a job, in dollars."""

Step = Annotated[int, Meta(ge=0)]
Crc32c = Annotated[str, Meta(pattern=r"^[A-Za-z0-9+/]{6}==\Z")]


class EmptyBody(msgspec.Struct, frozen=True):
    """A body without fields: the path says everything."""


class HeartbeatBody(msgspec.Struct, frozen=True):
    """An agent's heartbeat with its worker report."""

    step: Step
    total: int | None = None
    loss: float | None = None
    steps_per_s: float | None = None
    gpu_share: float | None = None
    gpu_errors: int | None = None
    save_s: float | None = None

    def told(self) -> WorkerReport:
        """Convert to the domain's `WorkerReport`."""
        return WorkerReport(
            total=self.total, loss=self.loss, steps_per_s=self.steps_per_s, gpu_share=self.gpu_share,
            gpu_errors=self.gpu_errors, save_s=self.save_s,
        )  # fmt: skip


class ReasonBody(msgspec.Struct, frozen=True):
    """The reason why an attempt ends."""

    reason: Annotated[str, Meta(max_length=4000)] = ""
    step: Step = 0
    """Step of the last committed checkpoint."""


class FileBody(msgspec.Struct, frozen=True):
    """One file of a checkpoint that will be uploaded."""

    name: Annotated[str, Meta(max_length=128)]
    size: Annotated[int, Meta(ge=1)]
    crc32c: Crc32c
    sha256: Sha256

    def artifact(self) -> Artifact:
        """Convert to the domain's `Artifact`."""
        return Artifact(name=self.name, size=self.size, crc32c=self.crc32c, sha256=self.sha256)


Files = Annotated[tuple[FileBody, ...], Meta(min_length=1, max_length=FILES_MAX)]


class BeginCheckpointBody(msgspec.Struct, frozen=True):
    """A checkpoint that will be uploaded."""

    step: Annotated[int, Meta(ge=1)]
    files: Files


class CommitCheckpointBody(msgspec.Struct, frozen=True):
    """A checkpoint that has been uploaded."""

    previous_step: Step
    upload_id: Annotated[str, Meta(max_length=64)]
    files: Files
    loss: Annotated[float, Meta(ge=-NUMBER_MAX, le=NUMBER_MAX)] | None = None


class LogPieceBody(msgspec.Struct, frozen=True):
    """A piece of the log that will be uploaded."""

    number: Step
    size: Annotated[int, Meta(ge=1, le=PIECE_BYTES_MAX)]
    crc32c: Crc32c


class FinishBody(msgspec.Struct, frozen=True):
    """The work is done."""

    step: Step = 0
    """Last step of a training."""


T = TypeVar("T", bound=msgspec.Struct)
_FIELD = re.compile(r"`\$\.(\w+)")


def parse(schema: type[T], body: bytes) -> T:
    """Parse a request's body; an empty body counts as an empty object.

    Raises:
        InvalidRequest: The body does not fit the schema; the message names the field.
    """
    return decoding.decode(body or b"{}", schema, _refusal)


def _refusal(why: str) -> InvalidRequest:
    field = _FIELD.search(why)
    return InvalidRequest(f"The body is not valid: {why}.", param=field[1] if field else None)


def job(shown: Job, *, now: datetime | None = None) -> dict[str, Any]:
    """Build the JSON of a job for its callers: without tokens and keys, and without their digests."""
    spec, lease = shown.spec, shown.lease
    coming = forecast(shown, now=now or datetime.now(UTC))
    return {
        "object": "job",
        "job_id": shown.job_id,
        "kind": spec.kind,
        "priority": spec.priority,
        "asked_by": shown.owner.key_name or None,
        "tenant": shown.owner.tenant_name,
        "model": spec.model,
        "task": spec.task,
        "image": spec.image,
        "state": shown.state,
        "reason": shown.reason,
        "step": shown.step,
        "total": shown.total,
        "items": msgspec.to_builtins(shown.items),
        "attempt": shown.attempt,
        "preemptions": shown.preemptions,
        "retries": spec.retries,
        "lies": shown.invalid_reports,
        "checkpoint": checkpoint(shown.checkpoint) if shown.checkpoint else None,
        "checkpoint_every": spec.checkpoint_every,
        "checkpoint_minutes": spec.checkpoint_minutes,
        "dataset_uri": spec.dataset_uri,
        "output_uri": spec.output_uri,
        "parameters": _parameters(spec.parameters),
        "callback_topic": spec.callback_topic,
        "needs": {
            "gpu_types": spec.gpu_types,
            "gpu_count": spec.gpu_count,
            "gpu_memory_mib_min": spec.gpu_memory_mib_min,
            "disk_gib": spec.disk_gib,
        },
        "est_hours": spec.est_hours,
        "deadline": spec.deadline,
        "budget_usd_micros": _micros(spec.budget_usd),
        "price_usd_micros_per_hour_max": _micros(spec.max_price_per_hour),
        "provider": lease.provider if lease else None,
        "instance_id": lease.instance_id if lease else None,
        "progress": msgspec.to_builtins(shown.progress),
        "placement": _placement(shown.placement) if shown.placement else None,
        "no_placement": _no_placement(shown.no_placement) if shown.no_placement else None,
        "rents": [msgspec.to_builtins(reservation) for reservation in shown.reservations],
        "spent_usd_micros": coming.spent_usd_micros,
        "settled_usd_micros": shown.spent_usd_micros,
        "forecast": {
            "price_usd_micros_per_hour": coming.price_usd_micros_per_hour,
            "left_s": coming.left_s,
            "at_end_usd_micros": coming.at_end_usd_micros,
        },
        "stop": msgspec.to_builtins(shown.stop),
        "requested_at": shown.requested_at,
        "updated_at": shown.updated_at,
        "ended_at": shown.ended_at,
        "history": [{"at": line.at, "state": line.state, "reason": line.text} for line in shown.reasons],
    }


def listing(found: Sequence[Job]) -> dict[str, Any]:
    """Build the JSON of a list of jobs. One that cannot be shown is logged and left out, and hides no other."""
    shown = []
    for one in found:
        try:
            shown.append(job(one))
        except Exception:
            logger.exception("Job %s cannot be shown and is left out of the list", one.job_id)
    return {"object": "list", "data": shown}


def _parameters(text: msgspec.Raw) -> msgspec.Raw | str:
    """Return the parameters as they came; as a string where nesting would end the reader of the whole list."""
    try:
        decoding.check_text(bytes(text))
    except ValueError:
        return bytes(text).decode(errors="replace")
    return text


def _micros(dollars: Decimal | None) -> int | None:
    """Convert dollars to micro-dollars, rounded down so that a limit never grows.

    None also for an implausible amount; such a job was refused.
    """
    if dollars is None or not dollars.is_finite() or abs(dollars) > USD_MAX:
        return None
    return int((dollars * USD_MICROS).to_integral_value(ROUND_FLOOR))


def _placement(chosen: Placement) -> dict[str, Any]:
    """Build the JSON of a placement: where an attempt runs, and why."""
    offer = chosen.offer
    return {
        "offer_id": offer.offer_id,
        "provider": offer.provider,
        "machine_id": offer.machine_id,
        "place": offer.place,
        "gpu": offer.gpu,
        "gpu_count": offer.gpu_count,
        "spot": offer.spot,
        "price_usd_micros_per_hour": chosen.run.price_usd_micros_per_hour,
        "on_demand_usd_micros_per_hour": offer.on_demand_usd_micros_per_hour,
        "checkpoint_s": chosen.run.interval_s,
        "reason": chosen.reason,
        "candidates": [_candidate(one) for one in chosen.candidates],
    }


def _no_placement(refused: NoPlacement) -> dict[str, Any]:
    return {
        "reason": refused.reason,
        "price_usd_micros_per_hour_min": refused.price_usd_micros_per_hour_min,
        "candidates": [_candidate(one) for one in refused.candidates],
    }


def _candidate(one: Candidate) -> dict[str, Any]:
    return {
        "offer_id": one.offer_id,
        "provider": one.provider,
        "spot": one.spot,
        "all_in_usd_micros_per_hour": one.all_in_usd_micros_per_hour,
        "cost_usd_micros": one.run.cost_usd_micros if one.run else None,
        "duration_s": one.run.duration_s if one.run else None,
        "losses": one.run.losses if one.run else None,
        "rejected": one.rejected or None,
    }


def checkpoint(saved: Checkpoint) -> dict[str, Any]:
    """Build the JSON of a checkpoint, which refers to its manifest."""
    return {
        "step": saved.step,
        "attempt": saved.attempt,
        "manifest_uri": saved.manifest_uri,
        "generation": saved.generation,
    }


def assignment(work: Assignment) -> dict[str, Any]:
    """Build the JSON of an attempt's assignment, in the agent's field names."""
    fields: dict[str, Any] = msgspec.to_builtins(work, builtin_types=(msgspec.Raw,))
    return fields


def signed_request(given: SignedRequest) -> dict[str, Any]:
    """Build the JSON of a signed request."""
    return {"method": given.method, "url": given.url, "headers": dict(given.headers)}


def inputs(given: SignedRequest | TrainingInputs) -> dict[str, Any]:
    """Build the JSON of an attempt's inputs: a batch's dataset, or everything that a training starts from."""
    if isinstance(given, SignedRequest):
        return signed_request(given)
    fields: dict[str, Any] = msgspec.to_builtins(given)
    return fields


def standing(told: HeartbeatReply) -> dict[str, Any]:
    """Build the JSON of a heartbeat reply."""
    return {"state": told.state, "stop": told.stop, "checkpoint_s": told.checkpoint_s}


def log(attempt: int, text: str, *, whole: bool) -> dict[str, Any]:
    """Build the JSON of the end of an attempt's log; `whole` is false when there is more before it."""
    return {"object": "log", "attempt": attempt, "text": text, "whole": whole}
