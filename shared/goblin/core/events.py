"""All events: one frozen class per topic, and one parser for every shape in which an event arrives.

Fields are added, never renamed: a publisher deployed a year ago must still be understood.
"""

from __future__ import annotations

import base64
import binascii
import re
from collections.abc import Mapping
from datetime import datetime
from decimal import Decimal
from typing import Annotated, Any, TypeVar
from urllib.parse import unquote

import msgspec

from goblin.core import decoding
from goblin.core.errors import MalformedEvent

EVENT_BYTES_MAX = 10 * 1024 * 1024
"""Pub/Sub's own limit for one message."""
PUSH_BYTES_MAX = EVENT_BYTES_MAX * 4 // 3 + 64 * 1024
"""A push carries the message in base64, with its attributes around it."""

# `\Z` and not `$`, which would allow a newline at the end.
JOB_ID = r"^[A-Za-z0-9][A-Za-z0-9._-]{0,127}\Z"
TENANT = r"^[^\x00-\x1f\x7f]{1,128}\Z"
JobId = Annotated[str, msgspec.Meta(pattern=JOB_ID)]
GcsUri = Annotated[str, msgspec.Meta(pattern=r"^gs://[a-z0-9][a-z0-9._-]{1,220}[a-z0-9]/[^\r\n]{1,1024}\Z")]
Sha256 = Annotated[str, msgspec.Meta(pattern=r"^[0-9a-f]{64}\Z")]
Micros = Annotated[int, msgspec.Meta(ge=0)]
Gpu = Annotated[str, msgspec.Meta(pattern=r"^[A-Za-z0-9][A-Za-z0-9 ._-]{0,63}\Z")]


class JobRequested(msgspec.Struct, frozen=True, kw_only=True):
    """Topic `job-requested`: a request to run a job."""

    job_id: JobId
    """Chosen by the caller; the same id twice is the same job."""
    kind: str
    """`training`, `batch` or `inference`."""
    dataset_uri: GcsUri | None = None
    output_uri: GcsUri | None = None
    model: str | None = None
    checkpoint_every: Annotated[int, msgspec.Meta(ge=1)] = 50
    """Batch: items between checkpoints. Training saves by time, see `checkpoint_minutes`."""
    priority: str = "default"
    """`high`, `default` or `low`."""
    parameters: msgspec.Raw = msgspec.Raw(b"{}")
    """Parameters of the task: `parallel` for a batch, the task's own for training. The text of a JSON object, stored
    and handed to the agent as it came: nothing of ours reads it."""
    image: Annotated[str, msgspec.Meta(min_length=1, max_length=512)] | None = None
    """Container image whose entry point is the agent; None: our default image."""
    task: Annotated[str, msgspec.Meta(min_length=1, max_length=128)] | None = None
    """Training: name of a task in the image; None: its first."""
    gpu_types: Annotated[tuple[Gpu, ...], msgspec.Meta(max_length=16)] = ()
    """GPU models of which any will do, for example `RTX_4090`; empty: every model will do."""
    gpu_count: Annotated[int, msgspec.Meta(ge=0, le=16)] | None = None
    """None: one if `gpu_types` or `gpu_memory_mib_min` is given, else none."""
    gpu_memory_mib_min: Annotated[int, msgspec.Meta(ge=0, le=1024 * 1024)] = 0
    """Memory of each GPU."""
    disk_gib: Annotated[int, msgspec.Meta(ge=1, le=4096)] = 20
    est_hours: Annotated[float, msgspec.Meta(gt=0, le=10_000)] | None = None
    """Hours of work on any fitting GPU, without interruptions; required with a deadline."""
    deadline: datetime | None = None
    """With a time zone. A deadline that cannot be promised is refused at once."""
    budget_usd: Decimal | None = None
    """The most that the job may cost over all its attempts."""
    max_price_per_hour: Decimal | None = None
    """The highest price of an instance, in dollars per hour."""
    checkpoint_minutes: Annotated[float, msgspec.Meta(ge=0.5, le=24 * 60)] = 15
    """Training: the most minutes of work between two checkpoints; fewer where preemptions are frequent."""
    retries: Annotated[int, msgspec.Meta(ge=0, le=100)] = 4
    """Retries in a row without a new checkpoint before the job fails. A new checkpoint resets the count."""
    callback_topic: Annotated[str, msgspec.Meta(pattern=r"^[A-Za-z][A-Za-z0-9._~+%-]{2,254}\Z")] | None = None
    """Topic of this project that receives the job's changes of state too, beside `job-status-changed`."""
    tenant: Annotated[str, msgspec.Meta(pattern=TENANT)] | None = None
    """Tenant whose keys see the job. Only a publisher of the topic may name it; None: the job is the operator's."""

    def __post_init__(self) -> None:
        """Check what no type says. Raises `ValueError`, which a decoder turns into its own error."""
        if not bytes(self.parameters).lstrip().startswith(b"{"):
            raise ValueError("Expected `object` - at `$.parameters`")


