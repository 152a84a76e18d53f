"""The raw protobuf classes of Pub/Sub: proto-plus wrappers cost ten times as much."""

from datetime import UTC, datetime
from typing import Any, TypeAlias

from google.protobuf import duration_pb2, empty_pb2, timestamp_pb2
from google.pubsub_v1.types import pubsub

Raw: TypeAlias = Any
"""A protobuf message; the generated descriptors carry no static types."""

Topic: Any = pubsub.Topic.pb()
Subscription: Any = pubsub.Subscription.pb()
Snapshot: Any = pubsub.Snapshot.pb()
Empty: Any = empty_pb2.Empty
PubsubMessage: Any = pubsub.PubsubMessage.pb()
ReceivedMessage: Any = pubsub.ReceivedMessage.pb()

MICROS = 1_000_000


def raw(name: str) -> Any:
    """Return the raw class of a request or an answer, by its name in `google.pubsub.v1`."""
    return getattr(pubsub, name).pb()


def micros(instant: datetime) -> int:
    """Return the microseconds since 1970 of an aware instant."""
    return round(instant.timestamp() * MICROS)


def timestamp(at_us: int) -> timestamp_pb2.Timestamp:
    """Build a protobuf Timestamp."""
    seconds, rest = divmod(at_us, MICROS)
    return timestamp_pb2.Timestamp(seconds=seconds, nanos=rest * 1000)


def timestamp_us(value: Raw) -> int:
    """Return the microseconds since 1970 of a Timestamp, truncated."""
    return int(value.seconds) * MICROS + int(value.nanos) // 1000


def duration(seconds: int) -> duration_pb2.Duration:
    """Build a protobuf Duration."""
    return duration_pb2.Duration(seconds=seconds)


def duration_us(value: Raw) -> int:
    """Return the microseconds of a protobuf Duration."""
    return int(value.seconds) * MICROS + int(value.nanos) // 1000


def rfc3339(at_us: int) -> str:
    """Format an instant as `2026-11-23T08:00:00.123Z`, with milliseconds as Pub/Sub prints them."""
    instant = datetime.fromtimestamp(at_us // MICROS, UTC)
    return f"{instant:%Y-%m-%dT%H:%M:%S}.{at_us % MICROS // 1000:03d}Z"