class JobStatusChanged(msgspec.Struct, frozen=True, kw_only=True):
    """Topic `job-status-changed`: a job is in another state, or on another attempt. For apps; sent at least once."""

    job_id: JobId
    kind: str
    state: str
    reason: str
    at: datetime
    seq: Annotated[int, msgspec.Meta(ge=1)]
    """Counts this job's announcements; ignore a lower number that arrives later."""
    attempt: int
    step: int
    total: int | None = None
    spent_usd_micros: int = 0
    output_uri: str | None = None
    completed: int | None = None
    """Batch: saved items with an answer; `total` counts all."""
    failed: int | None = None
    """Batch: saved items with an error."""


class CheckpointSaved(msgspec.Struct, frozen=True, kw_only=True):
    """Topic `checkpoint-saved`: an attempt wrote a manifest. The checkpoint is complete if it verifies."""

    job_id: JobId
    attempt: Annotated[int, msgspec.Meta(ge=1)]
    step: Annotated[int, msgspec.Meta(ge=0)]
    manifest_uri: GcsUri
    manifest_generation: Annotated[int, msgspec.Meta(ge=1)] | None = None


class ModelPromoted(msgspec.Struct, frozen=True, kw_only=True):
    """Topic `model-promoted`: the production pointer of a model moved."""

    org: str
    model: str
    version: str
    artifact_uri: GcsUri
    sha256: Sha256
    seq: Annotated[int, msgspec.Meta(ge=1)]
    """Counts this model's promotions; ignore a lower number that arrives later."""
    previous: str | None = None
    event_id: str | None = None
    actor: str | None = None


class BudgetExceeded(msgspec.Struct, frozen=True, kw_only=True):
    """Topic `budget-exceeded`: an account passed a threshold of its budget."""

    account: str
    """`total` or a provider's name."""
    window: str
    """The month or day, for example `2026-11` or `2026-11-25`."""
    spent_usd_micros: Micros
    limit_usd_micros: Micros
    reserved_usd_micros: Micros = 0
    threshold: Annotated[float, msgspec.Meta(gt=0)] = 1.0
    action: str = "freeze"
    """Action at the limit: `alert`, `freeze`, `stop_jobs` or `scale_to_zero`; our ledger sends the budget's own."""


class CloudBudget(msgspec.Struct, frozen=True, kw_only=True, rename="camel"):
    """Cloud Billing's own notification, which arrives on `budget-exceeded` too; attributes name the budget.

    Source: cloud.google.com/billing/docs/how-to/budgets-programmatic-notifications, schema 1.0, read 2026-11-23.
    """

    budget_display_name: str
    cost_amount: Decimal
    cost_interval_start: datetime
    budget_amount: Decimal
    currency_code: str
    budget_amount_type: str = ""
    alert_threshold_exceeded: float | None = None
    """A share, for example 0.5; absent in the notifications that are sent regardless of thresholds."""
    forecast_threshold_exceeded: float | None = None


REASON = "goblin-reason"
"""Attribute of a dead letter that says why the event was refused."""
FIRST_AT = "goblin-first-at"
"""Attribute of a replayed event: when it was published for the first time."""
DELIVERIES = "goblin-deliveries"
"""Attribute of a replayed event: deliveries that failed before the replay."""
REPLAYS = "goblin-replays"
"""Attribute of a replayed event: how often it was replayed."""
SOURCE = "CloudPubSubDeadLetterSource"
"""Prefix of the attributes that Pub/Sub adds to a dead letter: its subscription, its delivery count."""

TOPICS: Mapping[str, type[msgspec.Struct]] = {
    "job-requested": JobRequested,
    "checkpoint-saved": CheckpointSaved,
    "model-promoted": ModelPromoted,
    "budget-exceeded": BudgetExceeded,
}
"""Topics that our functions subscribe to."""

T = TypeVar("T", bound=msgspec.Struct)


class Event(msgspec.Struct, frozen=True, kw_only=True):
    """One delivery of one message, in whatever shape it arrived."""

    event_id: str
    """The message id: the same for each delivery of one message, different if a fact is published twice."""
    data: bytes
    attributes: dict[str, str] = msgspec.field(default_factory=dict)
    source: str = ""
    """Full name of the topic or subscription, where the delivery has it."""
    type: str = "google.cloud.pubsub.topic.v1.messagePublished"
    published_at: datetime | None = None
    ordering_key: str | None = None
    delivery_attempt: int | None = None
    """Counted from 1, where the subscription has a dead letter policy."""


def decode(schema: type[T], data: bytes) -> T:
    """Decode an event's payload strictly, except that unknown fields pass: a newer publisher may send them.

    Raises:
        MalformedEvent: The data is not JSON, or a field is missing, of another type or out of range. The message
            names the field.
    """
    return decoding.decode(data, schema, lambda why: MalformedEvent(f"Malformed {schema.__name__} event: {why}."))


def encode(event: msgspec.Struct) -> bytes:
    """Encode an event's payload as JSON."""
    return msgspec.json.encode(event)


class _Message(msgspec.Struct, rename="camel"):
    """Pub/Sub's message in JSON. Google sends camel and snake case side by side; camel case is documented."""

    data: str = ""
    attributes: dict[str, str] | None = None
    message_id: str = ""
    publish_time: datetime | None = None
    ordering_key: str | None = None


class _Push(msgspec.Struct, rename="camel"):
    message: _Message
    subscription: str = ""
    delivery_attempt: int | None = None


class _CloudEvent(msgspec.Struct):
    """CloudEvents 1.0, structured mode."""

    id: str
    source: str
    type: str
    specversion: str
    time: datetime | None = None
    data: msgspec.Raw = msgspec.Raw(b"null")
    data_base64: str | None = None


def parse_event(headers: Mapping[str, str], body: bytes) -> Event:
    """Parse an event in any of the shapes in which Google delivers a message.

    Binary CloudEvents (Eventarc), structured CloudEvents, a raw push, a raw push of attributes only, a raw push whose
    attributes are a CloudEvent (`ce-*`, Eventarc's binding mode), and an unwrapped push with or without metadata.
    Source: functions-framework 3.10.2 and Pub/Sub's push documentation, tried 2026-11-23.

    Args:
        headers: Request headers; names are compared without case.
        body: The whole request body.

    Raises:
        MalformedEvent: The shape is unknown, or the bytes do not match it.
    """
    if len(body) > PUSH_BYTES_MAX:
        raise MalformedEvent(f"The event has {len(body)} bytes; the limit is {PUSH_BYTES_MAX}.")
    known = {name.lower(): value for name, value in headers.items()}
    content_type = known.get("content-type", "").split(";")[0].strip().lower()
    if content_type == "application/cloudevents+json":
        return _structured(body)
    if "ce-id" in known and "ce-type" in known:
        return _binary(known, content_type, body)
    if "x-goog-pubsub-message-id" in known:
        return _unwrapped(known, body)
    if content_type in ("application/json", ""):
        push = _try(_Push, body)
        if push is not None:
            return _from_push(push, {})
    raise MalformedEvent(f"The body is not an event in a known shape; its content type is {content_type or 'none'!r}.")


def _try(schema: type[T], body: bytes) -> T | None:
    try:
        return decoding.decode(body, schema, MalformedEvent)
    except MalformedEvent:
        return None


def _unbase64(text: str, what: str) -> bytes:
    try:
        return base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError) as error:
        raise MalformedEvent(f"The field {what} is not base64: {error}") from error


def _from_push(push: _Push, context: Mapping[str, Any]) -> Event:
    """Turn a push body into an event. `context` holds the fields that an envelope around it already gave."""
    message = push.message
    attributes = dict(message.attributes or {})
    fields: dict[str, Any] = {
        "event_id": message.message_id,
        "source": push.subscription,
        "published_at": message.publish_time,
        **context,
    }
    if "ce-id" in attributes and "ce-type" in attributes:
        # Eventarc's binding mode: the event travels in the attributes because headers could not hold it.
        fields |= {
            "event_id": attributes["ce-id"],
            "type": attributes["ce-type"],
            "source": attributes.get("ce-source", push.subscription),
        }
        attributes = {name: value for name, value in attributes.items() if not name.startswith("ce-")}
    if not fields["event_id"]:
        raise MalformedEvent("The message has no messageId.")
    return Event(
        data=_unbase64(message.data, "message.data"),
        attributes=attributes,
        ordering_key=message.ordering_key or None,
        delivery_attempt=push.delivery_attempt,
        **fields,
    )


def _binary(headers: Mapping[str, str], content_type: str, body: bytes) -> Event:
    context: dict[str, Any] = {
        # Header values are percent-encoded outside ASCII; see the CloudEvents HTTP binding 1.0.2, 3.1.3.2.
        "event_id": unquote(headers["ce-id"]),
        "type": unquote(headers["ce-type"]),
        "source": unquote(headers.get("ce-source", "")),
    }
    if "ce-time" in headers:
        context["published_at"] = _instant(headers["ce-time"])
    push = _try(_Push, body) if content_type in ("application/json", "") else None
    if push is not None:
        return _from_push(push, context)
    extensions = {
        name.removeprefix("ce-"): unquote(value)
        for name, value in headers.items()
        if name.startswith("ce-") and name not in ("ce-id", "ce-type", "ce-source", "ce-time", "ce-specversion")
    }
    return Event(data=body, attributes=extensions, **context)


def _structured(body: bytes) -> Event:
    event = decoding.decode(body, _CloudEvent, _malformed)
    context: dict[str, Any] = {
        "event_id": event.id,
        "type": event.type,
        "source": event.source,
        "published_at": event.time,
    }
    if event.data_base64 is not None:
        return Event(data=_unbase64(event.data_base64, "data_base64"), **context)
    if (push := _try(_Push, bytes(event.data))) is not None:
        return _from_push(push, context)
    return Event(data=bytes(event.data), **context)


def _malformed(why: str) -> MalformedEvent:
    return MalformedEvent(f"The structured CloudEvent is malformed: {why}.")


def _unwrapped(headers: Mapping[str, str], body: bytes) -> Event:
    """Parse an unwrapped push: with `no_wrapper` and `write_metadata`, attributes are headers among all others."""
    prefix = "x-goog-pubsub-"
    return Event(
        event_id=headers[f"{prefix}message-id"],
        data=body,
        attributes={
            name: value for name, value in headers.items() if not name.startswith(prefix) and name not in _TRANSPORT
        },
        source=headers.get(f"{prefix}subscription-name", ""),
        published_at=_instant(headers[f"{prefix}publish-time"]) if f"{prefix}publish-time" in headers else None,
        ordering_key=headers.get(f"{prefix}ordering-key"),
        delivery_attempt=_count(headers.get(f"{prefix}delivery-attempt", "")),
    )


def _count(text: str) -> int | None:
    return int(text) if re.fullmatch(r"[0-9]{1,9}", text) else None


_TRANSPORT = frozenset(
    {
        "accept", "accept-encoding", "authorization", "connection", "content-encoding", "content-length",
        "content-type", "forwarded", "from", "function-execution-id", "host", "traceparent", "transfer-encoding",
        "user-agent", "via", "x-cloud-trace-context", "x-forwarded-for", "x-forwarded-proto",
    }
)  # fmt: skip


def _instant(text: str) -> datetime:
    try:
        found = msgspec.convert(text, datetime)
        decoding.check_values(found)
        return found
    except ValueError as error:
        raise MalformedEvent(f"The event's time is malformed: {text!r}.") from error
